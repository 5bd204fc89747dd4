"""The OpenAI wire format between the two services: what the RAG service needs, held against the real model service.

A stand-in server that passes these can take the model service's place.
"""

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.support.servers import Service, start_service


@pytest.fixture(scope="module")
def model() -> Iterator[Service]:
    with start_service("services.model", {"MODEL_ENGINE": "scripted"}) as service:
        yield service


@pytest.fixture
def client(model: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=model.url, timeout=10, trust_env=False) as client:
        yield client


def body(client: httpx.Client, **more: object) -> dict[str, object]:
    name = client.get("/v1/models").json()["data"][0]["id"]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello there"}]
    return {"model": name, "messages": messages, "max_tokens": 32, "temperature": 0.0, **more}


def test_models_are_listed_with_their_context(client: httpx.Client) -> None:
    [entry, *_] = client.get("/v1/models").json()["data"]
    assert isinstance(entry["id"], str)
    assert entry["object"] == "model"


def test_a_whole_reply(client: httpx.Client) -> None:
    reply = client.post("/v1/chat/completions", json=body(client)).json()
    assert reply["choices"][0]["message"]["role"] == "assistant"
    assert reply["choices"][0]["message"]["content"] == "hello there"
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] + reply["usage"]["completion_tokens"]


def test_a_streamed_reply(client: httpx.Client) -> None:
    text, ended = "", False
    with client.stream("POST", "/v1/chat/completions", json=body(client, stream=True)) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line == "data: [DONE]":
                ended = True
            elif line.startswith("data: "):
                for choice in json.loads(line[6:])["choices"]:
                    text += choice["delta"].get("content") or ""
    assert (text, ended) == ("hello there", True)


def test_tokens_of_messages_are_counted_as_usage_counts_them(client: httpx.Client) -> None:
    request = body(client)
    counted = client.post("/tokenize", json={"model": request["model"], "messages": request["messages"]}).json()
    used = client.post("/v1/chat/completions", json=request).json()["usage"]["prompt_tokens"]
    assert counted["count"] == used == len(counted["tokens"])
    assert counted["max_model_len"] >= counted["count"]


def test_ready_has_a_reason_and_errors_are_the_error_object(client: httpx.Client) -> None:
    assert client.get("/ready").status_code == 200
    response = client.post("/v1/chat/completions", json={**body(client), "model": "no-such-model"})
    assert response.status_code == 404
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
