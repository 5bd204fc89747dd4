"""Fetching from a hub, which is here a real HTTP server with the hub's three routes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from services.model import catalog

COMMIT = "1" * 40
FILES = {
    "config.json": b'{"model_type": "qwen2"}',
    "model.safetensors": os.urandom(100_000),
    "modeling_qwen.py": b"raise SystemExit('code of a checkpoint was run')",
    "pytorch_model.bin": b"\x80\x04.",
    "qwen.tiktoken": b"IQ== 0\n",
    "README.md": b"# Tiny",
}


class Hub(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        if path in ("/api/models/owner/tiny", "/api/models/owner/tiny/revision/main"):
            self.send({"id": "owner/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]})
        elif path == f"/api/models/owner/tiny/tree/{COMMIT}":
            self.send(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}  # noqa: S324
                    for name, data in FILES.items()
                ]
            )
        elif path.startswith("/owner/tiny/resolve/") and path.rsplit("/", 1)[1] in FILES:
            self.send(FILES[path.rsplit("/", 1)[1]])
        elif "/owner/gated" in path:
            self.send({"error": "gated"}, 403, {"X-Error-Code": "GatedRepo"})
        else:
            self.send({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def send(self, body: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(data)),
            "ETag": f'"{hashlib.sha1(data).hexdigest()}"',  # noqa: S324
            "X-Repo-Commit": COMMIT,
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def hub(asked: list[str]) -> Iterator[str]:
    handler = type("OneHub", (Hub,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def pull(model_id: str, cache: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`docduet models pull`, in a process of its own: the hub's client reads its settings once, when it is imported."""
    unwanted = ("HF_", "HUGGINGFACE_", "MODEL_", "XDG_")
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(unwanted) and "proxy" not in name.lower()
    }
    env |= {"HOME": str(cache), "MODEL_CACHE_DIR": str(cache / "ours"), **variables}
    return subprocess.run(
        [sys.executable, "-m", "services.cli", "models", "pull", model_id],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def folder_of(done: subprocess.CompletedProcess[str]) -> Path:
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().partition(": ")[2])


def test_a_checkpoint_is_fetched_once_and_only_its_data(hub: str, asked: list[str], tmp_path: Path) -> None:
    done = pull("owner/tiny", tmp_path, HF_ENDPOINT=hub)
    folder = folder_of(done)
    assert folder.is_relative_to(tmp_path / "ours" / "hub")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "qwen.tiktoken"}
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert "100 %" in done.stderr
    assert "Traceback" not in done.stderr
    asked.clear()
    assert folder_of(pull("owner/tiny", tmp_path, HF_ENDPOINT=hub)) == folder
    assert not [path for path in asked if "resolve" in path]
    # and without a network
    assert folder_of(pull("owner/tiny", tmp_path, HF_ENDPOINT=hub, HF_HUB_OFFLINE="1")) == folder
    assert folder_of(pull("owner/tiny", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")) == folder


def test_the_hubs_own_cache_is_used_where_it_is_named(hub: str, tmp_path: Path) -> None:
    folder = folder_of(pull("owner/tiny", tmp_path, HF_ENDPOINT=hub, HF_HOME=str(tmp_path / "theirs")))
    assert folder.is_relative_to(tmp_path / "theirs" / "hub")


def test_the_hubs_own_cache_is_used_where_it_has_the_model(hub: str, asked: list[str], tmp_path: Path) -> None:
    usual = tmp_path / ".cache" / "huggingface"
    folder = folder_of(pull("owner/tiny", tmp_path, HF_ENDPOINT=hub, HF_HOME=str(usual)))
    asked.clear()
    assert folder_of(pull("owner/tiny", tmp_path, HF_ENDPOINT=hub)) == folder
    assert not [path for path in asked if "resolve" in path]


def test_whether_it_is_here(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    found = catalog.find("owner/tiny")
    assert not found.is_here(tmp_path / "ours")
    folder = folder_of(pull("owner/tiny", tmp_path, HF_ENDPOINT=hub))
    assert found.is_here(tmp_path / "ours")
    (folder / "config.json").unlink()  # as after a download that was interrupted
    assert not found.is_here(tmp_path / "ours")


@pytest.mark.parametrize(
    ("model_id", "variables", "says"),
    [
        ("owner/none", {}, "neither a folder here nor a model on the hub"),
        ("owner/gated", {}, "HF_TOKEN"),
        ("owner/tiny", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ("owner/tiny", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached"),
        ("nonsense", {}, "neither a .gguf file"),
    ],
)
def test_what_cannot_be_fetched_is_explained(
    hub: str, tmp_path: Path, model_id: str, variables: dict[str, str], says: str
) -> None:
    done = pull(model_id, tmp_path, **({"HF_ENDPOINT": hub} | variables))
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    if model_id == "owner/tiny":
        assert "hf download owner/tiny --local-dir" in done.stderr
