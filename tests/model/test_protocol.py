"""The request bodies, without a server: every parameter, one by one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.model import protocol
from services.model.chat import Message
from services.model.errors import InvalidRequest, UnsupportedParameter

MESSAGES = [{"role": "user", "content": "hi"}]


def parse(**more: Any) -> protocol.ChatRequest:
    return protocol.parse_chat({"messages": MESSAGES, **more})


def refused(body: dict[str, Any], parser: Any = protocol.parse_chat) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parser(body)
    return caught.value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("n", True),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("logit_bias", {"50256": -100}),
        ("response_format", {"type": "json_object"}),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("parallel_tool_calls", False),
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("prediction", {"type": "content", "content": "x"}),
        ("reasoning_effort", "high"),
        ("verbosity", "high"),
        ("service_tier", "priority"),
        ("store", True),
        ("metadata", {"a": "b"}),
        ("web_search_options", {}),
        ("safety_identifier", "x"),
        ("prompt_cache_key", "x"),
    ],
)
def test_an_unsupported_parameter_is_refused_by_name(name: str, value: Any) -> None:
    error = refused({"messages": MESSAGES, name: value})
    assert isinstance(error, UnsupportedParameter)
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert name in error.message


@pytest.mark.parametrize(("name", "neutral"), protocol.UNSUPPORTED_CHAT.items())
def test_values_that_ask_for_nothing_are_accepted(name: str, neutral: list[Any]) -> None:
    for value in [None, *neutral]:
        parse(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("best_of", 2), ("echo", True), ("suffix", "end"), ("logprobs", 5), ("n", 3)]
)
def test_unsupported_in_completions(name: str, value: Any) -> None:
    error = refused({"prompt": "x", name: value}, protocol.parse_completion)
    assert (error.param, error.code) == (name, "unsupported_parameter")
    for neutral in [None, *protocol.UNSUPPORTED_COMPLETION[name]]:
        protocol.parse_completion({"prompt": "x", name: neutral})


def test_an_unknown_parameter_is_refused_by_name() -> None:
    assert refused({"messages": MESSAGES, "repetition_penalty": 1.1}).param == "repetition_penalty"
    assert refused({"messages": MESSAGES, "prompt": "x"}).param == "prompt"
    assert refused({"prompt": "x", "messages": MESSAGES}, protocol.parse_completion).code == "unknown_parameter"


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("temperature", [0, 0.0, 2, 1.5, None], [-0.1, 2.01, "1", True, [], 10**400]),
        ("top_p", [1, 0.01, None], [0, 1.1, -1, "x"]),
        ("top_k", [0, -1, 40], [-2, 1.5, 2**31, True]),
        ("min_p", [0, 1, 0.05], [-0.1, 1.1]),
        ("seed", [0, -5, 2**63 - 1], [2**63, 0.5, "1", False]),
        ("max_tokens", [1, 10**9], [0, -1, 1.0, "5", True, 10**400 * -1]),
        ("max_completion_tokens", [1, 7], [0, -7]),
        ("presence_penalty", [-2, 0, 2], [-2.1, 3]),
        ("frequency_penalty", [-2, 0.5, 2], [-2.1, 3]),
        ("stop", ["x", ["a", "b"], [], ["a"] * 4, None], ["", ["a", ""], ["a"] * 5, 3, [1], {"a": 1}]),
        ("stream", [True, False, None], [1, "true"]),
        ("user", ["me"], [1]),
        ("ignore_eos", [True, False], [0]),
        ("model", ["x", None], [3, ["x"]]),
    ],
)
def test_bounds(name: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        parse(**{name: value})
    for value in bad:
        error = refused({"messages": MESSAGES, name: value})
        assert error.param == name
        assert name in error.message
        assert error.code is None


def test_what_the_values_become() -> None:
    options = parse(temperature=0, top_k=-1, stop="end", max_completion_tokens=9, seed=3).options
    assert (options.sampling.temperature, options.sampling.top_k, options.sampling.seed) == (0.0, 0, 3)
    assert (options.stops, options.max_tokens, options.max_tokens_param) == (["end"], 9, "max_completion_tokens")
    plain = parse().options
    assert (plain.sampling.temperature, plain.sampling.top_p, plain.max_tokens, plain.stream) == (1.0, 1.0, None, False)
    assert protocol.parse_completion({"prompt": "x"}).options.default_max_tokens == 16


def test_stream_options() -> None:
    assert parse(stream=True, stream_options={"include_usage": True}).options.include_usage
    assert not parse(stream=True, stream_options={}).options.include_usage
    assert refused({"messages": MESSAGES, "stream_options": {"include_usage": True}}).param == "stream_options"
    assert refused({"messages": MESSAGES, "stream": True, "stream_options": {"x": 1}}).param == "stream_options.x"
    assert refused({"messages": MESSAGES, "max_tokens": 1, "max_completion_tokens": 1}).param == "max_tokens"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        (None, "messages"),
        ("hi", "messages"),
        ([3], "messages[0]"),
        ([{}], "messages[0].role"),
        ([{"role": "wizard", "content": "x"}], "messages[0].role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role"),
        ([{"role": "tool", "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": ""}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": "x", "name": "bob"}], "messages[0].name"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{}]}], "messages[0].tool_calls"),
    ],
)
def test_bad_messages(messages: Any, param: str) -> None:
    assert refused({"messages": messages}).param == param


def test_good_messages() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assistant = {"role": "assistant", "content": "ok", "tool_calls": None, "refusal": None}
    wanted = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}, assistant]
    found = protocol.parse_chat({"messages": wanted}).messages
    assert found == [Message("system", "be brief"), Message("user", "ab"), Message("assistant", "ok")]


@pytest.mark.parametrize(
    ("prompt", "ok"),
    [("x", True), ([1, 2], True), (["x"], True), ([[1, 2]], True)]
    + [(bad, False) for bad in ("", [], ["a", "b"], [[1], [2]], [-1], [True], [1.0], [1, "a"], {}, None, [""], [[]])],
)
def test_prompts(prompt: Any, ok: bool) -> None:
    if ok:
        protocol.parse_completion({"prompt": prompt})
    else:
        assert refused({"prompt": prompt}, protocol.parse_completion).param == "prompt"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b'{"temperature": NaN}',
        b'{"temperature": -Infinity}',
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b"[" * 100_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
        b"\xff\xfe\x00",
    ],
)
def test_bodies_that_are_not_json(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        protocol.read_json(body)
    assert caught.value.code == "invalid_json"
    json.dumps(caught.value.body(), ensure_ascii=False).encode()


def test_a_whole_surrogate_pair_is_text() -> None:
    assert protocol.read_json(b'{"a": "\\ud83e\\udd86"}') == {"a": "🦆"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from([*protocol.CHAT, *protocol.UNSUPPORTED_CHAT, "role", "x"])


@given(st.dictionaries(names, json_values, max_size=5))
def test_any_json_is_parsed_or_refused(body: dict[str, Any]) -> None:
    for parser in (protocol.parse_chat, protocol.parse_completion, protocol.parse_tokenize):
        try:
            parser(body)  # type: ignore[operator]
        except InvalidRequest as error:
            json.dumps(error.body())
