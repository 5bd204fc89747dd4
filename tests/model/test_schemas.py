"""Schemas that clients really send: each is either enforced, so that every answer fits it, or refused by the keyword that is not.

`schemas/enforced` and `schemas/refused` hold them, one a file, each with what it resembles. They are written as clients write
them, not as the enforcing library would like them.
"""

from __future__ import annotations

import contextlib
import decimal
import json
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from services.model.engine.base import Constraint
from services.model.engine.lark import Watch, render
from services.model.errors import InvalidRequest
from services.model.schema import prepare
from tests.model.conftest import chat
from tests.support.servers import Service, start_service

CHAT = "/v1/chat/completions"
FOLDER = Path(__file__).parent / "schemas"


def number(text: str) -> decimal.Decimal | float:
    """A decimal, because in floats 0.07 is no multiple of 0.01; JSON knows no largest exponent, decimals do."""
    try:
        return decimal.Decimal(text)
    except decimal.InvalidOperation:
        return float(text)


def read(kind: str) -> dict[str, dict[str, Any]]:
    """By name."""
    return {
        path.stem: json.loads(path.read_text("utf-8"), parse_float=number)
        for path in sorted((FOLDER / kind).glob("*.json"))
    }


ENFORCED, REFUSED = read("enforced"), read("refused")


def as_sent(entry: dict[str, Any]) -> Any:
    """The schema as it arrives in a request."""
    return json.loads(json.dumps(entry["schema"], default=float))


def check(text: str, entry: dict[str, Any]) -> Any:
    """The value of `text`, which must be valid by the schema as its author wrote it (a format is an annotation)."""
    value = json.loads(text, parse_float=number)
    validator = jsonschema.validators.validator_for(entry["schema"], default=jsonschema.Draft202012Validator)
    with decimal.localcontext(prec=2000):  # a grammar may write numbers of any length
        validator(entry["schema"]).validate(value)
    return value


def test_the_collection_is_whole() -> None:
    assert len(ENFORCED) == 50
    assert all(entry["source"] and entry["schema"] for entry in [*ENFORCED.values(), *REFUSED.values()])


# --- any schema of the list yields an instance of it --------------------------------------------------------------------

BYTES = LLTokenizer("byte")  # one token a byte: every text that the grammar allows can be reached
END = BYTES.eos_token
CLOSING = [END, *b"}]n,:"]  # what ends a value soonest, outside of strings; n begins null
QUOTE, ESCAPE = b'"\\'


class Walk:
    """Writes text at random, of what a grammar allows: what ends a value with the probability `ending`, and after `freely`
    bytes always."""

    def __init__(self, schema: Any, seed: int, freely: int, ending: float) -> None:
        self._matcher = LLMatcher(BYTES, render(Constraint(((prepare(schema, "schema"),),))))
        self._random = random.Random(seed)  # noqa: S311 (to be repeated, not to be secret)
        self._freely = freely
        self._ending = ending
        self._in_string = self._escaped = False

    def text(self, longest: int = 20_000) -> str:
        written = bytearray()
        while len(written) < longest:
            allowed = [token for token, bias in enumerate(self._matcher.compute_logit_bias()) if bias]
            assert allowed, f"{self._matcher.get_error() or 'a dead end'} after {written!r}"
            token = self._choose(allowed, len(written))
            if token == END:
                return written.decode()
            assert self._matcher.consume_token(token)
            written.append(token)
            self._in_string ^= token == QUOTE and not self._escaped
            self._escaped = token == ESCAPE and not self._escaped
        raise AssertionError(f"no end after {longest} bytes: {written[-200:]!r}")

    def _choose(self, allowed: list[int], length: int) -> int:
        closing = [token for token in ([QUOTE] if self._in_string else CLOSING) if token in allowed]
        if closing and length >= self._freely:
            return closing[0]
        if closing and self._random.random() < self._ending:  # by chance alone a string would be a hundred bytes long
            return self._random.choice(closing)
        return self._random.choice(allowed)


@pytest.mark.parametrize("name", ENFORCED)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), freely=st.sampled_from([0, 60, 600]), ending=st.sampled_from([0.04, 0.25]))
def test_whatever_the_grammar_lets_through_is_an_instance(name: str, seed: int, freely: int, ending: float) -> None:
    text = Walk(as_sent(ENFORCED[name]), seed, freely, ending).text()
    try:
        check(text, ENFORCED[name])
    except Exception as error:
        raise AssertionError(f"{name}: {text!r}") from error


# --- what cannot be enforced, and what is no schema -------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_enforced_is_refused_by_its_keyword(name: str, client: httpx.Client) -> None:
    entry = REFUSED[name]
    described = {"name": "answer", "strict": True, "schema": as_sent(entry)}
    format_ = {"type": "json_schema", "json_schema": described}
    tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": as_sent(entry)}}
    for more, param in (
        ({"response_format": format_}, "response_format.json_schema.schema"),
        ({"tools": [tool]}, "tools[0].function.parameters"),
    ):
        response = client.post(CHAT, json=chat("count", **more))
        assert response.status_code == 400
        error = response.json()["error"]
        assert entry["keyword"] in error["message"]
        assert (error["param"], error["code"]) == (param, "unsupported_schema")


KEYWORDS = st.sampled_from(
    "type properties required items anyOf oneOf allOf $ref $defs $schema $id enum const format pattern minimum maxLength "
    "additionalProperties patternProperties prefixItems x-guidance discriminator default".split()
)
SCRAPS = st.sampled_from(
    ["object", "array", "string", "#/$defs/a", "#/properties/x", "#", "(", "uri", None, True, -1, 0.5]
)
ANYTHING = st.recursive(
    SCRAPS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS | st.just("x"), inner, max_size=4)
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYWORDS, ANYTHING, max_size=5))
def test_a_schema_that_is_none_is_refused_and_nothing_worse(schema: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidRequest):
        prepare(schema, "here")


OBJECT = {"type": "object"}


@pytest.mark.parametrize(
    "alternatives",
    [
        [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/open"}],  # {"kind": "a"} fits both
        [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}],
        [{"$ref": "#/$defs/number"}, {"$ref": "#/$defs/integer"}],
        [{"$ref": "#/$defs/maybe"}, {"$ref": "#/$defs/b"}],
        [{"$ref": "#/$defs/missing"}, {"$ref": "#/$defs/b"}],
        [{"$ref": "#/$defs/loop"}, {"$ref": "#/$defs/b"}],
    ],
)
def test_alternatives_that_may_overlap_are_not_taken_for_either_or(alternatives: list[Any]) -> None:
    kind = {"a": {"properties": {"kind": {"const": "a"}}}, "b": {"properties": {"kind": {"const": "b"}}}}
    definitions = {
        "a": OBJECT | kind["a"] | {"required": ["kind"]},
        "b": OBJECT | kind["b"] | {"required": ["kind"]},
        "maybe": OBJECT | kind["a"],  # an empty object fits it
        "open": OBJECT | {"properties": {"kind": {"type": "string"}}, "required": ["kind"]},
        "number": {"type": "number"},
        "integer": {"type": "integer"},
        "loop": {"$ref": "#/$defs/loop"},
    }
    with pytest.raises(InvalidRequest):
        prepare({"$defs": definitions, "oneOf": alternatives}, "here")


# --- the real small model ---------------------------------------------------------------------------------------------

MODEL = "embedded:0.5b"
CACHE = Path(os.environ.get("MODEL_CACHE_DIR") or Path.home() / ".cache" / "docduet" / "models")
CLIENTS = 4
OBJECTS = [name for name in ENFORCED if ENFORCED[name]["schema"].get("type") == "object"]


@pytest.fixture(scope="module")
def real() -> Iterator[Service]:
    env = {"MODEL_ID": MODEL, "MODEL_CACHE_DIR": str(CACHE), "MODEL_PARALLEL": str(CLIENTS)}
    with start_service("services.model", env, ready_timeout=900) as service:  # the first time it downloads
        yield service


def example(name: str, **more: Any) -> dict[str, Any]:
    text = f"Write one very short example of this: {ENFORCED[name]['source']}."
    # The penalty keeps the small model from filling a list of any length with one and the same entry.
    return {
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "frequency_penalty": 0.5,
        "max_tokens": 400,
        **more,
    }


def ask_all(service: Service, bodies: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The choice of each answer, by name."""
    with httpx.Client(base_url=service.url, timeout=280, trust_env=False) as client:

        def ask(body: dict[str, Any]) -> dict[str, Any]:
            response = client.post(CHAT, json=body)
            assert response.status_code == 200, response.text
            choice: dict[str, Any] = response.json()["choices"][0]
            return choice

        with ThreadPoolExecutor(CLIENTS) as threads:
            return dict(zip(bodies, threads.map(ask, bodies.values()), strict=True))


def is_whole(text: str, entry: dict[str, Any], reason: str, wanted: str) -> bool:
    """Checks an answer. False: the small model lost itself in a string without bound until max_tokens, and what there is
    is the beginning of an instance."""
    if reason == wanted:
        check(text, entry)
        return True
    assert reason == "length"
    assert Watch(render(Constraint(((prepare(as_sent(entry), "schema"),),)))).fits(text)
    return False


@pytest.mark.weights
@pytest.mark.timeout(900)
def test_the_model_answers_each_schema_with_an_instance(real: Service) -> None:
    bodies = {}
    for name, entry in ENFORCED.items():
        described = {"name": "answer", "strict": True, "schema": as_sent(entry)}
        bodies[name] = example(name, response_format={"type": "json_schema", "json_schema": described})
    whole = [
        is_whole(choice["message"]["content"], ENFORCED[name], choice["finish_reason"], "stop")
        for name, choice in ask_all(real, bodies).items()
    ]
    assert whole.count(False) <= len(whole) // 10


@pytest.mark.weights
@pytest.mark.timeout(900)
def test_the_model_calls_a_function_of_each_schema_with_fitting_arguments(real: Service) -> None:
    names = OBJECTS[::4][:10]
    bodies = {}
    for name in names:
        function = {"name": name, "description": ENFORCED[name]["source"], "parameters": as_sent(ENFORCED[name])}
        bodies[name] = example(
            name, tools=[{"type": "function", "function": function}], tool_choice="required", parallel_tool_calls=False
        )
    whole = []
    for name, choice in ask_all(real, bodies).items():
        (call,) = choice["message"]["tool_calls"]
        assert call["function"]["name"] == name
        whole.append(is_whole(call["function"]["arguments"], ENFORCED[name], choice["finish_reason"], "tool_calls"))
    assert whole.count(False) <= len(whole) // 5
