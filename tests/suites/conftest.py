"""One service process on the real small weights for all outside suites; most of their time would go into loading it again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import Service, start_service

MODEL = "embedded:0.5b"
CACHE = Path(os.environ.get("MODEL_CACHE_DIR") or Path.home() / ".cache" / "docduet" / "models")


@pytest.fixture(scope="session")
def real() -> Iterator[Service]:
    # A context that fits the longest test: less memory than the checkpoint's 32,768 tokens.
    env = {"MODEL_ID": MODEL, "MODEL_CACHE_DIR": str(CACHE), "MODEL_CONTEXT": "8192"}
    with start_service("services.model", env, ready_timeout=900) as service:  # the first time it downloads
        yield service
