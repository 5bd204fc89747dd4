"""Files that make others wait, and readers that are not there."""

import contextlib
import functools
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.rag.documents import jobs
from services.rag.documents.jobs import JobRunner
from services.rag.documents.reading import Limits, ReadingProcess, ReadingUnavailable
from services.rag.embeddings import HashEmbedder
from services.rag.errors import RagError
from services.rag.store.catalog import Catalog
from services.rag.store.index import Indexes
from services.rag.store.records import Job
from tests.support import hostile

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


@pytest.mark.parametrize("times", [1, 5])
def test_a_good_file_does_not_wait_for_more_files_that_hang_than_can_be_read_at_once(
    runner: JobRunner, catalog: Catalog, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """One by one they are put back to let it through, also when all of them came before it."""
    monkeypatch.setattr(jobs, "SLOW_SECONDS", 0.2)
    monkeypatch.setattr(jobs, "STALLED_SECONDS", 0.5)
    wait = waiting(runner, catalog)
    places = 1 + jobs.EXTRA_READERS
    bad = [
        accept(catalog, f"bad-{n}", pages=3, at={str(1 + n % 2): "loop" if n % 3 == 0 else "sleep"})
        for n in range(times * places)
    ]
    runner.start()
    wait(lambda: sum(catalog.job(job.id).state == "reading" for job in bad) == places)
    good = accept(catalog, "good", pages=40)
    runner.wake()
    wait(lambda: catalog.job(good.id).done)
    assert catalog.job(good.id).state == "indexed"
    # None was given up, and no more are read than there are places.
    states = [catalog.job(job.id).state for job in bad]
    assert set(states) <= {"reading", "accepted"}
    assert states.count("reading") <= places
    assert len(runner._running) <= places


def test_a_file_that_was_put_back_is_read_to_its_end(
    runner: JobRunner, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SLOW_SECONDS", 0.2)
    monkeypatch.setattr(jobs, "STALLED_SECONDS", 0.5)
    wait = waiting(runner, catalog)
    began: list[str] = []
    read = ReadingProcess.read

    def note(self: ReadingProcess, path: Path, *args: Any, **kwargs: Any) -> Any:
        began.append(json.loads(path.read_text())["name"])
        return read(self, path, *args, **kwargs)

    monkeypatch.setattr(ReadingProcess, "read", note)
    runner._limits = Limits(page_seconds=3)
    slow = [accept(catalog, f"slow-{n}", pages=2, at={"1": "sleep"}) for n in range(5)]
    runner.start()
    wait(lambda: all(catalog.job(job.id).done for job in slow))
    assert [catalog.job(job.id).state for job in slow] == ["indexed"] * 5
    # Some were put back for those behind them, each once at most.
    assert 5 < len(began) <= 10
    assert max(began.count(name) for name in began) == 2


def test_a_file_that_gives_pages_is_not_put_back(
    runner: JobRunner, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SLOW_SECONDS", 0.1)
    now = time.monotonic()
    for n, heard in enumerate([now - 4, now - 100, now - 6]):
        job = accept(catalog, f"slow-{n}", pages=1)
        process = ReadingProcess(Limits())
        runner._running[job.id] = jobs._Running(process, job, since=now - 200, heard=heard)
    waits = accept(catalog, "waits", pages=1)
    with runner._turn:
        assert runner._next(now) is None
    # The first gave a page four seconds ago; the others gave text for longer than is thrown away.
    assert runner._put_back == set()
    next(iter(runner._running.values())).heard = now - 200
    with runner._turn:
        assert runner._next(now) is None
        [stopped] = runner._put_back
        assert runner._running.pop(stopped).leaving
        assert runner._next(now) == waits  # and not the one that was put back


@pytest.mark.skipif(not hasattr(os, "getpriority"), reason="this system has no priorities")
def test_a_file_that_takes_long_gives_way(runner: JobRunner, catalog: Catalog) -> None:
    wait = waiting(runner, catalog)
    accept(catalog, "slow", pages=1, at={"1": "sleep"})
    runner.start()
    wait(lambda: bool(runner._running))
    [item] = runner._running.values()
    deadline = time.monotonic() + SECONDS
    while (pid := item.process._reader) is None or os.getpriority(os.PRIO_PROCESS, pid) < 19:
        assert time.monotonic() < deadline
        time.sleep(0.05)  # between two looks
    assert item.slow


REPORT = hostile.FOLDER.parent / "pdf_real" / "en_qwen_technical_report.pdf"


@pytest.mark.skipif(not (REPORT.is_file() and hostile.FOLDER.is_dir()), reason="shared/data is not here")
@pytest.mark.parametrize(("readers", "hanging"), [(1, 0), (2, 0), (2, 6)])
def test_a_good_file_among_all_the_bad_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readers: int, hanging: int
) -> None:
    """It takes at most twice as long as alone, as it does where nothing else is uploaded; ``-s`` prints how long.

    The machine is busy with other things: one of three tries is enough, and each has some seconds to spare. Where files
    hang, a good one has to wait until each of them is seen to.
    """
    scripted = functools.partial(ReadingProcess, readers={"script": "tests.support.readers"})
    monkeypatch.setattr(jobs, "ReadingProcess", scripted)
    spare = 3 + jobs.STALLED_SECONDS * hanging / readers
    for attempt in range(3):
        alone, _ = seconds(tmp_path / f"alone-{attempt}", readers, 0, [])
        among, stuck = seconds(tmp_path / f"among-{attempt}", readers, hanging, sorted(hostile.FOLDER.glob("*.pdf")))
        print(f"\n{readers} readers, {hanging} hang: {alone:.1f} s alone, {among:.1f} s, ratio {among / alone:.2f}")
        assert stuck == hanging  # none was waited for
        if among < 2 * alone + spare:
            return
    pytest.fail(f"{among:.1f} s among the bad files, {alone:.1f} s alone")


def seconds(folder: Path, readers: int, hanging: int, bad: list[Path]) -> tuple[float, int]:
    """How long the report takes from its upload until it is indexed, sent after the others; how many still hang then."""
    with hostile.ingestion(folder, readers=readers) as service:
        service.wait(
            service.send(REPORT.with_name("en_multicolumn.pdf"))
        )  # the reading process starts before the clock
        stuck = [accept(service.catalog, f"stuck-{n}", pages=2, at={"1": "loop"}) for n in range(hanging)]
        for path in bad:
            with contextlib.suppress(RagError):
                service.send(path)
        started = time.monotonic()
        job = service.wait(service.send(REPORT))
        took = time.monotonic() - started
        assert job.state == "indexed"
        return took, sum(not service.catalog.job(job.id).done for job in stuck)


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
