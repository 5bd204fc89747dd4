"""Request parameters that are more than a number, a flag or a text: each with its parser and what the API page shows."""

from __future__ import annotations

from typing import Any

from services.model.engine.base import JsonSchema
from services.model.errors import UnsupportedParameter
from services.model.parameters import Flag, Number, Structure, Text, clipped, refuse, shown
from services.model.schema import ANY_OBJECT, prepare

MAX_STOPS = 4
MAX_CHOICES = 16  # n, or prompts times n
MAX_TEXT_LOGPROBS = 5  # OpenAI's bound
MAX_BIASES = 1024
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")


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


def _logit_bias(name: str, value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        refuse(name, f"must be an object of token ids and numbers, not {shown(value)}")
    if len(value) > MAX_BIASES:
        refuse(name, f"may hold at most {MAX_BIASES} tokens, not {len(value)}")
    biases = {}
    for key, item in value.items():
        if not key.isascii() or not key.isdigit() or len(key) > 9:
            refuse(name, f"must have token ids as its keys, not {shown(key)}")
        biases[int(key)] = float(Number(-100, 100).check(f"{name}.{key}", item))
    return biases


def _response_format(name: str, value: Any) -> JsonSchema | None:
    if not isinstance(value, dict):
        refuse(name, f"must be an object with a type, not {shown(value)}")
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return ANY_OBJECT
    if kind != "json_schema":
        refuse(f"{name}.type", f"must be text, json_object or json_schema, not {shown(kind)}")
    described = value.get("json_schema")
    if not isinstance(described, dict):
        refuse(f"{name}.json_schema", "is missing: an object with name and schema")
    Text().check(f"{name}.json_schema.name", described.get("name"))
    for key in described:
        if key not in ("name", "schema", "strict", "description"):
            raise UnsupportedParameter(f"{name}.json_schema.{key} is not supported", param=f"{name}.json_schema.{key}")
    # Not strict means "as well as you can", which here is just as well.
    if described.get("strict") is not None:
        Flag().check(f"{name}.json_schema.strict", described["strict"])
    schema = described.get("schema")
    return prepare({} if schema is None else schema, f"{name}.json_schema.schema")


def _template_variables(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        refuse(name, f"must be an object, not {shown(value)}")
    for key, item in value.items():
        # Text could carry control tokens into the prompt, and the other names are the service's own.
        if not isinstance(item, bool | int | float) or key in ("messages", "tools", "add_generation_prompt"):
            raise UnsupportedParameter(
                f"{name}.{clipped(key)} is not supported: only switches and numbers of the template's own are",
                param=f"{name}.{clipped(key)}",
            )
    return value


def _effort(name: str, value: Any) -> str:
    if value not in _EFFORTS:
        refuse(name, f"must be one of {', '.join(_EFFORTS)}, not {shown(value)}")
    return str(value)


def _text_logprobs(name: str, value: Any) -> int | None:
    if value is False:
        return None
    return int(Number(0, MAX_TEXT_LOGPROBS, integer=True).check(name, value))


def _prompts(name: str, value: Any) -> list[str | list[int]]:
    """One prompt or several, each a text or token ids."""
    if isinstance(value, list) and any(isinstance(item, str | list) for item in value):
        if len(value) > MAX_CHOICES:
            refuse(name, f"may hold at most {MAX_CHOICES} prompts, not {len(value)}")
        return [_prompt(f"{name}[{index}]" if len(value) > 1 else name, item) for index, item in enumerate(value)]
    return [_prompt(name, value)]


def _prompt(name: str, value: Any) -> str | list[int]:
    if isinstance(value, list):
        if not all(type(item) is int and item >= 0 for item in value):
            refuse(name, "must be a string or a list of token ids (integers, not negative)")
    elif not isinstance(value, str):
        refuse(name, f"must be a string or a list of token ids, not {shown(value)}")
    if not value:
        refuse(name, "is empty")
    return value  # type: ignore[no-any-return]


_ONE_PROMPT = [
    {"type": "string", "minLength": 1},
    {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
]
_PROMPT_SCHEMA = {
    "description": "Text or token ids, or a list of such prompts.",
    "oneOf": [*_ONE_PROMPT, {"type": "array", "items": {"oneOf": _ONE_PROMPT}, "minItems": 1, "maxItems": MAX_CHOICES}],
}
_LOGIT_BIAS_SCHEMA = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]{1,9}$"},
    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
    "maxProperties": MAX_BIASES,
    "description": "Token id -> added to its logit.",
}
_RESPONSE_FORMAT_SCHEMA = {
    "description": "json_object and json_schema are enforced while the answer is made.",
    "oneOf": [
        {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"type": "string", "enum": ["text", "json_object"]}},
        },
        {
            "type": "object",
            "required": ["type", "json_schema"],
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"type": "string"},
                        "description": {"type": "string"},
                        "schema": {"type": ["object", "null"]},
                        "strict": {"type": ["boolean", "null"]},
                    },
                    "additionalProperties": False,
                },
            },
        },
    ],
}
_VARIABLES_SCHEMA = {
    "type": "object",
    "description": 'Switches of the chat template, as vLLM has it: {"enable_thinking": false} for Qwen3.',
    "properties": {"enable_thinking": {"type": ["boolean", "number"]}},
    "additionalProperties": {"type": ["boolean", "number"]},
}
_EFFORT_SCHEMA = {
    "type": "string",
    "enum": list(_EFFORTS),
    "description": "none: do not think. The others: think, where the model can.",
}
_STOP_SCHEMA = {
    "description": f"Up to {MAX_STOPS} strings that end the answer; they are not part of it.",
    "oneOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": MAX_STOPS},
    ],
}
_STREAM_OPTIONS_SCHEMA = {
    "type": "object",
    "properties": {
        "include_usage": {"type": "boolean", "description": "Send usage in an event before the end mark."},
        "include_obfuscation": {"const": False, "description": "There is none."},
    },
    "additionalProperties": {"type": "null"},
}

STOP = Structure(_stops, _STOP_SCHEMA)
STREAM_OPTIONS = Structure(_stream_options, _STREAM_OPTIONS_SCHEMA)
LOGIT_BIAS = Structure(_logit_bias, _LOGIT_BIAS_SCHEMA)
RESPONSE_FORMAT = Structure(_response_format, _RESPONSE_FORMAT_SCHEMA)
TEMPLATE_VARIABLES = Structure(_template_variables, _VARIABLES_SCHEMA)
EFFORT = Structure(_effort, _EFFORT_SCHEMA)
PROMPTS = Structure(_prompts, _PROMPT_SCHEMA)
TEXT_LOGPROBS = Structure(
    _text_logprobs,
    {
        "type": "integer",
        "minimum": 0,
        "maximum": MAX_TEXT_LOGPROBS,
        "description": "Log probabilities of the tokens, and of that many of the most probable.",
    },
)
