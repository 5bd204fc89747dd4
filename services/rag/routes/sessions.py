"""What the service remembers of a conversation, to see it and to make it forget."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from services.rag.middleware import caller
from services.rag.service import Service


class TurnOut(BaseModel):
    question: str
    answer: str = Field(description="As far as it was given: a client may have left before the end.")
    asked_at: float = Field(description="Seconds since 1970.")


class SessionOut(BaseModel):
    session_id: str
    expires_in: float = Field(description="Seconds until it is forgotten, unless it is used before.")
    turns: list[TurnOut]


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    sessions = service.sessions

    @routes.get("/sessions/{session_id}", tags=["conversation"])
    async def session(session_id: str) -> SessionOut:
        """The turns that are remembered of a session that this key began, oldest first."""
        turns, expires_in = sessions.turns(caller.get(), session_id)
        return SessionOut(
            session_id=session_id,
            expires_in=round(expires_in, 1),
            turns=[TurnOut(question=t.question, answer=t.answer, asked_at=t.asked_at) for t in turns],
        )

    @routes.delete("/sessions/{session_id}", status_code=204, tags=["conversation"])
    async def delete_session(session_id: str) -> None:
        """Forget a session at once, and what is being answered in it."""
        sessions.delete(caller.get(), session_id)

    return routes
