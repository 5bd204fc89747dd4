"""The request bodies, without a server: every parameter, one by one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.model import protocol
from services.model.errors import InvalidRequest, UnsupportedParameter
from services.model.messages import Message, ToolCall

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
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("prediction", {"type": "content", "content": "x"}),
        ("verbosity", "high"),
        ("service_tier", "priority"),
        ("store", True),
        ("metadata", {"a": "b"}),
        ("web_search_options", {}),
        ("prompt_cache_retention", "24h"),
        ("moderation", True),
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


@pytest.mark.parametrize(("name", "value"), [("best_of", 2), ("suffix", "end")])
def test_unsupported_in_completions(name: str, value: Any) -> None:
    error = refused({"prompt": "x", name: value}, protocol.parse_completion)
    assert (error.param, error.code) == (name, "unsupported_parameter")
    for neutral in [None, *protocol.UNSUPPORTED_COMPLETION[name]]:
        protocol.parse_completion({"prompt": "x", name: neutral})


def test_an_unknown_parameter_is_refused_by_name() -> None:
    assert refused({"messages": MESSAGES, "mirostat": 1.1}).param == "mirostat"
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
        ("n", [1, 16, None], [0, 17, True, 1.0]),
        ("logprobs", [True, False, None], [1, "x"]),
        ("repetition_penalty", [1, 0.5, 10], [0, 11, "1"]),
        ("logit_bias", [{}, {"5": -100, "0": 1.5}, None], [[], {"x": 1}, {"-1": 1}, {"²": 1}]),
        ("response_format", [{"type": "text"}, {"type": "json_object"}, None], ["json", 0]),
        ("parallel_tool_calls", [True, False, None], ["yes"]),
        ("reasoning_effort", ["none", "low", "high", None], ["much", 3]),
        ("prompt_cache_key", ["x", None], [3]),
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
    assert options.sampling == {"temperature": 0, "top_k": 0, "seed": 3}  # and nothing that was not asked for
    assert (options.stops, options.max_tokens, options.max_tokens_param) == (["end"], 9, "max_completion_tokens")
    plain = parse().options
    assert (plain.sampling, plain.max_tokens, plain.stream, plain.n, plain.logprobs) == ({}, None, False, 1, None)
    assert parse(logprobs=True).options.logprobs == 0
    assert parse(logprobs=True, top_logprobs=5).options.logprobs == 5
    assert parse(logit_bias={"7": -100}).options.sampling == {"logit_bias": {7: -100.0}}
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
        ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id"),
        ([{"role": "function", "content": "x"}], "messages[0].name"),
        ([{"role": "assistant", "content": None}], "messages[0].content"),
        (
            [{"role": "assistant", "function_call": {"name": "f", "arguments": 3}}],
            "messages[0].function_call.arguments",
        ),
        ([{"role": "user", "content": "x", "tool_calls": [1]}], "messages[0].tool_calls"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": "x", "weight": 1}], "messages[0].weight"),
        ([{"role": "user", "content": "x", "name": 3}], "messages[0].name"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{}]}], "messages[0].tool_calls[0].id"),
        ([{"role": "assistant", "tool_calls": [{"id": "c", "type": "custom"}]}], "messages[0].tool_calls[0].type"),
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


def test_empty_text_is_text() -> None:
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": ""}]
    assert [message.content for message in protocol.parse_chat({"messages": messages}).messages] == ["", ""]
    for bad in (
        {"role": "user", "content": "x", "name": False},
        {"role": "assistant", "content": "x", "tool_calls": 0},
    ):
        assert (refused({"messages": [bad]}).param or "").startswith("messages[0].")


def test_results_follow_the_order_of_their_calls() -> None:
    calls = [{"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}} for name in "ab"]
    asked = {"role": "assistant", "content": None, "tool_calls": calls}
    results = [{"role": "tool", "tool_call_id": name, "content": f"of {name}"} for name in "bxa"]
    messages = protocol.parse_chat({"messages": [*MESSAGES, asked, *results, *MESSAGES]}).messages
    assert [message.content for message in messages] == ["hi", "", "of a", "of b", "of x", "hi"]


def test_calls_and_their_results_old_and_new() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    new = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
    ]
    made, result = protocol.parse_chat({"messages": new}).messages
    assert made == Message("assistant", "", (ToolCall("c1", "f", '{"a": 1}'),))
    assert made.tool_calls[0].parsed() == {"a": 1}
    assert result == Message("tool", "3", tool_call_id="c1")
    old = [
        {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": '{"a": 1'}},
        {"role": "function", "name": "f", "content": ""},
    ]
    made, result = protocol.parse_chat({"messages": old}).messages
    assert (made.tool_calls[0].name, made.tool_calls[0].parsed()) == ("f", '{"a": 1')  # cut short: stays text
    assert result == Message("tool", "", name="f")


F = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}
G = {"name": "g"}
TOOLS = [{"type": "function", "function": F}, {"type": "function", "function": G}]


def test_tools_and_choices() -> None:
    def use(**more: Any) -> Any:
        return parse(**more).tools

    assert use() is None
    assert use(tools=[]) is None
    assert use(tools=TOOLS, tool_choice="none") is None
    auto = use(tools=TOOLS)
    assert (auto.choice, auto.parallel, [tool.name for tool in auto.callable]) == ("auto", True, ["f", "g"])
    assert auto.tools[0].arguments.schema["additionalProperties"] is False
    forced = use(tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    assert (forced.choice, forced.parallel) == ("required", False)
    named = use(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "g"}})
    assert (named.choice, named.named, [tool.name for tool in named.callable]) == ("required", "g", ["g"])
    old = use(functions=[F, G], function_call={"name": "f"})
    assert (old.legacy, old.named, old.parallel) == (True, "f", False)
    assert use(functions=[F]).choice == "auto"


UNIQUE = {"name": "u", "parameters": {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"tools": TOOLS, "functions": [F]}, "functions"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "h"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools[2].function.name"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]},
            "tools[0].function.parameters",
        ),
        (
            {"tools": [{"type": "function", "function": UNIQUE}], "tool_choice": "required"},
            "tools[0].function.parameters",
        ),
        ({"tools": [{"type": "function", "function": UNIQUE | {"strict": True}}]}, "tools[0].function.parameters"),
        ({"functions": [F], "tool_choice": "none"}, "functions"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_object"}, "tools": TOOLS, "tool_choice": "required"}, "response_format"),
        ({"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": {"x": "<|im_end|>"}}, "chat_template_kwargs.x"),
        ({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}, "reasoning_effort"),
    ],
)
def test_what_cannot_be_called_or_enforced(body: dict[str, Any], param: str) -> None:
    error = refused({"messages": MESSAGES, **body})
    assert error.param == param
    assert error.param.split("[")[0].split(".")[0] in error.message


def test_a_schema_that_cannot_be_enforced_is_free_where_nobody_was_promised_anything() -> None:
    use = parse(tools=[{"type": "function", "function": UNIQUE}]).tools
    assert use is not None
    assert use.tools[0].arguments.schema == {"type": "object"}
    message = refused(
        {"messages": MESSAGES, "tools": [{"type": "function", "function": UNIQUE | {"strict": True}}]}
    ).message
    assert "uniqueItems" in message


def test_thinking() -> None:
    assert parse().thinking is None
    assert parse(reasoning_effort="none").thinking is False
    assert parse(reasoning_effort="low").thinking is True
    assert parse(chat_template_kwargs={"enable_thinking": False, "depth": 2}).thinking is False
    assert parse(chat_template_kwargs={"enable_thinking": False, "depth": 2}).template_variables == {"depth": 2}


@pytest.mark.parametrize(
    ("prompt", "ok"),
    [("x", True), ([1, 2], True), (["x"], True), ([[1, 2]], True), (["a", "b"], True), ([[1], "x"], True)]
    + [(bad, False) for bad in ("", [], [-1], [True], [1.0], [1, "a"], {}, None, [""], [[]], ["a"] * 17)],
)
def test_prompts(prompt: Any, ok: bool) -> None:
    if ok:
        protocol.parse_completion({"prompt": prompt})
    else:
        assert (refused({"prompt": prompt}, protocol.parse_completion).param or "").startswith("prompt")


def test_completions_have_bounds_of_their_own() -> None:
    def parsed(**more: Any) -> protocol.CompletionRequest:
        return protocol.parse_completion({"prompt": "x", **more})

    assert parsed(logprobs=5).options.logprobs == 5
    assert parsed(logprobs=0).options.logprobs == 0
    assert parsed(echo=True).echo
    for body, param in [
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": True, "logprobs": 1}, "logprobs"),
        ({"prompt": ["a", "b"], "n": 9}, "n"),
    ]:
        assert refused({"prompt": "x", **body}, protocol.parse_completion).param == param


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
        b'{"a": "\xed\xa0\x80"}',
        '{"a": "x"}'.encode("utf-16"),
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
