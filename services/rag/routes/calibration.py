"""The calibration over HTTP: which one is used, and fitting another to questions whose pages are known."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from services.rag.calibration import Report, Sample, calibrate
from services.rag.config import COLLECTION_PATTERN, DEFAULT_COLLECTION
from services.rag.errors import InvalidRequest, RagError
from services.rag.relevance import FEATURES
from services.rag.service import Service

MAX_QUESTIONS = 5000


class KnownQuestion(BaseModel):
    model_config = ConfigDict(extra="forbid")

    question: str
    document_id: str
    pages: list[int] = Field(default_factory=list, description="Where the answer stands; any page where there is none.")


class QuestionSet(BaseModel):
    model_config = ConfigDict(extra="forbid")

    collection: str = Field(default=DEFAULT_COLLECTION, pattern=COLLECTION_PATTERN)
    questions: list[KnownQuestion] = Field(min_length=1)


class CalibrationRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sets: list[QuestionSet] = Field(min_length=1)
    false_refusals: float = Field(default=0.05, ge=0.0, le=0.5, description="The share that the threshold is told for.")
    keep: bool = Field(default=True, description="Use it from now on. False: only measure.")


class CalibrationOut(BaseModel):
    source: str = Field(description="own (fitted here) | shipped (for this embedder) | default (for any)")
    fingerprint: str = Field(description="Of the embedder.")
    threshold: float = Field(description="RAG_REFUSAL_THRESHOLD.")
    weights: dict[str, float] = Field(description="Of the score that ranks, by feature.")


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["operations"])

    def present() -> CalibrationOut:
        with service.indexes.use() as index:
            which = (index.row.fingerprint, index.model_id)
        calibration = service.calibrations.of(*which)
        return CalibrationOut(
            source=service.calibrations.source(*which),
            fingerprint=which[0],
            threshold=service.settings.refusal_threshold,
            weights=dict(zip(FEATURES, calibration.hybrid.weights, strict=True)),
        )

    @routes.get("/calibration")
    def shown() -> CalibrationOut:
        """What scores are made with."""
        return present()

    @routes.delete("/calibration")
    def forgotten() -> CalibrationOut:
        """Back to the calibration that comes with docduet."""
        service.calibrations.forget()
        return present()

    @routes.post("/calibration")
    async def fitted(request: CalibrationRequest) -> EventSourceResponse:
        """Fit one, as server-sent events: ``progress`` with done and total, then ``result`` or ``error``."""
        count = sum(len(s.questions) for s in request.sets)
        if count > MAX_QUESTIONS:
            raise InvalidRequest(f"{count} questions are too many: at most {MAX_QUESTIONS} are taken", param="sets")
        for question_set in request.sets:
            await run_in_threadpool(service.catalog.collection, question_set.collection)
        return EventSourceResponse(_fit(service, request, count), ping=15)

    return routes


async def _fit(service: Service, request: CalibrationRequest, count: int) -> AsyncIterator[ServerSentEvent]:
    done, samples = 0, []
    try:
        with service.indexes.use() as index:
            which = (index.row.fingerprint, index.model_id)
        for question_set in request.sets:
            own: list[tuple[Sample, Sample]] = []
            for question in question_set.questions:
                own.append(await run_in_threadpool(_samples, service, question_set.collection, question))
                done += 1
                yield _event("progress", {"done": done, "total": count})
            samples.append(own)
        base = service.calibrations.of(*which)
        calibration, report = await run_in_threadpool(calibrate, samples, base, request.false_refusals)
        if request.keep:
            await run_in_threadpool(service.calibrations.store, which[0], calibration)
        yield _event("result", _result(calibration.hybrid.weights, report, request.keep))
    except RagError as error:
        yield _event("error", error.body())
    except asyncio.CancelledError:  # the client left
        raise


def _samples(service: Service, collection: str, question: KnownQuestion) -> tuple[Sample, Sample]:
    return service.retriever.samples(question.question, collection, lambda place: _right(question, place[0], place[1]))


def _right(question: KnownQuestion, document_id: str, page: int) -> bool:
    return document_id == question.document_id and (not question.pages or page in question.pages)


def _result(weights: tuple[float, ...], report: Report, kept: bool) -> dict[str, Any]:
    return {**asdict(report), "weights": dict(zip(FEATURES, weights, strict=True)), "kept": kept}


def _event(name: str, data: Any) -> ServerSentEvent:
    return ServerSentEvent(event=name, data=json.dumps(data, ensure_ascii=False))
