"""Files that make others wait, and readers that are not there."""

import functools
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.rag.documents import jobs
from services.rag.documents.jobs import JobRunner
from services.rag.documents.reading import Limits, ReadingProcess, ReadingUnavailable
from services.rag.embeddings import HashEmbedder
from services.rag.store.catalog import Catalog
from services.rag.store.index import Indexes
from services.rag.store.records import Job

SECONDS = 60  # until a test gives up


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog(tmp_path)
    yield catalog
    catalog.close()


@pytest.fixture
def runner(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobRunner]:
    """One reader, which reads what the files' scripts say; not started."""
    scripted = functools.partial(ReadingProcess, readers={"script": "tests.support.readers"})
    monkeypatch.setattr(jobs, "ReadingProcess", scripted)
    indexes = Indexes(catalog, Indexes.open_chroma(catalog.data_dir, None), HashEmbedder(), None)
    runner = JobRunner(catalog, indexes, Limits(page_seconds=600, file_seconds=600), ocr=False, readers=1)
    yield runner
    runner.stop()
    indexes.close()


def accept(catalog: Catalog, name: str, **script: Any) -> Job:
    content = json.dumps({"name": name, **script}).encode()
    incoming = catalog.incoming_dir / name
    incoming.write_bytes(content)
    _, job = catalog.accept(
        incoming,
        collection="default",
        filename=name,
        content_sha256=hashlib.sha256(content).hexdigest(),
        format="script",
        reader="2",
    )
    return job


def waiting(runner: JobRunner, catalog: Catalog) -> Callable[[Callable[[], bool]], None]:
    """A wait for a condition, which is looked at whenever a job changes."""
    changed = threading.Condition()

    def tell(job_id: str) -> None:
        with changed:
            changed.notify_all()

    runner.on_change = tell

    def wait(condition: Callable[[], bool]) -> None:
        with changed:
            assert changed.wait_for(condition, SECONDS), [catalog.job(j.id) for j in catalog.jobs()]

    return wait


def test_a_good_file_does_not_wait_for_files_that_hang(runner: JobRunner, catalog: Catalog) -> None:
    wait = waiting(runner, catalog)
    bad = [accept(catalog, f"bad-{n}", pages=2, at={"1": act}) for n, act in enumerate(["sleep", "loop"])]
    runner.start()
    # Both are taken up before it comes, though there is one reader.
    wait(lambda: all(catalog.job(job.id).state == "reading" for job in bad))
    good = accept(catalog, "good", pages=40)
    runner.wake()
    wait(lambda: catalog.job(good.id).done)
    assert catalog.job(good.id).state == "indexed"
    assert [catalog.job(job.id).state for job in bad] == ["reading", "reading"]


def test_a_small_file_goes_before_larger_ones_that_came_with_it(
    runner: JobRunner, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = waiting(runner, catalog)
    order: list[str] = []
    read = ReadingProcess.read

    def note(self: ReadingProcess, path: Path, *args: Any, **kwargs: Any) -> Any:
        order.append(json.loads(path.read_text())["name"])
        return read(self, path, *args, **kwargs)

    monkeypatch.setattr(ReadingProcess, "read", note)
    large = [accept(catalog, f"large-{n}", pages=1, padding="x" * 10_000_000) for n in range(3)]
    small = accept(catalog, "small", pages=1)
    runner.start()
    wait(lambda: all(catalog.job(job.id).done for job in [*large, small]))
    assert order[0] == "small"


def test_a_reading_process_that_cannot_start_fails_no_file(
    runner: JobRunner, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine has no room for a process just now: the file is as good as it was."""
    monkeypatch.setattr(jobs, "RETRY_SECONDS", 0.01)
    wait = waiting(runner, catalog)
    read, refused = ReadingProcess.read, threading.Semaphore(3)

    def refuse(self: ReadingProcess, *args: Any, **kwargs: Any) -> Any:
        if refused.acquire(blocking=False):
            assert catalog.job(job.id).state == "reading"
            raise ReadingUnavailable("the reading process cannot be started: no memory")
        return read(self, *args, **kwargs)

    monkeypatch.setattr(ReadingProcess, "read", refuse)
    job = accept(catalog, "good", pages=3)
    runner.start()
    wait(lambda: catalog.job(job.id).done)
    assert catalog.job(job.id).state == "indexed"
    assert not refused.acquire(blocking=False)
