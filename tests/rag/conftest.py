"""A real pair of processes: the RAG service over the scripted model, with the hashing embedder."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.pdfs import make_pdf
from tests.support.servers import Service, start_service

RULES: list[dict[str, Any]] = [
    # A condensing prompt ends with the label that the rewrite follows.
    {"match": "and the hard one\\?\nRewritten:$", "reply": "What is the hard limit of a lease?"},
    {"match": "^What is the hard limit of a lease\\?$", "reply": "The hard limit of a lease is 2 hours [1]."},
    {
        "match": "^What is the soft limit",
        "reply": "The soft limit of a lease is 90 seconds. It is renewed every 20 seconds.",
    },
    {
        "match": "^What is the hard limit of a lease, and",
        "reply": "The soft limit of a lease is 90 seconds [1]. The hard limit of a lease is 7 hours. [9] "
        "The hard limit of a lease is 2 hours.",
    },
    {"match": "wrong number", "reply": "The hard limit of a lease is 7 hours [1]."},
    {"match": "does not know|lease unknown", "reply": "I don't know."},
    {"match": "望远镜", "reply": "我不知道。"},
    {"match": "slow lease", "reply": "The soft limit of a lease is 90 seconds. ", "repeat": True, "token_delay_ms": 20},
    {"match": "lease that breaks", "reply": "The soft limit of a lease", "fail_after": 3},
]

LEASES = (
    "A lease is granted by the master. The soft limit of a lease is 90 seconds. The hard limit of a lease is 2 hours. "
    "A client renews its lease every 20 seconds while it writes."
)
REPLICAS = "Every block has 3 replicas by default. Replicas are placed on different racks of the cluster."


@dataclass
class Pair:
    model: Service
    rag: Service
    data_dir: Path
    env: dict[str, str]

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.rag.url, timeout=30, trust_env=False)


def rag_env(model_url: str, data_dir: Path, **more: str) -> dict[str, str]:
    return {
        "RAG_MODEL_URL": f"{model_url}/v1",
        "RAG_EMBEDDING_MODEL": "hashing",
        "RAG_DATA_DIR": str(data_dir),
        **more,
    }


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    script = tmp_path_factory.mktemp("model") / "rules.json"
    script.write_text(json.dumps(RULES))
    with start_service("services.model", {"MODEL_ENGINE": "scripted", "MODEL_SCRIPT": str(script)}) as service:
        yield service


@pytest.fixture(scope="module")
def pair(model: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    data_dir = tmp_path_factory.mktemp("rag") / "data"
    env = rag_env(model.url, data_dir)
    with start_service("services.rag", env) as rag:
        yield Pair(model, rag, data_dir, env)


@pytest.fixture(scope="module")
def client(pair: Pair) -> Iterator[httpx.Client]:
    with pair.client() as client:
        yield client


@pytest.fixture(scope="session")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pdf(tmp_path_factory.mktemp("pdf") / "manual.pdf", [LEASES, REPLICAS])


@pytest.fixture(scope="module")
def indexed(client: httpx.Client, manual: Path) -> str:
    """The id of the manual, once it can be searched."""
    job = upload(client, manual)
    assert wait(client, job["job_id"])["state"] == "indexed"
    return job["document_id"]


def upload(client: httpx.Client, path: Path, **form: str) -> dict[str, Any]:
    with path.open("rb") as file:
        response = client.post("/documents", files={"file": (path.name, file)}, data=form)
    assert response.status_code == 202, response.text
    return response.json()


def wait(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """The job's end state, by its event stream."""
    last: dict[str, Any] = {}
    with client.stream("GET", f"/jobs/{job_id}/events") as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data:"):
                last = json.loads(line[5:])
    return last


def wait_for_index(client: httpx.Client, seconds: float = 60) -> dict[str, Any]:
    """The index once it is whole: nothing is rebuilt or repaired any more."""
    deadline = time.monotonic() + seconds
    while True:
        response = client.get("/index")
        if response.status_code == 200 and response.json()["state"] == "ready":
            return response.json()
        assert time.monotonic() < deadline, response.text
        time.sleep(0.05)  # between two looks


def sse(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    """(event, data) as they come."""
    event = "message"
    for line in response.iter_lines():
        if line.startswith("event:"):
            event = line[6:].strip()
        elif line.startswith("data:"):
            yield event, json.loads(line[5:])
