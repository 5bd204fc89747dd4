"""Every error path over HTTP gives the OpenAI object and the request's id; pages of other origins; what /openapi.json says."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from services.model.app import create_app
from services.model.config import Settings, load_settings
from services.model.engine.scripted import ScriptedEngine
from services.model.errors import (
    STATUS,
    ConfigError,
    InvalidRequest,
    RateLimited,
    RequestTimeout,
    status_of,
)
from tests.model.conftest import Running, chat, serve

CHAT = "/v1/chat/completions"
PAGE = "https://app.example"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    """With keys, limits, and pages of one origin let in."""
    limits = {"sk-slow": {"requests_per_minute": 1, "max_body_mb": 1}}
    with serve(api_keys=("sk-one", "sk-slow"), limits=limits, cors_origins=(PAGE, "http://localhost:5173")) as running:
        yield running


def checked(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object, checked to be exactly OpenAI's, with the id of the header beside it."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error", "request_id"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["request_id"] == response.headers["x-request-id"]
    assert isinstance(body["error"]["message"], str)
    assert body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


def raw(running: Running, request: bytes) -> httpx.Response:
    """The answer to bytes that no HTTP client would send."""
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = [tuple(line.split(": ", 1)) for line in lines]
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)  # type: ignore[arg-type]


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_class_has_the_status_of_the_table() -> None:
    assert {STATUS[kind] for kind in STATUS} == {400, 401, 404, 405, 413, 415, 429, 500, 503, 504}
    assert status_of(RequestTimeout(5)) == 504
    assert status_of(RateLimited("x", limit="tokens", retry_after=3)) == 429
    assert "5 s (MODEL_REQUEST_SECONDS)" in RequestTimeout(5).message


def test_a_body_has_the_id_beside_the_object_when_there_is_one() -> None:
    error = InvalidRequest("no", param="n", code="c")
    four = {"message": "no", "type": "invalid_request_error", "param": "n", "code": "c"}
    assert error.body() == {"error": four}
    assert error.body("req-1") == {"error": four, "request_id": "req-1"}


# --- routes, methods, bodies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "/nothing",
        "/%00",
        "/v1/models/%00",
        "/%ff%fe",
        "/%",
        "/%zz",
        "/a%0aforged",
        "/v1/models/",
        "/v1/models/../chat/completions",
        "/static-offline-docs/%00",
        "/static-offline-docs/..%2f..%2fetc/passwd",
        "/static-offline-docs/" + "a" * 5000,
        "/" + "y" * 9000,
        "//",
    ],
)
def test_a_route_that_is_not_there(running: Running, target: str) -> None:
    response = raw(running, b"GET " + target.encode())
    error = checked(response, 404)
    assert error["type"] == "invalid_request_error"
    assert error["code"] in ("not_found", "model_not_found")
    assert len(error["message"]) < 400 or "models" in target


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", CHAT, "POST"),
        ("DELETE", "/v1/models/embedded", "GET"),
        ("PUT", "/tokenize", "POST"),
        ("OPTIONS", CHAT, "POST"),
        ("PATCH", "/health", "GET"),
        ("TRACE", "/ready", "GET"),
        ("POST", "/static-offline-docs/swagger-ui.css", "GET, HEAD"),
    ],
)
def test_a_method_that_is_not_there(running: Running, method: str, path: str, allow: str) -> None:
    response = running.client.request(method, path)
    error = checked(response, 405)
    assert response.headers["allow"] == allow
    assert error["code"] == "method_not_allowed"
    assert allow in error["message"]


def test_head_has_the_head_alone(running: Running) -> None:
    for path, status in (("/nothing", 404), (CHAT, 405)):
        response = running.client.head(path)
        assert (response.status_code, response.content) == (status, b"")
        assert response.headers["x-request-id"]


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/tokenize"])
@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"\x00", "application/json", 400),
        (b"[]", "application/json; charset=utf-8", 400),
        (b"null", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"{}", "", 415),
    ],
)
def test_a_body_that_is_not_one(running: Running, path: str, content: bytes, kind: str, status: int) -> None:
    checked(running.client.post(path, content=content, headers={"content-type": kind}), status)


def test_fastapis_own_refusals_are_400() -> None:
    app = create_app(Settings(engine="scripted"), ScriptedEngine(), ["m"])

    @app.get("/double/{number}")
    async def double(number: int) -> int:
        return number * 2

    with TestClient(app) as client:
        error = checked(client.get("/double/x"), 400)
    assert error["param"] == "number"
    assert "integer" in error["message"]
    assert "422" not in app.openapi()["paths"]["/double/{number}"]["get"]["responses"]


def test_an_error_of_every_layer_has_the_id_that_was_sent(guarded: Running) -> None:
    one, slow = ({"authorization": f"Bearer {key}", "x-request-id": "mine"} for key in ("sk-one", "sk-slow"))
    post = guarded.client.post
    refusals = [
        (401, post(CHAT, json=chat("x"), headers={"x-request-id": "mine"})),
        (404, guarded.client.get("/nothing", headers=one)),
        (404, post(CHAT, json=chat("x") | {"model": "other"}, headers=one)),
        (405, guarded.client.get(CHAT, headers=one)),
        (400, post(CHAT, json={}, headers=one)),
        (415, post(CHAT, content=b"{}", headers=one)),
        (413, post(CHAT, content=b"x" * (9 << 20), headers=one | {"content-type": "application/json"})),
        (413, post(CHAT, content=b"x" * (2 << 20), headers=slow | {"content-type": "application/json"})),
        (429, post(CHAT, json=chat("x"), headers=slow)),
        (500, post(CHAT, json=chat("fail at once"), headers=one)),
    ]
    for status, response in refusals:
        checked(response, status)
        assert response.headers["x-request-id"] == "mine"


def test_loading_is_503_with_the_object() -> None:
    gate = threading.Event()
    with serve(load_gate=gate) as loading:
        for response in (loading.client.get("/ready"), loading.client.post(CHAT, json=chat("x"))):
            assert checked(response, 503)["code"] == "not_ready"
            assert response.headers["retry-after"]


# --- pages of other origins -------------------------------------------------------------------------------------------


def preflight(
    running: Running, origin: str, headers: str = "authorization,content-type,x-stainless-os"
) -> httpx.Response:
    asked = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": headers}
    return running.client.options(CHAT, headers=asked)


def test_without_the_setting_no_page_is_let_in(running: Running) -> None:
    checked(preflight(running, PAGE), 405)
    for response in (preflight(running, PAGE), running.client.get("/v1/models", headers={"origin": PAGE})):
        assert not any(name.startswith("access-control") for name in response.headers)


def test_a_preflight_needs_no_key(guarded: Running) -> None:
    response = preflight(guarded, PAGE)
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["access-control-allow-origin"] == PAGE
    assert response.headers["access-control-allow-methods"] == "GET, POST"
    assert response.headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-os"
    assert "Origin" in response.headers["vary"]
    assert response.headers["x-request-id"]
    assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", PAGE + ".evil", PAGE + ":444", "http://app.example"]
)
def test_another_origin_is_not_let_in(guarded: Running, origin: str) -> None:
    refused = preflight(guarded, origin)
    assert checked(refused, 400)["code"] == "origin_not_allowed"
    answer = guarded.client.get("/v1/models", headers={"origin": origin, "authorization": "Bearer sk-one"})
    for response in (refused, answer):
        assert not any(name.startswith("access-control") for name in response.headers)
        assert "Origin" in response.headers["vary"]


def test_answers_errors_and_streams_are_marked_for_an_allowed_origin(
    guarded: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = {"origin": PAGE, "authorization": "Bearer sk-one"}
    post = guarded.client.post
    responses = [
        post(CHAT, json=chat("x"), headers=page),
        post(CHAT, json=chat("x", stream=True), headers=page),
        post(CHAT, json={}, headers=page),
        post(CHAT, json=chat("x"), headers={"origin": PAGE}),
        post(CHAT, content=b"x" * (9 << 20), headers=page),
        guarded.client.get("/nothing", headers=page),
        guarded.client.options(CHAT, headers=page),  # no preflight, just a method that is not there
    ]
    with monkeypatch.context() as broken:
        broken.setattr(guarded.engine, "tokenize", lambda *_, **__: 1 / 0)
        responses.append(post(CHAT, json=chat("x"), headers=page))
    assert [response.status_code for response in responses] == [200, 200, 400, 401, 413, 404, 405, 500]
    for response in responses:
        assert response.headers["access-control-allow-origin"] == PAGE
        assert "x-request-id" in response.headers["access-control-expose-headers"]
        assert response.headers["x-request-id"]
    plain = guarded.client.get("/v1/models", headers={"authorization": "Bearer sk-one"})
    assert "access-control-allow-origin" not in plain.headers
    assert "Origin" in plain.headers["vary"]


def test_every_origin() -> None:
    with serve(cors_origins=("*",)) as running:
        assert preflight(running, "null").headers["access-control-allow-origin"] == "*"
        assert running.client.get("/v1/models", headers={"origin": PAGE}).headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("value", ["app.example", "https://app.example/", "https://a.example https://b.example", "//x"])
def test_what_is_no_origin_is_refused_at_start(value: str) -> None:
    with pytest.raises(ConfigError, match=r"MODEL_CORS_ORIGINS: .* is no origin"):
        load_settings(cors_origins=value)
    assert load_settings(cors_origins=" https://App.example , *").cors_origins == ("https://app.example", "*")


# --- what /openapi.json says ------------------------------------------------------------------------------------------


def test_every_route_documents_its_errors(running: Running) -> None:
    schema = running.client.get("/openapi.json").json()
    for path in (CHAT, "/v1/completions"):
        responses = schema["paths"][path]["post"]["responses"]
        assert set(responses) == {"200", "400", "401", "404", "413", "415", "429", "500", "503", "504"}
        assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}
        for status, response in responses.items():
            if status != "200":
                assert response["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Error"}
    assert "401" in schema["paths"]["/v1/models"]["get"]["responses"]
    assert "401" not in schema["paths"]["/health"]["get"]["responses"]
    assert "503" in schema["paths"]["/ready"]["get"]["responses"]
    assert "422" not in json.dumps(schema)
    assert "HTTPValidationError" not in json.dumps(schema)
    assert "securitySchemes" not in schema["components"]


def test_keys_are_in_the_schema_when_they_are_asked_for(guarded: Running) -> None:
    schema = guarded.client.get("/openapi.json").json()
    assert schema["paths"][CHAT]["post"]["security"] == [{"key": []}]
    assert "security" not in schema["paths"]["/health"]["get"]
    assert schema["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


def test_the_documented_error_is_the_one_that_comes(running: Running) -> None:
    schema = running.client.get("/openapi.json").json()["components"]["schemas"]["Error"]
    body = running.client.get("/nothing").json()
    assert set(body) == set(schema["required"]) == set(schema["properties"])
    assert set(body["error"]) == set(schema["properties"]["error"]["required"])
