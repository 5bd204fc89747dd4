"""The model's text as it streams: its own markers taken out, its sentences told apart. Pure text.

One character is looked at after the other, so the outcome does not depend on how the stream is split. Text is passed on
at once; only what may still become a marker, or may still stand behind one (a space, the bar that ends a table row), waits
for the next character.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from services.rag.documents.reflow import CJK


@dataclass(frozen=True)
class Sentence:
    """The text before it is a finished sentence: here its marker belongs.

    A ``row`` is a line of a table after the first, a ``head`` the first one or a heading, ``code`` a fenced block.
    """

    text: str
    hints: tuple[int, ...] = ()  # the numbers of the model's own markers
    kind: Literal["prose", "row", "head", "code"] = "prose"


Event = str | Sentence

_NUMBERS = r"(?:[1-9]\d{0,2}|0)(?:\s?[,，、;；–~-]\s?(?:[1-9]\d{0,2}|0)){0,19}"
_NAMED = r"(?:\^|(?:资料|文档|来源|参考|引用|passages?|sources?|documents?|doc|ref)[ \t#:：]{0,2})?"
_MARKER = re.compile(rf"[ \t\u3000]?[\[【［][ \t]?{_NAMED}({_NUMBERS})[ \t]?[\]】］]$", re.IGNORECASE)
# Texts that may still become markers; one may hold another: [1[2]].
# Possessive: nothing is tried again, however many brackets are opened.
_BEGUN = re.compile(
    r"(?:[ \t\u3000]?[\[【［][ \t]?+(?:\^|[资料文档来源参考引用]{1,2}+|[a-z]{1,9}+)?+[ \t#:：]{0,2}+[\d ,，、;；–~-]{0,90}+)+$"
    r"|[ \t\u3000]$",
    re.IGNORECASE,
)
# More than any marker; what opens so many and closes none is no text that anyone reads.
_MOST_HELD = 200

_WIDE = re.compile(f"[{CJK}\u3000-\u303f\uff00-\uffef]")
_CLOSERS = "”’\"'）)」』】]*_"
_FINAL = "。！？；"
_NARROW_FINAL = "!?;"
_BLANK = " \t\u3000\xa0"
# A full stop after these ends no sentence; after those of the second line it may.
_ABBREVIATIONS = frozenset(
    "dr mr mrs ms prof st mt vs e.g i.e fig figs eq eqs sec ch vol no nos p pp para art approx ca cf dept gen gov sen rep "
    "sgt col capt lt rev hon jan feb mar apr jun jul aug sep sept oct nov dec u.s u.k d.c".split()
)
_INITIAL = re.compile(r"(?:^|[\s(])[A-Z]\.$")
_ITEM = re.compile(r"^\W*(?:\d{1,3}|[A-Za-z]|[ivxIVX]{1,4})\.$")
_LAST_WORD = re.compile(r"([A-Za-z]+(?:\.[A-Za-z]+)*)\.[”’\"')\]]*$")
_SEPARATOR = re.compile(r"^[\s|:-]+$")


class AnswerText:
    def __init__(self) -> None:
        self._held = ""  # may become a marker
        self._line = ""
        self._sentence = ""
        self._hints: list[int] = []
        self._pending: Literal["", "wide", "narrow", "stop"] = ""  # a sentence may have ended here
        self._gap = ""  # white space after it
        self._bar = ""  # the bar that may end a table row
        self._fenced = self._inline = self._rows = False
        self._out: list[Event] = []

    def feed(self, text: str) -> list[Event]:
        """What can be passed on now: pieces of text, and ends of sentences."""
        for character in text:
            self._filter(character)
        return self._taken()

    def flush(self) -> list[Event]:
        held, self._held = self._held, ""
        for character in held:
            self._read(character)
        self._end_line()
        self._show(self._gap)
        self._gap = ""
        return self._taken()

    def _taken(self) -> list[Event]:
        out, self._out = self._out, []
        return out

    def _show(self, text: str) -> None:
        if text and self._out and isinstance(last := self._out[-1], str):
            self._out[-1] = last + text
        elif text:
            self._out.append(text)

    def _filter(self, c: str) -> None:
        if not self._held and (self._fenced or self._inline):
            self._read(c)
            return
        self._held += c
        if marker := _MARKER.search(self._held):
            self._held = self._held[: marker.start()]
            self._hints += _numbers(marker[1])
        begun = _BEGUN.search(self._held)
        at = begun.start() if begun else len(self._held)
        ready, self._held = self._held[:at], self._held[at:]
        if len(self._held) > _MOST_HELD:
            self._held = ""
        for character in ready:
            self._read(character)

    def _read(self, c: str) -> None:
        if c == "\n":
            self._newline()
            return
        if self._pending and self._settled(c):
            return
        self._line += c
        if self._row() and not self._fenced:
            self._cell(c)
            return
        self._sentence += c
        self._show(c)
        if c == "`":
            self._tick()
        elif self._fenced or self._inline:
            return
        elif c in _FINAL:
            self._pending = "wide"
        elif c in _NARROW_FINAL:
            self._pending = "narrow"
        elif c == ".":
            self._pending = "stop"

    def _settled(self, c: str) -> bool:
        """Whether ``c`` still belongs to the end of a sentence; else decides whether it was one."""
        if not self._gap and (c in _CLOSERS or c in _FINAL or c in _NARROW_FINAL or c == "."):
            self._sentence += c
            self._line += c
            self._show(c)
            if c in _FINAL:
                self._pending = "wide"
            elif self._pending != "wide" and c not in _CLOSERS:
                self._pending = "stop" if c == "." else "narrow"
            return True
        if c in _BLANK:
            self._gap += c
            return True
        if self._ended_before(c):
            self._end()
        self._pending = ""
        self._sentence += self._gap
        self._line += self._gap
        self._show(self._gap)
        self._gap = ""
        return False

    def _ended_before(self, c: str) -> bool:
        if self._pending == "wide":
            return True
        if self._pending == "narrow":
            return bool(self._gap or _WIDE.match(c))
        if not self._gap:
            return bool(_WIDE.match(c) and _WIDE.match(self._sentence.rstrip(_CLOSERS + ".")[-1:]))
        end = self._sentence[-40:]
        if c.islower() or _INITIAL.search(end) or (len(self._sentence) < 40 and _ITEM.match(end)):
            return False
        word = _LAST_WORD.search(end)
        if word is None or word[1].lower() not in _ABBREVIATIONS:
            return True
        return word[1] in ("no", "No") and not c.isdigit()

    def _newline(self) -> None:
        closing = not self._line.strip().strip("`") and "\n" in self._sentence
        if self._fenced and not closing:
            self._sentence += "\n"
            self._show("\n")
        elif self._fenced:
            self._end_line()
            self._show("\n")
        else:
            self._end_line()
            self._show(self._gap + "\n")
            self._gap = ""
        self._line = ""
        self._inline = False

    def _end_line(self) -> None:
        """The sentence ends with its line."""
        if self._fenced:
            self._fenced = False
            self._end("code")
        elif self._row():
            separator = _SEPARATOR.match(self._line)
            self._end("row" if self._rows and not separator else "head")
            self._rows = True
            self._show(self._bar)
            self._bar = ""
            return
        else:
            self._end("head" if self._line.lstrip().startswith("#") else "prose")
        self._rows = False

    def _row(self) -> bool:
        return self._line.lstrip().startswith("|")

    def _cell(self, c: str) -> None:
        if c == "|" or (self._bar and c in _BLANK):
            if c == "|" and self._bar:
                self._sentence += self._bar
                self._show(self._bar)
                self._bar = ""
            self._bar += c
            return
        self._sentence += self._bar + c
        self._show(self._bar + c)
        self._bar = ""

    def _tick(self) -> None:
        if self._line.lstrip() == "```" and not self._fenced:
            # A line of its own: what came before it ended with the line before.
            self._fenced, self._inline = True, False
        elif not self._fenced:
            self._inline = not self._inline

    def _end(self, kind: Literal["prose", "row", "head", "code"] = "prose") -> None:
        if self._sentence.strip():
            self._out.append(Sentence(self._sentence, tuple(self._hints), kind))
        self._sentence, self._hints, self._pending = "", [], ""


def _numbers(listed: str) -> Iterator[int]:
    for part in re.split(r"\s?[,，、;；]\s?", listed):
        first, *rest = (int(n) for n in re.findall(r"\d+", part))
        yield from range(first, min(rest[-1], first + 20) + 1) if rest else (first,)
