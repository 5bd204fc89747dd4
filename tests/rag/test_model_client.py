"""The client of the model service, against a server that answers some of its routes and hangs at others."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from services.rag import model_client
from services.rag.config import Settings
from services.rag.errors import ModelTimeout
from services.rag.model_client import ModelClient
from tests.support.http_stand_in import models, serving


@dataclass
class Busy:
    """Lists its models while ``lists`` is set, and counts every text as three tokens."""

    url: str = ""
    lists: threading.Event = field(default_factory=threading.Event)

    def answers(self, _path: str, body: Any) -> tuple[int, object]:
        if body is None:
            self.lists.wait(timeout=60)
            return 200, models()
        return 200, {"count": 3, "max_model_len": 4096}


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Busy]:
    monkeypatch.setattr(model_client, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(model_client, "PROBE_TTL", 0.0)
    busy = Busy()
    busy.lists.set()
    with serving(busy.answers) as url:
        busy.url = f"{url}/v1"
        yield busy
        busy.lists.set()


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
