"""Prometheus metrics of the RAG service; one registry an app, so that two apps in one process do not mix."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "docduet_rag_requests", "HTTP requests", ["method", "route", "status"], registry=self.registry
        )
        self.answers = Counter("docduet_rag_answers", "Answers given", ["answerable"], registry=self.registry)
        self.stages = Histogram(
            "docduet_rag_stage_seconds",
            "Seconds spent in a stage of the chain",
            ["stage"],
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
            registry=self.registry,
        )
        self.documents = Gauge("docduet_rag_documents", "Documents by status", ["status"], registry=self.registry)
        self.notes = Counter(
            "docduet_rag_notes", "Chunks that came to a note, by what became of it", ["result"], registry=self.registry
        )
        self.jobs = Counter("docduet_rag_jobs", "Jobs that ended", ["state"], registry=self.registry)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stages.labels(stage=name).observe(time.perf_counter() - start)

    def render(self) -> bytes:
        return generate_latest(self.registry)
