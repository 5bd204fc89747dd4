"""The chain's last step: the answer goes on as it is written, each finished sentence followed by its checked citation."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Literal

from langchain_core.runnables.utils import AddableDict

from services.rag.answer_text import AnswerText, Event, Sentence
from services.rag.citations import Evidence, Nearness, Support
from services.rag.citations import Unsupported as NoSupport
from services.rag.metrics import Metrics
from services.rag.prompts import UNKNOWN, language_of
from services.rag.protocol import Citation, SamePlace, Unsupported

# What stands after a sentence that nothing bears out.
UNSUPPORTED_MARK = "[?]"
_NOTHING_FOUND: dict[Literal["zh", "en"], str] = {
    "zh": "\n（在文档中没有找到支持以上内容的原文：我不知道。）",
    "en": "\n(Nothing in the documents bears this out: I don't know.)",
}
# After an answer that was ended before it said anything.
_ENDED: dict[Literal["zh", "en"], str] = {"zh": "…\n我不知道。", "en": "…\nI don't know."}


class Verification:
    def __init__(self, metrics: Metrics, nearness: Nearness | None = None) -> None:
        """``nearness`` finds the sources of answers in another language than their documents."""
        self._metrics = metrics
        self._nearness = nearness

    async def verify(self, chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
        """Passes the answer on. A citation comes in the chunk that its marker comes in, so the chunks add up to the whole
        at any moment; ``answerable`` comes last."""
        answer: _Answer | None = None
        text = AnswerText()
        async for chunk in chunks:
            if "state" in chunk:
                answer = _Answer(chunk["state"], self._nearness)
                yield AddableDict(standalone_question=chunk["state"]["standalone"])
            assert answer is not None
            answer.ended |= bool(chunk.get("ended"))
            # Invoked instead of streamed, the answer step's chunks arrive added up: state and text in one.
            for event in text.feed(chunk.get("text", "")):
                if out := await answer.take(event):
                    yield out
        assert answer is not None
        for event in text.flush():
            if out := await answer.take(event):
                yield out
        if note := answer.note():
            yield AddableDict(answer=note)
        self._metrics.answers.labels(answerable=str(answer.answerable).lower()).inc()
        yield AddableDict(answerable=answer.answerable, citations=[], unsupported=[])


class _Answer:
    """One answer as it grows: its citations in order of appearance, and what nothing bears out."""

    def __init__(self, state: dict[str, Any], nearness: Nearness | None) -> None:
        self._state = state
        self._evidence = Evidence(state["passages"], state["standalone"], nearness)
        # A reply of our own has no source and needs none.
        self._checked = "reply" not in state
        self._known: dict[tuple[str, int, int, str], int] = {}
        self._length = 0
        self._empty = True
        self._doubted = False
        self.ended = False  # by the guard

    @property
    def answerable(self) -> bool:
        return bool(self._known)

    async def take(self, event: Event) -> AddableDict | None:
        """What is passed on for a piece of text or for the end of a sentence."""
        if isinstance(event, str):
            self._length += len(event)
            self._empty = self._empty and not event.strip()
            return AddableDict(answer=event)
        if not self._checked:
            return None
        # "I don't know" claims nothing; what comes after it is judged as any other sentence is.
        # Words are cut and vectors are made: not in the thread that carries the streams.
        found = await asyncio.to_thread(self._evidence.support, event)
        if found is None:
            return None
        return self._unsupported(event, found) if isinstance(found, NoSupport) else self._cited(event, found)

    def note(self) -> str:
        """What is added at the end of an answer that claims something and has no source at all."""
        language = language_of(self._state["standalone"])
        if self._empty:
            return UNKNOWN[language]
        if self._known:
            return ""
        if self._doubted:
            return _NOTHING_FOUND[language]
        return _ENDED[language] if self.ended else ""

    def _cited(self, event: Sentence, found: list[Support]) -> AddableDict:
        new: list[dict[str, Any]] = []
        indexes: list[int] = []
        for support in found:
            passage, end = support.passage, support.start + len(support.quote)
            key = (passage.document_id, passage.page, support.start, support.quote)
            if key not in self._known:
                self._known[key] = len(self._known) + 1
                citation = Citation(
                    index=self._known[key],
                    document_id=passage.document_id,
                    filename=passage.filename,
                    page=passage.page,
                    label=passage.label,
                    quote=support.quote,
                    start=support.start,
                    end=end,
                    score=passage.score,
                    also=[SamePlace.model_validate(vars(place)) for place in passage.also],
                )
                new.append(citation.model_dump())
            indexes.append(self._known[key])
        marker = "".join(f"[{index}]" for index in dict.fromkeys(indexes))
        return self._marked(event, marker, **({"citations": new} if new else {}))

    def _unsupported(self, event: Sentence, why: NoSupport) -> AddableDict:
        self._doubted = True
        text = event.text.strip()
        start = self._length - len(event.text) + len(event.text) - len(event.text.lstrip())
        entry = Unsupported(
            text=text, start=start, end=start + len(text), reason=why.reason, numbers=list(why.numbers)
        ).model_dump()
        return self._marked(event, UNSUPPORTED_MARK, unsupported=[entry])

    def _marked(self, event: Sentence, marker: str, **more: Any) -> AddableDict:
        if event.kind == "code":
            marker = f"\n{marker}"  # a fence ends only where nothing follows it
        self._length += len(marker)
        return AddableDict(answer=marker, **more)
