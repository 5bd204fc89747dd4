"""Constraints: which tokens keep an answer inside its grammar.

llguidance follows the grammar byte by byte, so that a token may hold the end of one part and the start of the next, or a
piece of a character.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from services.model.engine.base import Constraint
from services.model.engine.lark import render
from services.model.engine.transformers.checkpoint import Vocabulary
from services.model.errors import EngineFailed, InvalidRequest


class Grammars:
    """The vocabulary, prepared once, at the first constraint: that takes a moment for a large one."""

    def __init__(self, vocabulary: Vocabulary, eos_ids: Iterable[int], vocab_size: int) -> None:
        self._vocabulary = vocabulary
        self._eos_ids = sorted(eos_ids)
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None

    def matcher(self, constraint: Constraint) -> Matcher:
        """Blocks while it compiles; any thread. Raises InvalidRequest with the reason where that cannot be done."""
        with self._lock:
            if self._tokenizer is None:
                words = _Words(self._vocabulary, self._eos_ids[0], self._vocab_size)
                self._tokenizer = LLTokenizer(TokenizerWrapper(words), eos_token=self._eos_ids)
        matcher = LLMatcher(
            self._tokenizer, render(constraint), log_level=0, limits=LLParserLimits(verbose_errors=False)
        )
        if matcher.is_error():
            raise InvalidRequest(
                f"the schema cannot be used as a constraint: {matcher.get_error().strip()[:500]}",
                param="response_format",
            )
        return Matcher(matcher)


class _Words:
    """A vocabulary as llguidance asks for it."""

    def __init__(self, vocabulary: Vocabulary, eos_id: int, vocab_size: int) -> None:
        self._vocabulary = vocabulary
        self.eos_token_id = eos_id
        self.bos_token_id = None
        words = vocabulary.all_bytes()[:vocab_size]
        self.tokens: Sequence[bytes] = words + [b""] * (vocab_size - len(words))
        self.special_token_ids = [index for index, word in enumerate(words) if word.startswith(b"\xff")]

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        return self._vocabulary.encode(text, special=False)


class Matcher:
    """Where one answer is in its grammar."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allowed(self, device: torch.device, vocab_size: int) -> torch.Tensor:
        """Which tokens may come next: bool [vocab_size]. Raises EngineFailed where llguidance gave up."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise EngineFailed(f"the constraint could not be followed: {self._matcher.get_error().strip()[:500]}")
        mask = np.unpackbits(bits, bitorder="little", count=vocab_size).view(np.bool_)
        return torch.from_numpy(mask).to(device)

    def accept(self, token_id: int) -> None:
        if not self._matcher.consume_token(token_id):
            raise EngineFailed(f"the constraint could not be followed: {self._matcher.get_error().strip()[:500]}")

    @property
    def complete(self) -> bool:
        return bool(self._matcher.is_stopped())
