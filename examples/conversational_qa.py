"""Questions about your documents, with follow-ups, in the terminal; an empty line ends it.

python examples/conversational_qa.py
"""

import os

from langserve import RemoteRunnable

rag = RemoteRunnable(os.environ.get("RAG_URL", "http://127.0.0.1:8001") + "/rag")
history: list[tuple[str, str]] = []
while True:
    try:
        question = input("问：").strip()
    except EOFError:
        break
    if not question:
        break
    answer, citations = "", []
    print("答：", end="")
    for chunk in rag.stream({"question": question, "chat_history": history}):
        print(chunk.get("answer", ""), end="", flush=True)
        answer += chunk.get("answer", "")
        citations += chunk.get("citations", [])
    print()
    for c in citations:
        print(f"  [{c['index']}] {c['filename']} 第 {c['page']} 页：{c['quote']}")
    history.append((question, answer))
