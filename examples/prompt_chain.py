"""A prompt with a blank, a model and a parser, joined by |.   python examples/prompt_chain.py 程序员"""

import os
import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

prompt = ChatPromptTemplate.from_template("告诉我一个关于{joke_target}的笑话")
model = ChatOpenAI(
    base_url=os.environ.get("MODEL_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("MODEL_API_KEY", "none"),
    model=os.environ.get("MODEL_NAME", "embedded"),
    max_tokens=128,
)
chain = prompt | model | StrOutputParser()
for text in chain.stream({"joke_target": sys.argv[1] if len(sys.argv) > 1 else "程序员"}):
    print(text, end="", flush=True)
print()
