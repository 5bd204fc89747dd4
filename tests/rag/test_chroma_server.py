"""The vectors in a Chroma server, which may go away and come back."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from services.supervisor import free_port
from tests.rag.conftest import rag_env, upload, wait
from tests.support.pdfs import make_pdf
from tests.support.servers import Service, start_service


class Server:
    """`chroma run`, as its documentation starts it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [str(Path(sys.executable).with_name("chroma")), "run", "--path", str(self._folder)]
        log = self._folder.with_suffix(".log").open("ab")
        self._process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(self._port)], stdout=log, stderr=log
        )
        log.close()
        with httpx.Client(transport=httpx.HTTPTransport(retries=10)) as client:  # waits longer each time
            client.get(f"{self.url}/api/v2/heartbeat", timeout=30).raise_for_status()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


@pytest.fixture
def chroma(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "chroma")
    server.start()
    yield server
    server.kill()


@pytest.mark.timeout(180)
def test_a_server_that_goes_away_loses_nothing(chroma: Server, model: Service, tmp_path: Path) -> None:
    env = rag_env(model.url, tmp_path / "data", RAG_CHROMA_URL=chroma.url)
    with (
        start_service("services.rag", env, log_dir=tmp_path) as service,
        httpx.Client(base_url=service.url, timeout=30, trust_env=False) as client,
    ):
        first = upload(client, make_pdf(tmp_path / "a.pdf", ["The heron waits in the reeds."]))
        assert wait(client, first["job_id"])["state"] == "indexed"
        query = {"query": "heron in the reeds", "mode": "dense", "k": 1}
        assert client.post("/search", json=query).json()["passages"][0]["filename"] == "a.pdf"

        chroma.kill()
        refused = client.post("/search", json=query)
        assert refused.status_code == 507, refused.text
        assert "index cannot be read" in refused.json()["error"]["message"]
        ready = client.get("/ready")
        assert ready.status_code == 503
        assert "vector store" in ready.json()["reasons"]["chroma"]
        # Words are in a file of our own.
        words = client.post("/search", json={**query, "mode": "lexical"}).json()["passages"]
        assert words[0]["filename"] == "a.pdf"
        second = upload(client, make_pdf(tmp_path / "b.pdf", ["The otter slides down the bank."]))

        chroma.start()
        assert wait(client, second["job_id"])["state"] == "indexed"
        assert client.get("/ready").status_code == 200
        found = client.post("/search", json={"query": "otter on the bank", "mode": "dense", "k": 1}).json()
        assert found["passages"][0]["filename"] == "b.pdf"
        assert client.get("/index/verify", params={"files": True}).json()["ok"]
