"""What a new user meets: scripts/demo after set-up. (The set-up itself is what `scripts/test` has just been through.)"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import MODEL_ID, cache_env
from tests.support.servers import ROOT, free_port


def demo(tmp_path: Path, *arguments: str, **env: str) -> subprocess.Popen[str]:
    ports = {"MODEL_PORT": str(free_port()), "RAG_PORT": str(free_port())}
    foreign = ("MODEL_", "RAG_")
    return subprocess.Popen(
        [sys.executable, "-m", "services.demo", *arguments],
        cwd=ROOT,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(foreign)},
            **cache_env(),
            **ports,
            "RAG_DATA_DIR": str(tmp_path / "data"),
            **env,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def in_use(port: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0


@pytest.mark.weights
def test_twice_from_samples_to_cited_answers(tmp_path: Path) -> None:
    for outcome in ("  indexed ", "  already indexed "):
        process = demo(tmp_path, "--once", "--model", MODEL_ID)
        out, err = process.communicate(timeout=290)
        assert process.returncode == 0, out + err
        assert out.count(outcome) == 2
        assert "[1] qingshi-storage-handbook.zh.pdf, page 2" in out
        assert "[1] harrow-h2-manual.en.pdf, page 3" in out
        assert "/rag/playground/" in out


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = demo(tmp_path, "--once", MODEL_PORT=port)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"starting the services failed: port {port} is taken" in err
    assert "MODEL_PORT" in err


def test_a_service_that_cannot_start_is_named_with_its_reason_and_the_other_is_stopped(tmp_path: Path) -> None:
    rag_port = str(free_port())
    process = demo(tmp_path, "--once", "--model", "embedded:9b", RAG_PORT=rag_port)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the model service ended" in err
    assert "embedded:9b is not known" in err
    assert not in_use(rag_port)


def test_an_interrupt_leaves_nothing_running(tmp_path: Path) -> None:
    model_port, rag_port = str(free_port()), str(free_port())
    env = {"MODEL_ENGINE": "scripted", "RAG_EMBEDDING_MODEL": "hashing", "RAG_REFUSAL_THRESHOLD": "0"}
    process = demo(tmp_path, MODEL_PORT=model_port, RAG_PORT=rag_port, **env)
    assert process.stdout is not None
    for line in process.stdout:
        if "Ctrl-C" in line:
            break
    assert in_use(model_port)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert not in_use(model_port)
    assert not in_use(rag_port)
