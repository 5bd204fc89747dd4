"""Lives of the service's ingestion, without its HTTP half: processes that a test can kill."""

import contextlib
import datetime
import io
import multiprocessing
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import filelock
from fpdf import FPDF

from services.rag.documents.jobs import JobRunner
from services.rag.documents.reading import Limits
from services.rag.embeddings import HashEmbedder
from services.rag.library import Library
from services.rag.store.catalog import Catalog
from services.rag.store.index import Indexes
from services.rag.store.verify import differences

FORMATS = ("txt", "pdf", "html")
_SECONDS = 180  # that a life may take to end its work

# A process that has all imports done is forked for each life: fifty interpreters would take minutes to start.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


def content(number: int) -> tuple[str, bytes]:
    """(name, bytes) of a document: of every four, three are new and one is a new version of the one before."""
    of = number - (number % 4 == 3)
    kind = FORMATS[of % len(FORMATS)]
    lines = [
        f"Document {number}, rule {rule}: the harbour master counts ship {number * rule}." for rule in range(1, 40)
    ] * (1 + number % 5)
    if kind == "txt":
        out = "\n".join(lines).encode()
    elif kind == "html":
        out = f"<!doctype html><title>{number}</title>{''.join(f'<p>{line}</p>' for line in lines)}".encode()
    else:
        out = _pdf(lines)
    return f"document-{of}.{kind}", out


def _pdf(lines: list[str]) -> bytes:
    """The same bytes for the same lines, whenever it is made."""
    pdf = FPDF()
    pdf.set_creation_date(datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC))
    pdf.set_font("Helvetica", size=9)
    pdf.add_page()
    pdf.multi_cell(0, 5, "\n".join(lines))
    return bytes(pdf.output())


def start(data_dir: Path, first: int, count: int) -> tuple[BaseProcess, Connection]:
    """A process that opens ``data_dir`` as the service does, takes documents ``first`` … ``first + count - 1`` of an endless,
    fixed supply, deletes some of them, asks for a new index at some, and works until nothing is left to do.

    It says ``("opening",)``, ``("found", what the life before left under way, …)``, ``("differs", what)`` where the indexes
    do not hold what is visible, ``("accepted", id)``, ``("deleted", id)``, ``("asked",)``, ``("changed",)`` with each step of
    its work, and ``("done",)``.
    """
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_run, args=(data_dir, first, count, theirs))
    process.start()
    theirs.close()
    return process, ours


def said(connection: Connection) -> Iterator[tuple[str, ...]]:
    """What the process says until it ends."""
    with contextlib.suppress(EOFError):
        while True:
            yield connection.recv()


def _run(data_dir: Path, first: int, count: int, out: Connection) -> None:
    saying = threading.Lock()

    def say(*word: str) -> None:
        with saying:
            out.send(word)

    say("opening")
    data_dir.mkdir(exist_ok=True)
    lock = filelock.FileLock(data_dir / ".lock")
    lock.acquire(timeout=10)
    catalog = Catalog(data_dir)
    indexes = Indexes(catalog, Indexes.open_chroma(data_dir, None), HashEmbedder(), None)
    say("found", *_under_way(catalog))
    # Before anything is repaired. A kill, unlike a power cut, takes nothing that was written.
    for difference in differences(catalog, indexes.active, files=False):
        say("differs", f"{difference.kind} {difference.filename}: {difference.detail}")
    limits = Limits()
    jobs = JobRunner(catalog, indexes, limits, ocr=False, readers=2)
    library = Library(catalog, limits, max_upload_mb=10, reader=jobs.reader, jobs=lambda: jobs)
    jobs.on_change = lambda _: say("changed")
    jobs.start()
    for number in range(first, first + count):
        name, data = content(number)
        [taken] = library.add(io.BytesIO(data), name, collection="default")
        assert taken.document is not None
        say("accepted", taken.document.id)
        if number % 8 == 5:
            library.delete(taken.document.id)
            say("deleted", taken.document.id)
        if number % 16 == 9:
            jobs.writer.rebuild("asked for")
            say("asked")
    deadline = time.monotonic() + _SECONDS
    before = None
    while (rebuild := jobs.writer.rebuilding) or catalog.open_jobs() or catalog.removals():
        if rebuild != before:
            say("changed")
        before = rebuild
        assert time.monotonic() < deadline, "the work does not end"
        time.sleep(0.01)  # between two looks
    jobs.stop()
    library.close()
    indexes.close()
    catalog.close()
    say("done")


def _under_way(catalog: Catalog) -> list[str]:
    states: list[str] = [job.state for job in catalog.open_jobs()]
    if catalog.removals():
        states.append("removal")
    if catalog.index("building") is not None:
        states.append("rebuild")
    return states
