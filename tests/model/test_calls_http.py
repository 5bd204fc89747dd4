"""Tool calls, reasoning, several choices and logprobs over HTTP, with an engine that says what the script says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from services.model.engine.scripted import CHAT_TEMPLATE
from tests.model.conftest import Running, chat, events, eventually, serve, text_of

CHAT = "/v1/chat/completions"
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
ADD = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": ADD}]
ONE = '<tool_call>\n{"name": "weather", "arguments": {"city": "北京 {\\"x\\"}"}}\n</tool_call>'
TWO = ONE + '\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
RULES: list[dict[str, Any]] = [
    {"match": "^one$", "reply": ONE},
    {"match": "^two$", "reply": TWO},
    {"match": "^first text$", "reply": "Let me look.\n\n" + ONE},
    {"match": "^bare$", "reply": '```json\n{"name": "add", "arguments": {"a": 7}}\n```'},
    {"match": "^an object$", "reply": '{"name": "Alice", "age": 3}'},
    {"match": "^thoughtful$", "reply": "<think>\nIs it 4? Yes.\n</think>\n\nIt is 4."},
    {"match": "^endless thought$", "reply": "<think>\nhmm hmm hmm hmm"},
    {"match": "^thoughtful call$", "reply": "<think>\nI look.\n</think>\n\n" + ONE},
    {"match": "Question: act$", "reply": 'Thought: I should add.\nAction: add\nAction Input: {"a": 5}\nObservation: '},
    {"match": "Question: say$", "reply": "Thought: I now know the final answer.\nFinal Answer: It is 5."},
    {"match": "Question: plain$", "reply": "Hello there."},
]
OFF = "{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
THINKS = CHAT_TEMPLATE.removesuffix("{%- endif %}") + OFF + "{%- endif %}"


@pytest.fixture(scope="module")
def plain() -> Iterator[Running]:
    with serve(rules=RULES) as running:
        yield running


@pytest.fixture(scope="module")
def thinker() -> Iterator[Running]:
    assert "</think>" in THINKS
    with serve(rules=RULES, engine_options={"chat_template": THINKS}) as running:
        yield running


@pytest.fixture(scope="module")
def react() -> Iterator[Running]:
    with serve(rules=RULES, engine_options={"tool_style": "react"}) as running:
        yield running


def ask(running: Running, text: str, **more: Any) -> dict[str, Any]:
    response = running.client.post(CHAT, json=chat(text, **more))
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def stream(running: Running, text: str, **more: Any) -> list[dict[str, Any]]:
    with running.client.stream("POST", CHAT, json=chat(text, stream=True, **more)) as response:
        assert response.status_code == 200
        return events(response)


def joined(chunks: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]], str]:
    """Content, calls and finish reason of a stream, put together as a client does."""
    calls: list[dict[str, Any]] = []
    for chunk in chunks:
        for delta in chunk["choices"][0]["delta"].get("tool_calls", []):
            if delta["index"] == len(calls):
                assert delta["id"].startswith("call_")
                assert delta["type"] == "function"
                calls.append({"id": delta["id"], **delta["function"]})
            else:
                assert set(delta) == {"index", "function"}  # the id comes once
                calls[delta["index"]]["arguments"] += delta["function"]["arguments"]
    return text_of(chunks), calls, chunks[-1]["choices"][0]["finish_reason"]


def test_one_call_whole_and_streamed(plain: Running) -> None:
    choice = ask(plain, "one", tools=TOOLS)
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["content"] is None
    (call,) = message["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "weather")
    assert json.loads(call["function"]["arguments"]) == {"city": '北京 {"x"}'}
    content, calls, reason = joined(stream(plain, "one", tools=TOOLS))
    assert (content, reason) == ("", "tool_calls")
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [("weather", {"city": '北京 {"x"}'})]


def test_two_calls_and_only_one_when_parallel_calls_are_off(plain: Running) -> None:
    calls = ask(plain, "two", tools=TOOLS)["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["weather", "add"]
    assert calls[0]["id"] != calls[1]["id"]
    _, streamed, _ = joined(stream(plain, "two", tools=TOOLS))
    assert [call["name"] for call in streamed] == ["weather", "add"]
    single = ask(plain, "two", tools=TOOLS, parallel_tool_calls=False)["message"]["tool_calls"]
    assert [call["function"]["name"] for call in single] == ["weather"]


def test_text_before_a_call_is_content_without_the_gap(plain: Running) -> None:
    message = ask(plain, "first text", tools=TOOLS)["message"]
    assert message["content"] == "Let me look."
    assert len(message["tool_calls"]) == 1
    content, calls, _ = joined(stream(plain, "first text", tools=TOOLS))
    assert (content, len(calls)) == ("Let me look.", 1)


def test_a_call_without_its_tag_is_a_call_and_other_objects_are_not(plain: Running) -> None:
    (call,) = ask(plain, "bare", tools=TOOLS)["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("add", {"a": 7})
    assert ask(plain, "an object", tools=TOOLS)["message"]["content"] == '{"name": "Alice", "age": 3}'


def test_markup_is_text_where_nobody_declared_tools(plain: Running) -> None:
    for more in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = ask(plain, "one", **more)
        assert choice["message"]["content"] == ONE
        assert choice["finish_reason"] == "stop"


def test_finish_reasons_of_forced_calls(plain: Running) -> None:
    assert ask(plain, "one", tools=TOOLS, tool_choice="required")["finish_reason"] == "tool_calls"
    named = ask(plain, "one", tools=TOOLS, tool_choice={"type": "function", "function": {"name": "weather"}})
    assert named["finish_reason"] == "stop"  # as OpenAI has it for a named function
    assert named["message"]["tool_calls"][0]["function"]["name"] == "weather"


def test_a_call_that_is_cut_short_says_so(plain: Running) -> None:
    choice = ask(plain, "one", tools=TOOLS, max_tokens=8)
    assert choice["finish_reason"] == "length"
    assert "tool_call>" not in json.dumps(choice)


def test_the_older_functions(plain: Running) -> None:
    choice = ask(plain, "one", functions=[WEATHER, ADD])
    assert choice["finish_reason"] == "function_call"
    assert "tool_calls" not in choice["message"]
    assert choice["message"]["function_call"]["name"] == "weather"
    chunks = stream(plain, "one", functions=[WEATHER, ADD])
    deltas = [chunk["choices"][0]["delta"].get("function_call", {}) for chunk in chunks]
    assert [delta["name"] for delta in deltas if "name" in delta] == ["weather"]
    assert json.loads("".join(delta.get("arguments", "") for delta in deltas)) == {"city": '北京 {"x"}'}
    assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"


def test_usage_and_places_after_redirected_generations(plain: Running) -> None:
    response = plain.client.post(CHAT, json=chat("first text", tools=TOOLS))
    usage = response.json()["usage"]
    assert usage["completion_tokens"] > 10
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    eventually(lambda: plain.engine.running == 0)


def test_reasoning_is_never_content(thinker: Running) -> None:
    message = ask(thinker, "thoughtful")["message"]
    assert (message["reasoning_content"], message["content"]) == ("Is it 4? Yes.", "It is 4.")
    chunks = stream(thinker, "thoughtful")
    reasoning = "".join(chunk["choices"][0]["delta"].get("reasoning_content", "") for chunk in chunks)
    assert (reasoning, text_of(chunks)) == ("Is it 4? Yes.", "It is 4.")
    cut = ask(thinker, "endless thought")
    assert cut["message"]["content"] == ""
    assert cut["message"]["reasoning_content"] == "hmm hmm hmm hmm"


@pytest.mark.parametrize("off", [{"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}])
def test_thinking_switched_off(thinker: Running, off: dict[str, Any]) -> None:
    prompt = thinker.client.post("/tokenize", json={"messages": [{"role": "user", "content": "x"}]}).json()["count"]
    response = thinker.client.post(CHAT, json=chat("x", **off)).json()
    assert response["usage"]["prompt_tokens"] > prompt  # the empty thought is in the prompt
    # and what the model says is content from its first word on
    assert ask(thinker, "thoughtful", **off)["message"]["content"].startswith("<think>")


def test_a_model_that_cannot_think_says_so(plain: Running) -> None:
    response = plain.client.post(CHAT, json=chat("x", reasoning_effort="high"))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "reasoning_effort"
    assert ask(plain, "x", reasoning_effort="none")["message"]["content"] == "x"


def test_a_thought_before_a_call_and_before_a_forced_one(thinker: Running) -> None:
    for choice in ("auto", "required"):
        message = ask(thinker, "thoughtful call", tools=TOOLS, tool_choice=choice)["message"]
        assert message["reasoning_content"] == "I look."
        assert message["tool_calls"][0]["function"]["name"] == "weather"
        assert message["content"] is None


def test_react(react: Running) -> None:
    message = ask(react, "act", tools=TOOLS)["message"]
    assert message["reasoning_content"] == "I should add."
    assert message["content"] is None
    (call,) = message["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("add", {"a": 5})
    final = ask(react, "say", tools=TOOLS)
    assert (final["message"]["content"], final["finish_reason"]) == ("It is 5.", "stop")
    assert ask(react, "plain", tools=TOOLS)["message"]["content"] == "Hello there."
    content, calls, reason = joined(stream(react, "act", functions=None, tools=TOOLS))
    assert (content, [call["name"] for call in calls], reason) == ("", ["add"], "tool_calls")


RESULT = [
    {"role": "user", "content": "What is 2 and 3?"},
    {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 5}'}},
    {"role": "function", "name": "add", "content": "5"},
]


@pytest.mark.parametrize(
    "more", [{}, {"functions": [ADD], "function_call": "none"}, {"response_format": {"type": "json_object"}}]
)
def test_after_a_result_without_more_calls_comes_the_answer(more: dict[str, Any]) -> None:
    rules = [{"match": "Final Answer:$", "reply": " It is 5."}]  # anything else is echoed
    with serve(rules=rules, engine_options={"tool_style": "react"}) as running:
        response = running.client.post(CHAT, json={"messages": RESULT, **more})
        message = response.json()["choices"][0]["message"]
        assert message["content"].strip() == "It is 5."
        assert "reasoning_content" not in message


@pytest.mark.parametrize(
    "body",
    [
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "[" * 900 + "]" * 900}}],
                }
            ]
        },
        {
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "deep", "parameters": json.loads('{"a":' * 600 + "1" + "}" * 600)},
                }
            ]
        },
    ],
)
def test_json_that_is_nested_too_deeply_is_the_clients_error(plain: Running, body: dict[str, Any]) -> None:
    response = plain.client.post(CHAT, json=chat("x") | body)
    assert response.status_code in (200, 400), response.text  # 200: not looked into so deep


def test_several_choices(plain: Running) -> None:
    response = plain.client.post(CHAT, json=chat("hello you", n=6)).json()
    assert [choice["index"] for choice in response["choices"]] == list(range(6))
    assert {choice["message"]["content"] for choice in response["choices"]} == {"hello you"}
    single = plain.client.post(CHAT, json=chat("hello you")).json()["usage"]
    assert response["usage"]["prompt_tokens"] == single["prompt_tokens"]
    assert response["usage"]["completion_tokens"] == 6 * single["completion_tokens"]
    chunks = stream(plain, "hello you", n=3, stream_options={"include_usage": True})
    texts = dict.fromkeys(range(3), "")
    for chunk in chunks[:-1]:
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content") or ""
    assert set(texts.values()) == {"hello you"}
    assert chunks[-1]["usage"]["prompt_tokens"] == single["prompt_tokens"]
    eventually(lambda: plain.engine.running == 0)


def test_choices_beyond_the_queue_are_refused_before_anything_is_said() -> None:
    with serve(rules=RULES, parallel=1, queue=1) as running:
        response = running.client.post(CHAT, json=chat("hello", n=3))
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "queue_full"
        eventually(lambda: running.engine.running == 0)
        assert len(running.client.post(CHAT, json=chat("hello", n=2)).json()["choices"]) == 2


def test_prompts_and_echo(plain: Running) -> None:
    def complete(**body: Any) -> httpx.Response:
        return plain.client.post("/v1/completions", json=body)

    found = complete(prompt=["ab", "cd"], n=2, echo=True).json()
    assert [(choice["index"], choice["text"]) for choice in found["choices"]] == [
        (0, "abab"), (1, "abab"), (2, "cdcd"), (3, "cdcd"),
    ]  # fmt: skip
    ids = plain.client.post("/tokenize", json={"prompt": "你好"}).json()["tokens"]
    assert complete(prompt=ids, echo=True).json()["choices"][0]["text"] == "你好你好"
    with plain.client.stream(
        "POST", "/v1/completions", json={"prompt": "ab", "echo": True, "stream": True}
    ) as response:
        assert "".join(chunk["choices"][0]["text"] for chunk in events(response)) == "abab"


def test_a_request_out_of_time_is_a_504_or_ends_its_stream_with_an_error() -> None:
    rules = [{"match": "^hang$", "reply": "one two three", "hold_after": 1}]
    with serve(rules=rules, request_seconds=0.3) as running:
        whole = running.client.post(CHAT, json=chat("hang"))
        assert whole.status_code == 504
        assert whole.json()["error"]["code"] == "request_timeout"
        with running.client.stream("POST", CHAT, json=chat("hang", stream=True)) as response:
            assert response.status_code == 200
            lines = [line for line in response.iter_lines() if line.startswith("data:")]
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "request_timeout"
        assert "data: [DONE]" not in lines
        eventually(lambda: running.engine.running == 0)
        assert running.client.post(CHAT, json=chat("hello")).status_code == 200


def test_one_of_several_streams_that_fails_ends_them_all_and_frees_their_places() -> None:
    rules = [{"match": "^fail$", "reply": "half an answer", "fail_after": 2}]
    with serve(rules=rules) as running:
        with running.client.stream("POST", CHAT, json=chat("fail", stream=True, n=3)) as response:
            lines = [line for line in response.iter_lines() if line.startswith("data:")]
        last = json.loads(lines[-1].removeprefix("data: "))
        assert last["error"]["code"] == "engine_failed"
        assert last["request_id"]
        eventually(lambda: running.engine.running == 0)


def test_a_client_that_leaves_three_streams_frees_three_places() -> None:
    rules = [{"match": "^hang$", "reply": "one two three", "hold_after": 1}]
    with serve(rules=rules) as running:
        with running.client.stream("POST", CHAT, json=chat("hang", stream=True, n=3, max_tokens=20)) as response:
            lines = response.iter_lines()  # held: with the iterator the connection would go
            next(lines)
            eventually(lambda: running.engine.running == 3)
        eventually(lambda: running.engine.running == 0)
