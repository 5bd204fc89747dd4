"""The client of the model service, against a server that answers some of its routes and hangs at others."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from services.rag import model_client
from services.rag.config import Settings
from services.rag.errors import ModelTimeout
from services.rag.model_client import ModelClient


class Busy:
    """Lists its models while ``lists`` is set, and counts every text as three tokens."""

    def __init__(self) -> None:
        self.lists = threading.Event()
        self.lists.set()
        busy = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                busy.lists.wait(timeout=60)
                self._send({"data": [{"id": "qwen", "max_model_len": 4096}]})

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self._send({"count": 3, "max_model_len": 4096})

            def _send(self, body: object) -> None:
                data = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Busy]:
    monkeypatch.setattr(model_client, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(model_client, "PROBE_TTL", 0.0)
    server = Busy()
    thread = threading.Thread(target=server.server.serve_forever)
    thread.start()
    yield server
    server.lists.set()
    server.server.shutdown()
    thread.join()
    server.server.server_close()


def test_a_model_that_is_too_busy_to_name_itself_is_asked_all_the_same(busy: Busy) -> None:
    async def counted() -> int:
        client = ModelClient(Settings(_env_file=None, model_url=busy.url))
        await client.model_name()
        busy.lists.clear()
        try:
            return await client.count_text("words")
        finally:
            await client.close()

    assert asyncio.run(counted()) == 3


def test_a_server_that_never_answered_is_told_with_the_limit_that_it_missed(busy: Busy) -> None:
    async def named() -> str:
        client = ModelClient(Settings(_env_file=None, model_url=busy.url))
        busy.lists.clear()
        try:
            return await client.model_name()
        finally:
            await client.close()

    with pytest.raises(ModelTimeout, match=r"did not answer within 0\.2 s to /models"):
        asyncio.run(named())
