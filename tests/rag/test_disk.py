"""A disk that is full or read-only: said so, nothing lost, and all goes on once there is room."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.rag.conftest import rag_env, wait, wait_for_index
from tests.support.servers import Service, ServiceDidNotStart, start_service

SIZE_MB = 24
LARGE = b"The whale is counted by the keeper of the lighthouse.\n" * 40_000
WALRUS = "The walrus sleeps on the ice of the northern bay."
OF_THE_DISK = ("disk", "space", "read-only", "readonly", "I/O")


def run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"{' '.join(command)} failed: {result.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    path = tmp_path / "disk"
    path.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "docduet-test", str(path))
    try:
        yield path
    finally:
        while os.path.ismount(path):
            subprocess.run(["umount", "-l", str(path)], check=True)


@contextmanager
def full(disk: Path, left: int) -> Iterator[None]:
    """The disk with ``left`` bytes free."""
    filler = disk / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            while (free := os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - left) > 0:
                file.write(bytes(min(free, 1 << 20)))
        yield
    finally:
        filler.unlink(missing_ok=True)


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """Whatever is opened from now on is read-only; what is open stays, or the kernel would refuse."""
    run("mount", "--bind", str(disk), str(disk))
    try:
        run("mount", "-o", "remount,bind,ro", str(disk))
        yield
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def text(word: str, kilobytes: int) -> bytes:
    return f"The {word} is counted by the keeper of the lighthouse.\n".encode() * (kilobytes * 20)


def upload(client: httpx.Client, name: str, content: bytes) -> dict[str, Any] | None:
    """The job that was taken, or None where the upload was refused for want of a disk."""
    response = client.post("/documents", files={"file": (name, content)})
    if response.status_code == 507:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert any(word in error["message"] for word in OF_THE_DISK), error
        return None
    assert response.status_code == 202, response.text
    taken: dict[str, Any] = response.json()
    return taken


def works(client: httpx.Client, first: str) -> None:
    """What was there can be found, read and listed."""
    assert client.get("/health").status_code == 200
    for mode in ("lexical", "dense", "hybrid"):
        response = client.post("/search", json={"query": WALRUS, "k": 1, "mode": mode})
        assert response.status_code == 200, response.text
        assert [p["document_id"] for p in response.json()["passages"]] == [first], mode
    assert client.get(f"/documents/{first}/pages/1").status_code == 200
    assert client.get(f"/documents/{first}/file").status_code == 200


def finish(client: httpx.Client, name: str, content: bytes, job: dict[str, Any] | None) -> None:
    """What failed while the disk was bad is indexed now."""
    again = job and client.get(f"/jobs/{job['job_id']}").json()
    if again and again["state"] == "failed":
        retried = client.post(f"/jobs/{again['id']}/retry")
        assert retried.status_code == 202, retried.text
        job = retried.json()
    job = job or upload(client, name, content)
    assert job is not None
    assert wait(client, job["job_id"])["state"] == "indexed"


def sound(client: httpx.Client) -> None:
    wait_for_index(client)
    assert client.get("/index/verify", params={"files": True}).json()["differences"] == []
    assert client.get("/jobs", params={"state": "open"}).json() == {"jobs": []}


def test_a_full_disk_loses_nothing(model: Service, disk: Path) -> None:
    env = rag_env(model.url, disk / "data")
    with start_service("services.rag", env) as rag, httpx.Client(base_url=rag.url, timeout=60) as client:
        first = upload(client, "walrus.txt", WALRUS.encode())
        assert first is not None
        assert wait(client, first["job_id"])["state"] == "indexed"
        files = {f"{left}-{n}.txt": (left, text(f"ship{left}x{n}", 40)) for left in (0, 200_000) for n in range(3)}
        jobs: dict[str, dict[str, Any] | None] = {}
        troubled = 0
        for left in (0, 200_000):
            with full(disk, left):
                assert upload(client, "large.txt", LARGE) is None
                for name, (wanted, content) in files.items():
                    if wanted == left:
                        jobs[name] = upload(client, name, content)
                for name, (wanted, _) in files.items():
                    if wanted == left and (job := jobs[name]) is not None:
                        end = wait(client, job["job_id"])
                        assert end["state"] in ("indexed", "failed")
                        if end["state"] == "failed":
                            assert any(word in end["error"] for word in OF_THE_DISK), end
                        troubled += end["state"] == "failed"
                    troubled += wanted == left and jobs[name] is None
                works(client, first["document_id"])
                assert client.get("/backup").status_code in (200, 507)
                assert list((disk / "data" / "incoming").iterdir()) == []
        assert troubled >= 3
        for name, (_, content) in files.items():
            finish(client, name, content, jobs[name])
        works(client, first["document_id"])
        sound(client)


def test_an_upload_needs_its_own_size_on_the_data_disk_and_nothing_elsewhere(
    model: Service, disk: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"  # the temporary folder, with no room for the upload
    elsewhere.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=1m", "docduet-test", str(elsewhere))
    try:
        env = rag_env(model.url, disk / "data", TMPDIR=str(elsewhere))
        with (
            start_service("services.rag", env) as rag,
            httpx.Client(base_url=rag.url, timeout=60) as client,
            full(disk, 3_500_000),
        ):
            taken = upload(client, "large.txt", LARGE)
            assert taken is not None
            assert client.get(f"/documents/{taken['document_id']}/file").content == LARGE
            assert list((disk / "data" / "incoming").iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(elsewhere)], check=True)


def test_a_disk_that_turns_read_only_loses_nothing(model: Service, disk: Path) -> None:
    env = rag_env(model.url, disk / "data")
    content = text("schooner", 20)
    with start_service("services.rag", env) as rag, httpx.Client(base_url=rag.url, timeout=60) as client:
        first = upload(client, "walrus.txt", WALRUS.encode())
        assert first is not None
        assert wait(client, first["job_id"])["state"] == "indexed"
        with read_only(disk):
            assert upload(client, "schooner.txt", content) is None
            for response in (client.get("/backup"), client.post("/restore", content=b"x" * 2_000_000)):
                assert response.status_code == 507, response.text
            works(client, first["document_id"])
        finish(client, "schooner.txt", content, None)
        works(client, first["document_id"])
        sound(client)


def test_a_read_only_folder_ends_the_start_with_one_line(model: Service, disk: Path) -> None:
    env = rag_env(model.url, disk / "data")
    (disk / "data").mkdir()
    with read_only(disk), pytest.raises(ServiceDidNotStart, match="RAG_DATA_DIR") as caught:
        start_service("services.rag", env)
    assert "Traceback" not in str(caught.value)
