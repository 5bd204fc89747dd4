"""The service's ingestion without its HTTP half, in a process that a test can kill."""

import io
import multiprocessing
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import filelock

from services.rag.documents.jobs import JobRunner
from services.rag.documents.reading import Limits
from services.rag.embeddings import HashEmbedder
from services.rag.library import Library
from services.rag.store.catalog import Catalog
from services.rag.store.index import Indexes

# A process that has all imports done is forked for each life: fifty interpreters would take minutes to start.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


def content(number: int) -> tuple[str, bytes]:
    """(name, text) of a document: of every four, three are new and one is a new version of the one before."""
    name = f"document-{number - (number % 4 == 3)}.txt"
    lines = [
        f"Document {number}, rule {rule}: the harbour master counts ship {number * rule}." for rule in range(1, 40)
    ]
    return name, "\n".join(lines * (1 + number % 5)).encode()


def start(data_dir: Path, first: int, count: int) -> tuple[BaseProcess, Connection]:
    """A process that opens ``data_dir`` as the service does, takes documents ``first`` … ``first + count - 1`` of an endless,
    fixed supply, and works until nothing is left to do.

    It says ``("opening",)``, ``("accepted", id)``, ``("deleted", id)`` and ``("done",)``.
    """
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_run, args=(data_dir, first, count, theirs))
    process.start()
    theirs.close()
    return process, ours


def _run(data_dir: Path, first: int, count: int, say: Connection) -> None:
    say.send(("opening",))
    data_dir.mkdir(exist_ok=True)
    lock = filelock.FileLock(data_dir / ".lock")
    lock.acquire(timeout=10)
    catalog = Catalog(data_dir)
    indexes = Indexes(catalog, Indexes.open_chroma(data_dir, None), HashEmbedder(), None)
    limits = Limits()
    jobs = JobRunner(catalog, indexes, limits, ocr=False, readers=2)
    library = Library(catalog, limits, max_upload_mb=10, reader=jobs.reader, jobs=lambda: jobs)
    jobs.start()
    for number in range(first, first + count):
        name, text = content(number)
        [taken] = library.add(io.BytesIO(text), name, collection="default")
        assert taken.document is not None
        say.send(("accepted", taken.document.id))
        if number % 8 == 5:
            library.delete(taken.document.id)
            say.send(("deleted", taken.document.id))
    while catalog.open_jobs() or catalog.removals() or jobs.writer.rebuilding:
        time.sleep(0.01)  # between two looks
    jobs.stop()
    library.close()
    indexes.close()
    catalog.close()
    say.send(("done",))
