"""Loading, the queue, clients that leave, and stopping: what happens around a request."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.model.conftest import Gate, Running, chat, eventually, serve
from tests.support.servers import Service, ServiceDidNotStart, spawn_service, start_service

CHAT = "/v1/chat/completions"


@contextmanager
def hanging(running: Running, stream: bool = True) -> Iterator[httpx.Client]:
    """A request of its own connection that the engine holds; leaving the block closes the connection."""
    with httpx.Client(base_url=running.url, timeout=30, trust_env=False) as client:
        if stream:
            with client.stream("POST", CHAT, json=chat("hang", stream=True)) as response:
                assert response.status_code == 200
                yield client
            return
        thread = threading.Thread(target=_post_and_lose, args=(client, "hang"))
        thread.start()
        eventually(lambda: running.engine.running or running.metric("requests_waiting"))
        yield client
        _cut(client)
        thread.join(10)


def _post_and_lose(client: httpx.Client, text: str) -> None:
    with suppress(httpx.HTTPError):
        client.post(CHAT, json=chat(text))


def _cut(client: httpx.Client) -> None:
    """Closes a client's sockets under a request that waits in another thread."""
    import socket

    pool = client._transport._pool  # type: ignore[attr-defined]
    for connection in pool.connections:
        stream = connection._connection._network_stream
        stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


# --- clients that leave -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_generation(stream: bool) -> None:
    with serve() as running:
        with hanging(running, stream):
            eventually(lambda: running.engine.running == 1)
            assert running.metric("requests_running") == 1
        seconds = eventually(lambda: running.engine.cancelled == 1)
        assert seconds < 0.2
        eventually(lambda: running.metric("requests_running") == 0)
        eventually(lambda: running.metric("requests_total", route=CHAT, status="499") == 1)
        assert running.client.post(CHAT, json=chat("next")).status_code == 200


def test_a_client_that_leaves_between_two_tokens_stops_the_engine() -> None:
    with serve() as running:
        with running.client.stream("POST", CHAT, json=chat("endless", stream=True)) as response:
            lines = response.iter_lines()
            for _ in range(6):
                next(lines)
        seconds = eventually(lambda: running.engine.cancelled == 1)
        assert seconds < 0.2


def test_a_client_that_leaves_the_queue_gives_up_its_turn() -> None:
    with serve(parallel=1, queue=1) as running:
        with hanging(running):
            eventually(lambda: running.engine.running == 1)
            with hanging(running, stream=False):
                eventually(lambda: running.metric("requests_waiting") == 1)
            eventually(lambda: running.metric("requests_waiting") == 0)
            assert running.engine.running == 1
        eventually(lambda: running.engine.running == 0)
        assert running.engine.cancelled == 1  # the one that waited never reached the engine


# --- the queue --------------------------------------------------------------------------------------------------------


def test_a_full_queue_is_429_and_the_queue_moves_on() -> None:
    gate = Gate(before=1)
    with serve(gate=gate, parallel=2, queue=1) as running, ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(running.client.post, CHAT, json=chat(f"question {n}")) for n in range(3)]
        eventually(lambda: running.metric("requests_running") == 2 and running.metric("requests_waiting") == 1)
        refused = running.client.post(CHAT, json=chat("one more"))
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        gate.open.set()
        texts = {answer.result(20).json()["choices"][0]["message"]["content"] for answer in answers}
        assert texts == {"question 0", "question 1", "question 2"}
        assert running.client.post(CHAT, json=chat("again")).status_code == 200


def test_requests_run_together_within_the_kv_cache() -> None:
    gate = Gate(before=1)
    with serve(gate=gate, parallel=4, context=1000) as running, ThreadPoolExecutor(4) as pool:
        large = [pool.submit(running.client.post, CHAT, json=chat("large")) for _ in range(3)]  # each may take all 1000
        eventually(lambda: running.metric("requests_running") == 2 and running.metric("requests_waiting") == 1)
        gate.open.set()
        assert all(answer.result(20).status_code == 200 for answer in large)
    gate = Gate(before=1)
    with serve(gate=gate, parallel=4, context=1000) as running, ThreadPoolExecutor(4) as pool:
        small = [pool.submit(running.client.post, CHAT, json=chat("small", max_tokens=10)) for _ in range(4)]
        eventually(lambda: running.metric("requests_running") == 4)
        gate.open.set()
        assert all(answer.result(20).status_code == 200 for answer in small)


def test_a_stop_string_frees_the_place() -> None:
    with serve(parallel=1, queue=0) as running:
        for _ in range(3):
            body = chat("endless", stop="again", max_tokens=2000)
            eventually(lambda: running.metric("requests_running") == 0)
            assert running.client.post(CHAT, json=body).status_code == 200
        eventually(lambda: running.engine.cancelled == 3)


# --- starting ---------------------------------------------------------------------------------------------------------


def test_the_port_answers_while_the_model_loads() -> None:
    gate = threading.Event()
    with serve(load_gate=gate) as running:
        assert running.client.get("/health").status_code == 200
        ready = running.client.get("/ready")
        assert ready.status_code == 503
        assert ready.json()["error"]["code"] == "not_ready"
        eventually(lambda: "loading" in running.client.get("/ready").json()["error"]["message"])
        assert running.client.post(CHAT, json=chat("x")).status_code == 503
        assert running.client.post("/tokenize", json={"prompt": "x"}).status_code == 503
        assert running.client.get("/v1/models").status_code == 200
        gate.set()
        eventually(lambda: running.client.get("/ready").status_code == 200)
        assert running.client.post(CHAT, json=chat("x")).status_code == 200


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"MODEL_ENGINE": "transformers"}, "that is for llamacpp"),
        ({"MODEL_PORT_": "1", "MODEL_QUEUE": "many"}, "MODEL_QUEUE"),
        ({"MODEL_ID": "Qwen/Qwen2.5-0.5B-Instruct", "HF_HUB_OFFLINE": "1"}, "hf download Qwen/Qwen2.5-0.5B-Instruct"),
        ({"MODEL_ID": "/nowhere/model.gguf"}, "/nowhere/model.gguf"),
        ({"MODEL_ENGINE": "scripted", "MODEL_HOST": "0.0.0.0"}, "MODEL_API_KEYS"),  # noqa: S104
        ({"MODEL_ENGINE": "scripted", "MODEL_SCRIPT": "/nowhere.json"}, "MODEL_SCRIPT"),
        ({"MODEL_ENGINE": "scripted", "MODEL_HOST": "203.0.113.7", "MODEL_API_KEYS": "k"}, "cannot listen"),
    ],
)
def test_a_start_that_fails_says_why_and_exits(env: dict[str, str], says: str) -> None:
    with pytest.raises(ServiceDidNotStart) as caught:
        start_service("services.model", env)
    message = str(caught.value)
    assert "code 1" in message
    assert says in message
    assert "Traceback" not in message


def test_a_file_that_is_no_model_ends_the_service(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF and then nothing of use")
    with pytest.raises(ServiceDidNotStart) as caught:
        start_service("services.model", {"MODEL_ID": str(path)})
    assert "code 1" in str(caught.value)
    assert "broken.gguf cannot be read" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_taken_port_is_said(scripted: Service) -> None:
    port = scripted.url.rsplit(":", 1)[1]
    second = spawn_service("services.model", {"MODEL_ENGINE": "scripted", "MODEL_PORT": port})
    assert second.wait() == 1
    assert f"cannot listen on 127.0.0.1:{port}" in second.log()
    assert "MODEL_PORT" in second.log()


# --- stopping ---------------------------------------------------------------------------------------------------------


def _start(script: Path, **env: str) -> Service:
    return start_service("services.model", {"MODEL_ENGINE": "scripted", "MODEL_SCRIPT": str(script), **env})


def test_sigterm_finishes_what_runs_and_refuses_the_rest(script: Path) -> None:
    with _start(script) as service, httpx.Client(base_url=service.url, timeout=30, trust_env=False) as client:
        with client.stream("POST", CHAT, json=chat("slow", stream=True)) as response:
            lines = (line for line in response.iter_lines() if line)
            next(lines)
            service.send(signal.SIGTERM)
            eventually(lambda: service.get("/ready").status_code == 503)
            assert service.get("/ready").json()["error"]["code"] == "draining"
            assert service.get("/health").status_code == 200
            refused = httpx.post(service.url + CHAT, json=chat("new"), trust_env=False)
            assert refused.status_code == 503
            assert refused.headers["connection"] == "close"
            assert refused.json()["error"]["code"] == "draining"
            rest = list(lines)
        assert rest[-1] == "data: [DONE]"
        text = "".join(json.loads(line[6:])["choices"][0]["delta"].get("content", "") for line in rest[:-1])
        assert text == "0123" * 10
        assert service.wait() == 0


def test_a_request_that_waits_is_finished_too(script: Path) -> None:
    with _start(script, MODEL_PARALLEL="1") as service, ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(httpx.post, service.url + CHAT, json=chat("slow"), timeout=30) for _ in range(2)]
        eventually(lambda: "docduet_model_requests_waiting 1.0" in service.get("/metrics").text)
        service.send(signal.SIGTERM)
        assert [answer.result(30).status_code for answer in answers] == [200, 200]
        assert service.wait() == 0


def test_draining_is_bounded(script: Path) -> None:
    with (
        _start(script, MODEL_DRAIN_SECONDS="0.2") as service,
        httpx.Client(base_url=service.url, trust_env=False) as client,
    ):
        with client.stream("POST", CHAT, json=chat("hang", stream=True)) as response:
            lines = (line for line in response.iter_lines() if line)
            next(lines)
            service.send(signal.SIGTERM)
            rest = list(lines)
        assert json.loads(rest[-1][6:])["error"]["code"] == "draining"
        assert service.wait(10) == 0
        assert "cut short" in service.log()


def test_a_second_signal_leaves_at_once(script: Path) -> None:
    body = chat("hang", stream=True)
    with _start(script) as service, httpx.stream("POST", service.url + CHAT, json=body, trust_env=False) as response:
        lines = response.iter_lines()  # kept: a generator that is dropped closes the response
        next(lines)
        service.send(signal.SIGINT)
        eventually(lambda: service.get("/ready").status_code == 503)
        service.send(signal.SIGINT)
        assert service.wait(5) == 130


def test_idle_stops_at_once(script: Path) -> None:
    with _start(script) as service:
        service.send(signal.SIGINT)
        assert service.wait(5) == 0
