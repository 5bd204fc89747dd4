"""JSON Schemas that an answer has to fit: checked here, before any work, by the library that enforces them.

What llguidance cannot enforce is refused by its name, so that an answer that was promised to fit does fit. Some things are
prepared first: a `format` that it does not know is dropped (in JSON Schema a format is an annotation), and so is a `$schema`
that it would have to fetch; references get the escapes of a URI; `oneOf` becomes `anyOf` where no value can fit two of its
alternatives; and objects that say nothing of further properties are closed, which leaves fewer answers but only fitting ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

from llguidance import LLMatcher

from services.model.engine.base import Constraint, JsonSchema
from services.model.engine.lark import render
from services.model.errors import InvalidRequest

ANY_OBJECT = JsonSchema({"type": "object"})
MAX_SCHEMA_BYTES = 256 << 10
MAX_DEPTH = 64
# What is said of "not enforced", in llguidance's words, stands between these.
_MESSAGE = re.compile(r"failed to compile JSON schema: (.*?)(?:\n +\d+ \| |\Z)", re.DOTALL)
# Those known to llguidance and to the older copy of it in llama.cpp, which lets everything through where it meets another:
# uri, above all.
_FORMATS = frozenset("date-time time date duration email hostname ipv4 ipv6 uuid".split())
# Keywords whose value is a schema, a list of schemas, or a mapping of names to schemas.
_ONE = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames", "additionalItems")
_LIST = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_NAMED = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")
_DRAFTS = frozenset(
    ["https://json-schema.org/draft/2020-12/schema", "https://json-schema.org/draft/2019-09/schema"]
    + [f"http://json-schema.org/draft-0{number}/schema{end}" for number in (4, 6, 7) for end in ("", "#")]
)
_URI = "%/:?#[]@!$&'()*+,;=~-._"  # what stays as it is; pydantic writes the names of models in any language unescaped
_COMBINING = ("anyOf", "oneOf", "allOf", "$ref", "if", "not", "patternProperties", "dependentSchemas")


def prepare(schema: Any, param: str) -> JsonSchema:
    """The schema, ready for an engine. Raises InvalidRequest that names `param` and what cannot be enforced."""
    if not isinstance(schema, Mapping):
        raise InvalidRequest(f"{param} must be a JSON Schema object", param=param)
    text = json.dumps(schema)
    if len(text) > MAX_SCHEMA_BYTES:
        raise InvalidRequest(
            f"{param} is {len(text)} bytes of JSON Schema; at most {MAX_SCHEMA_BYTES} are taken", param=param
        )
    if _depth(schema) > MAX_DEPTH:
        raise InvalidRequest(f"{param} is nested more than {MAX_DEPTH} levels deep", param=param)
    ready = _walk(schema, schema, close=not _combines(schema))
    ready.pop("x-guidance", None)  # llguidance's own switches are not the client's
    if problem := _problem(json.dumps(ready)):
        raise InvalidRequest(f"{param} cannot be enforced: {problem}", param=param, code="unsupported_schema")
    return JsonSchema(ready)


@lru_cache(maxsize=256)
def _problem(text: str) -> str:
    """Why llguidance does not take the schema; empty if it does."""
    message = LLMatcher.validate_grammar(render(Constraint(((JsonSchema(json.loads(text)),),))))
    if not message:
        return ""
    found = _MESSAGE.search(message)
    reason = " ".join((found[1] if found else message).split())
    return reason.partition(" Enable 'coerce_one_of'")[0][:300]  # a switch of llguidance's that would break the promise


def _walk(schema: Any, root: Any, *, close: bool) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    ready: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "format" and isinstance(value, str) and value not in _FORMATS:
            continue
        if key == "$schema" and not (isinstance(value, str) and value in _DRAFTS):
            continue
        if key == "$ref" and isinstance(value, str):
            ready[key] = quote(value, safe=_URI)
        elif key == "oneOf" and isinstance(value, list) and "anyOf" not in schema and _all_apart(value, root):
            ready["anyOf"] = [_walk(item, root, close=close) for item in value]
        elif key in _LIST and isinstance(value, list):
            ready[key] = [_walk(item, root, close=close) for item in value]
        elif key in _ONE:
            ready[key] = _walk(value, root, close=close)
        elif key in _NAMED and isinstance(value, Mapping):
            ready[key] = {name: _walk(item, root, close=close) for name, item in value.items()}
        else:
            ready[key] = value
    if close and "properties" in ready and "additionalProperties" not in ready:
        ready["additionalProperties"] = False
    return ready


def _all_apart(alternatives: list[Any], root: Any) -> bool:
    """Whether it can be seen that no value fits two of them. llguidance sees that too, but not through references."""
    seen = [_target(item, root) for item in alternatives]
    return all(_apart(one, other) for index, one in enumerate(seen) for other in seen[:index])


def _apart(one: Any, other: Any) -> bool:
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return False
    types, others = _types(one), _types(other)
    if types and others and not types & others:
        return True
    if types != {"object"} or others != {"object"}:
        return False
    for name in _names(one.get("required")) & _names(other.get("required")):
        values, theirs = _values(one, name), _values(other, name)
        if values and theirs and not values & theirs:
            return True
    return False


def _types(schema: Mapping[str, Any]) -> set[str]:
    """The JSON types that a value may have; empty: unknown."""
    given = schema.get("type")
    names = _names([given] if isinstance(given, str) else given)
    return names | {"integer"} if "number" in names else names


def _values(schema: Mapping[str, Any], name: str) -> set[str]:
    """The strings that a property may be; empty: unknown."""
    properties = schema.get("properties")
    found = properties.get(name) if isinstance(properties, Mapping) else None
    if not isinstance(found, Mapping):
        return set()
    return _names([found["const"]] if "const" in found else found.get("enum"))


def _names(values: Any) -> set[str]:
    """A list of strings as a set; empty for anything else, which is not for us to judge."""
    strings = isinstance(values, list) and all(isinstance(value, str) for value in values)
    return set(values) if strings else set()


def _target(schema: Any, root: Any) -> Any:
    """What a schema that is nothing but a reference into `root` stands for."""
    for _ in range(MAX_DEPTH):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return schema
        schema = root
        for step in unquote(reference[2:]).split("/"):
            step = step.replace("~1", "/").replace("~0", "~")
            schema = schema.get(step) if isinstance(schema, Mapping) else None
    return schema


def _combines(schema: Any) -> bool:
    """Whether an object's properties are spread over several schemas, so that none of them may be closed by itself."""
    if isinstance(schema, list):
        return any(_combines(item) for item in schema)
    if not isinstance(schema, Mapping):
        return False
    if "allOf" in schema or ("properties" in schema and any(key in schema for key in _COMBINING)):
        return True
    return any(_combines(value) for value in schema.values())


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [
            child
            for item in level
            if isinstance(item, Mapping | list)
            for child in (item.values() if isinstance(item, Mapping) else item)
        ]
    return depth
