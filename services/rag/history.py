"""What was said before the question, in the forms in which clients send it, as turns. Pure.

Taken are ``[human, ai]`` pairs; messages as the OpenAI API writes them (``{"role": "user", "content": …}``); LangChain's
messages, as objects, as ``("human", text)`` and in both of its serialized forms, which RemoteRunnable sends.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.messages import BaseMessage

Turn = tuple[str, str]

# Older turns than these have no bearing on a question any more, and a turn's text beyond this is not read.
MAX_TURNS = 100
MAX_TURN_CHARACTERS = 8000

_ROLES = {
    **dict.fromkeys(("user", "human", "HumanMessage", "HumanMessageChunk"), "human"),
    **dict.fromkeys(("assistant", "ai", "AIMessage", "AIMessageChunk"), "ai"),
    # Orders to a model and what tools returned: none of it was said in the conversation.
    **dict.fromkeys(
        ("system", "developer", "tool", "function", "SystemMessage", "SystemMessageChunk", "ToolMessage", "ToolMessageChunk",
         "FunctionMessage", "FunctionMessageChunk"), ""
    ),
}  # fmt: skip
_FORMS = 'pairs [human, ai], or messages {"role": "user" or "assistant", "content": text}'


def turns(value: Any) -> list[Turn]:
    """(human, ai) of each turn, oldest first; "" where one side said nothing. The newest :data:`MAX_TURNS` of them.

    Raises:
        ValueError: with the place of what is no turn.
    """
    if value is None:
        return []
    if isinstance(value, str | bytes | dict) or not isinstance(value, Sequence):
        raise ValueError(f"must be a list of {_FORMS}")
    if all(_is_pair(item) for item in value) and not all(item[0] in _ROLES for item in value):
        found = [(item[0], item[1]) for item in value]
    else:
        found = list(_paired(said(item, at) for at, item in enumerate(value)))
    clean = [(_clean(human), _clean(ai)) for human, ai in found[-MAX_TURNS:]]
    return [turn for turn in clean if any(turn)]


def said(item: Any, at: int) -> tuple[str, str]:
    """(role, text) of the message ``item``, which is number ``at`` of its list; the role is "human", "ai" or "".

    Raises:
        ValueError: it is no message.
    """
    if _is_pair(item) and item[0] in _ROLES:
        return _ROLES[item[0]], item[1]
    if isinstance(item, BaseMessage):
        item = {"type": item.type, "content": item.text}
    if not isinstance(item, dict):
        raise ValueError(f"number {at} (from 0) is {_shown(item)}; taken are {_FORMS}")
    role: Any = item.get("role") or item.get("type")
    if (
        role == "constructor"
        and isinstance(item.get("kwargs"), dict)
        and isinstance(item.get("id"), list)
        and item["id"]
    ):
        role, item = item["id"][-1], item["kwargs"]
    if role == "chat":  # LangChain's ChatMessage, whose role is any word
        role = item.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise ValueError(f"number {at} (from 0) has the role {_shown(role)}; taken are user and assistant")
    return _ROLES[role], _text(item.get("content"), at)


def _is_pair(item: Any) -> bool:
    return isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(text, str) for text in item)


def _text(content: Any, at: int) -> str:
    if content is None:  # an assistant's message that only called tools
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, str | dict) for part in content):
        parts = (part if isinstance(part, str) else part.get("text") for part in content)
        return "".join(part for part in parts if isinstance(part, str))
    raise ValueError(f"number {at} (from 0) has the content {_shown(content)}; it must be text")


def _paired(messages: Iterable[tuple[str, str]]) -> Iterable[Turn]:
    human: str | None = None
    ai = ""
    for role, text in messages:
        if role == "human":
            if human is not None or ai:
                yield human or "", ai
            human, ai = text, ""
        elif role == "ai" and text:
            ai = f"{ai}\n{text}" if ai else text
    if human is not None or ai:
        yield human or "", ai


def _clean(text: str) -> str:
    return text[:MAX_TURN_CHARACTERS].encode("utf-8", "replace").decode().strip()


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
