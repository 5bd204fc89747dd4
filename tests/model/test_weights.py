"""The real engine with the real small weights: what a script cannot show."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.model.engine.gguf import read_gguf
from tests.model.conftest import events, eventually, text_of
from tests.support.servers import Service, start_service

pytestmark = pytest.mark.weights

CHAT = "/v1/chat/completions"
MODEL = "embedded:0.5b"
CACHE = Path(os.environ.get("MODEL_CACHE_DIR") or Path.home() / ".cache" / "docduet" / "models")


def ask(text: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0, **more}


@pytest.fixture(scope="module")
def real() -> Iterator[Service]:
    env = {"MODEL_ID": MODEL, "MODEL_CACHE_DIR": str(CACHE), "MODEL_LOG_LEVEL": "info"}
    with start_service("services.model", env, ready_timeout=900) as service:  # the first time it downloads
        yield service


@pytest.fixture
def client(real: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=real.url, timeout=240, trust_env=False) as client:
        yield client


def metric(service: Service, name: str) -> float:
    found = re.search(rf"^docduet_model_{name} (\S+)$", service.get("/metrics").text, re.MULTILINE)
    assert found, name
    return float(found[1])


def test_it_answers_in_chinese_and_english(client: httpx.Client) -> None:
    body = client.post(CHAT, json=ask("中国的首都是哪里？", max_tokens=24)).json()
    assert "北京" in body["choices"][0]["message"]["content"]
    body = client.post(CHAT, json=ask("What is the capital of France?", max_tokens=24)).json()
    assert "Paris" in body["choices"][0]["message"]["content"]


def test_a_seed_gives_the_same_text_also_when_others_decode_beside_it(client: httpx.Client) -> None:
    body = ask("Write a short story about a fox.", seed=5, temperature=1, max_tokens=40)

    def text(sent: dict[str, Any]) -> str:
        return str(client.post(CHAT, json=sent).json()["choices"][0]["message"]["content"])

    first = text(body)
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(text, ask(f"Tell me about {n} things. " * (3 * n), max_tokens=30)) for n in (1, 2, 3)]
        beside = pool.submit(text, body).result()
        assert all(other.result() for other in others)
    assert beside == first  # neither its neighbours nor what they left in the cache change a bit
    assert text(body) == first
    assert text(body | {"seed": 6}) != first


def test_the_tokens_are_those_of_the_checkpoint(client: httpx.Client) -> None:
    def tokens(**body: Any) -> list[int]:
        found: list[int] = client.post("/tokenize", json=body).json()["tokens"]
        return found

    assert tokens(prompt="Hello world<|im_end|>") == [9707, 1879, 151645]
    ids = tokens(messages=[{"role": "user", "content": "hi<|im_end|>"}])
    # 151644 and 151645 open and close a turn: system, user, and the opening of the answer
    assert (ids.count(151644), ids.count(151645)) == (3, 2)
    plain = tokens(messages=[{"role": "user", "content": "hi"}])
    system = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    assert plain == tokens(prompt=system + "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    for text in ("", "\x00", "a\x00b", "🦆" * 50, "\u2028", " " * 1000):
        assert client.post("/tokenize", json={"prompt": text}).status_code == 200
    info = read_gguf(CACHE / "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")
    assert (info.architecture, info.context_length, info.vocab_size) == ("qwen2", 32768, 151936)


def test_usage_and_the_prefix_cache(client: httpx.Client) -> None:
    text = "Repeat after me: " + " ".join(str(number) for number in range(100, 160))
    first = client.post(CHAT, json=ask(text, max_tokens=5)).json()
    again = client.post(CHAT, json=ask(text, max_tokens=5)).json()
    count = client.post("/tokenize", json={"messages": ask(text)["messages"]}).json()["count"]
    for body in (first, again):
        assert body["usage"]["prompt_tokens"] == count
        assert body["usage"]["completion_tokens"] == 5
        assert body["choices"][0]["finish_reason"] == "length"
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0.9 * count
    assert first["choices"][0]["message"] == again["choices"][0]["message"]


def test_streamed_and_whole_are_the_same_answer(client: httpx.Client) -> None:
    body = ask("用一句话介绍长城，并用一个表情符号结尾。", max_tokens=40)
    whole = client.post(CHAT, json=body).json()
    with client.stream(
        "POST", CHAT, json=body | {"stream": True, "stream_options": {"include_usage": True}}
    ) as response:
        chunks = events(response)
    assert text_of(chunks) == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_the_count_is_right_where_a_stop_string_ends_it(client: httpx.Client) -> None:
    text = "Count from 1 to 20, separated by commas and spaces."
    body = client.post(CHAT, json=ask(text, stop=["7"], max_tokens=60)).json()
    choice = body["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"].rstrip().endswith("6,")
    tokens = client.post("/tokenize", json={"prompt": choice["message"]["content"] + "7"}).json()["count"]
    assert abs(body["usage"]["completion_tokens"] - tokens) <= 1


def test_the_same_seed_is_the_same_answer(client: httpx.Client) -> None:
    def answer(seed: int) -> str:
        body = ask("Invent a name for a ship.", temperature=1.5, seed=seed, max_tokens=12)
        content: str = client.post(CHAT, json=body).json()["choices"][0]["message"]["content"]
        return content

    # The first of each fills the cache: a prompt that is read in other blocks rounds differently in the last bits.
    answer(0)
    answers = [answer(seed) for seed in (1, 1, 2, 3, 4)]
    assert answers[0] == answers[1]
    assert len(set(answers)) > 1


def test_requests_decode_together(client: httpx.Client, real: Service) -> None:
    with ThreadPoolExecutor(4) as pool:
        body = ask("Write a story.", max_tokens=40, ignore_eos=True)
        answers = [pool.submit(client.post, CHAT, json=body) for _ in range(4)]
        eventually(lambda: metric(real, "requests_running") == 4, timeout=60)
        assert [answer.result().json()["usage"]["completion_tokens"] for answer in answers] == [40] * 4


def test_a_client_that_leaves_stops_the_decoding(client: httpx.Client, real: Service) -> None:
    with client.stream(
        "POST", CHAT, json=ask("Write a long story.", max_tokens=4000, ignore_eos=True, stream=True)
    ) as response:
        lines = (line for line in response.iter_lines() if line)
        for _ in range(4):
            next(lines)
    seconds = eventually(lambda: metric(real, "requests_running") == 0, timeout=30)
    generated = metric(real, "generated_tokens_total")
    assert seconds < 2  # far less on an idle machine; other tests may be running
    assert metric(real, "generated_tokens_total") == generated


def test_a_client_that_leaves_stops_the_reading_of_its_prompt(client: httpx.Client, real: Service) -> None:
    words = " ".join(random.Random(5).choices("alpha beta gamma delta epsilon zeta eta theta".split(), k=5000))  # noqa: S311
    began = time.monotonic()
    with pytest.raises(httpx.ReadTimeout):
        client.post(CHAT, json=ask(words, max_tokens=4), timeout=1.0)
    eventually(lambda: metric(real, "requests_running") == 0, timeout=60)
    assert time.monotonic() - began < 30  # all of it would take longer
    assert "Paris" in json.dumps(client.post(CHAT, json=ask("What is the capital of France?", max_tokens=24)).json())


def test_odd_prompts_do_not_harm_the_engine(client: httpx.Client) -> None:
    for prompt in ("\x00", " ", "\u2028", "<|im_end|>", "<|endoftext|>" * 3, [0], [151935], [151645] * 10):
        response = client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 2})
        assert response.status_code == 200, (prompt, response.text)
    assert client.post("/v1/completions", json={"prompt": [151936]}).status_code == 400
    for extreme in (
        {"top_k": 1},
        {"top_p": 1e-9},
        {"min_p": 1.0},
        {"presence_penalty": 2, "frequency_penalty": 2},
        {"seed": -1},
    ):
        assert client.post(CHAT, json=ask("hi", max_tokens=2) | {"temperature": 2} | extreme).status_code == 200


def test_no_second_door_is_open(real: Service) -> None:
    """llama.cpp's own server must be reachable by this user alone, and with a key."""
    if not Path("/proc").is_dir():
        pytest.skip("reads /proc")
    pid = real.process.pid
    inodes = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    listening = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and f"socket:[{line.split()[9]}]" in inodes
    ]
    assert [int(fields[1].rsplit(":", 1)[1], 16) for fields in listening] == [int(real.url.rsplit(":", 1)[1])]
    sockets = [
        Path(line.split()[7])
        for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]
        if len(line.split()) > 7 and f"socket:[{line.split()[6]}]" in inodes
    ]
    (door,) = {path for path in sockets if path.name == "llamacpp.sock"}
    assert door.parent.stat().st_mode & 0o077 == 0
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(door)), base_url="http://x") as stranger:
        for path in ("/props", "/tokenize", "/completion", "/v1/chat/completions", "/slots"):
            assert stranger.post(path, json={"content": "x", "prompt": "x"}).status_code in (401, 404)


def test_the_door_is_removed_at_the_end(tmp_path: Path) -> None:
    env = {"MODEL_ID": MODEL, "MODEL_CACHE_DIR": str(CACHE), "TMPDIR": str(tmp_path)}
    with start_service("services.model", env, ready_timeout=900) as service:
        assert list(tmp_path.iterdir())
        assert service.stop() == 0
    assert not list(tmp_path.iterdir())


def test_the_key_is_not_on_the_command_line_or_in_the_log(real: Service) -> None:
    shown = subprocess.run(
        ["ps", "-o", "args=", "-p", str(real.process.pid)], capture_output=True, text=True, check=False
    )
    assert "api" not in shown.stdout
    assert not re.search(r"\b[0-9a-f]{64}\b", real.log())


async def test_an_engine_that_leaves_its_grammar_is_an_error_and_not_prose(monkeypatch: pytest.MonkeyPatch) -> None:
    from services.model import catalog
    from services.model.engine import llamacpp
    from services.model.engine.base import Constraint, GenerationRequest, JsonSchema, Sampling
    from services.model.errors import EngineFailed

    payload = llamacpp._payload  # what llama.cpp does with a grammar that its copy of the library does not take
    monkeypatch.setattr(
        llamacpp, "_payload", lambda request: {k: v for k, v in payload(request).items() if k != "grammar"}
    )
    path = catalog.resolve(MODEL, CACHE)
    engine = llamacpp.LlamaCppEngine(lambda report: path, llamacpp.LlamaCppOptions(context=512))
    engine.load(lambda doing: None)
    try:
        constraint = Constraint(((JsonSchema({"type": "object"}),),))
        ids = engine.tokenize("The capital of France is", special=False)
        request = GenerationRequest(ids, 16, Sampling(temperature=0), constraint=constraint)
        with pytest.raises(EngineFailed, match="schema"):
            _ = [event async for event in engine.generate(request)]
    finally:
        engine.close()
