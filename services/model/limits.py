"""What one client may ask for: rates, requests at a time, sizes. In memory, for one process; the state is one entry a key."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from services.model.errors import InvalidRequest, RateLimited, RequestTimeout

Clock = Callable[[], float]  # seconds, never going back

DEFAULT = "default"  # the entry of MODEL_LIMITS for whoever has none of his own


class Limits(BaseModel):
    """What one client may ask for; None: as much as the service does."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)  # of prompts, cached or not, and of answers
    concurrent: int | None = Field(None, ge=1)  # requests at a time
    max_tokens: int | None = Field(None, ge=1)  # of the answers to one request
    max_body_mb: int | None = Field(None, ge=1)


def read_limits(value: str) -> Any:
    """MODEL_LIMITS as it was given, a JSON object or the path of a file with one. Raises ValueError, which names no key."""
    text = value.strip()
    if not any(mark in text for mark in '{}[]"\n'):  # a path; JSON without these is no object
        try:
            text = Path(text).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise ValueError(f"the file {value.strip()} cannot be read: {reason}") from None
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        # Only the place: the text itself holds keys.
        raise ValueError(f"not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise ValueError("not JSON of a sensible depth") from None


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an entry is there twice; which of them counts?")
    return found


def limits_for(key: str | None, table: Mapping[str, Limits]) -> Limits:
    """The limits of one key (None: nobody in particular). A field that its entry leaves out is the default's."""
    default = table.get(DEFAULT, Limits())
    own = table.get(key) if key is not None else None
    return (
        default
        if own is None
        else default.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})
    )


def fingerprint(key: str) -> str:
    """What the log calls a key: the start of its SHA-256 (`printf %s "$KEY" | sha256sum`), from which nobody gets it back."""
    return "key-" + hashlib.sha256(key.encode()).hexdigest()[:8]


class Bucket:
    """A token bucket: full at first, refilled evenly at `per_minute` a minute, and never above that. May go into debt."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._at = clock()

    @property
    def level(self) -> float:
        now = self._clock()
        self._level = min(self.per_minute, self._level + (now - self._at) * self.per_minute / 60)
        self._at = now
        return self._level

    def take(self, amount: float) -> None:
        self._level = self.level - amount

    def seconds_until(self, level: float) -> float:
        """How long until the bucket holds `level`; 0 when it does. A hair's breadth forgives the rounding of floats."""
        missing = level - self.level
        return missing * 60 / self.per_minute if missing > 1e-6 else 0.0


class Client:
    """One key, or everybody where no key is asked for, with what is left of its limits. Used from one event loop."""

    def __init__(self, name: str, limits: Limits, clock: Clock = time.monotonic) -> None:
        self.name = name  # for the log; never the key
        self.limits = limits
        self.running = 0
        per_minute = {"requests": limits.requests_per_minute, "tokens": limits.tokens_per_minute}
        self._buckets = {unit: Bucket(rate, clock) for unit, rate in per_minute.items() if rate is not None}

    def enter(self) -> None:
        """Begins a request; `leave` ends it, and `charge` follows. Raises RateLimited; a request that is refused does not count.

        Tokens are charged when they are known, at the end: a request starts while any are left, what it takes beyond that is
        a debt, and the next one waits until it is paid. So the rate holds over time, and nobody pays for tokens that a
        generous max_tokens would have reserved.
        """
        most = self.limits.concurrent
        if most is not None and self.running >= most:
            raise RateLimited(
                f"this client already has {self.running} requests running, the most it may have ({most}); wait for one to end",
                limit="concurrent",
                retry_after=1,
            )
        for unit, bucket in self._buckets.items():
            wait = bucket.seconds_until(1)
            if wait:
                raise RateLimited(
                    f"this client has used up its {bucket.per_minute} {unit} a minute; try again in {math.ceil(wait)} s",
                    limit=unit,
                    retry_after=math.ceil(wait),
                )
        if "requests" in self._buckets:
            self._buckets["requests"].take(1)
        self.running += 1

    def leave(self) -> None:
        """Ends a request that `enter` began."""
        self.running -= 1

    def charge(self, tokens: int) -> None:
        """Takes a request's prompt and answers from what is left."""
        if "tokens" in self._buckets:
            self._buckets["tokens"].take(tokens)

    def headers(self) -> dict[str, str]:
        """OpenAI's x-ratelimit headers, for the limits that there are. `reset`: until the whole minute's worth is there."""
        found = {}
        for unit, bucket in self._buckets.items():
            found[f"x-ratelimit-limit-{unit}"] = str(bucket.per_minute)
            found[f"x-ratelimit-remaining-{unit}"] = str(max(0, math.floor(bucket.level + 1e-6)))
            found[f"x-ratelimit-reset-{unit}"] = duration(bucket.seconds_until(bucket.per_minute))
        return found

    def most_tokens(self, asked: int | None, *, answers: int = 1, param: str = "max_tokens") -> int | None:
        """The most tokens each of `answers` answers (n) may have, None for no limit. `asked`: what the request's `param` says,
        None when it says nothing. Raises InvalidRequest when that is more than this client may ask for."""
        most = self.limits.max_tokens
        if most is None:
            return asked
        if asked is not None and asked * answers > most:
            each = f"{answers} answers of {asked} tokens" if answers > 1 else f"{asked} tokens"
            raise InvalidRequest(
                f"{param} = {asked}: this client may ask for {most} tokens, not for {each}", param=param
            )
        if answers > most:
            raise InvalidRequest(f"n = {answers}: this client may ask for {most} tokens in all", param="n")
        return asked if asked is not None else most // answers


class Clients:
    """Who may come: the clients of the keys, or everybody as one when there are none."""

    def __init__(
        self, keys: Sequence[str], table: Mapping[str, Limits] | None = None, clock: Clock = time.monotonic
    ) -> None:
        table = table or {}
        self._keys = [
            (key.encode(), Client(fingerprint(key), limits_for(key, table), clock)) for key in dict.fromkeys(keys)
        ]
        self.anonymous = None if keys else Client("anonymous", limits_for(None, table), clock)

    def find(self, given: bytes) -> Client | None:
        """The client of a key. Every key is compared, and each in constant time: the time taken tells nothing about them."""
        found = [client for key, client in self._keys if hmac.compare_digest(key, given)]
        return found[0] if found else None


@contextlib.asynccontextmanager
async def deadline(seconds: float, *, arrived: float) -> AsyncIterator[None]:
    """Raises RequestTimeout when the block is not done `seconds` after `arrived` (`time.perf_counter()`); 0: no limit."""
    if not seconds:
        yield
        return
    timer = asyncio.timeout(arrived + seconds - time.perf_counter())
    try:
        async with timer:
            yield
    except TimeoutError:
        if timer.expired():
            raise RequestTimeout(seconds) from None
        raise  # somebody else's


def duration(seconds: float) -> str:
    """As OpenAI writes it: 0s, 12ms, 8.64s, 6m0s. Rounded up, so that who waits that long has waited long enough."""
    ms = math.ceil(seconds * 1000 - 1e-6)
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, rest = divmod(ms, 60_000)
    return f"{minutes}m" * (minutes > 0) + f"{rest / 1000:g}s"
