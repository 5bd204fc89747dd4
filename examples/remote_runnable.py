"""The chain as if it were local: invoke, stream, batch.   python examples/remote_runnable.py"""

import os

from langserve import RemoteRunnable

rag = RemoteRunnable(os.environ.get("RAG_URL", "http://127.0.0.1:8001") + "/rag")

result = rag.invoke({"question": "租约的软限制是多久？"})
print(result["answer"], [(c["filename"], c["page"]) for c in result["citations"]])

follow_up = {"question": "那它的硬限制呢？", "chat_history": [("租约的软限制是多久？", result["answer"])]}
for chunk in rag.stream(follow_up, config={"configurable": {"k": 3, "temperature": 0.0}}):
    print(chunk.get("answer", ""), end="", flush=True)
print()

for answer in rag.batch([{"question": "How long does the battery last?"}, {"question": "Who won the 1998 World Cup?"}]):
    print(answer["answerable"], answer["answer"])
