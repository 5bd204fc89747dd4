"""Every example runs against the real pair and prints what it promises."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import RealPair, cache_env
from tests.support.servers import ROOT

pytestmark = pytest.mark.weights


@pytest.fixture
def run(real_pair: RealPair) -> Callable[..., str]:
    env = {
        **os.environ,
        **cache_env(),
        "MODEL_URL": real_pair.model.url + "/v1",
        "MODEL_NAME": real_pair.model.get("/v1/models").json()["data"][0]["id"],
        "RAG_URL": real_pair.rag.url,
        "RAG_EMBEDDING_MODEL": "embedded",
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    }

    def call(name: str, *arguments: str, said: str = "") -> str:
        program = ["bash"] if name.endswith(".sh") else [sys.executable]
        done = subprocess.run(
            [*program, f"examples/{name}", *arguments],
            cwd=ROOT,
            env=env,
            input=said,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


def test_every_example_has_a_test() -> None:
    names = {p.name for p in (ROOT / "examples").iterdir() if p.suffix in (".py", ".sh")}
    source = Path(__file__).read_text(encoding="utf-8")
    assert {name for name in names if f'"{name}"' not in source} == set()


@pytest.mark.parametrize(
    ("name", "holds"),
    [("hello_chat.py", ""), ("prompt_chain.py", ""), ("openai_sdk.py", "tokens"), ("embedding.py", "384 dimensions")],
)
def test_it_prints_something(run: Callable[..., str], name: str, holds: str) -> None:
    output = run(name)
    assert len(output.strip()) > 5
    assert holds in output


def test_a_chat_of_two_turns(run: Callable[..., str]) -> None:
    output = run("multi_turn_chat.py", said="我叫小明。\n我叫什么名字？\n\n")
    assert output.count("助手：") == 2
    assert "小明" in output


def test_a_page_is_printed(run: Callable[..., str]) -> None:
    assert "租约" in run("load_pdf.py", "samples/qingshi-storage-handbook.zh.pdf", "2")


def test_the_tutorials_index(run: Callable[..., str]) -> None:
    output = run("index_chroma.py")
    assert "chunks of 7 pages indexed" in output
    assert "page 2" in output


def test_questions_and_follow_ups(run: Callable[..., str]) -> None:
    output = run("conversational_qa.py", said="租约的软限制是多久？\n那它的硬限制呢？\n\n")
    assert output.count("答：") == 2
    assert "第 2 页" in output


def test_remote_runnable(run: Callable[..., str]) -> None:
    output = run("remote_runnable.py")
    assert "qingshi-storage-handbook.zh.pdf" in output
    assert "False" in output


def test_curl(run: Callable[..., str]) -> None:
    output = run("curl.sh", "samples/qingshi-storage-handbook.zh.pdf")
    assert "chat.completion" in output
    assert '"citations":[{' in output
    assert "event: end" in output
