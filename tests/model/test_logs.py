"""The log: a record a line, in both forms, and nothing of a conversation unless asked for."""

from __future__ import annotations

import io
import json
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from services.model.config import Settings
from services.model.engine.scripted import ScriptedEngine
from services.model.limits import fingerprint
from services.model.logs import FIELDS, TRACE, JsonFormatter, TextFormatter, describe
from services.model.middleware import NOTES, REQUEST_ID, Catch, Observe
from services.model.service import ModelService
from tests.model.conftest import chat, eventually
from tests.support.servers import Service, start_service

CHAT = "/v1/chat/completions"
TEXTS = st.text(st.characters(codec=None))  # surrogates too


@contextmanager
def logged(formatter: logging.Formatter, level: int = logging.INFO) -> Iterator[io.StringIO]:
    """What the service's loggers write in this form."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.getLogger("docduet.model")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield stream
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def one_record(formatter: logging.Formatter, message: str, *arguments: Any, **extra: Any) -> str:
    record = logging.makeLogRecord(
        {"name": "docduet.test", "msg": message, "args": arguments, "levelname": "INFO"} | extra
    )
    return formatter.format(record)


# --- the two forms ----------------------------------------------------------------------------------------------------


@given(TEXTS, TEXTS)
def test_no_text_forges_a_line(message: str, value: str) -> None:
    text = one_record(TextFormatter(), "%s", message, **{FIELDS: {"path": value, "prompt_text": value}})
    assert len(text.splitlines()) == 1
    assert "\x1b" not in text
    line = one_record(JsonFormatter(), "%s", message, **{FIELDS: {"path": value}})
    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert json.loads(line)["message"] == json.loads(json.dumps(message))
    assert json.loads(line)["path"] == json.loads(json.dumps(value))


def test_a_traceback_is_indented_in_text_and_a_field_in_json() -> None:
    forged = "2026-01-01 00:00:00,000 INFO all is well"
    try:
        raise ValueError("first\n" + forged)
    except ValueError as error:
        trace, info = describe(error, with_text=True), (ValueError, error, error.__traceback__)
    for extra in ({TRACE: trace}, {"exc_info": info}):
        first, *rest = one_record(TextFormatter(), "it broke", **extra).splitlines()
        assert first.endswith("INFO it broke")
        assert any(forged in line for line in rest)
        assert all(line.startswith("    ") for line in rest)
        line = json.loads(one_record(JsonFormatter(), "it broke", **extra))
        assert forged in line["exception"]
        assert line["message"] == "it broke"


def test_an_error_is_described_without_its_texts() -> None:
    def fail() -> None:
        try:
            raise KeyError("my secret question")
        except KeyError as error:
            raise RuntimeError("about: my secret question") from error

    with pytest.raises(RuntimeError) as caught:
        fail()
    text = describe(caught.value, with_text=False)
    assert "secret question" not in text.replace('"my secret question"', "").replace('"about: my secret question"', "")
    assert text.index("builtins.KeyError") < text.index("builtins.RuntimeError")
    assert "in fail" in text
    assert "RuntimeError: about: my secret question" in describe(caught.value, with_text=True)


# --- a request --------------------------------------------------------------------------------------------------------


async def send(app: ASGIApp, path: str = "/x", **settings: Any) -> httpx.Response:
    service = ModelService(Settings(engine="scripted", **settings), ScriptedEngine(), ["m"])
    transport = httpx.ASGITransport(Observe(Catch(app), service))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        return await client.get(path, headers={"x-request-id": "mine"})


async def noting(scope: Scope, receive: Receive, send: Send) -> None:
    scope[NOTES] |= {"prompt": 7, "cached": 3, "generated": 5, "finish": "stop"}
    scope[NOTES] |= {"prompt_text": "what\nis it", "answer_text": "秘密"}
    await PlainTextResponse(scope[REQUEST_ID])(scope, receive, send)


async def test_prompts_are_logged_only_when_asked_for() -> None:
    with logged(JsonFormatter()) as out:
        assert (await send(noting)).text == "mine"
        await send(noting, log_prompts=True)
    without, with_prompts = map(json.loads, out.getvalue().splitlines())
    assert without["level"] == "info"
    assert without["logger"] == "docduet.model.requests"
    assert without["time"].endswith("+00:00")
    assert {name: without[name] for name in ("method", "path", "status", "request_id", "prompt_tokens")} == {
        "method": "GET",
        "path": "/x",
        "status": 200,
        "request_id": "mine",
        "prompt_tokens": 7,
    }
    assert (without["cached"], without["generated"], without["finish"]) == (3, 5, "stop")
    assert isinstance(without["seconds"], float)
    assert not {"prompt_text", "answer_text"} & set(without)
    assert (with_prompts["prompt_text"], with_prompts["answer_text"]) == ("what\nis it", "秘密")


async def test_the_text_form_has_the_same_in_one_line() -> None:
    with logged(TextFormatter()) as out:
        await send(noting, log_prompts=True)
        await send(noting, "/a%0a2026-01-01%20INFO%20forged")
    first, second = out.getvalue().splitlines()
    assert first.endswith(
        "prompt_tokens=7 cached=3 generated=5 finish=stop prompt_text='what\\nis it' answer_text='秘密' id=mine"
    )
    assert "GET '/x' 200 0.0" in first
    assert "GET '/a\\n2026-01-01 INFO forged' 200" in second


async def failing(scope: Scope, receive: Receive, send: Send) -> None:
    raise LookupError("a secret question" + "!")


@pytest.mark.parametrize("log_prompts", [False, True])
async def test_an_uncaught_error_is_in_the_log_under_the_requests_id_and_nowhere_else(log_prompts: bool) -> None:
    with logged(JsonFormatter()) as out:
        response = await send(failing, log_prompts=log_prompts)
    assert response.status_code == 500
    assert response.json()["request_id"] == "mine"
    assert "LookupError" not in response.text
    assert "secret" not in response.text
    error, request = map(json.loads, out.getvalue().splitlines())
    assert error["level"] == "error"
    assert (error["request_id"], request["request_id"]) == ("mine", "mine")
    assert (request["status"], request["error"]) == (500, "internal_error")
    assert "LookupError" in error["exception"]
    assert ("a secret question!" in error["exception"]) == log_prompts


async def test_a_long_path_is_cut() -> None:
    with logged(JsonFormatter()) as out:
        await send(noting, "/" + "x" * 5000)
    assert len(out.getvalue()) < 1500


async def test_only_a_plain_request_id_is_taken_over() -> None:
    service = ModelService(Settings(engine="scripted"), ScriptedEngine(), ["m"])
    transport = httpx.ASGITransport(Observe(noting, service))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        for given in ("a b", "x" * 129, "é".encode("latin-1"), "", 'a"b'):
            answer = await client.get("/", headers={"x-request-id": given})  # type: ignore[dict-item]
            assert answer.headers["x-request-id"].startswith("req-")
            assert answer.headers["x-request-id"] == answer.text
        assert (await client.get("/", headers={"x-request-id": "A.b:c-1_2"})).text == "A.b:c-1_2"


# --- a process --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def json_service() -> Iterator[Service]:
    env = {"MODEL_ENGINE": "scripted", "MODEL_LOG_FORMAT": "json", "MODEL_API_KEYS": "sk-secret-key"}
    with start_service("services.model", env) as service:
        yield service


def test_the_whole_log_of_a_process_is_json(json_service: Service) -> None:
    with httpx.Client(base_url=json_service.url, timeout=30, trust_env=False) as client:
        key = {"authorization": "Bearer sk-secret-key"}
        client.post(CHAT, json=chat("a secret question"), headers=key | {"x-request-id": "mine-1"})
        client.post(CHAT, json=chat("a secret question"), headers={"x-request-id": "mine-2"})
        client.get("/nothing%0a{}", headers=key | {"x-request-id": "mine-3"})
        eventually(lambda: "mine-3" in json_service.log())
    json_service.send(signal.SIGTERM)
    assert json_service.wait() == 0
    log = json_service.log()
    lines = [json.loads(line) for line in log.splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    assert any("SIGTERM" in line["message"] for line in lines)
    found = {line["request_id"]: line for line in lines if "request_id" in line}
    assert found["mine-1"]["client"] == fingerprint("sk-secret-key")
    assert found["mine-1"]["status"] == 200
    assert found["mine-1"]["generated"] > 0
    assert found["mine-1"]["prompt_tokens"] > 0
    assert "client" not in found["mine-2"]
    assert found["mine-2"]["error"] == "invalid_api_key"
    assert found["mine-3"]["path"] == "/nothing\n{}"
    assert "secret question" not in log
    assert "sk-secret" not in log
