"""A chat in the terminal that remembers; an empty line ends it.   python examples/multi_turn_chat.py"""

import os

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    base_url=os.environ.get("MODEL_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("MODEL_API_KEY", "none"),
    model=os.environ.get("MODEL_NAME", "embedded"),
    max_tokens=256,
)
history: list[BaseMessage] = [SystemMessage("你是一个乐于助人的助手。")]
while True:
    try:
        question = input("你：").strip()
    except EOFError:
        break
    if not question:
        break
    history.append(HumanMessage(question))
    print("助手：", end="")
    answer = ""
    for chunk in model.stream(history):
        print(chunk.text, end="", flush=True)
        answer += chunk.text
    print()
    history.append(AIMessage(answer))
