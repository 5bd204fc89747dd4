"""The OpenAI request bodies: one table says which parameters there are, what they may be, and what the API page shows.

What is not supported is refused by name. Values that ask for nothing (`audio: null`, `best_of: 1`) are accepted, because
clients send them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn

from services.model.engine.base import JsonSchema, Sampling
from services.model.errors import InvalidRequest, UnsupportedParameter
from services.model.messages import MESSAGES_SCHEMA, Message, parse_messages
from services.model.parameters import Flag, Number, Parameter, Structure, Text, clipped, refuse, shown
from services.model.structures import (
    EFFORT,
    LOGIT_BIAS,
    MAX_CHOICES,
    PROMPTS,
    RESPONSE_FORMAT,
    STOP,
    STREAM_OPTIONS,
    TEMPLATE_VARIABLES,
    TEXT_LOGPROBS,
)
from services.model.tools import (
    FUNCTION_CALL_SCHEMA,
    FUNCTIONS_SCHEMA,
    TOOL_CHOICE_SCHEMA,
    TOOLS_SCHEMA,
    ToolUse,
    parse_function_call,
    parse_functions,
    parse_tool_choice,
    parse_tools,
    tool_use,
)

MAX_TOP_LOGPROBS = 20  # OpenAI's bound


@dataclass(frozen=True)
class ChatRequest:
    """`schema`: what the answer has to fit. `thinking`: whether the model is to think first; None: as it does by itself."""

    model: str | None
    messages: list[Message]
    options: Options
    tools: ToolUse | None = None
    schema: JsonSchema | None = None
    thinking: bool | None = None
    template_variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CompletionRequest:
    model: str | None
    prompts: list[str | list[int]]
    options: Options
    echo: bool = False


@dataclass(frozen=True)
class TokenizeRequest:
    """Either `prompt` or `messages`."""

    model: str | None
    prompt: str | None
    messages: list[Message] | None
    add_generation_prompt: bool
    add_special_tokens: bool
    tools: ToolUse | None = None


@dataclass(frozen=True)
class Options:
    """What chat and text completions share. `sampling`: what the request says, by the names of `Sampling`. `max_tokens` None:
    not given, so `default_max_tokens`, or what the context leaves, whichever is less. `logprobs`: as in GenerationRequest."""

    sampling: Mapping[str, Any]
    max_tokens: int | None
    default_max_tokens: int | None
    max_tokens_param: str  # under which name the client gave it
    stops: list[str]
    stream: bool
    include_usage: bool
    n: int = 1
    logprobs: int | None = None


# --- the tables -------------------------------------------------------------------------------------------------------

_MODEL = Text("A name from /v1/models; may be left out.")
_UNUSED = "Accepted and not used."
_COMMON: dict[str, Parameter] = {
    "model": _MODEL,
    "stream": Flag("Send the answer as server-sent events while it is made."),
    "stream_options": STREAM_OPTIONS,
    "temperature": Number(0, 2, description="0: always the most probable token. Default 1."),
    "top_p": Number(0, 1, above_low=True, description="Default 1."),
    "top_k": Number(-1, 2**31 - 1, integer=True, description="Not OpenAI's: the k most probable tokens. 0 or -1: all."),
    "min_p": Number(
        0, 1, description="Not OpenAI's: least probability, relative to the most probable token. Default 0."
    ),
    "seed": Number(-(2**63), 2**63 - 1, integer=True, description="The same seed and request: the same answer."),
    "max_tokens": Number(1, math.inf, integer=True, description="Most tokens of the answer."),
    "stop": STOP,
    "presence_penalty": Number(-2, 2, description="Default 0."),
    "frequency_penalty": Number(-2, 2, description="Default 0."),
    "repetition_penalty": Number(
        0, 10, above_low=True, description="Not OpenAI's: over prompt and answer; 1 is off, and the default."
    ),
    "logit_bias": LOGIT_BIAS,
    "n": Number(1, MAX_CHOICES, integer=True, description="How many answers. Default 1."),
    "ignore_eos": Flag("Not OpenAI's: go on after the end of the turn, up to max_tokens. For load tests."),
    "user": Text(_UNUSED),
}
CHAT: dict[str, Parameter] = {
    "messages": Structure(parse_messages, MESSAGES_SCHEMA),
    **_COMMON,
    "max_completion_tokens": Number(1, math.inf, integer=True, description="The newer name of max_tokens."),
    "logprobs": Flag("Give the log probability of each token of the content."),
    "top_logprobs": Number(
        0, MAX_TOP_LOGPROBS, integer=True, description="With logprobs: that many of the most probable tokens, too."
    ),
    "response_format": RESPONSE_FORMAT,
    "tools": Structure(parse_tools, TOOLS_SCHEMA),
    "tool_choice": Structure(parse_tool_choice, TOOL_CHOICE_SCHEMA),
    "parallel_tool_calls": Flag("Whether one answer may hold several calls. Default true."),
    "functions": Structure(parse_functions, FUNCTIONS_SCHEMA),
    "function_call": Structure(parse_function_call, FUNCTION_CALL_SCHEMA),
    "reasoning_effort": EFFORT,
    "chat_template_kwargs": TEMPLATE_VARIABLES,
    "prompt_cache_key": Text(_UNUSED),
    "safety_identifier": Text(_UNUSED),
}
COMPLETION: dict[str, Parameter] = {
    "prompt": PROMPTS,
    **_COMMON,
    "echo": Flag("Begin with the prompt. Not together with logprobs."),
    "logprobs": TEXT_LOGPROBS,
}
TOKENIZE: dict[str, Parameter] = {
    "model": _MODEL,
    "prompt": Text("The text, or give messages."),
    "messages": Structure(parse_messages, MESSAGES_SCHEMA),
    "tools": Structure(parse_tools, TOOLS_SCHEMA),
    "add_generation_prompt": Flag("With messages: count the opening of the answer too. Default true."),
    "add_special_tokens": Flag(
        "Begin with the checkpoint's first token, where it has one. Default: true for a prompt."
    ),
}
_SAMPLING = tuple(item.name for item in fields(Sampling))
# OpenAI's parameters that this service does not have -> the values besides null that ask for nothing.
UNSUPPORTED_CHAT: dict[str, list[Any]] = {
    "modalities": [["text"]],
    "audio": [],
    "prediction": [],
    "verbosity": ["medium"],
    "service_tier": ["auto", "default"],
    "store": [False],
    "metadata": [{}],
    "web_search_options": [],
    "moderation": [],
    "prompt_cache_retention": [],
}
UNSUPPORTED_COMPLETION: dict[str, list[Any]] = {"best_of": [1], "suffix": [""]}
UNSUPPORTED_TOKENIZE: dict[str, list[Any]] = {"return_token_strs": [False], "continue_final_message": [False]}


# --- parsing ----------------------------------------------------------------------------------------------------------


def read_json(body: bytes) -> dict[str, Any]:
    """The body as an object. Raises InvalidRequest: not JSON, not an object, NaN, half a surrogate pair."""
    try:
        # Strictly: by itself json takes UTF-16 and encoded halves of surrogate pairs, too.
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
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
    logprobs = values.get("top_logprobs", 0) if values.get("logprobs") else None
    if logprobs is None and values.get("top_logprobs"):
        refuse("top_logprobs", "is only allowed with logprobs: true")
    schema = values.get("response_format")
    tools = tool_use(values)
    if schema is not None and tools is not None and tools.choice == "required":
        refuse(
            "response_format",
            f"cannot hold an answer that must be a call ({_calls_param(values)}); leave one of them out",
        )
    variables = dict(values.get("chat_template_kwargs", {}))
    thinking = variables.pop("enable_thinking", None)
    if "reasoning_effort" in values:
        wanted = values["reasoning_effort"] != "none"
        if thinking is not None and bool(thinking) != wanted:
            refuse(
                "reasoning_effort", "and chat_template_kwargs.enable_thinking contradict each other; give one of them"
            )
        thinking = wanted
    return ChatRequest(
        values.get("model"),
        values["messages"],
        _options(values, logprobs=logprobs),
        tools,
        schema,
        None if thinking is None else bool(thinking),
        variables,
    )


def _calls_param(values: Mapping[str, Any]) -> str:
    return "function_call" if "functions" in values else "tool_choice"


def parse_completion(body: Mapping[str, Any]) -> CompletionRequest:
    """Raises InvalidRequest or UnsupportedParameter, with the parameter's name."""
    values = _check(body, COMPLETION, UNSUPPORTED_COMPLETION)
    _require(values, "prompt")
    options = _options(values, default_max_tokens=16, logprobs=values.get("logprobs"))  # as OpenAI
    echo = values.get("echo", False)
    if echo and options.logprobs is not None:
        raise UnsupportedParameter(
            "logprobs together with echo is not supported: there are none of the prompt's tokens", param="logprobs"
        )
    if len(values["prompt"]) * options.n > MAX_CHOICES:
        refuse(
            "n", f"times the number of prompts may be at most {MAX_CHOICES}, not {len(values['prompt']) * options.n}"
        )
    return CompletionRequest(values.get("model"), values["prompt"], options, echo)


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
        tool_use(values),
    )


def body_schema(table: Mapping[str, Parameter], required: list[str]) -> dict[str, Any]:
    """The OpenAPI request body of a table."""
    properties = {name: _nullable(parameter.schema(), name in required) for name, parameter in table.items()}
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _nullable(schema: dict[str, Any], required: bool) -> dict[str, Any]:
    """The schema with null, which means "not given", as OpenAI has it."""
    if required:
        return schema
    if "oneOf" in schema:
        return schema | {"oneOf": [*schema["oneOf"], {"type": "null"}]}
    found = schema | {"type": [schema["type"], "null"]}
    return found | {"enum": [*schema["enum"], None]} if "enum" in schema else found


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


def _options(
    values: Mapping[str, Any], *, default_max_tokens: int | None = None, logprobs: int | None = None
) -> Options:
    if "stream_options" in values and not values.get("stream"):
        refuse("stream_options", "is only allowed with stream: true")
    limit = "max_completion_tokens" if "max_completion_tokens" in values else "max_tokens"
    sampling = {name: values[name] for name in _SAMPLING if name in values}
    if "top_k" in sampling:
        sampling["top_k"] = max(0, sampling["top_k"])  # -1 is vLLM's way of saying all
    return Options(
        sampling=sampling,
        max_tokens=values.get(limit),
        default_max_tokens=default_max_tokens,
        max_tokens_param=limit,
        stops=values.get("stop", []),
        stream=values.get("stream", False),
        include_usage=values.get("stream_options", False),
        n=values.get("n", 1),
        logprobs=logprobs,
    )


def _require(values: Mapping[str, Any], name: str) -> None:
    if name not in values:
        refuse(name, "is missing")


def _same(value: Any, neutral: Any) -> bool:
    return type(value) is type(neutral) and bool(value == neutral)  # 1 == True in Python, not in JSON
