"""Continuous batching: each step is one forward over the next token of every answer and a piece of the waiting prompts.

So a request joins the others at the next step and leaves when it is done. A step changes a sequence only after it succeeded:
when one fails, its rows are tried again in halves, until the one that fails alone is found and only that request ends.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from services.model.engine.transformers.attention import BLOCK_SIZE, KVCache, Row, Step
from services.model.engine.transformers.cache import BlockPool, OutOfBlocks
from services.model.engine.transformers.sequence import Sequence
from services.model.errors import EngineFailed, OutOfMemory, ServiceError

log = logging.getLogger("docduet.model")


class Batcher:
    """Runs sequences on a model. One thread uses it. `batch`: prompt tokens in a step."""

    def __init__(self, model: Any, cache: KVCache, pool: BlockPool, *, batch: int) -> None:
        self._model = model
        self._cache = cache
        self._pool = pool
        self._batch = batch
        self._padded = cache.device.type == "cuda"
        self._two_rows = cache.device.type == "cpu"
        self._dtype = model.dtype
        self._sequences: list[Sequence] = []  # in order of arrival
        self._claims: dict[bytes, Sequence] = {}  # prompt blocks that a sequence is going to publish
        self.device = cache.device
        self.forward_tokens = 0  # computed since the start

    @property
    def idle(self) -> bool:
        return not self._sequences

    def add(self, sequence: Sequence) -> None:
        """Takes a sequence in and reports its first progress, before any work; or fails it."""
        need = self._pool.blocks_for(sequence.prompt_tokens)
        if need > self._pool.blocks:
            sequence.fail(
                OutOfMemory(
                    f"the prompt of {sequence.prompt_tokens} tokens is longer than the KV cache of "
                    f"{self._pool.blocks * BLOCK_SIZE} tokens (MODEL_KV_TOKENS); shorten it"
                )
            )
            return
        self._sequences.append(sequence)
        self._share(sequence)
        sequence.report_progress()

    def remove(self, sequence: Sequence) -> None:
        """Gives its blocks back. Harmless for one that is not running."""
        if sequence not in self._sequences:
            return
        sequence.finished = True
        self._sequences.remove(sequence)
        self._pool.release(sequence.blocks)
        sequence.blocks = []
        self._claims = {digest: owner for digest, owner in self._claims.items() if owner is not sequence}

    def fail_all(self, error: Exception) -> None:
        for sequence in list(self._sequences):
            self._fail(sequence, error)

    def step(self) -> None:
        """One forward, where there is anything to compute."""
        rows = self._plan()
        if rows:
            self._run(rows)

    # --- what is computed next ----------------------------------------------------------------------------------------

    def _plan(self) -> list[tuple[Sequence, int]]:
        """Sequences and how many tokens of each, one-token rows first."""
        plan = [(sequence, 1) for sequence in self._sequences if not sequence.reading]
        reading = [sequence for sequence in self._sequences if sequence.reading and self._share(sequence)]
        if reading:
            # The one that waits longest has half of the room, so that it gets on; the rest goes to the shortest first.
            left = self._batch
            counts = {reading[0]: min(reading[0].pending, left // 2)}
            left -= counts[reading[0]]
            for sequence in sorted(reading, key=lambda sequence: sequence.pending):
                more = min(left, sequence.pending - counts.get(sequence, 0))
                counts[sequence] = counts.get(sequence, 0) + more
                left -= more
            plan += [(sequence, count) for sequence, count in counts.items() if count]
        plan = [(sequence, count) for sequence, count in plan if self._reserve(sequence, count)]
        return sorted(plan, key=lambda entry: entry[1] > 1)

    def _share(self, sequence: Sequence) -> bool:
        """Takes the blocks at its place that are known. False: the next is being computed by another, which is waited for."""
        size = self._pool.block_size
        sharable = (sequence.prompt_tokens - 1) // size  # the last token of a prompt is always computed: for its logits
        while sequence.computed % size == 0 and sequence.computed // size < sharable:
            number = sequence.computed // size
            digest = sequence.digest(number, size)
            block = self._pool.find(digest)
            if block is None:
                if self._claims.setdefault(digest, sequence) is not sequence:
                    return False
                for later in range(number + 1, sharable):
                    self._claims.setdefault(sequence.digest(later, size), sequence)
                return True
            sequence.blocks.append(block)
            sequence.published += 1
            sequence.computed += size
            sequence.cached += size
        return True

    def _reserve(self, sequence: Sequence, count: int) -> bool:
        """Blocks for `count` more tokens; without them this request fails, alone."""
        try:
            for _ in range(self._pool.blocks_for(sequence.computed + count) - len(sequence.blocks)):
                sequence.blocks.append(self._pool.take(sequence.blocks[-1] if sequence.blocks else None))
        except OutOfBlocks:
            self._fail(
                sequence,
                OutOfMemory(
                    f"the KV cache of {self._pool.blocks * BLOCK_SIZE} tokens (MODEL_KV_TOKENS) is full of running requests; "
                    "try again when they are done, or with a shorter prompt or max_tokens"
                ),
            )
            return False
        return True

    # --- computing it -------------------------------------------------------------------------------------------------

    def _run(self, plan: list[tuple[Sequence, int]]) -> None:
        try:
            logits = self._forward(plan)
        except Exception as error:
            failure = error.with_traceback(None)  # its frames would hold the tensors that memory is short of
            log.log(logging.DEBUG if len(plan) > 1 else logging.ERROR, "a step failed", exc_info=error)
        else:
            self._advance(plan, logits)
            return
        if out_of_memory(failure) and self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(plan) == 1:
            self._fail(plan[0][0], _answer(failure))
            return
        middle = len(plan) // 2
        self._run(plan[:middle])
        self._run(plan[middle:])

    def _forward(self, plan: list[tuple[Sequence, int]]) -> torch.Tensor:
        """Float32 logits [sequences whose tokens are all computed with this step, vocabulary]."""
        rows: list[Row] = []
        token_ids: list[int] = []
        positions: list[int] = []
        last: list[int] = []  # places of the tokens that something follows
        for sequence, count in plan:
            start = sequence.computed
            rows.append(Row(start, count, sequence.blocks))
            token_ids += sequence.tokens[start : start + count]
            positions += range(start, start + count)
            if count == sequence.pending:
                last.append(len(token_ids) - 1)
        count = len(last)
        if self._two_rows:  # the numbers of a row then do not depend on how many others there are: see `linear.py`
            last += last * (len(last) == 1)
            token_ids += [0] * (len(token_ids) == 1)
            positions += [0] * (len(positions) == 1)
        device = self.device
        output = self._model(
            input_ids=torch.tensor([token_ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            attention_mask={"full_attention": None},  # ready-made: the models build none
            use_cache=False,  # the cache is written by our attention
            logits_to_keep=torch.tensor(last, device=device, dtype=torch.long),
            step=Step(rows, self._cache, self._dtype, padded=self._padded),
        )
        self.forward_tokens += sum(row.count for row in rows)
        logits: torch.Tensor = output.logits[0, :count].float()
        return logits

    def _advance(self, plan: list[tuple[Sequence, int]], logits: torch.Tensor) -> None:
        best = logits.argmax(-1).tolist() if len(logits) else []
        at = 0
        for sequence, count in plan:
            was_reading = sequence.reading
            sequence.computed += count
            self._publish(sequence)
            if was_reading:
                sequence.report_progress()
            if sequence.pending:
                continue
            try:
                row = logits[at]
                sequence.add(best[at] if sequence.sampler.plain else sequence.sampler.draw(row), row)
            except Exception as error:
                log.exception("drawing a token failed")
                self._fail(sequence, _answer(error))
            at += 1
            if sequence.finished:
                self.remove(sequence)

    def _publish(self, sequence: Sequence) -> None:
        size = self._pool.block_size
        while sequence.published < sequence.computed // size:
            digest = sequence.digest(sequence.published, size)
            self._pool.publish(sequence.blocks[sequence.published], digest)
            self._claims.pop(digest, None)
            sequence.published += 1

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        sequence.fail(error)
        self.remove(sequence)


def out_of_memory(error: Exception) -> bool:
    """Whether the machine or the GPU had no memory left; torch has no type for the former."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate memory" in text)


def _answer(error: Exception) -> ServiceError:
    if isinstance(error, ServiceError):
        return error
    if out_of_memory(error):
        return OutOfMemory(
            "there was not enough memory for this request beside the others; try again later, or with a shorter prompt"
        )
    return EngineFailed(f"the engine failed: {type(error).__name__}; the log says more")
