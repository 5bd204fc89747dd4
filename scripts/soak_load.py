"""The requests of `scripts/soak`: each kind is a coroutine that raises `Wrong` when the service did not answer as it should."""

# ruff: noqa: S311 (chance makes a load here, not a secret)
from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MAX_BODY = 8 << 20  # the service's default
LIMITED_KEY = "limited"  # a key of a service that the soak starts itself, with next to nothing allowed

_TOPICS = "the sea, a mountain, bread, a train, rain, a library, 长城, 茶, 春天, a violin, the moon, a garden".split(
    ", "
)
_WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 30}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"],
}
_REVIEW = {
    "type": "object",
    "properties": {
        "sentiment": {"enum": ["positive", "negative", "neutral"]},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "item": {"anyOf": [{"type": "string", "maxLength": 20}, {"type": "null"}]},
    },
    "required": ["sentiment", "stars", "item"],
    "additionalProperties": False,
}
_TOOL = {"type": "function", "function": {"name": "get_weather", "description": "The weather", "parameters": _WEATHER}}


class Wrong(Exception):
    """An answer that should not have been; the text says what was asked and what came."""


def expect(holds: object, what: str, *found: object) -> None:
    if not holds:
        raise Wrong(f"{what}: " + " ".join(str(item)[:300] for item in found))


def _ask(text: str, **more: Any) -> dict[str, Any]:
    """A chat request."""
    return {"messages": [{"role": "user", "content": text}], "max_tokens": random.randint(8, 40), **more}


def _topic() -> str:
    return f"Say something about {random.choice(_TOPICS)}."


def _long(words: int) -> str:
    """A text that no cache knows."""
    return (
        " ".join(f"{random.choice(_TOPICS)} {random.randrange(10**6)}" for _ in range(words // 4)) + " What was that?"
    )


async def _whole(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await client.post(path, json=body)
    expect(response.status_code == 200, f"{path} answered {response.status_code}", response.text)
    answer: dict[str, Any] = response.json()
    expect(answer["usage"]["completion_tokens"] > 0, "no tokens", answer)
    expect(all(choice["finish_reason"] for choice in answer["choices"]), "no finish_reason", answer)
    return answer


async def _events(response: httpx.Response, pause: float = 0) -> AsyncIterator[dict[str, Any]]:
    expect(response.status_code == 200, f"a stream answered {response.status_code}")
    async for line in response.aiter_lines():
        if line == "data: [DONE]":
            return
        if line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            expect("error" not in event, "an error in a stream", event)
            yield event
            await asyncio.sleep(pause)
    raise Wrong("a stream ended without its end mark")


async def _stream(client: httpx.AsyncClient, body: dict[str, Any], pause: float = 0) -> dict[str, Any]:
    """The deltas of choice 0, put together."""
    joined: dict[str, Any] = {"content": "", "name": "", "arguments": "", "finish_reason": None}
    body = body | {"stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", CHAT, json=body) as response:
        usage = None
        async for event in _events(response, pause):
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                delta = choice["delta"]
                joined["content"] += delta.get("content") or ""
                joined["finish_reason"] = choice["finish_reason"] or joined["finish_reason"]
                for call in delta.get("tool_calls", ()):
                    joined["name"] = joined["name"] or call["function"].get("name", "")
                    joined["arguments"] += call["function"].get("arguments", "") if call["index"] == 0 else ""
        expect(usage and joined["finish_reason"], "a stream without usage or finish_reason", joined, usage)
    return joined


# --- good requests ------------------------------------------------------------------------------------------------------


async def stream(client: httpx.AsyncClient) -> None:
    expect((await _stream(client, _ask(_topic())))["content"], "an empty stream")


async def slow_reader(client: httpx.AsyncClient) -> None:
    await _stream(client, _ask(_topic(), max_tokens=24), pause=0.1)


async def whole(client: httpx.AsyncClient) -> None:
    await _whole(client, CHAT, _ask(_topic(), temperature=0, stop=["."]))


async def completion(client: httpx.AsyncClient) -> None:
    await _whole(client, TEXT, {"prompt": "Once upon a time", "max_tokens": 16, "echo": True})


async def long_prompt(client: httpx.AsyncClient) -> None:
    await _whole(client, CHAT, _ask(_long(200), max_tokens=8))


async def two_answers(client: httpx.AsyncClient) -> None:
    answer = await _whole(client, CHAT, _ask(_topic(), n=2, seed=random.randrange(99)))
    expect(len(answer["choices"]) == 2, "n=2", answer)


async def logprobs(client: httpx.AsyncClient) -> None:
    answer = await _whole(client, CHAT, _ask(_topic(), logprobs=True, top_logprobs=3))
    expect(answer["choices"][0]["logprobs"]["content"], "no logprobs", answer)


async def tokenize(client: httpx.AsyncClient) -> None:
    response = await client.post("/tokenize", json={"prompt": _topic()})
    expect(response.status_code == 200 and response.json()["count"] > 0, "tokenize", response.text)


async def json_answer(client: httpx.AsyncClient) -> None:
    described = {"name": "review", "strict": True, "schema": _REVIEW}
    body = _ask(
        "Rate: the lamp broke.", max_tokens=80, response_format={"type": "json_schema", "json_schema": described}
    )
    answer = (await _whole(client, CHAT, body))["choices"][0]
    expect(answer["finish_reason"] == "stop", "json_schema did not end", answer)
    value = json.loads(answer["message"]["content"])
    expect(set(value) == {"sentiment", "stars", "item"} and 1 <= value["stars"] <= 5, "json_schema", value)


async def tool_required(client: httpx.AsyncClient) -> None:
    body = _ask("Weather in Paris?", max_tokens=200, tools=[_TOOL], tool_choice="required", parallel_tool_calls=False)
    _called(await _stream(client, body))


async def tool_auto(client: httpx.AsyncClient) -> None:
    joined = await _stream(client, _ask("What is the weather in Paris, in celsius?", max_tokens=200, tools=[_TOOL]))
    if joined["finish_reason"] == "tool_calls":
        _called(joined)


def _called(joined: dict[str, Any]) -> None:
    expect(joined["finish_reason"] == "tool_calls" and joined["name"] == "get_weather", "no call", joined)
    expect(set(json.loads(joined["arguments"])) == {"city", "unit"}, "arguments", joined)


# --- clients that leave -------------------------------------------------------------------------------------------------


async def leaves_midway(client: httpx.AsyncClient) -> None:
    wanted = random.randint(1, 12)
    body = _ask(_topic(), max_tokens=400, ignore_eos=True, stream=True)
    async with client.stream("POST", CHAT, json=body) as response:
        async for _ in _events(response):
            wanted -= 1
            if not wanted:
                return


async def leaves_early(client: httpx.AsyncClient) -> None:
    """While the prompt waits or is read."""
    body = _ask(_long(500), max_tokens=100, stream=random.random() < 0.5)
    with contextlib.suppress(httpx.ReadTimeout):
        await client.post(CHAT, json=body, timeout=httpx.Timeout(60, read=random.uniform(0.05, 1)))


# --- bad requests -------------------------------------------------------------------------------------------------------

_JSON = {"content-type": "application/json"}
_REFUSED = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
_BAD_FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": _REFUSED}}
# What is wrong, the request, the status it has to get.
BAD: list[tuple[str, dict[str, Any], int]] = [
    ("broken JSON", {"content": b'{"messages": [', "headers": _JSON}, 400),
    ("no messages", {"json": {"messages": []}}, 400),
    ("a type", {"json": _ask("x", temperature="warm")}, 400),
    ("a bound", {"json": _ask("x", top_p=2)}, 400),
    ("an unknown parameter", {"json": _ask("x", audio_voice="x")}, 400),
    ("a schema that cannot be kept", {"json": _ask("x", response_format=_BAD_FORMAT)}, 400),
    ("a call of no function", {"json": _ask("x", tool_choice="required")}, 400),
    ("more than the context", {"json": _ask("x", max_tokens=10**7)}, 400),
    ("a prompt beyond the context", {"json": _ask("many words " * 20_000)}, 400),
    ("a model", {"json": _ask("x", model="no-such-model")}, 404),
    ("a route", {"url": "/v1/nothing", "json": {}}, 404),
    ("a method", {"url": CHAT, "method": "GET"}, 405),
    ("too large", {"content": b" " * (MAX_BODY + 1), "headers": _JSON}, 413),
    ("a media type", {"content": b"{}", "headers": {"content-type": "text/plain"}}, 415),
]
BAD_KEYS: list[tuple[str, dict[str, Any], int]] = [
    ("a wrong key", {"json": _ask("x"), "headers": {"authorization": "Bearer wrong"}}, 401),
]


async def bad(client: httpx.AsyncClient) -> None:
    """Each kind once; they cost next to nothing."""
    keyed = "authorization" in client.headers
    for what, request, status in BAD + BAD_KEYS if keyed else BAD:
        try:
            response = await client.request(**{"method": "POST", "url": CHAT, **request})
        except httpx.WriteError:
            expect(status == 413, f"the connection was closed on {what}")
            continue
        expect(response.status_code == status, f"{what} answered {response.status_code}, not {status}", response.text)
        expect(set(response.json()["error"]) == {"message", "type", "param", "code"}, what, response.text)


async def limited(client: httpx.AsyncClient) -> None:
    """Only where the soak started the service: a key that may ask once a minute."""
    headers = {"authorization": f"Bearer {LIMITED_KEY}"}
    response = await client.post(CHAT, json=_ask("x", max_tokens=1), headers=headers)
    expect(response.status_code in (200, 429), "the limited key", response.status_code, response.text)
    expect(response.status_code == 200 or "retry-after" in response.headers, "429 without Retry-After")


Kind = Callable[[httpx.AsyncClient], Awaitable[None]]
# How often each is asked, relative to the others.
MIX: dict[Kind, int] = {
    stream: 5,
    whole: 4,
    completion: 2,
    long_prompt: 2,
    slow_reader: 1,
    two_answers: 2,
    logprobs: 2,
    tokenize: 2,
    json_answer: 3,
    tool_required: 3,
    tool_auto: 2,
    leaves_midway: 4,
    leaves_early: 3,
    bad: 2,
}
