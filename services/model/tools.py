"""What a client declares for the model to call: OpenAI's `tools` and `tool_choice`, and the older `functions`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from services.model.engine.base import JsonSchema
from services.model.errors import InvalidRequest, UnsupportedParameter
from services.model.parameters import Flag, Text, refuse, shown
from services.model.schema import ANY_OBJECT, prepare

MAX_TOOLS = 128
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Tool:
    """A function of the client's. `parameters`: its JSON Schema, as given; `arguments`: what a call of it must fit."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    arguments: JsonSchema

    def declared(self) -> dict[str, Any]:
        """As chat templates want it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolUse:
    """The tools of one request and the rules for calling them. `named`: the one that must be called."""

    tools: tuple[Tool, ...]
    choice: Literal["auto", "required"] = "auto"
    named: str | None = None
    parallel: bool = True
    legacy: bool = False  # asked with `functions`: answered with `function_call`

    @property
    def callable(self) -> tuple[Tool, ...]:
        return tuple(tool for tool in self.tools if self.named in (None, tool.name))


def tool_use(values: Mapping[str, Any]) -> ToolUse | None:
    """The rules that checked request values ask for; None: no calls. Raises InvalidRequest."""
    legacy = "functions" in values or "function_call" in values
    if legacy and ("tools" in values or "tool_choice" in values):
        refuse("functions", "and tools mean the same; give one of them")
    declared, chosen = ("functions", "function_call") if legacy else ("tools", "tool_choice")
    entries: list[tuple[str, dict[str, Any]]] = values.get(declared, [])
    choice = values.get(chosen, "auto")
    if not entries:
        if choice not in ("none", "auto"):
            refuse(chosen, f"asks for a call, but there are no {declared}")
        return None
    if choice == "none":
        return None
    if isinstance(choice, Named) and choice.name not in (entry["name"] for _, entry in entries):
        refuse(chosen, f"names {choice.name!r}, which is not among the {declared}")
    forced = choice != "auto"
    named = choice.name if isinstance(choice, Named) else None
    tools = tuple(_tool(place, entry, forced and named in (None, entry["name"])) for place, entry in entries)
    return ToolUse(
        tools,
        "required" if forced else "auto",
        named,
        parallel=values.get("parallel_tool_calls", True) and not legacy and named is None,
        legacy=legacy,
    )


def _tool(place: str, entry: Mapping[str, Any], forced: bool) -> Tool:
    parameters = entry.get("parameters") or {"type": "object", "properties": {}}
    if parameters.get("type", "object") != "object":
        refuse(f"{place}.parameters", 'must describe an object ("type": "object")')
    try:
        arguments = prepare({"type": "object", **parameters}, f"{place}.parameters")
    except InvalidRequest:
        # A call that nobody promised to fit need only be an object; what was promised is refused where it cannot be kept.
        if forced or entry.get("strict"):
            raise
        arguments = ANY_OBJECT
    return Tool(entry["name"], entry.get("description") or "", parameters, arguments)


@dataclass(frozen=True)
class Named:
    """A choice of one function."""

    name: str


def parse_tools(name: str, value: Any) -> list[tuple[str, dict[str, Any]]]:
    """The declarations, each with its place in the request."""
    entries = []
    for index, item in enumerate(_list(name, value)):
        place = f"{name}[{index}]"
        if not isinstance(item, dict):
            refuse(place, f"must be an object with type and function, not {shown(item)}")
        if item.get("type") != "function":
            raise UnsupportedParameter(
                f"{place}.type {shown(item.get('type'))} is not supported: only function is", param=f"{place}.type"
            )
        entries.append(_function(f"{place}.function", item.get("function")))
    return _distinct(name, entries)


def parse_functions(name: str, value: Any) -> list[tuple[str, dict[str, Any]]]:
    """The older form."""
    return _distinct(name, [_function(f"{name}[{index}]", item) for index, item in enumerate(_list(name, value))])


def parse_tool_choice(name: str, value: Any) -> str | Named:
    if value in ("none", "auto", "required"):
        return str(value)
    if isinstance(value, dict) and value.get("type") == "function" and isinstance(value.get("function"), dict):
        return Named(Text().check(f"{name}.function.name", value["function"].get("name")))
    refuse(
        name,
        f'must be "none", "auto", "required" or {{"type": "function", "function": {{"name": …}}}}, not {shown(value)}',
    )


def parse_function_call(name: str, value: Any) -> str | Named:
    """The older form."""
    if value in ("none", "auto"):
        return str(value)
    if isinstance(value, dict):
        return Named(Text().check(f"{name}.name", value.get("name")))
    refuse(name, f'must be "none", "auto" or {{"name": …}}, not {shown(value)}')


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        refuse(name, f"must be a list, not {shown(value)}")
    if len(value) > MAX_TOOLS:
        refuse(name, f"may hold at most {MAX_TOOLS} functions, not {len(value)}")
    return value


def _function(place: str, value: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(value, dict):
        refuse(place, f"must be an object with name and parameters, not {shown(value)}")
    name = Text().check(f"{place}.name", value.get("name"))
    if not _NAME.fullmatch(name):
        refuse(f"{place}.name", f"must be 1 to 64 letters, digits, '_', '-' or '.', not {shown(name)}")
    if value.get("description") is not None:
        Text().check(f"{place}.description", value["description"])
    if value.get("strict") is not None:
        Flag().check(f"{place}.strict", value["strict"])
    parameters = value.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        refuse(f"{place}.parameters", f"must be a JSON Schema object, not {shown(parameters)}")
    for key in value:
        if key not in ("name", "description", "parameters", "strict"):
            raise UnsupportedParameter(f"{place}.{key} is not supported by this service", param=f"{place}.{key}")
    return place, value


def _distinct(name: str, entries: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    seen: set[str] = set()
    for place, entry in entries:
        if entry["name"] in seen:
            refuse(f"{place}.name", f"{entry['name']!r} is declared twice in {name}")
        seen.add(entry["name"])
    return entries


_FUNCTION_SCHEMA = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": f"^{_NAME.pattern}$"},
        "description": {"type": ["string", "null"]},
        "parameters": {"type": ["object", "null"], "description": "JSON Schema of the arguments."},
        "strict": {"type": ["boolean", "null"], "description": "Refuse the request if the schema cannot be enforced."},
    },
    "additionalProperties": False,
}
FUNCTIONS_SCHEMA = {
    "type": "array",
    "maxItems": MAX_TOOLS,
    "items": _FUNCTION_SCHEMA,
    "description": "Older form of tools.",
}
TOOLS_SCHEMA = {
    "type": "array",
    "maxItems": MAX_TOOLS,
    "description": "Functions that the model may ask to be called.",
    "items": {
        "type": "object",
        "required": ["type", "function"],
        "properties": {"type": {"const": "function"}, "function": _FUNCTION_SCHEMA},
    },
}
_NAMED_SCHEMA = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
TOOL_CHOICE_SCHEMA = {
    "description": "Default: auto where there are tools.",
    "oneOf": [
        {"type": "string", "enum": ["none", "auto", "required"]},
        {
            "type": "object",
            "required": ["type", "function"],
            "properties": {"type": {"const": "function"}, "function": _NAMED_SCHEMA},
        },
    ],
}
FUNCTION_CALL_SCHEMA = {
    "description": "Older form of tool_choice.",
    "oneOf": [{"type": "string", "enum": ["none", "auto"]}, _NAMED_SCHEMA],
}
