"""Citations, made and checked by code. Pure text.

A model's own ``[n]`` markers are hints at best: they are taken out of the stream wherever they are split, and each
finished sentence of the answer is matched against the sentences of the passages. A sentence that a passage bears out gets
a marker and a citation whose quote is an exact span of the page; one that nothing bears out gets none.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from services.rag.documents.chunking import sentences
from services.rag.documents.reflow import CJK
from services.rag.store.lexical import content_terms

# Share of an answer sentence's content terms that a quote must hold. A quoted fact holds nearly all of them, a paraphrase
# more than half; sentences that merely share the question's topic stay below.
SUPPORT_THRESHOLD = 0.5
# A quote is at most this many neighbouring sentences.
QUOTE_SENTENCES = 2

_MARKER = re.compile(r"\s?(?:\[\s*\d{1,3}(?:\s*[,，、]\s*\d{1,3})*\s*\]|【\s*\d{1,3}(?:\s*[,，、]\s*\d{1,3})*\s*】)")
# A text that may still become a marker when more of it comes.
_MARKER_PREFIX = re.compile(r"\s?(?:[\[【]\s*(?:\d{1,3}\s*[,，、]?\s*)*)?$")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_QUANTITY = re.compile(rf"(\d+(?:[.,]\d+)*)[ \u00a0-]?([{CJK}]|[A-Za-z%°]+)?")
_CHINESE_DIGITS = {c: str(n) for n, c in enumerate("零一二三四五六七八九")} | {"两": "2", "十": "10", "〇": "0"}
# Where a streamed sentence ends: a terminator and what follows it is not part of a number, name or quotation.
_END = re.compile(r"[。！？!?；;][”’\"'）)」』】]*|\n+|\.[”’\"')]*(?=\s)")


@dataclass(frozen=True)
class Passage:
    """What the model was shown: ``text`` is the page's text from ``start`` (code points)."""

    document_id: str
    filename: str
    page: int
    start: int
    text: str
    score: float
    label: str = ""


@dataclass(frozen=True)
class Support:
    passage: Passage
    start: int  # offset of the quote in the page
    quote: str
    score: float  # share of the sentence's content terms that the quote holds, 0 to 1


class MarkerFilter:
    """Takes ``[1]``, ``[1, 2]`` and ``【1】`` out of a stream of text, however it is split."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """The text that can be shown now."""
        text = _MARKER.sub("", self._held + text)
        prefix = _MARKER_PREFIX.search(text)
        at = prefix.start() if prefix and len(text) - prefix.start() <= 24 else len(text)
        self._held = text[at:]
        return text[:at]

    def flush(self) -> str:
        text, self._held = self._held, ""
        return text


class SentenceSplitter:
    """Cuts a stream into ``(text, end_of_sentence)`` pieces without holding any text back.

    A Latin full stop ends a sentence only when white space follows, which may come with the next piece.
    """

    def __init__(self) -> None:
        self._sentence = ""

    def feed(self, text: str) -> list[tuple[str, str | None]]:
        """Pieces of ``text`` in order; the second item is the whole sentence where the piece ends one."""
        out: list[tuple[str, str | None]] = []
        while text:
            if self._sentence.endswith(".") and text[0].isspace() and _ends_with_stop(self._sentence):
                out.append(("", self._take()))
            match = _END.search(text)
            if match is None or match.end() == 0:
                self._sentence += text
                out.append((text, None))
                break
            # Closing quotes may come with the next piece; the sentence then ends here and they stand after the marker.
            piece, text = text[: match.end()], text[match.end() :]
            self._sentence += piece
            out.append((piece, self._take()))
        return out

    def flush(self) -> str | None:
        """The sentence that the stream ended in, if any."""
        return self._take() if self._sentence.strip() else None

    def _take(self) -> str:
        sentence, self._sentence = self._sentence, ""
        return sentence


def _ends_with_stop(sentence: str) -> bool:
    return bool(re.search(r"[^\s.]\.$", sentence)) and len(sentence.strip()) > 2


def numbers(text: str) -> set[str]:
    """The numbers of ``text`` as digits without group separators; a single Chinese numeral counts as its digit."""
    found = {n.replace(",", "").rstrip(".") for n in _NUMBER.findall(text)}
    found |= {
        _CHINESE_DIGITS[c]
        for c in re.findall(
            r"(?<![一二三四五六七八九十百千万])[二三四五六七八九两十](?=[个天年月日小分秒次份名级章节项台倍])", text
        )
    }
    return found


def _quantities(text: str) -> dict[str, set[str]]:
    """Each number of ``text`` with what may be its unit: the next CJK character or Latin word, "" where none follows."""
    found: dict[str, set[str]] = {number: {""} for number in numbers(text)}
    for match in _QUANTITY.finditer(text):
        found.setdefault(match[1].replace(",", "").rstrip("."), set()).add((match[2] or "").lower())
    return {number: units - {""} or {""} for number, units in found.items()}


def _holds(needed: dict[str, set[str]], held: dict[str, set[str]], extra: set[str]) -> bool:
    """Whether every number of ``needed`` is in ``held`` with a unit that may be the same (``hour``, ``hours``, ``h``)."""
    return all(
        number in extra or any(_same_unit(u, v) for u in units for v in held.get(number, ()))
        for number, units in needed.items()
    )


def _same_unit(one: str, other: str) -> bool:
    return not one or not other or one.startswith(other) or other.startswith(one)


def support(sentence: str, passages: Sequence[Passage], question: str = "") -> Support | None:
    """The span that bears ``sentence`` out best, or None when nothing does.

    A span supports a sentence when it holds at least :data:`SUPPORT_THRESHOLD` of its content terms and every number in
    it; words that the question brought in count half, since an answer repeats them whether it is right or not.
    """
    wanted = set(content_terms(sentence))
    if not wanted or re.search(r"[?？]\W*$", sentence):
        return None  # nothing is claimed, by a question least of all: repeating it would match any passage on its topic
    asked = set(content_terms(question))
    weights = {term: (0.5 if term in asked else 1.0) * (2.0 if term.isdigit() else 1.0) for term in wanted}
    total = sum(weights.values())
    needed = _quantities(sentence)
    best: Support | None = None
    best_rank = (0.0, 0.0, 0)
    for passage in passages:
        spans = list(sentences(passage.text))
        for first in range(len(spans)):
            for count in range(1, QUOTE_SENTENCES + 1):
                if first + count > len(spans):
                    break
                start, end = spans[first].start, spans[first + count - 1].end
                quote = passage.text[start:end]
                held = set(content_terms(quote))
                score = sum(weight for term, weight in weights.items() if term in held) / total
                if score < SUPPORT_THRESHOLD or not _holds(needed, _quantities(quote), numbers(passage.filename)):
                    continue
                # The best match, then the better passage, then the shorter quote.
                rank = (round(score, 2), passage.score, -len(quote))
                if best is None or rank > best_rank:
                    best = Support(passage, passage.start + start, quote, score)
                    best_rank = rank
    return best
