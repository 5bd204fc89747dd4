"""What /openapi.json says beyond the parameters: every status that a route may answer with, the error object, keys, streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fastapi import FastAPI

from services.model.middleware import OPEN_PATHS

_ERROR_SCHEMA: dict[str, Any] = {
    "title": "Error",
    "description": "OpenAI's error object, and the id under which the service's log has the request.",
    "type": "object",
    "required": ["error", "request_id"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The parameter at fault."},
                "code": {"type": ["string", "null"], "description": "For programs."},
            },
            "additionalProperties": False,
        },
        "request_id": {"type": "string"},
    },
    "additionalProperties": False,
}
_MEANINGS = {
    400: "The request is wrong: malformed JSON, a bad or unsupported parameter, a context that is too long.",
    401: "No key, or one that is not known here.",
    404: "No such model, or no such route.",
    405: "Not a method of this route; Allow lists those that are.",
    413: "The body is too large.",
    415: "The body is not sent as application/json.",
    429: "The queue is full, or the client has used up a limit; Retry-After says when to come again.",
    500: "An unexpected error; the service's log has it under the request's id.",
    503: "Loading, stopping, or out of memory; Retry-After says when to come again.",
    504: "The answer took longer than the service allows.",
}
_GENERATES = ("/v1/chat/completions", "/v1/completions")


def statuses(method: str, path: str) -> list[int]:
    """The errors that a route may answer with, by status."""
    found = [500]
    if not path.startswith(OPEN_PATHS):
        found.append(401)
    if method == "POST":
        found += [400, 404, 413, 415, 429, 503]
    if path in _GENERATES:
        found.append(504)
    if path == "/ready":
        found.append(503)
    if "{" in path:
        found += [404, 405]  # 405: an id may be the rest of another route's path
    return sorted(found)


def describe_errors(app: FastAPI, *, with_keys: bool) -> None:
    """Completes the app's schema, from one place for all routes, those added later too. `with_keys`: whether keys are asked for."""
    make: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = make()
            _complete(schema, with_keys)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _complete(schema: dict[str, Any], with_keys: bool) -> None:
    components = schema.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    # FastAPI's own 422 never comes: what it would say is a 400 here.
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    schemas["Error"] = _ERROR_SCHEMA
    if with_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for method, path, operation in _operations(schema):
        responses = operation["responses"]
        responses.pop("422", None)
        for status in statuses(method, path):
            content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
            responses.setdefault(str(status), {"description": _MEANINGS[status], "content": content})
        if path in _GENERATES:
            streamed: dict[str, Any] = {}  # OpenAPI 3.1 has no words for events: a schema would be of each, or of none
            responses["200"].setdefault("content", {}).setdefault("text/event-stream", streamed)
        if with_keys and not path.startswith(OPEN_PATHS):
            operation["security"] = [{"key": []}]


def _operations(schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation
