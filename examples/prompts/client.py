"""What every script of the prompt course uses: a client, and `ask`.

`MODEL_URL`, `MODEL_NAME` and `MODEL_API_KEY` say which server to ask; without them it is docduet's model service on this
machine, and the first model that it lists. Any other server that speaks OpenAI's chat completions will do.
"""

import json
import os
from functools import cache
from typing import Any, overload

from openai import OpenAI


@cache
def client() -> OpenAI:
    return OpenAI(
        base_url=os.environ.get("MODEL_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("MODEL_API_KEY", "none"),
    )


@cache
def model() -> str:
    return os.environ.get("MODEL_NAME") or client().models.list().data[0].id


@overload
def ask(prompt: str, schema: None = None, max_tokens: int = ...) -> str: ...
@overload
def ask(prompt: str, schema: dict[str, Any], max_tokens: int = ...) -> dict[str, Any]: ...
def ask(prompt: str, schema: dict[str, Any] | None = None, max_tokens: int = 400) -> Any:
    """The answer to one prompt, without chance (temperature 0): a text, or with `schema` an object that fits it.

    With a schema the server lets the model write nothing else; only an object that was cut off at `max_tokens` is none,
    and raises ValueError.
    """
    constraint: dict[str, Any] = {"response_format": _format(schema)} if schema else {}
    response = client().chat.completions.create(
        model=model(),
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=max_tokens,
        **constraint,
    )
    choice = response.choices[0]
    if schema and choice.finish_reason != "stop":
        raise ValueError(f"the answer ended with {choice.finish_reason!r} after {max_tokens} tokens; give more of them")
    text = (choice.message.content or "").strip()
    return json.loads(text) if schema else text


def _format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def fields(**properties: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object with exactly these properties, in this order."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def one_of(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


def text(at_most: int, at_least: int = 1) -> dict[str, Any]:
    """A string of so many characters."""
    return {"type": "string", "minLength": at_least, "maxLength": at_most}


def in_chinese(answer: str) -> bool:
    """Whether Chinese characters are most of a text: more than its letters of any other script."""
    letters = [character for character in answer if character.isalpha()]
    return 2 * sum("\u4e00" <= letter <= "\u9fff" for letter in letters) > len(letters)
