"""The OpenAI request bodies: one table says which parameters there are, what they may be, and what the API page shows.

What is not supported is refused by name. Values that ask for nothing (`n: 1`, `tools: []`, null) are accepted, because
clients send them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from services.model.chat import Message
from services.model.engine.base import Sampling
from services.model.errors import InvalidRequest, UnsupportedParameter
from services.model.parameters import Flag, Number, Parameter, Structure, Text, clipped, refuse, shown

MAX_STOPS = 4
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class ChatRequest:
    model: str | None
    messages: list[Message]
    options: Options


@dataclass(frozen=True)
class CompletionRequest:
    model: str | None
    prompt: str | list[int]
    options: Options


@dataclass(frozen=True)
class TokenizeRequest:
    """Either `prompt` or `messages`."""

    model: str | None
    prompt: str | None
    messages: list[Message] | None
    add_generation_prompt: bool
    add_special_tokens: bool


@dataclass(frozen=True)
class Options:
    """What chat and text completions share. `max_tokens` None: not given, so `default_max_tokens`, or what the context
    leaves, whichever is less."""

    sampling: Sampling
    max_tokens: int | None
    default_max_tokens: int | None
    max_tokens_param: str  # under which name the client gave it
    stops: list[str]
    stream: bool
    include_usage: bool


def _stops(name: str, value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        refuse(name, f"must be a string or a list of strings, not {shown(value)}")
    if len(stops) > MAX_STOPS:
        refuse(name, f"may hold at most {MAX_STOPS} strings, not {len(stops)}")
    if not all(stops):
        refuse(name, "may not hold an empty string")
    return list(stops)


def _stream_options(name: str, value: Any) -> bool:
    if not isinstance(value, dict):
        refuse(name, f"must be an object, not {shown(value)}")
    for key, item in value.items():
        if key == "include_usage" or (key == "include_obfuscation" and item is False):
            Flag().check(f"{name}.{key}", item)
        elif item is not None:
            raise UnsupportedParameter(f"{name}.{key} is not supported by this service", param=f"{name}.{key}")
    return bool(value.get("include_usage"))


def _messages(name: str, value: Any) -> list[Message]:
    if not isinstance(value, list):
        refuse(name, f"must be a list of messages, not {shown(value)}")
    if not value:
        refuse(name, "must hold at least one message")
    return [_message(f"{name}[{index}]", item) for index, item in enumerate(value)]


def _message(name: str, value: Any) -> Message:
    if not isinstance(value, dict):
        refuse(name, f"must be an object with role and content, not {shown(value)}")
    role = value.get("role")
    if role in ("tool", "function"):
        raise UnsupportedParameter(
            f"{name}.role {role!r} is not supported in this version: it has no tools", param=f"{name}.role"
        )
    if not isinstance(role, str) or role not in ROLES:
        refuse(f"{name}.role", f"must be one of {', '.join(ROLES)}, not {shown(role)}")
    for key, item in value.items():
        if key not in ("role", "content") and item not in (None, []):
            raise UnsupportedParameter(f"{name}.{key} is not supported by this service", param=f"{name}.{key}")
    return Message(ROLES[role], _content(f"{name}.content", value.get("content")))


def _content(name: str, value: Any) -> str:
    if isinstance(value, list):
        value = "".join(_part(f"{name}[{index}]", part) for index, part in enumerate(value))
    if value is None:
        refuse(name, "is missing")
    if not isinstance(value, str):
        refuse(name, f"must be a string or a list of text parts, not {shown(value)}")
    if not value:
        refuse(name, "is empty")
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


def _prompt(name: str, value: Any) -> str | list[int]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]  # a batch of one
    if isinstance(value, list) and any(isinstance(item, str | list) for item in value):
        raise UnsupportedParameter(
            f"{name}: several prompts in one request are not supported; send one each", param=name
        )
    if isinstance(value, list):
        if not all(type(item) is int and item >= 0 for item in value):
            refuse(name, "must be a string or a list of token ids (integers, not negative)")
    elif not isinstance(value, str):
        refuse(name, f"must be a string or a list of token ids, not {shown(value)}")
    if not value:
        refuse(name, "is empty")
    return value  # type: ignore[no-any-return]


# --- the tables -------------------------------------------------------------------------------------------------------

_MESSAGES_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "description": "The conversation so far.",
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {
            "role": {"type": "string", "enum": list(ROLES)},
            "content": {
                "description": "Text, or a list of text parts.",
                "oneOf": [
                    {"type": "string"},
                    {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                        },
                    },
                ],
            },
        },
    },
}
_PROMPT_SCHEMA = {
    "description": "Text, or token ids.",
    "oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}],
}
_STOP_SCHEMA = {
    "description": f"Up to {MAX_STOPS} strings that end the answer; they are not part of it.",
    "oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": MAX_STOPS}],
}
_STREAM_OPTIONS_SCHEMA = {
    "type": "object",
    "properties": {"include_usage": {"type": "boolean", "description": "Send usage in an event before the end mark."}},
}
_MODEL = Text("A name from /v1/models; may be left out.")
_COMMON: dict[str, Parameter] = {
    "model": _MODEL,
    "stream": Flag("Send the answer as server-sent events while it is made."),
    "stream_options": Structure(_stream_options, _STREAM_OPTIONS_SCHEMA),
    "temperature": Number(0, 2, description="0: always the most probable token. Default 1."),
    "top_p": Number(0, 1, above_low=True, description="Default 1."),
    "top_k": Number(-1, 2**31 - 1, integer=True, description="Not OpenAI's: the k most probable tokens. 0 or -1: all."),
    "min_p": Number(
        0, 1, description="Not OpenAI's: least probability, relative to the most probable token. Default 0."
    ),
    "seed": Number(
        -(2**63), 2**63 - 1, integer=True, description="The same seed and request: the same answer, mostly."
    ),
    "max_tokens": Number(1, math.inf, integer=True, description="Most tokens of the answer."),
    "stop": Structure(_stops, _STOP_SCHEMA),
    "presence_penalty": Number(-2, 2, description="Default 0."),
    "frequency_penalty": Number(-2, 2, description="Default 0."),
    "ignore_eos": Flag("Not OpenAI's: go on after the end of the turn, up to max_tokens. For load tests."),
    "user": Text("Accepted and not used."),
}
CHAT: dict[str, Parameter] = {
    "messages": Structure(_messages, _MESSAGES_SCHEMA),
    **_COMMON,
    "max_completion_tokens": Number(1, math.inf, integer=True, description="The newer name of max_tokens."),
}
COMPLETION: dict[str, Parameter] = {"prompt": Structure(_prompt, _PROMPT_SCHEMA), **_COMMON}
TOKENIZE: dict[str, Parameter] = {
    "model": _MODEL,
    "prompt": Text("The text, or give messages."),
    "messages": Structure(_messages, _MESSAGES_SCHEMA),
    "add_generation_prompt": Flag("With messages: count the opening of the answer too. Default true."),
    "add_special_tokens": Flag(
        "Begin with the checkpoint's first token, where it has one. Default: true for a prompt."
    ),
}
# OpenAI's parameters that this service does not have -> the values besides null that ask for nothing.
_UNSUPPORTED_BOTH: dict[str, list[Any]] = {"n": [1], "logit_bias": [{}], "logprobs": [False], "top_logprobs": [0]}
UNSUPPORTED_CHAT: dict[str, list[Any]] = {
    **_UNSUPPORTED_BOTH,
    "response_format": [{"type": "text"}],
    "tools": [[]],
    "tool_choice": ["none", "auto"],
    "parallel_tool_calls": [True],
    "functions": [[]],
    "function_call": ["none", "auto"],
    "modalities": [["text"]],
    "audio": [],
    "prediction": [],
    "reasoning_effort": [],
    "verbosity": ["medium"],
    "service_tier": ["auto", "default"],
    "store": [False],
    "metadata": [{}],
    "web_search_options": [],
    "moderation": [],
    "prompt_cache_key": [],
    "prompt_cache_retention": [],
    "safety_identifier": [],
}
UNSUPPORTED_COMPLETION: dict[str, list[Any]] = {
    **_UNSUPPORTED_BOTH,
    "best_of": [1],
    "echo": [False],
    "suffix": [""],
}
UNSUPPORTED_TOKENIZE: dict[str, list[Any]] = {"return_token_strs": [False], "continue_final_message": [False]}


# --- parsing ----------------------------------------------------------------------------------------------------------


def read_json(body: bytes) -> dict[str, Any]:
    """The body as an object. Raises InvalidRequest: not JSON, not an object, NaN, half a surrogate pair."""
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidRequest("the body is not acceptable JSON: it is nested too deeply", code="invalid_json") from None
    except ValueError as error:  # bad syntax, bad UTF-8, a number of thousands of digits
        raise InvalidRequest(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {shown(value)}", code="invalid_json")
    if b"\\u" in body:  # only an escape can make half a surrogate pair, which no UTF-8 and no tokenizer can hold
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError):
            raise InvalidRequest("the body contains half of a UTF-16 surrogate pair", code="invalid_json") from None
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def parse_chat(body: Mapping[str, Any]) -> ChatRequest:
    """Raises InvalidRequest or UnsupportedParameter, with the parameter's name."""
    values = _check(body, CHAT, UNSUPPORTED_CHAT)
    _require(values, "messages")
    if "max_tokens" in values and "max_completion_tokens" in values:
        refuse("max_tokens", "and max_completion_tokens mean the same; give one of them")
    return ChatRequest(values.get("model"), values["messages"], _options(values))


def parse_completion(body: Mapping[str, Any]) -> CompletionRequest:
    """Raises InvalidRequest or UnsupportedParameter, with the parameter's name."""
    values = _check(body, COMPLETION, UNSUPPORTED_COMPLETION)
    _require(values, "prompt")
    return CompletionRequest(
        values.get("model"), values["prompt"], _options(values, default_max_tokens=16)
    )  # as OpenAI


def parse_tokenize(body: Mapping[str, Any]) -> TokenizeRequest:
    """Raises InvalidRequest or UnsupportedParameter, with the parameter's name."""
    values = _check(body, TOKENIZE, UNSUPPORTED_TOKENIZE)
    if ("prompt" in values) == ("messages" in values):
        refuse("prompt", "or messages must be given, and only one of them")
    return TokenizeRequest(
        values.get("model"),
        values.get("prompt"),
        values.get("messages"),
        values.get("add_generation_prompt", True),
        values.get("add_special_tokens", "prompt" in values),
    )


def body_schema(table: Mapping[str, Parameter], required: list[str]) -> dict[str, Any]:
    """The OpenAPI request body of a table."""
    properties = {name: parameter.schema() for name, parameter in table.items()}
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _check(
    body: Mapping[str, Any], table: Mapping[str, Parameter], unsupported: Mapping[str, list[Any]]
) -> dict[str, Any]:
    """The given values, checked; null means not given, as OpenAI has it."""
    values = {}
    for name, value in body.items():
        if name in table:
            if value is not None:
                values[name] = table[name].check(name, value)
        elif name not in unsupported:
            raise InvalidRequest(
                f"{clipped(name)} is not a parameter of this request", param=clipped(name), code="unknown_parameter"
            )
        elif value is not None and not any(_same(value, neutral) for neutral in unsupported[name]):
            raise UnsupportedParameter(
                f"{name} = {shown(value)} is not supported by this service; leave {name} out", param=name
            )
    return values


def _options(values: Mapping[str, Any], default_max_tokens: int | None = None) -> Options:
    if "stream_options" in values and not values.get("stream"):
        refuse("stream_options", "is only allowed with stream: true")
    limit = "max_completion_tokens" if "max_completion_tokens" in values else "max_tokens"
    sampling = Sampling(
        temperature=float(values.get("temperature", 1.0)),
        top_p=float(values.get("top_p", 1.0)),
        top_k=max(0, values.get("top_k", 0)),
        min_p=float(values.get("min_p", 0.0)),
        seed=values.get("seed"),
        presence_penalty=float(values.get("presence_penalty", 0.0)),
        frequency_penalty=float(values.get("frequency_penalty", 0.0)),
        ignore_eos=values.get("ignore_eos", False),
    )
    return Options(
        sampling=sampling,
        max_tokens=values.get(limit),
        default_max_tokens=default_max_tokens,
        max_tokens_param=limit,
        stops=values.get("stop", []),
        stream=values.get("stream", False),
        include_usage=values.get("stream_options", False),
    )


def _require(values: Mapping[str, Any], name: str) -> None:
    if name not in values:
        refuse(name, "is missing")


def _same(value: Any, neutral: Any) -> bool:
    return type(value) is type(neutral) and bool(value == neutral)  # 1 == True in Python, not in JSON
