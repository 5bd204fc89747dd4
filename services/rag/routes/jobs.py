"""Jobs over HTTP: what they do now, as they go on, cancel and retry."""

from collections.abc import AsyncIterator

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from sse_starlette import EventSourceResponse
from starlette.concurrency import run_in_threadpool

from services.rag.errors import InvalidRequest
from services.rag.routes.documents import Queued
from services.rag.service import Service
from services.rag.store.records import OPEN_STATES, Job

STATES = (*OPEN_STATES, "indexed", "failed", "cancelled")


class JobOut(BaseModel):
    id: str
    document_id: str
    filename: str
    state: str = Field(description="accepted | reading | embedding | indexed | failed | cancelled")
    error: str | None = Field(description="Why it failed.")
    page: int | None = Field(description="The page that the error is about, 1-based.")
    pages_total: int | None
    pages_read: int
    chunks_total: int | None
    chunks_embedded: int
    estimate_seconds: float | None = Field(description="Seconds to the end, from how fast things went lately.")
    created_at: float
    updated_at: float


class Retry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    password: str | None = Field(default=None, min_length=1, max_length=1000)


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["jobs"])
    catalog, library = service.catalog, service.library

    @routes.get("/jobs")
    def jobs(state: str | None = None) -> dict[str, list[JobOut]]:
        """The latest 1,000 jobs, oldest first; ``state`` is one of theirs, or ``open``."""
        if state is not None and state not in (*STATES, "open"):
            raise InvalidRequest(f"state is {state!r}, it must be one of open, {', '.join(STATES)}", param="state")
        wanted = OPEN_STATES if state == "open" else (state,) if state else None
        return {"jobs": [_out(*service.job(job.id)) for job in catalog.jobs(wanted)]}

    @routes.get("/jobs/{job_id}")
    def job(job_id: str) -> JobOut:
        return _out(*service.job(job_id))

    @routes.get("/jobs/{job_id}/events")
    async def events(job_id: str) -> EventSourceResponse:
        """The job as server-sent events: its state now, each change, and the end."""
        await run_in_threadpool(service.job, job_id)
        return EventSourceResponse(_follow(service, job_id), ping=15)

    @routes.post("/jobs/{job_id}/cancel")
    async def cancel(job_id: str) -> JobOut:
        """End an open job; its document stays, cancelled, and can be tried again. One that has ended stays as it is."""
        await run_in_threadpool(library.cancel, job_id)
        service.announce()
        return _out(*await run_in_threadpool(service.job, job_id))

    @routes.post("/jobs/{job_id}/retry", status_code=202)
    def retry(job_id: str, body: Retry | None = None) -> Queued:
        """A new job for the document of one that failed or was cancelled."""
        document, job = library.retry(job_id, body.password if body else None)
        return Queued(job_id=job.id, document_id=document.id)

    return routes


async def _follow(service: Service, job_id: str) -> AsyncIterator[dict[str, str]]:
    shown: Job | None = None
    while True:
        changed = service.changed
        job, estimate = await run_in_threadpool(service.job, job_id)
        if job != shown:
            shown = job
            yield {"event": job.state, "data": _out(job, estimate).model_dump_json()}
        if job.done:
            return
        await changed.wait()


def _out(job: Job, estimate: float | None) -> JobOut:
    return JobOut.model_validate(vars(job) | {"estimate_seconds": estimate})
