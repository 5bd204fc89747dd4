"""The transformers engine behind the whole service: real processes on tiny random checkpoints, which talk nonsense."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import transformers

from tests.model.conftest import events, eventually, text_of
from tests.model.test_qwen1 import NEW, tensors, write
from tests.support.checkpoints import QWEN2, write_checkpoint
from tests.support.servers import Service, start_service

CHAT = "/v1/chat/completions"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "pick",
            "parameters": {
                "type": "object",
                "properties": {
                    "colour": {"enum": ["red", "绿"]},
                    "count": {"type": "integer", "minimum": 1, "maximum": 9},
                },
                "required": ["colour", "count"],
            },
        },
    }
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = QWEN2 | {"max_position_embeddings": 4096}
    path = tmp_path_factory.mktemp("checkpoints") / "Tiny-Qwen2.5"
    write_checkpoint(path, transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**config)), config, shards=2)
    return path


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Iterator[Service]:
    with start_service(
        "services.model", {"MODEL_ID": str(folder), "MODEL_DEVICE": "cpu"}, ready_timeout=120
    ) as service:
        yield service


def ask(service: Service, text: str, **more: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 24, **more}
    response = httpx.post(service.url + CHAT, json=body, timeout=120, trust_env=False)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def test_the_folder_names_the_model_and_chooses_the_engine(tiny: Service) -> None:
    assert tiny.get("/v1/models").json()["data"][0]["id"] == "Tiny-Qwen2.5"
    assert len(tiny.get("/v1/models/Tiny-Qwen2.5").json()) > 3


def test_a_seed_decides_and_neighbours_do_not(tiny: Service) -> None:
    first = ask(tiny, "tell me", seed=3)["message"]["content"]
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(ask, tiny, f"another {n} " * n, seed=n) for n in (4, 5, 6)]
        assert pool.submit(ask, tiny, "tell me", seed=3).result()["message"]["content"] == first
        assert len({other.result()["message"]["content"] for other in others}) == 3
    assert ask(tiny, "tell me", seed=4)["message"]["content"] != first


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "pick"}}])
def test_forced_calls_fit_their_schema(tiny: Service, choice: Any) -> None:
    found = ask(tiny, "go", tools=TOOLS, tool_choice=choice, max_tokens=400, parallel_tool_calls=False, seed=1)
    (call,) = found["message"]["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    assert call["function"]["name"] == "pick"
    assert arguments["colour"] in ("red", "绿")
    assert 1 <= arguments["count"] <= 9


def test_schemas_logprobs_and_streams(tiny: Service) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    assert json.loads(ask(tiny, "go", response_format=form, max_tokens=64)["message"]["content"])["ok"] in (True, False)
    entries = ask(tiny, "go", temperature=0, repetition_penalty=1, logprobs=True, top_logprobs=3, max_tokens=6)[
        "logprobs"
    ]["content"]
    assert len(entries) == 6
    assert all(len(entry["top_logprobs"]) == 3 and entry["logprob"] <= 0 for entry in entries)
    assert all(
        entry["logprob"] == entry["top_logprobs"][0]["logprob"] for entry in entries
    )  # the most probable was drawn
    body = {"messages": [{"role": "user", "content": "go"}], "temperature": 0, "max_tokens": 12, "stream": True}
    with httpx.stream("POST", tiny.url + CHAT, json=body, timeout=60, trust_env=False) as response:
        chunks = events(response)
    assert text_of(chunks) == ask(tiny, "go", temperature=0, max_tokens=12)["message"]["content"]


def test_a_client_that_leaves_frees_its_place(tiny: Service) -> None:
    body = {"messages": [{"role": "user", "content": "long"}], "max_tokens": 3000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", tiny.url + CHAT, json=body, timeout=60, trust_env=False) as response:
        assert next(response.iter_lines())
    eventually(lambda: re.search(r"requests_running 0\.0", tiny.get("/metrics").text))


def test_the_first_generation_calls_tools_its_own_way(tmp_path: Path) -> None:
    folder = tmp_path / "Qwen-tiny-Chat"
    folder.mkdir()
    write(folder, NEW | {"seq_length": 4096}, tensors())
    with start_service(
        "services.model", {"MODEL_ID": str(folder), "MODEL_DEVICE": "cpu"}, ready_timeout=120
    ) as service:
        found = ask(service, "go", tools=TOOLS, tool_choice="required", max_tokens=400, seed=1)
        (call,) = found["message"]["tool_calls"]
        assert 1 <= json.loads(call["function"]["arguments"])["count"] <= 9
        assert found["message"]["content"] is None
        assert found["finish_reason"] == "tool_calls"
