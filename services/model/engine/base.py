"""The engine seam: token ids in, a stream of tokens out, cancellable.

Everything above it (templates, stop strings, the OpenAI format, the queue) is text code that no engine repeats. An engine
never sees a stop string and never waits for a place: the scheduler admits no more than fits.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. The defaults are OpenAI's, not llama.cpp's or a checkpoint's."""

    temperature: float = 1.0  # 0: the most probable token, always
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0  # 0: off
    seed: int | None = None  # None: a fresh one each time
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt of at least one token, and at most how many to add (at least 1)."""

    token_ids: list[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class Progress:
    """The prompt is being read: `processed` of `total` tokens, `cached` of which were already in the cache.

    The first one is sent before any work: with it the engine has accepted the request.
    """

    processed: int
    total: int
    cached: int


@dataclass(frozen=True, slots=True)
class Token:
    """Text that is complete UTF-8: possibly empty, possibly of several tokens. `count`: tokens generated up to here."""

    text: str
    count: int
    token_id: int | None = None
    logprob: float | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """The last event. `stop`: the model ended its turn; `length`: max_tokens were generated."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


Event = Progress | Token | Finish
Report = Callable[[str], None]  # is told what loading is at, in words for `/ready`


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded checkpoint is. `special_tokens`: the strings that a template may write and a user may not."""

    context: int  # most tokens of one request, prompt and answer
    kv_tokens: int  # tokens of all running requests together
    vocab_size: int
    chat_template: str | None
    special_tokens: Mapping[str, int]
    bos_token: str = ""
    eos_token: str = ""


class Engine(Protocol):
    """One checkpoint, loaded once. `load` and `tokenize` block and may be called from any thread."""

    def load(self, report: Report) -> ModelInfo:
        """Fetches what is missing and loads it; raises StartupError."""

    def tokenize(self, text: str, *, special: bool, add_bos: bool = False) -> list[int]:
        """`special`: whether the text of a control token becomes that token. `add_bos`: where the checkpoint wants one."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """Progress, then Tokens, then one Finish. Closing the generator, or cancelling the task that awaits it, stops the
        work, and returns only when the engine no longer uses the request's place. Raises EngineFailed."""

    def close(self) -> None:
        """Stops what runs and frees the checkpoint; safe to call twice, and after a failed load."""
