"""OpenAI's own client against the service, sync and async."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.support.servers import Service


@pytest.fixture
def sdk(scripted: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=scripted.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="embedded", messages=[{"role": "user", "content": "你好"}], max_tokens=9)
    assert answer.choices[0].message.content == "你好"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens is not None


def test_stream(sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(
        model="embedded",
        messages=[{"role": "user", "content": "count"}],
        stream=True,
        stream_options={"include_usage": True},
        stop=["four"],
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "one two three "
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


def test_completion_and_models(sdk: openai.OpenAI) -> None:
    assert sdk.completions.create(model="embedded", prompt="abc").choices[0].text == "abc"
    assert [model.id for model in sdk.models.list()] == ["embedded"]
    assert sdk.models.retrieve("embedded").id == "embedded"


def test_errors_become_the_sdks_exceptions(sdk: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(openai.NotFoundError) as missing:
        sdk.chat.completions.create(model="gpt-4o", messages=messages)  # type: ignore[arg-type]
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.chat.completions.create(model="embedded", messages=messages, store=True)  # type: ignore[call-overload]
    assert (refused.value.param, refused.value.code) == ("store", "unsupported_parameter")
    messages = [{"role": "user", "content": "fail later"}]
    with pytest.raises(openai.APIError, match="script"):
        list(sdk.chat.completions.create(model="embedded", messages=messages, stream=True))  # type: ignore[call-overload]


async def test_async(scripted: Service) -> None:
    async with openai.AsyncOpenAI(base_url=scripted.url + "/v1", api_key="none", max_retries=0) as client:
        answer = await client.chat.completions.create(model="embedded", messages=[{"role": "user", "content": "hi"}])
        assert answer.choices[0].message.content == "hi"
        stream = await client.chat.completions.create(
            model="embedded", messages=[{"role": "user", "content": "count"}], stream=True
        )
        text = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(text) == "one two three four five six"
