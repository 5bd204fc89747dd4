"""What a question has to do with the conversation before it: made to stand alone where it leans on it, and remembered."""

import re
from collections.abc import AsyncIterator, Callable
from typing import Any

from services.rag.condensing import accepted, condense_messages, recast, swapped
from services.rag.history import Turn
from services.rag.leaning import leans, open_question
from services.rag.metrics import Metrics
from services.rag.middleware import caller
from services.rag.model_client import ModelClient
from services.rag.sessions import Sessions, SessionTurn

CONDENSE_MAX_TOKENS = 96

Step = Callable[[AsyncIterator[dict[str, Any]]], AsyncIterator[dict[str, Any]]]


class Conversation:
    def __init__(self, model: ModelClient, metrics: Metrics, sessions: Sessions) -> None:
        self._model = model
        self._metrics = metrics
        self._sessions = sessions

    async def condense(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state with ``standalone``, the question as it can be understood alone, and ``leans``, whether that needed the
        history; with ``history`` and ``ticket`` of the session, where the state has a ``session_id``.
        """
        if state.get("session_id"):
            ticket = self._sessions.enter(caller.get(), state["session_id"])
            state = {**state, "history": ticket.history, "ticket": ticket}
        question, history = state["question"], _without_markers(state["history"])
        state = {**state, "history": history}
        if "reply" in state or not leans(question, history):
            opened = open_question(question)
            alone = opened.body if history and opened.opening == "correction" and opened.body else question
            return {**state, "standalone": alone, "leans": False}
        if about_another := swapped(question, history):
            return {**state, "standalone": about_another, "leans": True}
        with self._metrics.stage("condense"):
            reply = await self._model.complete(condense_messages(question, history), max_tokens=CONDENSE_MAX_TOKENS)
        standalone = accepted(reply, question, history) or recast(question, history)
        return {**state, "standalone": standalone, "leans": True}

    def remembering(self, step: Step) -> Step:
        """``step``, the chain's last, whose answer is added to the session as it passes."""

        async def remembered(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
            state: dict[str, Any] = {}
            turn: SessionTurn | None = None

            async def noted() -> AsyncIterator[dict[str, Any]]:
                nonlocal turn
                async for chunk in chunks:
                    if "state" in chunk and "ticket" in chunk["state"]:
                        state.update(chunk["state"])
                        turn = self._sessions.open(state["ticket"], state["question"])
                    yield chunk

            try:
                async for out in step(noted()):
                    if turn is not None and (text := out.get("answer")):
                        turn.add(text)
                    yield out
            finally:
                if turn is not None and not turn.answer.strip():
                    self._sessions.drop(state["ticket"], turn)

        return remembered


def _without_markers(history: list[Turn]) -> list[Turn]:
    """Our own answers come back with their markers; those are nothing that was said."""
    return [(human, re.sub(r"[ \t]?\[(?:\d{1,3}|\?)\]", "", ai)) for human, ai in history]
