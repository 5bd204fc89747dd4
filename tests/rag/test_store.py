"""The lexical index, the vector store, and generations of both, each by its public interface."""

import math
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.rag import terms as terms_module
from services.rag.documents import indexing
from services.rag.documents.indexing import IndexWriter
from services.rag.embeddings import HashEmbedder
from services.rag.store import chroma as chroma_module
from services.rag.store import lexical
from services.rag.store.catalog import Catalog
from services.rag.store.chroma import Chroma, VectorStore
from services.rag.store.generations import COMPACT
from services.rag.store.index import Indexes
from services.rag.store.lexical import LexicalIndex
from services.rag.store.records import NOTE, Chunk, Document, Job, Page, chunk_id
from services.rag.store.verify import compare, differences
from tests.rag.test_catalog import accept
from tests.rag.test_catalog import index as read_and_finish


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "data")


@pytest.fixture
def indexes(catalog: Catalog) -> Indexes:
    return Indexes(catalog, Indexes.open_chroma(catalog.data_dir, None), HashEmbedder(), None)


def add(catalog: Catalog, indexes: Indexes, text: str, name: str = "a.pdf") -> Document:
    """An indexed document, in the active generation."""
    document, job = accept(catalog, text.encode(), name=name)
    read_and_finish(catalog, job, text)
    chunks = catalog.chunks_of(document.id)
    index = indexes.active
    index.put_vectors([(document, c) for c in chunks], HashEmbedder().embed_documents([c.text for c in chunks]))
    index.put_words([(document, chunks)])
    return catalog.document(document.id)


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # between two looks


def test_lexical_search_ranks_filters_and_replaces(tmp_path: Path) -> None:
    index = LexicalIndex(tmp_path / "lexical.sqlite")
    index.put_document("default", "a", [("a:0", "租约的硬限制是两小时。"), ("a:1", "副本数默认为三。")])
    index.put_document("default", "b", [("b:0", "The hard limit of a lease is two hours.")])
    index.put_document("other", "c", [("c:0", "租约的硬限制是三小时。")])
    assert [i for i, _ in index.search("default", "硬限制是多久？", 5)] == ["a:0"]
    assert [i for i, _ in index.search("default", "HARD limit", 5)] == ["b:0"]
    assert index.search("default", "硬限制", 5, ["b"]) == []
    assert index.search("default", '"; DROP * NEAR( 的', 5) == []
    index.put_document("default", "a", [("a:0", "没有别的内容。")])
    assert index.search("default", "硬限制", 5) == []
    index.delete_document("b")
    assert index.search("default", "lease", 5) == []


def unit(*values: float) -> np.ndarray:
    vector = np.array(values, dtype=np.float32)
    return vector / np.linalg.norm(vector)


def test_vectors_are_kept_apart_by_collection_fingerprint_and_generation(tmp_path: Path) -> None:
    chroma = Chroma(tmp_path)
    store = VectorStore(chroma, "one")
    store.upsert("default", ["a:0", "a:1"], np.stack([unit(1, 0), unit(1, 1)]), ["a", "a"])
    store.upsert("default", ["a:0"], np.stack([unit(1, 0)]), ["a"])
    assert store.count("default") == 2
    assert store.missing("default", ["a:0", "a:2"]) == ["a:2"]
    (best, score), *_ = store.search("default", unit(1, 0), 5)
    assert best == "a:0"
    assert score == pytest.approx(1.0, abs=1e-5)
    assert store.search("default", unit(1, 0), 5, ["b"]) == []
    assert store.search("other", unit(1, 0), 5) == []
    assert VectorStore(chroma, "two").search("default", unit(1, 0), 5) == []
    assert VectorStore(chroma, "one", 2).search("default", unit(1, 0), 5) == []
    assert sorted(store.ids("default")) == [("a:0", "a"), ("a:1", "a")]
    assert store.vectors("default", ["a:1"])["a:1"] == pytest.approx(unit(1, 1))
    assert store.delete_document("default", "a") == 2
    assert store.count("default") == 0


def test_a_damaged_chroma_folder_is_moved_aside(tmp_path: Path) -> None:
    (tmp_path / "chroma").mkdir()
    (tmp_path / "chroma" / "chroma.sqlite3").write_bytes(b"this is no database, whatever it is called" * 100)
    chroma = Indexes.open_chroma(tmp_path, None)
    assert VectorStore(chroma, "one").count("default") == 0
    assert (tmp_path / "chroma.damaged-1" / "chroma.sqlite3").exists()


def test_a_damaged_lexical_file_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "lexical.sqlite").write_bytes(b"this is no database, whatever it is called" * 100)
    index = LexicalIndex(tmp_path / "lexical.sqlite")
    index.put_document("default", "a", [("a:0", "lease")])
    assert [i for i, _ in index.search("default", "lease", 5)] == ["a:0"]


def test_a_new_generation_answers_after_the_swap_and_the_old_one_is_gone(catalog: Catalog, indexes: Indexes) -> None:
    document = add(catalog, indexes, "the hard limit of a lease")
    old, new = indexes.active, indexes.build("asked for")
    assert indexes.build("again") is new
    with indexes.use() as used:
        assert used is old
        assert used.lexical.search("default", "lease", 5)
    chunks = catalog.chunks_of(document.id)
    new.put_vectors([(document, c) for c in chunks], HashEmbedder().embed_documents([c.text for c in chunks]))
    new.put_words([(document, chunks)])
    indexes.swap()
    assert not old.lexical.path.exists()
    with indexes.use() as used:
        assert [i for i, _ in used.lexical.search("default", "lease", 5)] == [chunks[0].id]
        assert used.vectors.count("default") == 1
    row = catalog.index("active")
    assert row is not None
    assert row.generation == new.row.generation
    assert catalog.index("building") is None


def test_a_build_under_way_goes_on_after_a_restart_unless_the_embedder_changed(
    catalog: Catalog, indexes: Indexes
) -> None:
    building = indexes.build("asked for")
    chroma = Indexes.open_chroma(catalog.data_dir, None)
    again = Indexes(catalog, chroma, HashEmbedder(), None)
    assert again.building is not None
    assert again.building.row == building.row
    other = Indexes(catalog, chroma, HashEmbedder(64), None)
    assert other.building is None
    assert other.active.embedder is None  # it cannot make the vectors of the old one
    assert other.active.row.fingerprint == HashEmbedder().fingerprint


def test_verify_names_each_difference(catalog: Catalog, indexes: Indexes) -> None:
    one = add(catalog, indexes, "the hard limit of a lease", "one.pdf")
    two = add(catalog, indexes, "the soft limit of a lease", "two.pdf")
    assert list(differences(catalog, indexes.active, files=True)) == []
    index = indexes.active
    index.vectors.delete_document("default", one.id)
    index.lexical.put_document("default", two.id, [("two:9", "nothing of the kind")])
    index.vectors.upsert("default", ["ghost:0"], HashEmbedder().embed_documents(["ghost"]), ["ghost"])
    catalog.file_path(one).unlink()
    content = catalog.file_path(two).read_bytes()
    catalog.file_path(two).write_bytes(bytes(len(content)))
    (catalog.files_dir / "stray").write_bytes(b"x")
    found = {(d.kind, d.document_id) for d in differences(catalog, index, files=True)}
    assert found == {
        ("missing_vectors", one.id),
        ("missing_words", two.id),
        ("orphan_words", two.id),
        ("orphan_vectors", "ghost"),
        ("missing_file", one.id),
        ("wrong_file", two.id),
        ("orphan_file", ""),
    }
    assert ("wrong_file", two.id) not in {(d.kind, d.document_id) for d in differences(catalog, index, files=False)}


def test_verify_names_text_that_the_pages_do_not_have(catalog: Catalog, indexes: Indexes) -> None:
    other, shifted, lost, short = (
        add(catalog, indexes, f"the hard limit of lease {n}", f"{n}.pdf") for n in ("one", "two", "three", "four")
    )
    with sqlite3.connect(catalog.data_dir / "catalog.sqlite") as db:
        db.execute("UPDATE pages SET text = 'the soft limit of lease one' WHERE document_id = ?", (other.id,))
        db.execute("UPDATE chunks SET start = 1 WHERE document_id = ?", (shifted.id,))
        db.execute("DELETE FROM pages WHERE document_id = ?", (lost.id,))
        db.execute("UPDATE documents SET chunks = 2 WHERE id = ?", (short.id,))
    db.close()
    found = [(d.kind, d.document_id, d.filename) for d in differences(catalog, indexes.active, files=True)]
    assert found == [("wrong_text", d.id, d.filename) for d in (other, shifted, lost, short)]


def test_verify_names_notes_that_the_index_lacks_or_has_too_many_of(catalog: Catalog, indexes: Indexes) -> None:
    catalog.notes_wanted = True
    index = indexes.active
    document = add(catalog, indexes, "the hard limit of a lease")
    chunks = catalog.chunks_of(document.id)
    note = {chunks[0].id: "How long may a client write?"}

    def found() -> set[tuple[str, str]]:
        return {(d.kind, d.document_id) for d in differences(catalog, index, files=False)}

    assert found() == set()
    catalog.put_note(chunks[0], "model", 1, note[chunks[0].id])
    assert found() == {("missing_notes", document.id)}
    index.put_note_words(document, note)
    assert found() == {("missing_notes", document.id)}  # it has no vector yet
    assert index.put_note_vectors(document, chunks, note, 64)
    assert found() == set()
    index.lexical.detach([chunks[0].id + NOTE])
    assert found() == {("missing_notes", document.id)}
    index.put_note_words(document, note)
    catalog.choose_notes(document.id, False)
    assert found() == {("orphan_notes", document.id)}
    index.put_note_words(document, {})
    assert found() == {("orphan_notes", document.id)}  # its vector is there still
    assert index.put_note_vectors(document, chunks, {}, 64)
    assert found() == set()


def test_a_delete_does_not_wait_for_vectors_that_are_given_up(
    catalog: Catalog, indexes: Indexes, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = add(catalog, indexes, "the hard limit of a lease")
    index = indexes.active

    def damaged(*_: object) -> int:
        raise RuntimeError("the graph is damaged")

    monkeypatch.setattr(index.vectors, "delete_document", damaged)
    with pytest.raises(RuntimeError):
        index.remove(document.id, "default")
    index.embedder = None
    assert index.remove(document.id, "default") == 0
    assert index.lexical.search("default", "lease", 5) == []


def test_documents_on_their_way_in_or_out_are_no_difference(catalog: Catalog, indexes: Indexes) -> None:
    document = add(catalog, indexes, "the hard limit of a lease")
    catalog.delete(document.id)
    state = compare(catalog, indexes.active, "default")
    assert (state.orphan_vectors, state.orphan_words) == ({}, {})
    indexes.active.remove(document.id, "default")
    catalog.removed([document.id], 1)
    assert list(differences(catalog, indexes.active, files=True)) == []


def test_traditional_and_simplified_wide_and_accented_text_find_each_other(tmp_path: Path) -> None:
    index = LexicalIndex(tmp_path / "lexical.sqlite")
    index.put_document("default", "a", [("a:0", "租約的硬限制是兩小時。"), ("a:1", "租约的软限制是一小时。")])
    index.put_document("default", "b", [("b:0", "The Café's limits were exceeded.")])
    assert [i for i, _ in index.search("default", "硬限制", 1)] == ["a:0"]
    assert [i for i, _ in index.search("default", "軟限制", 1)] == ["a:1"]
    assert [i for i, _ in index.search("default", "ＣＡＦＥ limit", 1)] == ["b:0"]


def test_bm25_is_what_it_says(tmp_path: Path) -> None:
    index = LexicalIndex(tmp_path / "lexical.sqlite")
    texts = ["lease lease limit", "limit of hours", "hours and hours of rain"]
    index.put_document("default", "a", [(f"a:{i}", text) for i, text in enumerate(texts)])
    idf = math.log(1 + (3 - 1 + 0.5) / 1.5)
    norm = 0.9 * (1 - 0.75 + 0.75 * 3 / (11 / 3))
    assert dict(index.search("default", "lease", 5)) == pytest.approx({"a:0": idf * 1.9 * 2 / (2 + norm)})
    weights = index.weights("default", ["leas", "limit", "unknown"])
    assert weights["unknown"] > weights["leas"] > weights["limit"] > 0


def test_what_a_small_collection_repeats_is_not_common(tmp_path: Path) -> None:
    """Two of two chunks speak of the pilot: a question about it asks for no more than that one word less."""
    index = LexicalIndex(tmp_path / "lexical.sqlite")
    index.put_document(
        "default", "a", [("a:0", "the pilot station is led by Ingrid"), ("a:1", "a pilot station roster")]
    )
    weights = index.weights("default", ["pilot", "station", "head"])
    assert weights["pilot"] + weights["station"] > 1.5 * weights["head"] > 0
    # What a large collection repeats is.
    index.put_document("large", "b", [(f"b:{i}", "the pilot station" if i % 2 else "rain") for i in range(600)])
    weights = index.weights("large", ["pilot", "station", "head"])
    assert weights["pilot"] + weights["station"] < 0.5 * weights["head"]


def test_what_another_collection_holds_changes_no_score(tmp_path: Path) -> None:
    index = LexicalIndex(tmp_path / "lexical.sqlite")
    index.put_document("default", "a", [("a:0", "the lease"), ("a:1", "the rain")])
    before = index.search("default", "lease", 5)
    index.put_document("other", "b", [(f"b:{i}", "lease " * i) for i in range(1, 30)])
    assert index.search("default", "lease", 5) == before
    assert index.collections() == ["default", "other"]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.text("租约限制 ab\n", max_size=12), max_size=3)), max_size=8)
)
def test_rows_that_went_leave_nothing_behind(changes: list[tuple[str, list[str]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        changed, fresh = LexicalIndex(Path(folder, "changed")), LexicalIndex(Path(folder, "fresh"))
        last: dict[str, list[tuple[str, str]]] = {"a": [], "b": []}
        for document_id, texts in changes:
            last[document_id] = [(f"{document_id}:{i}", text) for i, text in enumerate(texts)]
            changed.put_document("default", document_id, last[document_id])
        fresh.put_documents({("default", document_id): rows for document_id, rows in last.items()})
        for query in ("租约限制", "a b", "制 ab"):
            assert dict(changed.search("default", query, 9)) == pytest.approx(dict(fresh.search("default", query, 9)))
        changed.close()
        fresh.close()


def test_many_rows_are_searched_by_the_rare_terms_and_scored_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = LexicalIndex(tmp_path / "lexical.sqlite")
    rows = [
        (f"a:{i}", f"common words {'rare' if i % 10 == 0 else ''} {'lease' if i % 30 == 0 else ''}") for i in range(300)
    ]
    index.put_document("default", "a", rows)
    index.put_document("default", "b", [("b:0", "common lease rare rare")])
    exact = index.search("default", "common rare lease", 5)
    monkeypatch.setattr(lexical, "POSTINGS", 40)
    monkeypatch.setattr(lexical, "SCORED", 20)
    assert index.search("default", "common rare lease", 5) == exact
    assert exact[0][0] == "b:0"
    # Fewer hold the rare terms than are asked for: the others follow.
    assert len(index.search("default", "common rare", 200)) == 200
    monkeypatch.setattr(lexical, "FEW_ROWS", 0)
    assert [i for i, _ in index.search("default", "common lease", 5, ["b"])] == ["b:0"]
    found = [i for i, _ in index.search("default", "common lease", 100, ["a"])]
    assert len(found) == 100
    assert "b:0" not in found


def test_characters_are_a_pair_only_side_by_side(tmp_path: Path) -> None:
    index = LexicalIndex(tmp_path / "lexical.sqlite")
    index.put_document(
        "default", "a", [("a:0", "约租"), ("a:1", "租a约"), ("a:2", "租"), ("a:3", "约、租约"), ("a:4", "雨")]
    )
    scores = dict(index.search("default", "租约", 5))
    assert max(scores, key=lambda id_: scores[id_]) == "a:3"
    assert scores["a:0"] == pytest.approx(scores["a:1"])  # both hold the two characters, and neither the pair
    assert "a:4" not in scores


def test_the_context_of_a_text_is_searched_and_counts_for_less(tmp_path: Path) -> None:
    index = LexicalIndex(tmp_path / "lexical.sqlite")
    rows = [("a:0", "两小时。", "租约 › 硬限制"), ("a:1", "硬限制是两小时。", ""), ("a:2", "副本数默认为三。", "副本")]
    index.put_document("default", "a", rows)
    assert [i for i, _ in index.search("default", "硬限制", 5)] == ["a:1", "a:0"]
    assert [i for i, _ in index.search("default", "租约", 5)] == ["a:0"]
    index.delete_document("a")
    assert index.search("default", "租约", 5) == []


def test_what_is_attached_to_a_chunk_is_found_by_itself_and_is_no_chunk(tmp_path: Path) -> None:
    index = LexicalIndex(tmp_path / "lexical.sqlite")
    index.put_document("default", "a", [("a:0", "租约的硬限制是两小时。")])
    for _ in range(2):
        index.attach("default", "a", [("a:0#note", "how long may a client write")])
    assert [i for i, _ in index.search("default", "how long may a client write", 5)] == ["a:0#note"]
    assert list(index.ids("default")) == [("a:0", "a")]
    index.delete_document("a")
    assert index.search("default", "client", 5) == []
    store = VectorStore(Chroma(tmp_path / "chroma"), "one")
    store.upsert("default", ["a:0", "a:0#note"], np.stack([unit(1, 0), unit(0, 1)]), ["a", "a"])
    assert store.search("default", unit(0, 1), 1)[0][0] == "a:0#note"
    assert list(store.ids("default")) == [("a:0", "a")]


def test_an_index_of_other_terms_is_filled_again_at_start(
    catalog: Catalog, indexes: Indexes, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = add(catalog, indexes, "the hard limit of a lease")
    indexes.close()
    monkeypatch.setattr(terms_module, "version", lambda: 7)
    again = Indexes(catalog, Indexes.open_chroma(catalog.data_dir, None), HashEmbedder(), None)
    assert again.active.lexical.search("default", "lease", 5) == []
    writer = IndexWriter(catalog, again, lambda _: None, lambda *_: None)
    writer.start()
    try:
        eventually(lambda: not writer.rebuilding)
        assert [i for i, _ in again.active.lexical.search("default", "lease", 5)] == [
            catalog.chunks_of(document.id)[0].id
        ]
    finally:
        writer.stop()


def test_vectors_of_an_earlier_form_are_made_again_while_they_answer(
    catalog: Catalog, indexes: Indexes, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = add(catalog, indexes, "the hard limit of a lease")
    assert not indexes.active.vectors.outdated
    monkeypatch.setattr(chroma_module, "EMBEDDED", 99)
    assert indexes.active.vectors.outdated
    first = indexes.active.row.generation
    assert indexes.active.vectors.search("default", HashEmbedder().embed_query("lease"), 5)
    writer = IndexWriter(catalog, indexes, lambda _: None, lambda *_: None)
    writer.start()
    try:
        eventually(lambda: not writer.rebuilding)
        assert indexes.active.row.generation > first
        assert not indexes.active.vectors.outdated
        assert [i for i, _ in indexes.active.vectors.ids("default")] == [c.id for c in catalog.chunks_of(document.id)]
    finally:
        writer.stop()


def test_a_build_of_an_earlier_form_does_not_go_on(
    catalog: Catalog, indexes: Indexes, monkeypatch: pytest.MonkeyPatch
) -> None:
    building = indexes.build("asked for")
    building.vectors.upsert("default", ["a:0"], np.stack([unit(1, 0)]), ["a"])
    monkeypatch.setattr(chroma_module, "EMBEDDED", 99)
    again = Indexes(catalog, Indexes.open_chroma(catalog.data_dir, None), HashEmbedder(), None)
    assert again.building is None
    assert again.build("headings").vectors.count("default") == 0


def test_the_heading_of_a_chunk_is_embedded_with_it_and_searched_as_words(catalog: Catalog, indexes: Indexes) -> None:
    text = "一、租约\n上限是两小时。"
    document = add(catalog, indexes, text, "rules_of_hdfs.pdf")
    piece = Chunk(f"{document.id}:1:x", document.id, 1, 1, 5, len(text), text[5:])
    assert indexes.active.embedded([(document, piece)]) == ["一、租约\n上限是两小时。"]
    indexes.active.put_words([(document, [piece])])
    assert [i for i, _ in indexes.active.lexical.search("default", "租约", 5)] == [piece.id]
    assert [i for i, _ in indexes.active.lexical.search("default", "HDFS", 5)] == [piece.id]


# -- the writer ----------------------------------------------------------------------------------------------------


class Counting(HashEmbedder):
    """Keeps the texts of each batch; ``before`` is called first."""

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.before = before
        self.batches: list[list[str]] = []

    def embed_documents(self, texts: Sequence[str]) -> Any:
        self.batches.append(list(texts))
        self.before()
        return super().embed_documents(texts)


def opened(catalog: Catalog, embedder: HashEmbedder) -> Indexes:
    return Indexes(catalog, Indexes.open_chroma(catalog.data_dir, None), embedder, None)


def reason(catalog: Catalog) -> str:
    row = catalog.index("active")
    assert row is not None
    return row.reason


def test_a_new_index_that_was_asked_for_is_made_after_a_restart(catalog: Catalog, indexes: Indexes) -> None:
    document = add(catalog, indexes, "the hard limit of a lease")
    first = indexes.active.row.generation
    # Its thread never comes to it, as with a long queue before a kill.
    writer = IndexWriter(catalog, indexes, lambda _: None, lambda *_: None)
    writer.rebuild("asked for")
    indexes.close()
    catalog.close()

    catalog = Catalog(catalog.data_dir)
    embedder = Counting()
    indexes = opened(catalog, embedder)
    assert indexes.building is None
    assert catalog.wanted_index() == "asked for"
    writer = IndexWriter(catalog, indexes, lambda _: None, lambda *_: None)
    writer.start()
    try:
        eventually(lambda: not writer.rebuilding)
    finally:
        writer.stop()
    assert indexes.active.row.generation > first
    assert (reason(catalog), catalog.wanted_index()) == ("asked for", None)
    assert [len(batch) for batch in embedder.batches] == [document.chunks]
    assert list(differences(catalog, indexes.active, files=True)) == []
    # It was made once: nothing is left to do at the next start.
    generation = indexes.active.row.generation
    indexes.close()
    indexes = opened(catalog, embedder)
    writer = IndexWriter(catalog, indexes, lambda _: None, lambda *_: None)
    writer.start()
    try:
        eventually(lambda: not writer.rebuilding)
    finally:
        writer.stop()
    assert indexes.active.row.generation == generation


@pytest.mark.parametrize("damaged", [False, True])
def test_a_new_index_that_is_asked_for_does_not_wait_for_compaction(
    catalog: Catalog, damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = Counting()
    indexes = opened(catalog, embedder)
    for n in range(3):
        add(catalog, indexes, f"the hard limit of lease {n}", f"{n}.pdf")
    compacting = indexes.build(COMPACT)
    asked, reached = threading.Event(), threading.Event()
    move = indexes.active.vectors.vectors

    def moved(*which: Any) -> Any:
        reached.set()
        if damaged:
            raise RuntimeError("the graph is damaged")
        assert asked.wait(30)
        return move(*which)

    monkeypatch.setattr(indexes.active.vectors, "vectors", moved)
    writer = IndexWriter(catalog, indexes, lambda _: None, lambda *_: None)
    writer.start()
    try:
        assert reached.wait(30)
        writer.rebuild("asked for")
        asked.set()
        eventually(lambda: not writer.rebuilding)
    finally:
        asked.set()
        writer.stop()
    assert (reason(catalog), catalog.wanted_index()) == ("asked for", None)
    assert sum(map(len, embedder.batches)) == 3, "vectors are made anew"
    assert list(differences(catalog, indexes.active, files=True)) == []
    assert not compacting.lexical.path.exists()


def test_a_compaction_that_ends_leaves_the_wish(catalog: Catalog, indexes: Indexes) -> None:
    catalog.want_index("asked for")
    catalog.want_index("asked again")
    indexes.build(COMPACT)
    indexes.swap()
    assert catalog.wanted_index() == "asked again"
    indexes.build("another embedding model")
    indexes.swap()
    assert catalog.wanted_index() is None


def to_embed(catalog: Catalog, name: str, chunks: int) -> Job:
    """A document whose text is read, with this many chunks."""
    document, job = accept(catalog, name.encode(), name=name)
    texts = [f"{name} {n}" for n in range(chunks)]
    parts = [
        Chunk(chunk_id(document.id, n, text), document.id, n, n + 1, 0, len(text), text) for n, text in enumerate(texts)
    ]
    assert catalog.put_text(job, [Page(n + 1, text) for n, text in enumerate(texts)], parts, (), chunks, "1")
    return job


@pytest.mark.parametrize(("aging", "first"), [(0, "small"), (10**9, "large")])
def test_small_documents_are_embedded_first_but_large_ones_in_their_time(
    catalog: Catalog, aging: int, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "AGING_CHUNKS", aging)
    reached, go = threading.Event(), threading.Event()

    def before() -> None:
        reached.set()
        assert go.wait(30)

    embedder = Counting(before)
    indexes = opened(catalog, embedder)
    large = to_embed(catalog, "large", 5 * indexing.BATCH_CHUNKS)
    ended: list[str] = []

    def changed(job_id: str) -> None:
        if catalog.job(job_id).done:
            ended.append(job_id)

    writer = IndexWriter(catalog, indexes, changed, lambda *_: None)
    writer.start()
    try:
        assert reached.wait(30)
        small = to_embed(catalog, "small", 2)  # comes while the large one's first batch is embedded
        go.set()
        writer.wake()
        eventually(lambda: not catalog.open_jobs())
    finally:
        go.set()
        writer.stop()
    assert {text.split()[0] for text in embedder.batches[0]} == {"large"}
    assert embedder.batches[1][0].split()[0] == first
    order = [small.id, large.id]
    assert ended == (order if first == "small" else order[::-1])


def test_a_filter_is_right_however_few_of_the_nearest_it_lets_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = VectorStore(Chroma(tmp_path), "one")
    points = np.stack([unit(1, i / 50) for i in range(60)])
    ids = [f"{'ab'[i >= 50]}:{i}" for i in range(60)]
    store.upsert("default", ids, points, [i[0] for i in ids])
    assert [i for i, _ in store.search("default", unit(1, 0), 3, ["b"])] == ["b:50", "b:51", "b:52"]
    monkeypatch.setattr(chroma_module, "_LOOKED_AT", 4)
    assert [i for i, _ in store.search("default", unit(1, 0), 3, ["b"])] == ["b:50", "b:51", "b:52"]
    assert len(store.search("default", unit(1, 0), 100, ["b"])) == 10
    assert len(store.search("default", unit(1, 0), 100)) == 60
    assert store.vectors("default", []) == {}
    few = [id_ for id_ in ids if id_.startswith("b")]
    compared, searched = store.compare("default", unit(1, 0), few), store.search("default", unit(1, 0), 100, ["b"])
    assert [i for i, _ in compared] == [i for i, _ in searched]
    assert np.allclose([s for _, s in compared], [s for _, s in searched], atol=1e-6)
    assert store.compare("default", unit(1, 0), [*few, "c:1"]) == compared
    assert store.compare("default", unit(1, 0), []) == []
