"""The messages of a chat request: OpenAI's forms, old and new, read into one."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from services.model.errors import UnsupportedParameter
from services.model.parameters import Text, refuse, shown

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",  # the older form
}
_KEYS = {"role", "content", "name"}
_MORE_KEYS = {
    "assistant": {"tool_calls", "function_call", "reasoning_content", "reasoning"},
    "tool": {"tool_call_id"},
}


@dataclass(frozen=True)
class ToolCall:
    """`arguments`: JSON text, as it was sent."""

    id: str
    name: str
    arguments: str

    def parsed(self) -> Any:
        """The arguments as a value; text that is no JSON (an answer that was cut short) stays text."""
        try:
            return json.loads(self.arguments)
        except (ValueError, RecursionError):
            return self.arguments


@dataclass(frozen=True)
class Message:
    """One turn. `name`: of the function whose result a `tool` message is, where the client says it."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    name: str = ""
    tool_call_id: str = ""


def new_call_id() -> str:
    return "call_" + secrets.token_hex(12)


def parse_messages(name: str, value: Any) -> list[Message]:
    """Raises InvalidRequest or UnsupportedParameter that names the place: `messages[2].content`."""
    if not isinstance(value, list):
        refuse(name, f"must be a list of messages, not {shown(value)}")
    if not value:
        refuse(name, "must hold at least one message")
    return _in_order([_message(f"{name}[{index}]", item) for index, item in enumerate(value)])


def _in_order(messages: list[Message]) -> list[Message]:
    """Results in the order of their calls: templates write them one after the other, without ids."""
    ordered: list[Message] = []
    calls: list[str] = []
    for index, message in enumerate(messages):
        if message.role != "tool":
            calls = [call.id for call in message.tool_calls]
        elif messages[index - 1].role != "tool" or not index:
            results = list(takewhile(lambda item: item.role == "tool", messages[index:]))
            ordered += sorted(
                results, key=lambda item: calls.index(item.tool_call_id) if item.tool_call_id in calls else len(calls)
            )
            continue
        else:
            continue
        ordered.append(message)
    return ordered


def _message(name: str, value: Any) -> Message:
    if not isinstance(value, dict):
        refuse(name, f"must be an object with role and content, not {shown(value)}")
    given = value.get("role")
    if not isinstance(given, str) or given not in ROLES:
        refuse(f"{name}.role", f"must be one of {', '.join(ROLES)}, not {shown(given)}")
    role = ROLES[given]
    for key, item in value.items():
        if key not in _KEYS | _MORE_KEYS.get(role, set()) and item not in (None, []):
            raise UnsupportedParameter(f"{name}.{key} is not supported by this service", param=f"{name}.{key}")
    calls = _calls(name, value) if role == "assistant" else ()
    reasoning = _given(value, "reasoning_content", _given(value, "reasoning", ""))
    return Message(
        role,
        _content(f"{name}.content", value.get("content"), missing=bool(calls)),
        calls,
        Text().check(f"{name}.reasoning_content", reasoning),
        Text().check(f"{name}.name", _given(value, "name", "")),
        _tool_call_id(name, given, value),
    )


def _given(value: dict[str, Any], key: str, missing: Any) -> Any:
    """null is not given, as everywhere; other empty values (false, 0) are what they are."""
    found = value.get(key)
    return missing if found is None else found


def _calls(name: str, value: dict[str, Any]) -> tuple[ToolCall, ...]:
    calls = _given(value, "tool_calls", [])
    if not isinstance(calls, list):
        refuse(f"{name}.tool_calls", f"must be a list, not {shown(calls)}")
    read = [_call(f"{name}.tool_calls[{index}]", item) for index, item in enumerate(calls)]
    older = value.get("function_call")
    if older is not None:
        if read:
            refuse(f"{name}.function_call", "and tool_calls mean the same; give one of them")
        read.append(_function(f"{name}.function_call", older, new_call_id()))
    return tuple(read)


def _call(name: str, value: Any) -> ToolCall:
    if not isinstance(value, dict):
        refuse(name, f"must be an object with id, type and function, not {shown(value)}")
    if value.get("type", "function") != "function":
        raise UnsupportedParameter(
            f"{name}.type {shown(value['type'])} is not supported: only function is", param=f"{name}.type"
        )
    return _function(f"{name}.function", value.get("function"), Text().check(f"{name}.id", value.get("id")))


def _function(name: str, value: Any, call_id: str) -> ToolCall:
    if not isinstance(value, dict):
        refuse(name, f"must be an object with name and arguments, not {shown(value)}")
    return ToolCall(
        call_id,
        Text().check(f"{name}.name", value.get("name")),
        Text().check(f"{name}.arguments", value.get("arguments", "{}")),
    )


def _tool_call_id(name: str, role: str, value: dict[str, Any]) -> str:
    given = _given(value, "tool_call_id", "")
    if role == "tool" and not given:
        refuse(f"{name}.tool_call_id", "is missing: it says which call this is the result of")
    if role == "function" and not value.get("name"):
        refuse(f"{name}.name", "is missing: it says which function this is the result of")
    return Text().check(f"{name}.tool_call_id", given)


def _content(name: str, value: Any, *, missing: bool) -> str:
    if isinstance(value, list):
        if not value:
            refuse(name, "is a list without parts")
        value = "".join(_part(f"{name}[{index}]", part) for index, part in enumerate(value))
    if value is None:
        if missing:
            return ""
        refuse(name, "is missing")
    if not isinstance(value, str):
        refuse(name, f"must be a string or a list of text parts, not {shown(value)}")
    return str(value)


def _part(name: str, part: Any) -> str:
    if not isinstance(part, dict):
        refuse(name, f"must be an object with type and text, not {shown(part)}")
    if part.get("type") != "text":
        raise UnsupportedParameter(
            f"{name}.type {shown(part.get('type'))} is not supported: only text is", param=f"{name}.type"
        )
    for key in part:
        if key not in ("type", "text"):
            raise UnsupportedParameter(f"{name}.{key} is not supported by this service", param=f"{name}.{key}")
    return Text().check(f"{name}.text", part.get("text"))


_TEXT = {"type": "string"}
_SOME_TEXT = {"type": "string"}
_FUNCTION_SCHEMA = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": _TEXT, "arguments": {"type": "string", "description": "JSON."}},
}
_CALL_SCHEMA = {
    "type": "object",
    "required": ["id", "function"],
    "properties": {"id": _TEXT, "type": {"const": "function"}, "function": _FUNCTION_SCHEMA},
}
_PARTS_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["type", "text"],
        "properties": {"type": {"const": "text"}, "text": _TEXT},
        "additionalProperties": False,
    },
}


def _message_schema(title: str, roles: list[str], required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "title": title,
        "type": "object",
        "required": ["role", *required],
        "properties": {"role": {"type": "string", "enum": roles}, **properties},
        # What other servers put into their answers, and clients send back: `refusal: null`, `annotations: []`.
        "additionalProperties": {"enum": [None, []]},
    }


_NAME_SCHEMA = {"type": ["string", "null"], "description": "Accepted, not shown to the model."}
_RESULT_SCHEMA = {"oneOf": [_TEXT, _PARTS_SCHEMA], "description": "What the function returned."}
MESSAGES_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "description": "The conversation so far.",
    "items": {
        "oneOf": [
            _message_schema(
                "Instructions or question",
                ["system", "developer", "user"],
                ["content"],
                content={"oneOf": [_SOME_TEXT, _PARTS_SCHEMA], "description": "Text, or a list of text parts."},
                name=_NAME_SCHEMA,
            ),
            _message_schema(
                "Answer",
                ["assistant"],
                [],
                content={
                    "oneOf": [_TEXT, _PARTS_SCHEMA, {"type": "null"}],
                    "description": "Text, or a list of text parts; null only beside a call.",
                },
                name=_NAME_SCHEMA,
                reasoning_content={"type": ["string", "null"], "description": "What it thought."},
                reasoning={"type": ["string", "null"], "description": "The same, under its other name."},
                tool_calls={"type": ["array", "null"], "items": _CALL_SCHEMA},
                function_call={
                    "oneOf": [_FUNCTION_SCHEMA, {"type": "null"}],
                    "description": "Older form of tool_calls.",
                },
            ),
            _message_schema(
                "Result of a tool",
                ["tool"],
                ["content", "tool_call_id"],
                content=_RESULT_SCHEMA,
                tool_call_id={**_SOME_TEXT, "description": "The id of the call that this answers."},
                name={"type": ["string", "null"], "description": "Of the function."},
            ),
            _message_schema(
                "Result of a function (older form)",
                ["function"],
                ["content", "name"],
                content=_RESULT_SCHEMA,
                name={**_SOME_TEXT, "description": "Of the function."},
                tool_call_id={"type": ["string", "null"]},
            ),
        ]
    },
}
