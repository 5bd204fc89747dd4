"""Tool calls in an answer's text, by the two conventions that Qwen was taught.

**Hermes** (Qwen2.5, Qwen3): `<tool_call>\\n{"name": …, "arguments": {…}}\\n</tool_call>`, once or several times after the text.
**ReAct** (first generation): lines `Thought:`, `Action:`, `Action Input:`, and `Final Answer:` at the end.

Both are read in two steps. *Free text* is watched for the opening of a call. There the generation is *redirected*: it starts
again from what was said so far, with a grammar that lets nothing but well-formed calls of declared functions follow. So the
arguments always parse, and no marker of either convention reaches the client.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import regex

from services.model.deltas import CallArguments, CallStart, Content, Delta, Reasoning
from services.model.engine.base import Constraint
from services.model.messages import new_call_id
from services.model.text import JsonEnd, MarkerSearch, partial_suffix
from services.model.tools import ToolUse

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Redirect:
    """How the generation goes on from an opening: after `kept` (what was said before it) and `tail`, held to `constraint`.

    `body` reads what comes; it has already been given the part of `tail` that belongs to the call.
    """

    tail: str
    constraint: Constraint
    body: CallBody | None = None
    kept: str = ""


class FreeText(Protocol):
    """What is said before a call. After `redirect` is set, nothing more is fed. `held`: characters held back."""

    redirect: Redirect | None

    @property
    def held(self) -> int: ...

    def feed(self, piece: str) -> list[Delta]: ...

    def flush(self) -> list[Delta]: ...


class CallBody:
    """Reads calls from text that a grammar holds to one form: a head with the name, the arguments, and so on after `again`."""

    def __init__(self, head: re.Pattern[str], *, again: str | None) -> None:
        self._head = head
        self._again = again
        self._text = ""
        self._arguments: JsonEnd | None = None
        self.started = 0  # calls so far
        self.done = False  # the last call is complete and no other may follow

    def feed(self, piece: str) -> list[Delta]:
        deltas: list[Delta] = []
        self._text += piece
        while self._text and not self.done:
            if self._arguments is None:
                found = self._head.match(self._text)
                if found is None:
                    break
                deltas.append(CallStart(self.started, new_call_id(), found[1]))
                self.started += 1
                self._text = self._text[found.end() :]
                self._arguments = JsonEnd()
            elif not self._arguments.done:
                length = self._arguments.feed(self._text)
                deltas.append(CallArguments(self.started - 1, self._text[:length]))
                self._text = self._text[length:]
            elif self._again is None:
                self.done = True
            else:
                start = self._text.find(self._again)
                if start < 0:
                    break
                self._text = self._text[start + len(self._again) :]
                self._arguments = None
        if self._again is None and self._arguments is not None and self._arguments.done:
            self.done = True
        return deltas


# --- Hermes -----------------------------------------------------------------------------------------------------------

_HERMES_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"]*)"\s*,\s*"arguments"\s*:\s*(?=[{\["])')


def hermes_opening(use: ToolUse, names: Sequence[str] = ()) -> Redirect:
    """A call from its first word. `names`: the functions that the first call may be of, where they are not all."""
    calls = {
        tool.name: (f'\n{{"name": "{tool.name}", "arguments": ', tool.arguments, f"}}\n{CLOSE}")
        for tool in use.callable
    }
    again = OPEN if use.parallel else None
    constraint = Constraint(
        tuple(calls.values()),
        None if again is None else "\n" + again,
        tuple(calls[name] for name in names if name in calls),
    )
    return Redirect(OPEN, constraint, CallBody(_HERMES_HEAD, again=again))


class HermesText:
    """Free text up to `<tool_call>`, or up to a call without its tag: small models, and those taught on code, write the bare
    object, often in a code fence. It counts as a call where it begins a line and names a declared function."""

    def __init__(self, use: ToolUse, *, bare: bool = True) -> None:
        """`bare`: whether a call may come without its tag, and after other text; not where the answer itself is to be an
        object, whose strings may hold anything."""
        self._use = use
        names = "|".join(regex.escape(tool.name) for tool in use.tools)
        self._bare = regex.compile(
            rf'[ \t]*(?:```[a-z]{{0,8}}\s*|<tools?>\s*)?\{{{{1,2}}\s*"name"\s*:\s*"({names})"\s*,\s*"(?:arguments|parameters)"\s*:'
        )
        self._text = ""
        self._said = ""  # all that was let through or dropped as blank before the text held now
        self._line_start = True  # the held text begins a line
        self._bare_calls = bare
        self.redirect: Redirect | None = None

    @property
    def held(self) -> int:
        return len(self._text)

    def feed(self, piece: str) -> list[Delta]:
        self._text += piece
        if not self._bare_calls:
            return self._feed_object()
        tag = self._text.find(OPEN)
        keep = len(self._text) - partial_suffix(self._text, (OPEN,)) if tag < 0 else tag
        for start in self._line_starts(keep):
            found = self._bare.match(self._text, start, partial=True)
            if found is None:
                continue
            if not found.partial:
                return self._open(start, (found[1],))
            keep = start
            break
        else:
            if tag >= 0:
                return self._open(tag, ())
        blank = len(self._text[:keep]) - len(self._text[:keep].rstrip())
        return self._let(keep - blank)  # white space before a call is not part of the answer

    def flush(self) -> list[Delta]:
        return self._let(len(self._text))

    def _feed_object(self) -> list[Delta]:
        """A call, if that is how it begins; else text to the end."""
        head = self._text.lstrip() if not self._said else ""
        if not self._said and OPEN.startswith(head[: len(OPEN)]):
            return self._open(self._text.index(OPEN), ()) if head.startswith(OPEN) else []
        return self._let(len(self._text))

    def _line_starts(self, before: int) -> list[int]:
        starts = [0] if self._line_start else []
        return starts + [found.end() for found in re.finditer("\n", self._text[:before])]

    def _let(self, length: int) -> list[Delta]:
        text, self._text = self._text[:length], self._text[length:]
        if not text:
            return []
        self._said += text
        self._line_start = text.endswith("\n")
        return [Content(text)]

    def _open(self, start: int, names: Sequence[str]) -> list[Delta]:
        kept = self._said + self._text[:start]
        deltas = self._let(len(self._text[:start].rstrip()))
        self._text = ""
        opening = hermes_opening(self._use, names)
        self.redirect = Redirect(opening.tail, opening.constraint, opening.body, kept)
        return deltas


# --- ReAct ------------------------------------------------------------------------------------------------------------

_REACT_HEAD = re.compile(r"\s*(\S+)\s*\nAction Input:\s*(?=\{)")
_ACTION, _FINAL, _THOUGHT, _OBSERVATION = "Action:", "Final Answer:", "Thought:", "Observation:"
REACT_ANSWER = f" I now know the final answer.\n{_FINAL}"  # goes on after `Thought:`
_LABELS = tuple("\n" + label for label in (_ACTION, _FINAL, _THOUGHT, _OBSERVATION))


def react_opening(use: ToolUse, *, tail: str = _ACTION, kept: str = "") -> Redirect:
    """A call from its first word; ReAct knows one at a time."""
    options = tuple((f" {tool.name}\nAction Input: ", tool.arguments) for tool in use.callable)
    return Redirect(tail, Constraint(options), CallBody(_REACT_HEAD, again=None), kept)


class ReactText:
    """Free text up to `Action:`. A thought is reasoning; what follows `Final Answer:`, or has no label, is the answer."""

    def __init__(self, use: ToolUse, *, thinking: bool = False) -> None:
        """`thinking`: the prompt already says `Thought:`."""
        self._use = use
        self._said = ""
        self._text = ""
        self._in_thought = thinking
        self._over = False  # the model goes on with a result that it made up
        self._search: MarkerSearch | None = MarkerSearch(_LABELS) if thinking else None
        self._strip = thinking  # the space after a label
        self.redirect: Redirect | None = None

    @property
    def held(self) -> int:
        return len(self._text) + (len(self._search.held) if self._search else 0)

    def feed(self, piece: str) -> list[Delta]:
        if self._over:
            return []
        if self._search is None:
            self._text += piece
            return self._begin()
        out = self._search.feed(piece)
        self._said += out
        deltas = self._wrap(out)
        matched, rest = self._search.matched, self._search.rest
        if matched is None:
            return deltas
        if matched == "\n" + _ACTION:
            self.redirect = react_opening(self._use, tail=matched, kept=self._said)
        elif matched == "\n" + _OBSERVATION:
            self._over = True
        else:
            self._said += matched
            self._in_thought, self._strip = matched == "\n" + _THOUGHT, True
            self._search = MarkerSearch(_LABELS)
            deltas += self.feed(rest)
        return deltas

    def flush(self) -> list[Delta]:
        text, self._text = self._text, ""
        return self._wrap(text + (self._search.flush() if self._search else ""))

    def _begin(self) -> list[Delta]:
        """What the first word says: a label, or the answer itself."""
        text = self._text.lstrip()
        for label in (_THOUGHT, _ACTION, _FINAL):
            if label.startswith(text):
                return []  # perhaps
            if text.startswith(label):
                self._text = ""
                if label == _ACTION:
                    self.redirect = react_opening(self._use)
                    return []
                self._said = label
                self._in_thought, self._strip = label == _THOUGHT, True
                self._search = MarkerSearch(_LABELS)
                return self.feed(text[len(label) :])
        self._text = ""
        self._search = MarkerSearch(_LABELS)
        return self.feed(text)

    def _wrap(self, text: str) -> list[Delta]:
        if self._strip:
            text = text.lstrip()
            self._strip = not text
        if not text:
            return []
        return [Reasoning(text) if self._in_thought else Content(text)]
