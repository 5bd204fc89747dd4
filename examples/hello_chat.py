"""One question to the model service, through LangChain.   python examples/hello_chat.py"""

import os

from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    base_url=os.environ.get("MODEL_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("MODEL_API_KEY", "none"),
    model=os.environ.get("MODEL_NAME", "embedded"),
    temperature=0,
    max_tokens=64,
)
print(model.invoke("你好，请用一句话介绍你自己。").text)
