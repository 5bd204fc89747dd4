"""From the text of a model to the parts of an answer: what it thought, what it says, what it wants called.

`AnswerReader` is fed text in any pieces and gives the same parts for every split of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from services.model.calling import CallBody, FreeText, Redirect
from services.model.deltas import Content, Delta, Reasoning
from services.model.engine.base import TokenLogprob
from services.model.text import MarkerSearch

THINK, END_THINK = "<think>", "</think>"
Thinking = Literal["no", "maybe", "inside"]  # maybe: the answer may begin with <think>; inside: the prompt ends with it


class AnswerReader:
    """Reads one answer. `stopped`: nothing more is wanted. `redirect`: the engine has to start again from there; call
    `redirected` when it has."""

    def __init__(
        self,
        *,
        stops: Sequence[str] = (),
        thinking: Thinking = "no",
        free: FreeText | None = None,
        held_to: Redirect | None = None,
    ) -> None:
        """`free` watches the text for calls. `held_to`: what the answer itself must be; it begins after the thinking."""
        self._thinking: Thinking = thinking
        self._head = ""  # text of which it is not known yet whether it is a thought
        self._thought = MarkerSearch((END_THINK,))
        self._blank = ""  # white space inside a thought, which may turn out to end it
        self._begun = thinking != "inside"  # the thought has said something
        self._before = ""  # what was read as thinking, tags included
        self._trim = False  # the line breaks after a thought
        self._free = free
        self._held_to = held_to
        self._body: CallBody | None = None
        if held_to is not None and thinking == "no":
            self._body = held_to.body
            self._held_to = None
        self._stop = MarkerSearch(stops)
        self._fed = 0
        self._logprobs: deque[tuple[int, TokenLogprob]] = deque()  # (end in the text, entry) not given out yet
        self.redirect: Redirect | None = None

    @property
    def stopped(self) -> bool:
        return self._stop.matched is not None or (self._body is not None and self._body.done)

    @property
    def called(self) -> bool:
        """Whether the answer asks for a call."""
        return self._body is not None and self._body.started > 0

    def feed(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> list[Delta]:
        """The parts that `text` completes. `logprobs` of its tokens come out with the content they belong to."""
        self._fed += len(text)
        for entry in logprobs:
            self._logprobs.append((self._fed, entry))
        deltas = self._think(text) if self._thinking != "no" else self._speak(text)
        return self._with_logprobs(deltas) if self._logprobs else deltas

    def ended(self) -> None:
        """The model ended its turn. If it still owes what the answer is held to, `redirect` asks for that."""
        if self._held_to is not None:
            before = self._before + f"{END_THINK}\n\n" if self._thinking == "inside" else ""
            self.redirect = replace(self._held_to, kept=before)
            self._held_to = None
            self._thinking = "no"

    def finish(self) -> list[Delta]:
        """What was held back, once no more will come."""
        deltas: list[Delta] = []
        if self._thinking == "maybe":
            self._thinking = "no"
            deltas += self._speak(self._head)
        elif self._thinking == "inside":
            deltas += self._thinks(self._thought.flush())
        if self._free is not None and self._body is None and self.redirect is None:
            for delta in self._free.flush():
                deltas += self._say(delta.text) if isinstance(delta, Content) else [delta]
        if self._stop.matched is None and (rest := self._stop.flush()):
            deltas.append(Content(rest))
        return self._with_logprobs(deltas) if self._logprobs else deltas

    def redirected(self) -> None:
        """The engine goes on from `redirect`."""
        assert self.redirect is not None  # for the type checker; the caller has looked
        if self.redirect.body is not None:
            self._body = self.redirect.body
            self._free = None
        self.redirect = None
        self._logprobs.clear()

    # --- thinking -----------------------------------------------------------------------------------------------------

    def _think(self, text: str) -> list[Delta]:
        if self._thinking == "maybe":
            self._head += text
            head = self._head.lstrip()
            if THINK.startswith(head):
                return []
            text, self._head = self._head, ""
            if not head.startswith(THINK):
                self._thinking = "no"
                return self._speak(text)
            self._thinking = "inside"
            self._begun = False
            self._before = THINK
            text = head[len(THINK) :]
        out = self._thought.feed(text)
        deltas = self._thinks(out)
        self._before += out
        if self._thought.matched is not None:
            self._before += END_THINK
            self._thinking = "no"
            self._trim = True
            deltas += self._speak(self._thought.rest)
        return deltas

    def _thinks(self, text: str) -> list[Delta]:
        """A thought, without the white space around it."""
        text = self._blank + text
        if not self._begun:
            text = text.lstrip()
        kept = text.rstrip()
        self._blank = text[len(kept) :]
        self._begun = self._begun or bool(kept)
        return [Reasoning(kept)] if kept else []

    # --- speaking -----------------------------------------------------------------------------------------------------

    def _speak(self, text: str) -> list[Delta]:
        if self._held_to is not None:  # at once: the model may mean to say nothing after its thought
            before = self._before + "\n\n" if self._before else ""
            self.redirect = replace(self._held_to, kept=before)
            self._held_to = None
            return []
        if self._trim:
            text = text.lstrip()
            self._trim = not text
        if not text:
            return []
        if self._body is not None:
            return self._body.feed(text)
        if self._free is None:
            return self._say(text)
        deltas: list[Delta] = []
        for delta in self._free.feed(text):
            deltas += self._say(delta.text) if isinstance(delta, Content) else [delta]
        if self._free.redirect is not None and self._stop.matched is None:
            before = self._before + "\n\n" if self._before else ""
            self.redirect = replace(self._free.redirect, kept=before + self._free.redirect.kept)
            if rest := self._stop.flush():
                deltas.append(Content(rest))
        return deltas

    def _say(self, text: str) -> list[Delta]:
        text = self._stop.feed(text)
        return [Content(text)] if text else []

    def _with_logprobs(self, deltas: list[Delta]) -> list[Delta]:
        """Gives the entries whose text has left to the last content of `deltas`; those of thoughts and calls to nobody."""
        held = len(self._head) + len(self._thought.held) + len(self._stop.held)
        held += self._free.held if self._free is not None else 0
        content = next((delta for delta in reversed(deltas) if isinstance(delta, Content)), None)
        if self._stop.matched is not None:
            # The stop string's own tokens are not part of the answer.
            entries = [entry for _, entry in self._logprobs]
            self._logprobs.clear()
            if content is not None:
                content.logprobs += _covering(entries, content.text)
            return deltas
        if not deltas:
            return deltas  # a token without text of its own: part of a character that is not complete
        while self._logprobs and self._logprobs[0][0] <= self._fed - held:
            _, entry = self._logprobs.popleft()
            if content is not None and self._thinking == "no":
                content.logprobs.append(entry)
        return deltas


def _covering(entries: list[TokenLogprob], text: str) -> list[TokenLogprob]:
    """The first entries that together make `text`."""
    wanted, covered, found = len(text.encode()), 0, []
    for entry in entries:
        if covered >= wanted:
            break
        found.append(entry)
        covered += len(entry.drawn.data)
    return found
