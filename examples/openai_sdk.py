"""The model service through OpenAI's own SDK.   python examples/openai_sdk.py"""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("MODEL_URL", "http://127.0.0.1:8000/v1"), api_key=os.environ.get("MODEL_API_KEY", "none")
)
model = client.models.list().data[0].id
stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Write a haiku about a library."}],
    max_tokens=64,
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    elif chunk.usage:
        print(f"\n{chunk.usage.prompt_tokens} + {chunk.usage.completion_tokens} tokens")
