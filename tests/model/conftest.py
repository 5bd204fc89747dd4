"""Servers for the tests of the model service: a real process, and a real uvicorn in a thread whose engine a test can hold."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from services.model.app import create_app
from services.model.config import Settings
from services.model.engine.scripted import Rule, ScriptedEngine
from services.model.service import ModelService
from tests.support.servers import Service, free_port, start_service

RULES: list[dict[str, Any]] = [
    {"match": "^fail at once$", "reply": "x", "fail_after": 0},
    {"match": "^fail later$", "reply": "half an answer", "fail_after": 2},
    {"match": "^count$", "reply": "one two three four five six"},
    {"match": "^hang$", "reply": "one two three", "hold_after": 1},
    {"match": "^slow$", "reply": "0123" * 10, "token_delay_ms": 20},
    {"match": "^endless$", "reply": "again ", "repeat": True, "token_delay_ms": 5},
]


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "embedded", "messages": [{"role": "user", "content": text}], **more}


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON of every event of a stream that ended well."""
    lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1] if not line.startswith(":")]


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])


def eventually(holds: Callable[[], Any], timeout: float = 10) -> float:
    """Waits until `holds()` is true, polling; returns the seconds it took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < timeout, "it did not come true in time"
        time.sleep(0.005)
    return time.monotonic() - began


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "rules.json"
    path.write_text(json.dumps(RULES))
    return path


@pytest.fixture(scope="session")
def scripted(script: Path) -> Iterator[Service]:
    """A model service process with the scripted engine and the rules above."""
    with start_service("services.model", {"MODEL_ENGINE": "scripted", "MODEL_SCRIPT": str(script)}) as service:
        yield service


@pytest.fixture
def client(scripted: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=scripted.url, timeout=30, trust_env=False) as client:
        yield client


class Gate:
    """Holds an engine before a token until the test opens it."""

    def __init__(self, before: int) -> None:
        self._before = before
        self.reached = threading.Event()
        self.open = threading.Event()

    async def __call__(self, count: int) -> None:
        if count >= self._before:
            self.reached.set()
            while not self.open.is_set():  # noqa: ASYNC110 (the test that opens it is in another thread)
                await asyncio.sleep(0.002)


class Running:
    """A served app, and what is behind it."""

    def __init__(self, url: str, engine: ScriptedEngine, service: ModelService) -> None:
        self.url = url
        self.engine = engine
        self.service = service
        self.client = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def metric(self, name: str, **labels: str) -> float:
        return self.service.metrics.registry.get_sample_value("docduet_model_" + name, labels) or 0.0


@contextmanager
def serve(
    gate: Gate | None = None,
    load_gate: threading.Event | None = None,
    rules: list[dict[str, Any]] = RULES,
    engine_options: dict[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Running]:
    """The scripted engine behind a real uvicorn in a thread."""
    engine = ScriptedEngine(
        [Rule(**rule) for rule in rules],
        context=settings.get("context"),
        gate=gate,
        load_gate=load_gate,
        **(engine_options or {}),
    )
    port = free_port()
    app = create_app(Settings(engine="scripted", **settings), engine, ["embedded"])
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    running = Running(f"http://127.0.0.1:{port}", engine, app.state.service)
    try:
        eventually(lambda: server.started)
        if load_gate is None:
            eventually(lambda: app.state.service.info is not None)
        with running.client:
            yield running
    finally:
        if gate is not None:
            gate.open.set()
        if load_gate is not None:
            load_gate.set()
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive()
