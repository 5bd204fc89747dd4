"""Asks a live pair the questions of a set, and writes down what came back and how long it took."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from services.client import RagClient, ServiceError, Unreachable, persist
from services.evaluation.corpus import Corpus, Pages, gold_pages
from services.evaluation.journal import Journal, Key, Row
from services.evaluation.metrics import contains, first_rank, without_markers
from services.evaluation.sets import Question

MODES = ("hybrid", "dense", "lexical")
KEPT = 10  # pages of a search that are written down: the figures look no further
_STRIKES = 3  # this many questions in a row that fail for the service's reasons end the run
_FATAL = (401, 403, 404)  # the next question would fare no better

Advance = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """Which questions are asked how. ``left_out`` are asked with their own document left out of the search."""

    searched: Sequence[Question]
    asked: Sequence[Question]
    left_out: Sequence[Question]

    @property
    def steps(self) -> int:
        return len(self.asked) + len(self.left_out)


def plan(ordered: Sequence[Question], corpus: Corpus, questions: int | None, answers: int, unanswerable: int) -> Plan:
    """``ordered`` is the shuffled set. Each part is a beginning or an end of it, so a larger part holds a smaller one.

    Questions that have no answer in the set count first as unanswerable; then answerable ones, whose document is left
    out. With one document there would be nothing left to search.
    """
    usable = [q for q in ordered if q.answerable and q.document in corpus.ids]
    sample = usable[: len(usable) if questions is None else questions]
    never = [q for q in ordered if not q.answerable][:unanswerable]
    spare = list(reversed(usable)) if len(corpus.everything) > 1 else []
    return Plan([q for q in sample if q.query], sample[:answers], [*never, *spare[: unanswerable - len(never)]])


def search_key(label: str, mode: str, question: Question) -> Key:
    return (label, mode, question.id)


def answer_key(label: str, model: str, question: Question, left_out: bool) -> Key:
    """Another model's answers are other measurements; a search does not know the model."""
    return (label, f"{'left out' if left_out else 'answer'} by {model}", question.id)


class Runner:
    """One set against one service. Every result is in the journal before the next question is asked.

    Raises (all methods):
        ServiceError: the service is gone, refuses the key or the collection, or failed several questions in a row.
    """

    def __init__(self, client: RagClient, corpus: Corpus, journal: Journal, label: str, *, k: int, model: str) -> None:
        self._client, self._corpus, self._journal = client, corpus, journal
        self._label, self._k, self._model = label, k, model
        self._pages = Pages(client)
        self._strikes = 0

    def search(self, questions: Sequence[Question], mode: str, advance: Advance) -> None:
        if any(not self._journal.done(search_key(self._label, mode, q)) for q in questions):
            # The first search of a kind pays for what the service opens then; it is not what a search costs.
            with contextlib.suppress(ServiceError):  # the measured one will tell
                self._look(questions[0], mode)
        for question in questions:
            key = search_key(self._label, mode, question)
            if not self._journal.done(key):
                self._journal.add(key, self._measured(lambda q=question: self._look(q, mode)))  # type: ignore[misc]
            advance(question.text)

    def ask(self, questions: Sequence[Question], advance: Advance, *, left_out: bool = False) -> None:
        for question in questions:
            key = answer_key(self._label, self._model, question, left_out)
            if not self._journal.done(key):
                self._journal.add(key, self._measured(lambda q=question: self._answer(q, left_out)))  # type: ignore[misc]
            advance(question.text)

    def _measured(self, measure: Callable[[], Row]) -> Row:
        try:
            row = persist(measure)
        except ServiceError as error:
            if isinstance(error, Unreachable) or error.status in _FATAL:
                raise
            self._strikes = self._strikes + 1 if error.passing or error.status is None else 0
            if self._strikes >= _STRIKES:
                raise ServiceError(f"{_STRIKES} questions in a row failed, the last one: {error}") from error
            return {"error": str(error)}
        self._strikes = 0
        return row

    def _look(self, question: Question, mode: str) -> Row:
        began = time.perf_counter()
        found = self._client.search(
            question.query or question.text, k=self._k, mode=mode, collection=self._corpus.collection
        )
        milliseconds = 1000 * (time.perf_counter() - began)
        best: dict[tuple[str, int], float] = {}
        for passage in found:
            best.setdefault((str(passage["document_id"]), int(passage["page"])), float(passage["score"]))
        rank = first_rank(list(best), self._gold(question))
        kept = [[self._corpus.names.get(i, i), page, score] for (i, page), score in list(best.items())[:KEPT]]
        return {"rank": rank, "ms": round(milliseconds, 2), "found": kept}

    def _answer(self, question: Question, left_out: bool) -> Row:
        fields: dict[str, Any] = {"collection": self._corpus.collection}
        if question.history:
            fields["chat_history"] = [list(turn) for turn in question.history]
        if left_out and question.answerable:  # one that nothing answers keeps its document
            fields["filter"] = {"document_id": self._corpus.others(question.document)}
        began = time.perf_counter()
        first: float | None = None
        text, answerable = "", False
        citations: list[dict[str, Any]] = []
        for chunk in self._client.ask(question.text, **fields):
            if piece := chunk.get("answer"):
                first = first or time.perf_counter() - began
                text += str(piece)
            answerable = bool(chunk.get("answerable", answerable))
            citations += chunk.get("citations") or []
        seconds = time.perf_counter() - began
        checked = [self._check(question, c) for c in citations]
        return {
            "answer": without_markers(text, [int(c["index"]) for c in citations if c.get("index")]),
            "answerable": answerable,
            "citations": checked,
            "first_ms": round(1000 * (seconds if first is None else first), 1),
            "ms": round(1000 * seconds, 1),
        }

    def _check(self, question: Question, citation: dict[str, Any]) -> Row:
        """Against the page itself: does the quote stand where it is said to, and is it the gold page or one that bears
        the gold answer?"""
        document, page, quote = str(citation["document_id"]), int(citation["page"]), str(citation["quote"])
        text = self._pages.text(document, page)
        start, end = citation.get("start"), citation.get("end")
        gold = self._gold(question)((document, page))
        return {
            "document": self._corpus.names.get(document, document),
            "page": page,
            "quote": quote,
            "exact": bool(quote.strip()) and text is not None and text[start:end] == quote,
            "gold": gold,
            "supports": gold or (text is not None and contains(text, question.answers)),
        }

    def _gold(self, question: Question) -> Callable[[tuple[str, int]], bool]:
        document = self._corpus.ids.get(question.document)
        pages = gold_pages(self._corpus, self._pages, question) if document else ()
        return lambda found: found[0] == document and (not pages or found[1] in pages)
