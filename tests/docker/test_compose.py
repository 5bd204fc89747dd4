"""``docker compose up`` for real: build both images, ingest, ask, kill, ask again. Run by ``scripts/test --docker``.

DOCDUET_BASE_IMAGE names the Python image to build on, DOCDUET_BUILD_NETWORK the network of the builds (``host`` where a
bridge has no way out). The weights come from this machine's cache, so that containers need no network.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.rag.conftest import upload, wait
from tests.support.servers import ROOT, free_port

MODEL_ID = "embedded:0.5b"
BASE = os.environ.get("DOCDUET_BASE_IMAGE", "python:3.11-slim-bookworm")
QUESTION = {"input": {"question": "租约的软限制和硬限制分别是多久？"}}


def run(*command: str, check: bool = True, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False, timeout=1500, **kwargs)
    if check and done.returncode:
        raise AssertionError(
            f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
    return done


def docker_reason() -> str | None:
    """Why these tests cannot run here, or None."""
    if not shutil.which("docker") or run("docker", "info", check=False).returncode:
        return "no Docker engine answers on this machine"
    if (
        run("docker", "image", "inspect", BASE, check=False).returncode
        and run("docker", "pull", BASE, check=False).returncode
    ):
        return f"the base image {BASE} is not here and cannot be pulled"
    return None


pytestmark = [pytest.mark.docker, pytest.mark.timeout(2400)]


class Stack:
    def __init__(self, folder: Path) -> None:
        plugin = run("docker", "compose", "version", check=False).returncode == 0
        self._compose = ["docker", "compose"] if plugin else ["docker-compose"]
        self.model_port, self.rag_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.rag_port}"
        self._env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("MODEL_", "RAG_"))},
            "COMPOSE_PROJECT_NAME": "docduet-test",
            "MODEL_ID": MODEL_ID,
            "MODEL_PORT": str(self.model_port),
            "RAG_PORT": str(self.rag_port),
            "DOCDUET_CACHE": str(folder),
        }

    def build(self) -> None:
        network = os.environ.get("DOCDUET_BUILD_NETWORK", "default")
        for name in ("model", "rag"):
            command = ["docker", "build", f"--network={network}", "--build-arg", f"BASE={BASE}"]
            run(*command, "-t", f"docduet-{name}:0.1.0", "-f", f"services/{name}/Dockerfile", ".")

    def __call__(self, *arguments: str, check: bool = True) -> str:
        return run(*self._compose, *arguments, check=check, env=self._env).stdout

    def container(self, name: str) -> str:
        return self("ps", "-q", name).strip()

    def wait_ready(self, seconds: float = 180) -> None:
        deadline, last = time.monotonic() + seconds, ""
        while time.monotonic() < deadline:
            try:
                response = httpx.get(f"{self.url}/ready", timeout=5)
                if response.status_code == 200:
                    return
                last = response.text
            except httpx.TransportError as error:
                last = repr(error)
            time.sleep(0.5)
        raise AssertionError(f"not ready after {seconds} s ({last}):\n{self('logs', '--tail', '40')}")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if reason := docker_reason():
        pytest.skip(reason)
    cache = tmp_path_factory.mktemp("cache")
    home = Path("~/.cache/docduet").expanduser()
    for source in (Path(os.environ.get("MODEL_CACHE_DIR", home / "models")), home / "embeddings"):
        if source.is_dir():
            shutil.copytree(source, cache / source.name, ignore=shutil.ignore_patterns("*1.5b*"), dirs_exist_ok=True)
    # The containers' user is another one than ours.
    for path in [cache, *cache.parents[:2], *cache.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o666)
    stack = Stack(cache)
    stack.build()
    try:
        stack("up", "-d", "--no-build")
        stack.wait_ready()
        yield stack
    finally:
        stack("down", "-v", check=False)


def test_a_kill_of_the_rag_container_loses_nothing(stack: Stack) -> None:
    with httpx.Client(base_url=stack.url, timeout=240) as client:
        job = upload(client, next((ROOT / "samples").glob("*.zh.pdf")))
        assert wait(client, job["job_id"])["state"] == "indexed"
        before = client.get("/documents").json()
        first = client.post("/rag/invoke", json=QUESTION).json()["output"]
        assert first["citations"][0]["page"] == 2
    container = stack.container("rag")
    run("docker", "kill", "-s", "KILL", container)
    run("docker", "start", container)
    stack.wait_ready()
    with httpx.Client(base_url=stack.url, timeout=240) as client:
        assert client.get("/documents").json() == before
        assert client.post("/rag/invoke", json=QUESTION).json()["output"] == first


def test_a_changed_container_keeps_the_volume(stack: Stack) -> None:
    documents = httpx.get(f"{stack.url}/documents").json()
    stack("rm", "-s", "-f", "rag")
    stack("up", "-d", "--no-build", "rag")
    stack.wait_ready()
    assert httpx.get(f"{stack.url}/documents").json() == documents


@pytest.mark.parametrize("name", ["model", "rag"])
def test_the_container_is_locked_down_and_healthy(stack: Stack, name: str) -> None:
    container = stack.container(name)
    assert run("docker", "exec", container, "id", "-u").stdout.strip() == "10001"
    [inspected] = json.loads(run("docker", "inspect", container).stdout)
    bindings = inspected["HostConfig"]["PortBindings"].values()
    assert {b["HostIp"] for binding in bindings for b in binding} == {"127.0.0.1"}
    assert inspected["HostConfig"]["CapDrop"] == ["ALL"]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        [inspected] = json.loads(run("docker", "inspect", container).stdout)
        if inspected["State"]["Health"]["Status"] == "healthy":
            break
        time.sleep(1)
    assert inspected["State"]["Health"]["Status"] == "healthy"


@pytest.mark.parametrize(
    ("name", "absent"), [("model", ["torch", "chromadb", "langserve"]), ("rag", ["xllamacpp"])], ids=["model", "rag"]
)
def test_the_image_holds_its_own_extra_and_no_compiler(stack: Stack, name: str, absent: list[str]) -> None:
    probe = (
        "import importlib.util as u, shutil, json, sys; "
        f"print(json.dumps([[m for m in {absent!r} if u.find_spec(m)], [c for c in ('gcc', 'cc', 'g++', 'make') if shutil.which(c)]]))"
    )
    out = run("docker", "run", "--rm", "--network", "none", f"docduet-{name}:0.1.0", "python", "-c", probe).stdout
    assert json.loads(out) == [[], []]


@pytest.mark.parametrize("profile", ["gpu", "vllm", "chroma"])
def test_every_profile_is_readable(stack: Stack, profile: str) -> None:
    expected = {"gpu": "model-gpu", "vllm": "vllm", "chroma": "chroma"}[profile]
    assert expected in stack("--profile", profile, "config", "--services").split()
