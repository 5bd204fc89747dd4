"""OpenAI's own client against the real small weights: what it makes of constrained answers, tools, log probabilities and errors.

tests/model/test_sdk.py has the plain calls, on the scripted engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tests.model.conftest import eventually
from tests.suites.conftest import MODEL
from tests.support.servers import Service, start_service

pytestmark = pytest.mark.weights

QUESTION: Any = [{"role": "user", "content": "What is the capital of France? Answer with its name only."}]
WEATHER: Any = [{"role": "user", "content": "What is the weather in Paris and in London?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
FUNCTION: Any = {"name": "get_weather", "description": "The weather in a city.", "parameters": PARAMETERS}
TOOLS: Any = [
    {"type": "function", "function": FUNCTION | {"strict": True}},
    {"type": "function", "function": {"name": "get_time", "description": "The time in a city."}},
]


@pytest.fixture
def sdk(real: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=real.url + "/v1", api_key="none", max_retries=0, timeout=240) as client:
        yield client


def ask(sdk: openai.OpenAI, messages: Any = QUESTION, **more: Any) -> Any:
    return sdk.chat.completions.create(
        **{"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 24, **more}
    )


def fits(arguments: str) -> bool:
    given = json.loads(arguments)
    return (
        set(given) == {"city", "unit"} and isinstance(given["city"], str) and given["unit"] in ("celsius", "fahrenheit")
    )


# --- answers ----------------------------------------------------------------------------------------------------------


def test_n(sdk: openai.OpenAI) -> None:
    """Whether the same seed gives the same text is shown in tests/model/test_weights.py, for requests that decode alone."""
    messages = [{"role": "user", "content": "Invent a name for a ship."}]
    answer = ask(sdk, messages, n=3, seed=7, temperature=1.5, max_tokens=8)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1  # each has a seed of its own
    assert answer.usage.prompt_tokens == ask(sdk, messages, max_tokens=1).usage.prompt_tokens  # counted once


def test_logprobs(sdk: openai.OpenAI) -> None:
    answer = ask(sdk, logprobs=True, top_logprobs=3)
    (choice,) = answer.choices
    entries = choice.logprobs.content
    assert "".join(entry.token for entry in entries) == choice.message.content
    assert "Paris" in choice.message.content
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token  # at temperature 0 the most probable is taken
        assert entry.logprob == pytest.approx(max(other.logprob for other in entry.top_logprobs))
        assert bytes(entry.bytes).decode() == entry.token
    streamed = [
        entry
        for chunk in ask(sdk, logprobs=True, top_logprobs=3, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]
    assert [entry.logprob for entry in streamed] == pytest.approx([entry.logprob for entry in entries], abs=0.1)


def test_logit_bias(sdk: openai.OpenAI, real: Service) -> None:
    first = ask(sdk, logprobs=True, max_tokens=1).choices[0].logprobs.content[0].token
    ids = sdk.post("../tokenize", body={"prompt": first}, cast_to=dict[str, Any])["tokens"]
    banned = ask(sdk, logprobs=True, max_tokens=1, logit_bias={str(ids[0]): -100})
    assert banned.choices[0].logprobs.content[0].token != first


@pytest.mark.parametrize("stream", [False, True])
def test_stop(sdk: openai.OpenAI, stream: bool) -> None:
    messages = [{"role": "user", "content": "Count from 1 to 10, separated by commas and spaces."}]
    answer = ask(sdk, messages, stop=["4", "nothing"], stream=stream)
    if stream:
        chunks = list(answer)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (text.rstrip().endswith("3,"), reason) == (True, "stop"), text


def test_usage_of_a_stream(sdk: openai.OpenAI) -> None:
    chunks = list(ask(sdk, n=2, stream=True, stream_options={"include_usage": True}))
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    whole = ask(sdk, n=2)
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert {chunk.choices[0].index for chunk in chunks[:-1]} == {0, 1}
    assert len({chunk.id for chunk in chunks}) == 1
    assert not any(chunk.usage for chunk in ask(sdk, stream=True))


def test_text_completions(sdk: openai.OpenAI) -> None:
    def complete(**more: Any) -> Any:
        return sdk.completions.create(**{"model": MODEL, "temperature": 0, "max_tokens": 2, **more})

    prompts = ["The capital of France is", "One, two, three,"]
    both = complete(prompt=prompts, n=1, echo=True)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert all(choice.text.startswith(prompt) for choice, prompt in zip(both.choices, prompts, strict=True))
    assert "Paris" in both.choices[0].text
    (choice,) = complete(prompt=prompts[0], logprobs=2).choices
    found = choice.logprobs
    assert "".join(found.tokens) == choice.text
    assert found.text_offset == [len("".join(found.tokens[:at])) for at in range(len(found.tokens))]
    assert all(len(top) == 2 for top in found.top_logprobs)
    assert all(
        logprob == pytest.approx(max(top.values()))
        for logprob, top in zip(found.token_logprobs, found.top_logprobs, strict=True)
    )
    streamed = list(complete(prompt=prompts, stream=True))
    for index, whole in enumerate(both.choices):
        parts = [chunk.choices[0].text for chunk in streamed if chunk.choices[0].index == index]
        assert prompts[index] + "".join(parts) == whole.text


# --- answers of a given form ------------------------------------------------------------------------------------------


class Review(BaseModel):
    sentiment: Literal["positive", "negative"]
    brand: str | None
    words: list[str]


REVIEW: Any = [
    {"role": "user", "content": "Review: 'The lamp from Lumina came fast, I love it.' Name up to 2 key words."}
]


def test_parse(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.parse(
        model=MODEL, messages=REVIEW, response_format=Review, temperature=0, frequency_penalty=0.5, max_tokens=120
    )
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Review)
    assert parsed.sentiment == "positive"


def test_the_stream_helper(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(
        model=MODEL, messages=REVIEW, response_format=Review, temperature=0, frequency_penalty=0.5, max_tokens=120
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    kinds = {event.type for event in events}
    assert {"chunk", "content.delta", "content.done"} <= kinds
    (done,) = (event for event in events if event.type == "content.done")
    assert isinstance(done.parsed, Review)
    assert final.choices[0].message.parsed == done.parsed


def test_json_object(sdk: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "The capital of France, as JSON with the key capital."}]
    answer = ask(sdk, messages, response_format={"type": "json_object"}, max_tokens=40)
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


def test_what_was_cut_short_is_said_to_be(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        sdk.chat.completions.parse(model=MODEL, messages=REVIEW, response_format=Review, max_tokens=3)


# --- tools ------------------------------------------------------------------------------------------------------------


def test_a_required_call_and_its_result(sdk: openai.OpenAI) -> None:
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    answer = ask(sdk, question, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=60)
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert call.function.name in ("get_weather", "get_time")
    # As a client does it: the SDK's own object goes back, with the fields that were null.
    result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 31 degrees."}
    again = ask(sdk, [*question, choice.message.model_dump(), result], tools=TOOLS, tool_choice="none", max_tokens=40)
    assert "31" in again.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_a_named_call_fits_its_schema(sdk: openai.OpenAI, stream: bool) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = ask(sdk, WEATHER, tools=TOOLS, tool_choice=choice, max_tokens=60, stream=stream)
    if not stream:
        (call,) = answer.choices[0].message.tool_calls
        assert (call.function.name, answer.choices[0].finish_reason) == ("get_weather", "stop")
        assert fits(call.function.arguments)
        return
    parts = [part for chunk in answer for part in chunk.choices[0].delta.tool_calls or []]
    assert parts[0].id
    assert parts[0].function.name == "get_weather"
    assert [(part.id, part.index) for part in parts[1:]] == [(None, 0)] * (len(parts) - 1)
    assert fits("".join(part.function.arguments for part in parts))


def test_parallel_calls_by_the_stream_helper(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(
        model=MODEL, messages=WEATHER, tools=TOOLS[:1], tool_choice="required", temperature=0, max_tokens=120
    ) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert calls
    assert [event.index for event in done] == list(range(len(calls)))
    assert all(fits(call.function.arguments) for call in calls)
    assert len({call.id for call in calls}) == len(calls)


def test_auto_calls_or_answers(sdk: openai.OpenAI) -> None:
    called = ask(sdk, [{"role": "user", "content": "What is the weather in Paris?"}], tools=TOOLS, max_tokens=80)
    if called.choices[0].message.tool_calls:  # it is the model's choice
        assert called.choices[0].finish_reason == "tool_calls"
        assert all(json.loads(call.function.arguments) is not None for call in called.choices[0].message.tool_calls)
    else:
        assert called.choices[0].message.content
    assert "<tool_call>" not in (called.choices[0].message.content or "")
    refused = ask(sdk, WEATHER, tools=TOOLS, tool_choice="none")
    assert refused.choices[0].message.tool_calls is None


@pytest.mark.parametrize("stream", [False, True])
def test_the_older_functions(sdk: openai.OpenAI, stream: bool) -> None:
    older = {"functions": [FUNCTION], "function_call": {"name": "get_weather"}}
    answer = ask(sdk, WEATHER, **older, max_tokens=60, stream=stream)
    if stream:
        parts = [chunk.choices[0].delta.function_call for chunk in answer if chunk.choices[0].delta.function_call]
        assert [part.name for part in parts] == ["get_weather", *[None] * (len(parts) - 1)]
        assert fits("".join(part.arguments for part in parts))
        return
    message = answer.choices[0].message
    assert message.tool_calls is None
    assert fits(message.function_call.arguments)
    history = [
        *WEATHER,
        message.model_dump(),
        {"role": "function", "name": "get_weather", "content": "31 degrees, sunny"},
    ]
    again = ask(sdk, history, functions=[FUNCTION], function_call="none", max_tokens=40)
    assert "31" in again.choices[0].message.content


# --- errors, ids, time ------------------------------------------------------------------------------------------------


def test_errors(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        ask(sdk, model="gpt-4o")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("gpt-4o")
    with pytest.raises(openai.NotFoundError):
        sdk.embeddings.create(model=MODEL, input="x")
    with pytest.raises(openai.BadRequestError) as wrong:
        ask(sdk, temperature=3)
    assert (wrong.value.status_code, wrong.value.param) == (400, "temperature")
    with pytest.raises(openai.BadRequestError) as schema:
        ask(
            sdk,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {"type": "null"}}}},
        )
    assert schema.value.code == "unsupported_schema"
    with pytest.raises(openai.BadRequestError) as long:
        ask(sdk, max_tokens=9000)
    assert long.value.code == "context_length_exceeded"
    assert long.value.request_id
    assert long.value.request_id == long.value.response.headers["x-request-id"]


def test_keys_and_limits(tmp_path: Any) -> None:
    """The scripted engine: what is looked at happens before any engine."""
    limits = json.dumps({"good": {"requests_per_minute": 1}})
    env = {"MODEL_ENGINE": "scripted", "MODEL_API_KEYS": "good", "MODEL_LIMITS": limits}
    with start_service("services.model", env, log_dir=tmp_path) as service:
        url = service.url + "/v1"
        with (
            openai.OpenAI(base_url=url, api_key="bad", max_retries=0) as stranger,
            pytest.raises(openai.AuthenticationError) as unknown,
        ):
            ask(stranger, model="embedded")
        assert unknown.value.code == "invalid_api_key"
        with openai.OpenAI(base_url=url, api_key="good", max_retries=0) as client:
            assert ask(client, model="embedded").choices
            with pytest.raises(openai.RateLimitError) as often:
                ask(client, model="embedded")
        assert int(often.value.response.headers["retry-after"]) >= 1


def test_request_ids(sdk: openai.OpenAI, real: Service) -> None:
    mine = {"X-Request-ID": "suite-1"}
    raw = sdk.chat.completions.with_raw_response.create(
        model=MODEL, messages=QUESTION, max_tokens=2, extra_headers=mine
    )
    assert raw.headers["x-request-id"] == "suite-1"
    assert raw.parse()._request_id == "suite-1"
    assert ask(sdk, max_tokens=2)._request_id.startswith("req-")


def test_models(sdk: openai.OpenAI) -> None:
    (card,) = sdk.models.list()
    assert card.id == MODEL
    assert sdk.models.retrieve(MODEL) == card


STORY: Any = [{"role": "user", "content": "Write a long story."}]
ENDLESS = {"max_tokens": 4000, "extra_body": {"ignore_eos": True}}


def running(real: Service) -> float:
    lines = real.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("docduet_model_requests_running ")).split()[1])


def test_a_client_that_times_out_stops_the_work(sdk: openai.OpenAI, real: Service) -> None:
    with pytest.raises(openai.APITimeoutError):
        ask(sdk, STORY, timeout=2, **ENDLESS)
    eventually(lambda: running(real) == 0, timeout=60)


def test_a_closed_stream_stops_the_work(sdk: openai.OpenAI, real: Service) -> None:
    with ask(sdk, STORY, stream=True, **ENDLESS) as stream:
        for _, chunk in zip(range(4), stream, strict=False):
            assert chunk.choices
        assert running(real) == 1
    eventually(lambda: running(real) == 0, timeout=60)


async def test_async(real: Service) -> None:
    async with openai.AsyncOpenAI(base_url=real.url + "/v1", api_key="none", max_retries=0, timeout=240) as client:
        stream: Any = await client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=0, max_tokens=8, stream=True
        )
        assert "Paris" in "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        parsed = await client.chat.completions.parse(
            model=MODEL, messages=REVIEW, response_format=Review, temperature=0, frequency_penalty=0.5, max_tokens=120
        )
        assert isinstance(parsed.choices[0].message.parsed, Review)
        endless: Any = await client.chat.completions.create(
            model=MODEL, messages=STORY, stream=True, max_tokens=4000, extra_body={"ignore_eos": True}
        )
        async for chunk in endless:
            if chunk.choices[0].delta.content:
                break
        await endless.close()
    eventually(lambda: running(real) == 0, timeout=60)
