"""kill -9 at any instant: nothing accepted is lost, nothing is there twice, nothing is left over."""

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from services.rag.embeddings import HashEmbedder
from services.rag.store.catalog import Catalog
from services.rag.store.index import Indexes
from services.rag.store.verify import differences
from tests.support.ingestion import start

KILLS = 50
A_LIFE = 2  # documents that each process is given
SEED = 20261124


def said(connection: Connection) -> Iterator[tuple[str, ...]]:
    """What the process says until it ends."""
    with contextlib.suppress(EOFError):
        while True:
            yield connection.recv()


def state(data_dir: Path) -> tuple[set[tuple[str, str, int]], int, int]:
    """(name, status, chunks) of every document, and how many vectors and lexical rows there are."""
    catalog = Catalog(data_dir)
    indexes = Indexes(catalog, Indexes.open_chroma(data_dir, None), HashEmbedder(), None)
    try:
        assert list(differences(catalog, indexes.active, files=True)) == []
        documents = {(d.filename, d.status, d.chunks or 0) for d in catalog.documents()}
        assert len(documents) == len(catalog.documents())
        vectors = indexes.active.vectors.count("default")
        words = len(list(indexes.active.lexical.ids("default")))
        return documents, vectors, words
    finally:
        indexes.close()
        catalog.close()


@pytest.mark.timeout(600)
def test_fifty_kills_at_random_instants(tmp_path: Path) -> None:
    chance = random.Random(SEED)  # noqa: S311 - kills are no secret
    killed = tmp_path / "killed"
    accepted: set[str] = set()
    deleted: set[str] = set()
    started = time.monotonic()
    finish(start(tmp_path / "measured", 0, A_LIFE))
    longest = time.monotonic() - started
    for life in range(KILLS):
        child, connection = start(killed, life * A_LIFE, A_LIFE)
        # From before the folder is opened to well into the work.
        timer = threading.Timer(chance.uniform(0, longest), child.kill)
        for what, *which in said(connection):
            if what == "opening":
                timer.start()
            elif what == "accepted":
                accepted.update(which)
            elif what == "deleted":
                deleted.update(which)
        timer.cancel()
        child.join()
    assert accepted
    assert deleted
    finish(start(killed, 0, 0))
    documents, trash = ended(killed)
    assert accepted <= documents | trash
    assert deleted <= trash | documents
    # What was not accepted was not promised; offered again, all is as if nothing had happened.
    for folder in (killed, tmp_path / "quiet"):
        finish(start(folder, 0, KILLS * A_LIFE))
    assert state(killed) == state(tmp_path / "quiet")


def finish(life: tuple[BaseProcess, Connection]) -> None:
    child, connection = life
    assert [*said(connection)][-1] == ("done",)
    child.join()


def ended(data_dir: Path) -> tuple[set[str], set[str]]:
    """Ids of the documents and of those in the trash; all have reached an end."""
    catalog = Catalog(data_dir)
    try:
        assert {d.status for d in catalog.documents()} == {"indexed"}
        assert catalog.open_jobs() == []
        return {d.id for d in catalog.documents()}, {d.id for d in catalog.trash()}
    finally:
        catalog.close()
