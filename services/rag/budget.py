"""What the model reads: how much history, which passages and how much of each, in which order. Counted in its own tokens."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.rag.documents.chunking import chunk, estimate_tokens
from services.rag.errors import InvalidRequest, ModelRejected
from services.rag.model_client import ModelClient
from services.rag.passages import Passage, stable_order
from services.rag.prompts import Turn, answer_messages, block, language_of
from services.rag.relevance import coverage

# Where the model service does not tell its context.
ASSUMED_CONTEXT = 4096
MIN_ANSWER_TOKENS = 64
# Less of a passage than this is a fragment that says nothing.
MIN_PASSAGE_TOKENS = 48
# History stands after the passages, so it is never in the engine's cache when they change: it is kept short.
HISTORY_TOKENS = 400
HISTORY_SHARE = 8
# Pieces that are tokenized apart may count differently together, by a token at each seam.
_SEAM = 2
# About what the line that names a passage's document takes.
_HEAD = 24
_CACHED_COUNTS = 8192


@dataclass(frozen=True)
class Priced:
    passage: Passage
    tokens: int  # with the line that names its document


class Budget:
    """Fills the token budget of a prompt: ``passage_tokens`` for passages, less where the model's context is small.

    A text is counted once (:class:`ModelClient`'s ``/tokenize``) and remembered, so a question costs one count of its own
    and one of each passage that was not read before, all side by side.
    """

    def __init__(self, model: ModelClient, passage_tokens: int) -> None:
        self._model = model
        self._passage_tokens = passage_tokens
        self._counts: OrderedDict[tuple[str, str], int] = OrderedDict()

    async def fit(self, state: dict[str, Any], found: Sequence[Passage], asked: Sequence[str] = ()) -> dict[str, Any]:
        """What of ``found`` (best first) and of the state's history the model reads.

        ``asked`` is what ends each prompt, where that is not the state's question: there is room for the longest.

        Returns:
            ``passages``, in a stable order, whole but for the last that fitted; ``history``, its newest turns; ``options``
            with ``max_tokens`` no longer than what the context then leaves.

        Raises:
            InvalidRequest: the question is too long for the model's context.
            ModelRejected: the context does not hold the rules, the question, a piece of a passage and a short answer.
        """
        options, question = state["options"], state["standalone"]
        questions = list(dict.fromkeys([question, *asked]))
        if not found:
            return {"passages": []}
        name = await self._model.model_name()
        context = self._model.context or ASSUMED_CONTEXT
        history = recent(state["history"], min(HISTORY_TOKENS, context // HISTORY_SHARE))
        prompts, costs = await asyncio.gather(
            asyncio.gather(*(self._model.count_tokens(answer_messages(q, [], history)) for q in questions)),
            asyncio.gather(*(self._priciest(name, passage, questions) for passage in found)),
        )
        fixed = max(prompts)
        context = self._model.context or context
        room = context - fixed
        if room < MIN_ANSWER_TOKENS + MIN_PASSAGE_TOKENS:
            if max(map(estimate_tokens, questions)) > context // 2:
                raise InvalidRequest(
                    f"the question is too long: with the rules it takes {fixed} of the model's {context} tokens",
                    param="question",
                )
            raise ModelRejected(
                f"the model's context of {context} tokens does not hold the question ({fixed} tokens with the rules and the "
                "history), a passage and an answer: ask a shorter question, or raise MODEL_CONTEXT"
            )
        # The answer may take what it asked for, but not the room of the passages that it is made from.
        for_passages = min(self._passage_tokens, room - min(options["max_tokens"], room // 2))
        chosen, rest = fill([Priced(p, c + _SEAM) for p, c in zip(found, costs, strict=True)], for_passages)
        used = sum(priced.tokens for priced in chosen)
        if rest is not None and (cut := excerpt(rest.passage, question, for_passages - used, rest.tokens)):
            counted = await self._priciest(name, cut, questions) + _SEAM
            if used + counted <= for_passages or not chosen:
                chosen.append(Priced(cut, counted))
                used += counted
        return {
            "passages": stable_order(priced.passage for priced in chosen),
            "history": history,
            "options": {**options, "max_tokens": min(options["max_tokens"], max(room - used, MIN_ANSWER_TOKENS // 2))},
        }

    async def _priciest(self, name: str, passage: Passage, questions: Sequence[str]) -> int:
        """What ``passage`` takes in the prompt in which it takes most: its block may depend on the question."""
        texts = {block(passage, language_of(question), question) for question in questions}
        return max(await asyncio.gather(*(self._count(name, text) for text in texts)))

    async def _count(self, name: str, text: str) -> int:
        key = (name, text)
        if (known := self._counts.get(key)) is not None:
            self._counts.move_to_end(key)
            return known
        count = self._counts[key] = await self._model.count_text(text)
        while len(self._counts) > _CACHED_COUNTS:
            self._counts.popitem(last=False)
        return count


def recent(history: Sequence[Turn], tokens: int) -> list[Turn]:
    """The newest turns whose estimated tokens fit into ``tokens``, in order; the last is kept in part at least.

    A long message is cut at its end: what it is about stands at its beginning.
    """
    out: list[Turn] = []
    left = tokens
    for human, ai in reversed(history):
        asked = _cut(human, left // 2)
        said = _cut(ai, left - estimate_tokens(asked))
        whole = (asked, said) == (human, ai)
        if out and not whole:
            break
        out.append((asked, said))
        left -= estimate_tokens(asked) + estimate_tokens(said)
        if not whole:
            break
    return out[::-1]


def _cut(text: str, tokens: int) -> str:
    if estimate_tokens(text) <= tokens:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if estimate_tokens(text[:middle]) < tokens:
            low = middle
        else:
            high = middle - 1
    return text[:low] + "…" if low else ""


def fill(found: Sequence[Priced], room: int) -> tuple[list[Priced], Priced | None]:
    """The best passages that fit whole, and the first that does not where enough room is left for a part of it."""
    chosen: list[Priced] = []
    for priced in found:
        if priced.tokens > room:
            return chosen, priced if room >= MIN_PASSAGE_TOKENS else None
        chosen.append(priced)
        room -= priced.tokens
    return chosen, None


def excerpt(passage: Passage, question: str, tokens: int, cost: int) -> Passage | None:
    """The whole sentences of ``passage`` that hold most of the question's words, in about ``tokens`` at most.

    ``cost`` is what all of it takes. The text stays an exact slice of the page. None where nothing useful fits.
    """
    # This text's own ratio of estimated to real tokens: Chinese takes fewer than estimated, figures more.
    ratio = estimate_tokens(passage.text) / max(1, cost - _HEAD)
    limit = int((tokens - _HEAD) * min(ratio, 2.0))
    if limit < MIN_PASSAGE_TOKENS // 2:
        return None
    windows = chunk(passage.text, limit=limit, overlap=limit // 2)
    if not windows:
        return None
    best = max(windows, key=lambda span: (coverage(question, passage.text[span.start : span.end]), -span.start))
    return replace(passage, start=passage.start + best.start, text=passage.text[best.start : best.end])
