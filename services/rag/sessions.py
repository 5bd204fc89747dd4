"""Conversations that the service remembers, so that a client sends a ``session_id`` instead of the history.

In memory only: what people asked is in no file and in no backup, and a restart forgets it. Bounded in every direction: turns a
session, characters a turn, sessions a key (the one unused for longest makes room), minutes since the last use.
"""

import itertools
import re
import time
from bisect import insort
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from services.rag.errors import NotFound
from services.rag.history import Turn

SESSION_PATTERN = r"^[A-Za-z0-9._:-]{1,128}$"
QUESTION_CHARACTERS = 2000
ANSWER_CHARACTERS = 4000


@dataclass(order=True)
class SessionTurn:
    """A question and its answer, as far as it has been given."""

    number: int
    question: str = field(compare=False)
    answer: str = field(compare=False, default="")
    asked_at: float = field(compare=False, default_factory=time.time)  # seconds since the epoch

    def add(self, text: str) -> None:
        self.answer = (self.answer + text)[:ANSWER_CHARACTERS]


@dataclass
class Session:
    id: str
    owner: str
    used: float
    turns: list[SessionTurn] = field(default_factory=list)
    deleted: bool = False


@dataclass(frozen=True)
class Ticket:
    """The place of one question in its session, taken when it came in."""

    session_id: str
    number: int
    # What begins with "_" stays out of LangServe's traces.
    _session: Session = field(repr=False)

    @property
    def history(self) -> list[Turn]:
        return [(turn.question, turn.answer) for turn in self._session.turns]


class Sessions:
    """The sessions of every owner (an API key); an owner sees its own only. Used from one event loop; never blocks.

    Questions of one session may run side by side: their turns stand in the order in which they were asked. A turn is there from
    its first word on and grows with the answer, so what a client that left had read is remembered; a question that failed before
    the first word is not.
    """

    def __init__(
        self, *, minutes: float, sessions: int, turns: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds, self._most, self._turns, self._clock = minutes * 60, sessions, turns, clock
        self._owners: dict[str, OrderedDict[str, Session]] = {}
        self._numbers = itertools.count()

    def enter(self, owner: str, session_id: str) -> Ticket:
        """The place of a question that has just come in."""
        now = self._clock()
        self._expire(now)
        session = self._touched(Session(session_id, owner, now))
        return Ticket(session_id, next(self._numbers), session)

    def open(self, ticket: Ticket, question: str) -> SessionTurn:
        """The turn that the answer's text is added to. Of a session that was deleted meanwhile it is kept nowhere."""
        turn = SessionTurn(ticket.number, question[:QUESTION_CHARACTERS])
        if not ticket._session.deleted:
            # The session may have made room for others while the question was worked on.
            session = self._touched(ticket._session)
            insort(session.turns, turn)
            del session.turns[: -self._turns]
        return turn

    def drop(self, ticket: Ticket, turn: SessionTurn) -> None:
        """Forget a turn whose answer never began."""
        session = self._owned(ticket._session.owner).get(ticket.session_id)
        if session is not None:
            session.turns[:] = [kept for kept in session.turns if kept is not turn]

    def turns(self, owner: str, session_id: str) -> tuple[list[SessionTurn], float]:
        """The turns of a session, oldest first, and the seconds until it expires unless it is used.

        Raises:
            NotFound: this owner has no such session: never had, it has expired, or it made room for others.
        """
        self._expire(now := self._clock())
        session = self._owned(owner).get(session_id)
        if session is None or not session.turns:
            raise self._unknown(session_id)
        return list(session.turns), session.used + self._seconds - now

    def delete(self, owner: str, session_id: str) -> None:
        """Forget a session, and what is being answered in it.

        Raises:
            NotFound: this owner has no such session.
        """
        self._expire(self._clock())
        session = self._owned(owner).pop(session_id, None)
        if session is None:
            raise self._unknown(session_id)
        session.deleted = True
        session.turns.clear()

    def _owned(self, owner: str) -> OrderedDict[str, Session]:
        return self._owners.setdefault(owner, OrderedDict())

    def _touched(self, session: Session) -> Session:
        """The owner's session of this id, ``session`` itself where there is none; used just now."""
        owned = self._owned(session.owner)
        session = owned.setdefault(session.id, session)
        session.used = self._clock()
        owned.move_to_end(session.id)
        while len(owned) > self._most:
            owned.popitem(last=False)
        return session

    def _expire(self, now: float) -> None:
        for owned in self._owners.values():
            while owned and (oldest := next(iter(owned.values()))).used + self._seconds < now:
                del owned[oldest.id]

    def _unknown(self, session_id: str) -> NotFound:
        return NotFound(
            f"there is no session {_shown(session_id)}: nothing was asked in it, or it was not used for "
            f"{self._seconds / 60:g} minutes (RAG_SESSION_MINUTES), or newer ones took its place (RAG_SESSIONS)",
            param="session_id",
        )


def _shown(session_id: str) -> str:
    return repr(session_id) if re.fullmatch(SESSION_PATTERN, session_id) else ascii(session_id[:64])
