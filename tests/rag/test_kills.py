"""kill -9 at any instant: nothing accepted is lost, nothing is there twice, nothing is left over."""

import random
import signal
import threading
import time
from collections import Counter
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from services.rag.embeddings import HashEmbedder
from services.rag.store.catalog import Catalog
from services.rag.store.index import Indexes
from services.rag.store.verify import differences
from tests.support.lives import FORMATS, said, start

KILLS = 50
LIVES = 3 * KILLS  # a life that ends before it is killed does not count
SEED = 20261124


def state(
    data_dir: Path,
) -> tuple[set[tuple[str, str, str, str]], set[tuple[str, str, str, str]], list[str], list[str]]:
    """All documents, what is in the trash, and the ids in both indexes: each bound to its document and text."""
    catalog = Catalog(data_dir)
    indexes = Indexes(catalog, Indexes.open_chroma(data_dir, None), HashEmbedder(), None)
    try:
        assert list(differences(catalog, indexes.active, files=True)) == []
        assert (catalog.index("building"), catalog.wanted_index(), catalog.removals()) == (None, None, [])
        assert len(list(data_dir.glob("lexical*.sqlite"))) == 1
        documents = {(d.filename, d.sha256, d.status, str(d.chunks)) for d in catalog.documents()}
        trash = {(d.filename, d.sha256, d.status, str(d.replaced_by)) for d in catalog.trash()}
        assert (len(documents), len(trash)) == (len(catalog.documents()), len(catalog.trash()))
        vectors = sorted(id_ for id_, _ in indexes.active.vectors.ids("default", attached=True))
        words = sorted(id_ for id_, _ in indexes.active.lexical.ids("default", attached=True))
        return documents, trash, vectors, words
    finally:
        indexes.close()
        catalog.close()


@pytest.mark.timeout(900)
def test_fifty_kills_at_random_instants(tmp_path: Path) -> None:
    chance = random.Random(SEED)  # noqa: S311 - kills are no secret
    killed = tmp_path / "killed"
    heard: dict[str, set[str]] = {"accepted": set(), "deleted": set()}
    lives = kills = asked = 0
    under_way: Counter[str] = Counter()  # kills that came while …
    words, seconds = finish(start(tmp_path / "measured", 0, 1))
    while kills < KILLS and lives < LIVES:
        child, connection = start(killed, lives, 1)
        lives += 1
        # Not after a time from the start, which means another stage of the work on a machine that is busy: at any step, and
        # from there at any instant until about the next; after more steps than its own document takes, because it finds more to do.
        step = chance.randrange(words * 5 // 4)
        timer = threading.Timer(chance.uniform(0, seconds / words), child.kill)
        for said_before, (what, *which) in enumerate(said(connection)):
            if said_before == step:
                timer.start()
            assert what != "differs", which
            if what == "found":
                under_way.update(set(which))
            elif what == "asked":
                asked += 1
            elif what in heard:
                heard[what].update(which)
        timer.cancel()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        kills += child.exitcode == -signal.SIGKILL
    assert kills == KILLS, f"of {lives} lives"
    # They came while files were read, while chunks were embedded, and while an index was made anew.
    assert {"reading", "embedding", "rebuild"} <= under_way.keys(), under_way
    finish(start(killed, 0, 0))
    documents, trash = ended(killed)
    assert heard["accepted"] <= documents | trash
    assert heard["deleted"]
    assert heard["deleted"] <= trash
    assert asked
    # What was not accepted was not promised; offered again, all is as if nothing had happened.
    for folder in (killed, tmp_path / "quiet"):
        finish(start(folder, 0, lives))
    assert state(killed) == state(tmp_path / "quiet")


def finish(life: tuple[BaseProcess, Connection]) -> tuple[int, float]:
    """Let the process end its work: how much it said, and the seconds from its first word to its end."""
    child, connection = life
    words, began = [], 0.0
    for word in said(connection):
        words.append(word)
        began = began or time.monotonic()
    assert words[-1] == ("done",), words[-3:]
    assert "differs" not in {what for what, *_ in words}, words
    child.join()
    return len(words), time.monotonic() - began


def ended(data_dir: Path) -> tuple[set[str], set[str]]:
    """Ids of the documents and of those in the trash; all have reached an end, and of each name there is one."""
    catalog = Catalog(data_dir)
    try:
        documents = catalog.documents()
        assert {d.status for d in documents} == {"indexed"}
        assert {d.filename.rpartition(".")[2] for d in documents} == set(FORMATS)
        assert len({d.filename for d in documents}) == len(documents)
        assert catalog.open_jobs() == []
        active = catalog.index("active")
        assert active is not None
        assert active.reason == "asked for"
        return {d.id for d in documents}, {d.id for d in catalog.trash()}
    finally:
        catalog.close()
