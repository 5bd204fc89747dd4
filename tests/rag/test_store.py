"""The lexical index, the vector store, and generations of both, each by its public interface."""

from pathlib import Path

import numpy as np
import pytest

from services.rag.embeddings import HashEmbedder
from services.rag.store.catalog import Catalog
from services.rag.store.chroma import Chroma, VectorStore
from services.rag.store.index import Indexes
from services.rag.store.lexical import LexicalIndex, content_terms, terms
from services.rag.store.records import Document
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


def test_terms_fold_case_and_width_and_segment_chinese() -> None:
    assert "namenode" in terms("ＮａｍｅNode 的心跳")
    assert "心跳" in terms("NameNode 的心跳")
    assert "的" not in content_terms("NameNode 的心跳")
    assert terms("v2.5 api_key") == ["v2.5", "v2", "5", "api", "key"] or "2.5" in " ".join(terms("v2.5 api_key"))


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
