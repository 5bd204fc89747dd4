"""How one request draws its tokens from the logits.

The order is that of transformers and vLLM: bias, penalties, masks, temperature, top_k, top_p, min_p. A draw inverts the
distribution function over the token ids with one number of the request's own generator, so it depends on the request's seed
and logits alone, and on the last bits of a logit next to never.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

import torch

from services.model.engine.base import GenerationRequest, Sampling
from services.model.engine.transformers.grammar import Matcher

GREEDY_BELOW = 1e-5  # as in vLLM: a smaller temperature overflows, and means the most probable token anyway
_HEAD = 1024  # a nucleus is nearly always among so many tokens; sorting a whole vocabulary takes milliseconds on a CPU


class Sampler:
    """State of one request. `vocab_size`: the width of the logits."""

    def __init__(
        self,
        request: GenerationRequest,
        *,
        vocab_size: int,
        eos_ids: Iterable[int],
        matcher: Matcher | None,
        device: torch.device,
    ) -> None:
        sampling = request.sampling
        self._sampling = sampling
        self._matcher = matcher
        # 64 bits of the seed, so that negative ones differ from positive ones too.
        self._random = random.Random(None if sampling.seed is None else sampling.seed & (2**64 - 1))  # noqa: S311
        self._eos = torch.tensor(sorted(eos_ids), device=device) if sampling.ignore_eos and matcher is None else None
        bias = sampling.logit_bias
        self._bias_ids = torch.tensor(list(bias), device=device, dtype=torch.long) if bias else None
        self._bias = torch.tensor(list(bias.values()), device=device, dtype=torch.float32)
        self._seen: torch.Tensor | None = None  # in prompt or answer
        if sampling.repetition_penalty != 1.0:
            self._seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self._seen[torch.tensor(request.token_ids, device=device)] = True
        self._counts: torch.Tensor | None = None  # in the answer
        if sampling.presence_penalty != 0 or sampling.frequency_penalty != 0:
            self._counts = torch.zeros(vocab_size, device=device)
        self._greedy = sampling.temperature < GREEDY_BELOW
        changes = (self._eos, self._bias_ids, self._seen, self._counts, matcher)
        self.plain = self._greedy and all(change is None for change in changes)
        """Whether it always draws the most probable token."""

    def draw(self, logits: torch.Tensor) -> int:
        """The next token for float32 logits [vocabulary], which are not changed."""
        scores = self._adjusted(logits)
        if self._greedy:
            return int(scores.argmax())
        return choose(scores, self._sampling, self._random.getrandbits(32) / 2**32)

    def accept(self, token_id: int) -> None:
        """`token_id` was drawn and is part of the answer."""
        if self._seen is not None:
            self._seen[token_id] = True
        if self._counts is not None:
            self._counts[token_id] += 1
        if self._matcher is not None:
            self._matcher.accept(token_id)

    @property
    def complete(self) -> bool:
        """Whether the constraint lets nothing follow."""
        return self._matcher is not None and self._matcher.complete

    def _adjusted(self, logits: torch.Tensor) -> torch.Tensor:
        sampling = self._sampling
        scores = logits.clone()
        if self._bias_ids is not None:
            scores[self._bias_ids] += self._bias
        if self._seen is not None:
            penalty = sampling.repetition_penalty
            scores = torch.where(self._seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores)
        if self._counts is not None:
            scores -= self._counts * sampling.frequency_penalty + (self._counts > 0) * sampling.presence_penalty
        if self._eos is not None:
            scores[self._eos] = float("-inf")
        if self._matcher is not None:
            scores.masked_fill_(~self._matcher.allowed(scores.device, len(scores)), float("-inf"))
        return scores


def choose(scores: torch.Tensor, sampling: Sampling, place: float) -> int:
    """Draws from scores [vocabulary]; `place` in [0, 1) is where in the distribution."""
    scores = scores / sampling.temperature
    if 0 < sampling.top_k < len(scores):
        least = scores.topk(sampling.top_k).values[-1]
        scores = scores.masked_fill(scores < least, float("-inf"))
    probabilities = scores.softmax(-1)
    if sampling.top_p < 1:
        probabilities = probabilities * (probabilities >= _nucleus_floor(probabilities, sampling.top_p))
    if sampling.min_p > 0:
        probabilities = probabilities * (probabilities >= sampling.min_p * probabilities.max())
    cumulative = probabilities.double().cumsum(0)
    # The first that exceeds: never one of probability 0.
    return int(torch.searchsorted(cumulative, cumulative[-1:] * place, right=True))


def _nucleus_floor(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """The probability of the last token of the smallest set that holds `top_p` together."""
    top = probabilities.topk(min(_HEAD, len(probabilities))).values
    cumulative = top.cumsum(0)
    if cumulative[-1] < top_p and len(top) < len(probabilities):
        top = probabilities.sort(descending=True).values
        cumulative = top.cumsum(0)
    return top[(cumulative < top_p).sum().clamp(max=len(top) - 1)]
