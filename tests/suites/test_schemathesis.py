"""schemathesis: requests made from our own /openapi.json, right ones and wrong ones; every answer has to be one that it describes.

The scripted engine takes most of them, because it answers at once. The real one gets a few: its own bounds (the vocabulary,
the context) and the grammars that it compiles are what a script does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import checks as general_checks
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi import checks

from tests.support.servers import Service, start_service

CHECKS = [
    general_checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]
# What the schema forbids is never answered with success. The reverse is not asked: it cannot say that a prompt fits the context,
# that two parameters exclude each other, or which JSON Schemas can be enforced.
WRONG_ONES = [*CHECKS, checks.negative_data_rejection]
READS = ["/health", "/ready", "/metrics", "/v1/models", "/v1/models/{model_id}"]
POSTS = ["/v1/chat/completions", "/v1/completions", "/tokenize"]
Schema = schemathesis.schemas.BaseSchema


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with start_service("services.model", {"MODEL_ENGINE": "scripted"}) as service:
        yield service


def described(service: Service) -> Schema:
    loaded = schemathesis.openapi.from_url(service.url + "/openapi.json", config=SchemathesisConfig())
    loaded.config.update(base_url=service.url)
    return loaded


def attack(
    service: Service,
    method: str,
    path: str,
    mode: schemathesis.GenerationMode,
    examples: int,
    change: Callable[[dict[str, Any]], None] = lambda body: None,
) -> dict[int, int]:
    """Sends that many requests of one route and checks the answers. Returns how often each status came."""
    operation = described(service)[path][method]
    seen: dict[int, int] = {}

    @hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def send(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict):
            change(case.body)
        rules = WRONG_ONES if mode is schemathesis.GenerationMode.NEGATIVE else CHECKS
        response = case.call_and_validate(checks=rules, timeout=120)
        seen[response.status_code] = seen.get(response.status_code, 0) + 1

    send()
    return seen


def test_every_route_is_named_here(scripted: Service) -> None:
    paths = scripted.get("/openapi.json").json()["paths"]
    assert {(path, method) for path, methods in paths.items() for method in methods} == {
        *((path, "get") for path in READS),
        *((path, "post") for path in POSTS),
    }


@pytest.mark.parametrize("path", READS)
def test_what_is_looked_at(scripted: Service, path: str) -> None:
    seen = attack(scripted, "GET", path, schemathesis.GenerationMode.POSITIVE, 20 if "{" in path else 1)
    assert set(seen) <= {200, 404}


@pytest.mark.parametrize("path", POSTS)
def test_right_requests(scripted: Service, path: str) -> None:
    def known(body: dict[str, Any]) -> None:
        body.pop("model", None)  # a made-up name is not served, and nothing else would be seen

    seen = attack(scripted, "POST", path, schemathesis.GenerationMode.POSITIVE, 60, known)
    assert seen.get(200, 0) >= 1, seen  # most are refused for what a schema cannot say


@pytest.mark.parametrize("path", POSTS)
def test_wrong_requests(scripted: Service, path: str) -> None:
    seen = attack(scripted, "POST", path, schemathesis.GenerationMode.NEGATIVE, 60)
    assert seen.get(400, 0) >= 20, seen


@pytest.mark.weights
@pytest.mark.parametrize("path", POSTS)
def test_the_real_engine(real: Service, path: str) -> None:
    def short(body: dict[str, Any]) -> None:
        body.pop("model", None)
        if path != "/tokenize":
            body.pop("max_completion_tokens", None)
            body |= {"max_tokens": 2, "n": 1}

    attack(real, "POST", path, schemathesis.GenerationMode.POSITIVE, 15, short)
