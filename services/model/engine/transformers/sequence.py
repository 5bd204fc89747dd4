"""One running request: its tokens, how many of them are computed, and the events that it sends."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Literal

import torch

from services.model.engine.base import (
    Candidate,
    Event,
    Finish,
    GenerationRequest,
    Progress,
    Token,
    TokenLogprob,
)
from services.model.engine.transformers.cache import block_digest
from services.model.engine.transformers.checkpoint import Loaded
from services.model.engine.transformers.sampler import Sampler


class Sequence:
    """`send` takes the events, and at last the error where there is one. All of it in the worker's thread."""

    def __init__(
        self, request: GenerationRequest, sampler: Sampler, loaded: Loaded, send: Callable[[Event | Exception], None]
    ) -> None:
        self.tokens = list(request.token_ids)
        self.prompt_tokens = len(self.tokens)
        self.computed = 0  # tokens whose keys and values are in the cache
        self.cached = 0  # of these, computed by others
        self.blocks: list[int] = []
        self.published = 0  # of the blocks, known to others
        self.sampler = sampler
        self.send = send
        self.finished = False
        self._max_tokens = request.max_tokens
        self._logprobs = request.logprobs
        self._loaded = loaded
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._digests: list[bytes] = []

    @property
    def pending(self) -> int:
        """Tokens to compute before the next can be drawn: the rest of the prompt, or the one drawn last."""
        return len(self.tokens) - self.computed

    @property
    def reading(self) -> bool:
        """Whether the prompt is not computed yet."""
        return self.computed < self.prompt_tokens

    def digest(self, block: int, block_size: int) -> bytes:
        """Of the sequence's full block number `block`."""
        while len(self._digests) <= block:
            start = len(self._digests) * block_size
            before = self._digests[-1] if self._digests else b""
            self._digests.append(block_digest(before, self.tokens[start : start + block_size]))
        return self._digests[block]

    def report_progress(self) -> None:
        self.send(Progress(min(self.computed, self.prompt_tokens), self.prompt_tokens, self.cached))

    def add(self, token_id: int, logits: torch.Tensor) -> None:
        """Takes the token that was drawn from `logits` (float32, [vocabulary]); the answer may end with it."""
        count = len(self.tokens) - self.prompt_tokens + 1
        if token_id in self._loaded.eos_ids:
            self._finish("stop", count)  # the end of the turn is a token too, one without text
            return
        logprobs = () if self._logprobs is None else (self._token_logprob(token_id, logits),)
        self.sampler.accept(token_id)
        self.tokens.append(token_id)
        self.send(Token(self._decoder.decode(self._loaded.vocabulary.token_bytes(token_id)), count, logprobs))
        if self.sampler.complete:
            self._finish("stop", count)
        elif count == self._max_tokens:
            self._finish("length", count)

    def fail(self, error: Exception) -> None:
        self.finished = True
        self.send(error)

    def _finish(self, reason: Literal["stop", "length"], count: int) -> None:
        self.finished = True
        if rest := self._decoder.decode(b"", final=True):  # half a character
            self.send(Token(rest, count))
        self.send(Finish(reason, self.prompt_tokens, self.cached, count))

    def _token_logprob(self, token_id: int, logits: torch.Tensor) -> TokenLogprob:
        logprobs = logits.log_softmax(-1)
        vocabulary = self._loaded.vocabulary
        drawn = Candidate(vocabulary.token_bytes(token_id), float(logprobs[token_id]))
        top: list[Candidate] = []
        if self._logprobs:
            best = logprobs.topk(min(self._logprobs, len(logprobs)))
            for other, logprob in zip(best.indices.tolist(), best.values.tolist(), strict=True):
                data = vocabulary.token_bytes(other) or self._names.get(other, b"")
                top.append(drawn if other == token_id else Candidate(data, logprob))
        return TokenLogprob(drawn, tuple(top))

    @property
    def _names(self) -> dict[int, bytes]:
        return {token_id: name.encode() for name, token_id in self._loaded.special_tokens.items()}
