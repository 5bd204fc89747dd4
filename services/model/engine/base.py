"""The engine seam: token ids in, a stream of tokens out, cancellable.

Everything above it (templates, stop strings, the OpenAI format, the queue) is text code that no engine repeats. An engine
never sees a stop string and never waits for a place: the scheduler admits no more than fits.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. The defaults are OpenAI's, not llama.cpp's or a checkpoint's."""

    temperature: float = 1.0  # 0: the most probable token, always
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0  # 0: off
    seed: int | None = None  # None: a fresh one each time
    presence_penalty: float = 0.0  # over the generated tokens, as OpenAI has it
    frequency_penalty: float = 0.0  # over the generated tokens
    repetition_penalty: float = 1.0  # over prompt and generated tokens, as transformers and vLLM have it; 1: off
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> added to its logit
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """A JSON value that fits `schema`: the normalised subset of JSON Schema that `services.model.schema` lets through."""

    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the whole answer must be: one of `options`, each a sequence of literal text and JSON values; with `separator`, one
    or several of them, with that text between. `first`: what the first is restricted to, where that is less. After it the turn
    ends: no other token may follow."""

    options: tuple[tuple[str | JsonSchema, ...], ...]
    separator: str | None = None
    first: tuple[tuple[str | JsonSchema, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt of at least one token, and at most how many to add (at least 1).

    `logprobs`: None, or how many of the most probable alternatives to report with each token (0: the token alone).
    `alone`: nothing else runs meanwhile, and no cache of earlier prompts is to be used: see `ModelInfo.batch_invariant`.
    """

    token_ids: list[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    logprobs: int | None = None
    constraint: Constraint | None = None
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """The prompt is being read: `processed` of `total` tokens, `cached` of which were already in the cache.

    The first one is sent before any work: with it the engine has accepted the request.
    """

    processed: int
    total: int
    cached: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token and its log probability under the model's own distribution: before temperature, penalties, bias and masks."""

    data: bytes  # need not be complete UTF-8
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The token that was drawn, and the most probable ones at its place, best first."""

    drawn: Candidate
    top: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class Token:
    """Text that is complete UTF-8: possibly empty, possibly of several tokens. `count`: tokens generated up to here.

    `logprobs`, where asked for: of the tokens since the event before. An engine that cannot say it for each token of a
    character that takes several gives one entry for the character.
    """

    text: str
    count: int
    logprobs: tuple[TokenLogprob, ...] = ()


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
    """What a loaded checkpoint is. `special_tokens`: the strings that a template may write and a user may not.

    `defaults`: the checkpoint's own sampling (`generation_config.json`), by the names of `Sampling`, for what a request
    leaves open. `tool_style`: how it was taught to call tools. `batch_invariant`: whether a request's numbers, and so what a
    seed draws, are the same whatever is computed beside it.
    """

    context: int  # most tokens of one request, prompt and answer
    kv_tokens: int  # tokens of all running requests together
    vocab_size: int
    chat_template: str | None
    special_tokens: Mapping[str, int]
    bos_token: str = ""
    eos_token: str = ""
    defaults: Mapping[str, float] = field(default_factory=dict)
    tool_style: Literal["hermes", "react"] = "hermes"
    batch_invariant: bool = True


class Engine(Protocol):
    """One checkpoint, loaded once. `load` and `tokenize` block and may be called from any thread."""

    def load(self, report: Report) -> ModelInfo:
        """Fetches what is missing and loads it; raises StartupError."""

    def tokenize(self, text: str, *, special: bool, add_bos: bool = False) -> list[int]:
        """`special`: whether the text of a control token becomes that token. `add_bos`: where the checkpoint wants one."""

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, that of control tokens included."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """Progress, then Tokens, then one Finish. Closing the generator, or cancelling the task that awaits it, stops the
        work, and returns only when the engine no longer uses the request's place. Raises EngineFailed, OutOfMemory."""

    def close(self) -> None:
        """Stops what runs and frees the checkpoint; safe to call twice, and after a failed load."""
