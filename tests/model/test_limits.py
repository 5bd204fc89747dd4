"""Limits by key: the buckets with a clock of their own, the setting, and what a client meets over HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.model.config import Settings, load_settings
from services.model.errors import ConfigError, InvalidRequest, RateLimited, RequestTimeout
from services.model.limits import Client, Clients, Limits, deadline, duration, fingerprint, limits_for
from tests.model.conftest import Gate, Running, chat, events, eventually, serve

CHAT = "/v1/chat/completions"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def client(**limits: Any) -> tuple[Client, Clock]:
    clock = Clock()
    return Client("key-x", Limits(**limits), clock), clock


def enters(one: Client) -> bool:
    try:
        one.enter()
    except RateLimited:
        return False
    one.leave()
    return True


# --- the buckets ------------------------------------------------------------------------------------------------------


def test_requests_a_minute() -> None:
    one, clock = client(requests_per_minute=3)
    assert [enters(one) for _ in range(4)] == [True, True, True, False]
    with pytest.raises(RateLimited, match=r"3 requests a minute; try again in 20 s") as refused:
        one.enter()
    assert refused.value.headers() == {"Retry-After": "20"}
    assert (refused.value.limit, refused.value.code, refused.value.type) == (
        "requests",
        "rate_limit_exceeded",
        "rate_limit_error",
    )
    clock.now += 19.9
    assert not enters(one)
    clock.now += 0.1
    assert [enters(one), enters(one)] == [True, False]  # what was refused did not count
    clock.now += 3600
    assert [enters(one) for _ in range(4)] == [True, True, True, False]  # a pause saves up one minute's worth, no more


def test_tokens_are_charged_afterwards_and_a_debt_is_paid_first() -> None:
    one, clock = client(tokens_per_minute=600)
    assert enters(one)
    one.charge(1200)
    with pytest.raises(RateLimited, match="600 tokens a minute") as refused:
        one.enter()
    assert refused.value.retry_after == 61  # 600 tokens of debt, and one token to begin with
    clock.now += 60
    assert not enters(one)
    clock.now += 1
    assert enters(one)


def test_a_client_without_limits_is_never_refused() -> None:
    one, _ = client()
    assert all(enters(one) for _ in range(1000))
    one.charge(10**9)
    assert enters(one)
    assert one.headers() == {}
    assert one.most_tokens(None) is None
    assert one.most_tokens(10**6, answers=8) == 10**6


def test_requests_at_a_time() -> None:
    one, _ = client(concurrent=2)
    one.enter()
    one.enter()
    with pytest.raises(RateLimited, match=r"already has 2 requests running, the most it may have \(2\)") as refused:
        one.enter()
    assert refused.value.limit == "concurrent"
    one.leave()
    one.enter()
    assert one.running == 2


@given(
    rate=st.integers(1, 120),
    waits=st.lists(st.floats(0, 30, allow_nan=False), min_size=1, max_size=60),
)
def test_no_window_lets_more_through_than_its_share(rate: int, waits: list[float]) -> None:
    one, clock = client(requests_per_minute=rate)
    let_in: list[float] = []
    for wait in waits:
        clock.now += wait
        while enters(one):
            let_in.append(clock.now)
    for first, begin in enumerate(let_in):
        for last in range(first, len(let_in)):
            assert last - first + 1 <= rate + (let_in[last] - begin) * rate / 60 + 0.001


@given(rate=st.integers(1, 10_000), charges=st.lists(st.integers(0, 50_000), min_size=1, max_size=5))
def test_who_waits_as_told_is_let_in(rate: int, charges: list[int]) -> None:
    one, clock = client(tokens_per_minute=rate, requests_per_minute=7)
    for charge in charges:
        one.charge(charge)
        for _ in range(2):  # the other bucket may ask for more time
            try:
                one.enter()
            except RateLimited as error:
                clock.now += error.retry_after
            else:
                one.leave()
                break
        else:
            assert enters(one)


def test_the_headers_are_openais() -> None:
    one, clock = client(requests_per_minute=60, tokens_per_minute=1000)
    one.enter()
    one.leave()
    one.charge(1500)
    clock.now += 0.25
    assert one.headers() == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "750ms",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m29.75s",
    }
    assert set(client(tokens_per_minute=5)[0].headers()) == {
        f"x-ratelimit-{what}-tokens" for what in ("limit", "remaining", "reset")
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.0121, "13ms"), (1, "1s"), (8.64, "8.64s"), (59.9999, "1m0s"), (360, "6m0s"), (3725.5, "62m5.5s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_longest_answer() -> None:
    one, _ = client(max_tokens=100)
    assert one.most_tokens(None) == 100
    assert one.most_tokens(None, answers=3) == 33
    assert one.most_tokens(100) == 100
    assert one.most_tokens(50, answers=2) == 50
    with pytest.raises(InvalidRequest, match="max_completion_tokens = 101: this client may ask for 100") as refused:
        one.most_tokens(101, param="max_completion_tokens")
    assert refused.value.param == "max_completion_tokens"
    with pytest.raises(InvalidRequest, match="2 answers of 51 tokens"):
        one.most_tokens(51, answers=2)
    with pytest.raises(InvalidRequest) as refused:
        one.most_tokens(None, answers=101)
    assert refused.value.param == "n"


async def test_the_time_of_a_request_counts_from_its_arrival() -> None:
    async with deadline(0, arrived=0):
        await asyncio.sleep(0)
    async with deadline(60, arrived=time.perf_counter()):
        await asyncio.sleep(0)
    never = asyncio.Event()
    for seconds, arrived in ((0.02, time.perf_counter()), (60, time.perf_counter() - 61)):
        with pytest.raises(RequestTimeout, match=f"within {seconds:g} s"):
            async with deadline(seconds, arrived=arrived):
                await never.wait()
    with pytest.raises(TimeoutError, match="another"):
        async with deadline(60, arrived=time.perf_counter()):
            raise TimeoutError("another")


# --- the setting ------------------------------------------------------------------------------------------------------


def test_a_key_inherits_what_it_leaves_out() -> None:
    table = {
        "default": Limits(requests_per_minute=10, concurrent=2),
        "team": Limits(requests_per_minute=100),
        "free": Limits(concurrent=None),
    }
    assert limits_for(None, table) == limits_for("other", table) == table["default"]
    assert limits_for("team", table) == Limits(requests_per_minute=100, concurrent=2)
    assert limits_for("free", table) == Limits(requests_per_minute=10)
    assert limits_for("other", {}) == Limits()


def test_every_key_has_a_bucket_of_its_own_and_is_found_by_itself_only() -> None:
    clients = Clients(["a-key", "b-key"], {"default": Limits(requests_per_minute=1)})
    a, b = clients.find(b"a-key"), clients.find(b"b-key")
    assert a is not None
    assert b is not None
    assert a is clients.find(b"a-key")
    assert [enters(a), enters(a), enters(b)] == [True, False, True]
    assert [clients.find(given) for given in (b"", b"a-ke", b"a-key ", b"default", b"A-KEY")] == [None] * 5
    assert clients.anonymous is None
    everybody = Clients([]).anonymous
    assert everybody is not None
    assert everybody.name == "anonymous"
    assert Clients([]).find(b"") is None


@pytest.fixture
def from_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)  # no .env here

    def load(value: str) -> Settings:
        monkeypatch.setenv("MODEL_LIMITS", value)
        monkeypatch.setenv("MODEL_API_KEYS", "sk-one,sk-two")
        return load_settings()

    return load


def test_limits_are_read_from_json_or_from_a_file(from_environment: Any, tmp_path: Path) -> None:
    text = '{"default": {"concurrent": 4}, "sk-one": {"requests_per_minute": 600, "concurrent": null}}'
    (tmp_path / "limits.json").write_text(text)
    wanted = {"default": Limits(concurrent=4), "sk-one": Limits(requests_per_minute=600, concurrent=None)}
    for value in (text, str(tmp_path / "limits.json"), "limits.json"):
        settings = from_environment(value)
        assert settings.limits == wanted
        assert "600" not in repr(settings)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ('{"sk-secret": ', "not JSON"),
        ('"sk-secret"', "valid dictionary"),
        ('[{"sk-secret": {}}]', "valid dictionary"),
        ('{"sk-secret": {}, "sk-secret": {}}', "twice"),
        ('{"sk-secret": {"concurrent": 0}}', f"{fingerprint('sk-secret')}.concurrent: Input should be greater than"),
        ('{"sk-secret": {"concurrent": "4"}}', "valid integer"),
        ('{"sk-secret": {"concurrent": 1.5}}', "valid integer"),
        ('{"sk-secret": {"concurent": 4}}', "concurent: Extra inputs are not permitted"),
        ('{"default": {"sk-secret": 4}}', "default.a field"),
        ('{"sk-secret": 5}', fingerprint("sk-secret")),
        ('{"sk-secret": {"concurrent": 4}}', f"{fingerprint('sk-secret')} (the start of the SHA-256) is not among"),
        ("no-such-file.json", "no-such-file.json cannot be read: No such file"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_wrong_setting_is_named_and_no_key_is_shown(from_environment: Any, value: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        from_environment(value)
    assert str(refused.value).startswith("MODEL_LIMITS: ")
    assert says in str(refused.value)
    assert "sk-secret" not in str(refused.value)


# --- over HTTP --------------------------------------------------------------------------------------------------------


def ask(running: Running, text: str = "hi", key: str | None = None, **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return running.client.post(CHAT, json=chat(text, **more), headers=headers)


def test_without_keys_the_default_is_everybodys() -> None:
    with serve(limits={"default": {"requests_per_minute": 2}}) as running:
        first = ask(running)
        assert first.status_code == 200
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert running.client.post("/tokenize", json={"prompt": "x"}).status_code == 200
        refused = ask(running)
        assert refused.status_code == 429
        assert 25 <= int(refused.headers["retry-after"]) <= 30
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        body = refused.json()
        assert (body["error"]["code"], body["error"]["type"]) == ("rate_limit_exceeded", "rate_limit_error")
        assert body["request_id"] == refused.headers["x-request-id"]
        for path in ("/health", "/ready", "/metrics", "/v1/models"):
            looked = running.client.get(path)
            assert looked.status_code == 200
            assert "x-ratelimit-limit-requests" not in looked.headers
        assert running.metric("requests_limited_total", limit="requests") == 1


def test_keys_have_limits_of_their_own_and_stay_secret() -> None:
    limits = {"default": {"requests_per_minute": 1}, "sk-two": {"requests_per_minute": None}}
    with serve(api_keys=("sk-one", "sk-two"), limits=limits) as running:
        assert ask(running, key="sk-one").status_code == 200
        refused = ask(running, key="sk-one")
        assert refused.status_code == 429
        for _ in range(3):
            answer = ask(running, key="sk-two")
            assert answer.status_code == 200
            assert not any(name.startswith("x-ratelimit") for name in answer.headers)
        assert ask(running, key="sk-three").status_code == 401
        metrics = running.client.get("/metrics", headers={"authorization": "Bearer sk-two"}).text
        for text in (metrics, refused.text, json.dumps(dict(refused.headers))):
            assert "sk-" not in text
            assert fingerprint("sk-one") not in text


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_of_prompt_and_answer_count(stream: bool) -> None:
    with serve(limits={"default": {"tokens_per_minute": 20}}) as running:

        def again() -> bool:
            answer = ask(running, "count", stream=stream)
            if answer.status_code == 200:
                assert answer.headers["x-ratelimit-limit-tokens"] == "20"
                return False
            assert "20 tokens a minute" in answer.json()["error"]["message"]
            assert answer.headers["x-ratelimit-remaining-tokens"] == "0"
            return True

        assert again() is False
        eventually(again)  # the charge may come a moment after the answer's last byte
        assert running.metric("requests_limited_total", limit="tokens") == 1


def test_a_request_that_the_engine_never_saw_costs_no_tokens() -> None:
    with serve(limits={"default": {"tokens_per_minute": 30}}, context=256) as running:
        for _ in range(3):
            assert ask(running, "y" * 4000).status_code == 400
        assert ask(running, "hi").headers["x-ratelimit-remaining-tokens"] == "30"


def test_a_request_that_found_the_queue_full_costs_no_tokens() -> None:
    gate = Gate(before=1)
    limits = {"sk-rated": {"tokens_per_minute": 30}}
    keys = {"api_keys": ("sk-other", "sk-rated"), "limits": limits}
    with serve(gate=gate, parallel=1, queue=0, **keys) as running, httpx.Client(base_url=running.url) as other:
        body, key = chat("count", stream=True), {"authorization": "Bearer sk-other"}
        with other.stream("POST", CHAT, json=body, headers=key) as response:
            assert response.status_code == 200
            assert gate.reached.wait(10)
            for _ in range(3):
                refused = ask(running, "x" * 400, key="sk-rated")
                assert refused.status_code == 429
                assert refused.json()["error"]["code"] == "queue_full"
                assert refused.headers["x-ratelimit-remaining-tokens"] == "30"


def test_requests_at_a_time_over_http() -> None:
    gate = Gate(before=1)
    with serve(gate=gate, limits={"default": {"concurrent": 1}}) as running:
        with running.client.stream("POST", CHAT, json=chat("count", stream=True)) as response:
            assert gate.reached.wait(10)
            with httpx.Client(base_url=running.url, trust_env=False) as other:
                refused = other.post(CHAT, json=chat("hi"))
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            gate.open.set()
            assert events(response)
        # One after the other is one at a time: the place is free before the last byte is out.
        assert [ask(running).status_code for _ in range(30)] == [200] * 30


def test_a_client_that_leaves_gives_its_place_back() -> None:
    with serve(limits={"default": {"concurrent": 1}}) as running:
        with running.client.stream("POST", CHAT, json=chat("hang", stream=True)) as response:
            assert response.status_code == 200
        eventually(lambda: ask(running).status_code == 200)


def test_the_size_of_a_body_by_key() -> None:
    limits = {"sk-small": {"max_body_mb": 1}, "sk-large": {"max_body_mb": 100}}
    with serve(api_keys=("sk-small", "sk-large"), limits=limits, max_body_mb=2) as running:

        def send(key: str, mb: float, chunked: bool) -> httpx.Response:
            content = json.dumps({"prompt": "x" * int(mb * (1 << 20))}).encode()
            body: Any = (part for part in (content[:1000], content[1000:])) if chunked else content
            headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
            return running.client.post("/tokenize", content=body, headers=headers)

        for chunked in (False, True):
            assert send("sk-large", 1.5, chunked).status_code == 200
            refused = send("sk-small", 1.5, chunked)
            assert refused.status_code == 413
            assert "larger than 1 MiB (MODEL_LIMITS)" in refused.json()["error"]["message"]
            refused = send("sk-large", 2.5, chunked)  # nobody's limit is above the service's
            assert refused.status_code == 413
            assert "larger than 2 MiB (MODEL_MAX_BODY_MB)" in refused.json()["error"]["message"]
