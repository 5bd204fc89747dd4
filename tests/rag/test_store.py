"""The catalog, the lexical index and the vector store, each by its public interface."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from services.rag.errors import NotFound, StartupError
from services.rag.store.catalog import Catalog, Chunk, Page
from services.rag.store.chroma import VectorStore
from services.rag.store.lexical import LexicalIndex, content_terms, terms


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "data")


def accept(catalog: Catalog, content: bytes = b"x", name: str = "a.pdf", collection: str = "default"):
    incoming = catalog.incoming_dir / "upload"
    incoming.write_bytes(content)
    import hashlib

    return catalog.accept(
        incoming, collection=collection, filename=name, content_sha256=hashlib.sha256(content).hexdigest()
    )


def test_accepting_queues_a_job_and_keeps_the_file(catalog: Catalog) -> None:
    document, job = accept(catalog, b"content")
    assert (document.status, job.state) == ("accepted", "accepted")
    assert catalog.file_path(document).read_bytes() == b"content"
    assert [j.id for j in catalog.open_jobs()] == [job.id]


def test_the_same_content_is_one_document_and_one_job(catalog: Catalog) -> None:
    first, second = accept(catalog, b"same"), accept(catalog, b"same", name="other-name.pdf")
    assert first[0].id == second[0].id
    assert first[1].id == second[1].id
    assert len(catalog.documents()) == 1


def test_the_same_content_in_two_collections_is_two_documents_and_one_file(catalog: Catalog) -> None:
    one, _ = accept(catalog, b"same")
    two, _ = accept(catalog, b"same", collection="other")
    assert one.id != two.id
    catalog.mark_deleting(one.id)
    catalog.remove(one)
    assert catalog.file_path(two).exists()


def test_a_failed_document_is_tried_again(catalog: Catalog) -> None:
    _, job = accept(catalog)
    catalog.update_job(job.id, state="failed", error="no text")
    document, again = accept(catalog)
    assert again.id != job.id
    assert (document.status, document.error) == ("accepted", None)


def test_chunks_are_visible_only_once_the_document_is_indexed(catalog: Catalog) -> None:
    document, job = accept(catalog)
    chunk = Chunk(f"{document.id}:0", document.id, 0, 1, 0, 2, "租约")
    catalog.put_text(document.id, [Page(1, "租约")], [chunk], [2], 2)
    assert catalog.visible_chunks([chunk.id]) == {}
    catalog.finish(job, "fingerprint")
    found, of = catalog.visible_chunks([chunk.id])[chunk.id]
    assert found == chunk
    assert (of.status, of.pages, of.chunks, of.failed_pages) == ("indexed", 2, 1, (2,))


def test_a_deleted_document_is_gone_at_once_and_its_job_cancelled(catalog: Catalog) -> None:
    document, job = accept(catalog)
    catalog.mark_deleting(document.id)
    with pytest.raises(NotFound):
        catalog.document(document.id)
    assert catalog.job(job.id).state == "cancelled"
    catalog.finish(job, "fingerprint")  # a job that was just ending must not bring it back
    assert catalog.documents() == []
    catalog.remove(document)
    assert not catalog.file_path(document).exists()


def test_a_document_can_be_indexed_again(catalog: Catalog) -> None:
    _, job = accept(catalog)
    catalog.finish(job, "old")
    catalog.queue_again(catalog.documents())
    assert [j.filename for j in catalog.open_jobs()] == ["a.pdf"]
    assert catalog.documents()[0].status == "accepted"


def test_reopening_finds_everything_and_drops_half_uploads(tmp_path: Path) -> None:
    first = Catalog(tmp_path)
    document, _ = accept(first)
    (first.incoming_dir / "half").write_bytes(b"half")
    (first.files_dir / "never-committed").write_bytes(b"half")
    first.close()
    second = Catalog(tmp_path)
    assert second.document(document.id) == document
    assert list(second.incoming_dir.iterdir()) == []
    assert [p.name for p in second.files_dir.iterdir()] == [document.sha256]


def test_a_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    Catalog(tmp_path).close()
    with sqlite3.connect(tmp_path / "catalog.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StartupError, match="newer docduet"):
        Catalog(tmp_path)


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="RAG_DATA_DIR"):
        Catalog(tmp_path / "file")


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


def test_vectors_are_kept_apart_by_collection_and_fingerprint(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, "one")
    store.upsert("default", ["a:0", "a:1"], np.stack([unit(1, 0), unit(1, 1)]), "a")
    store.upsert("default", ["a:0"], np.stack([unit(1, 0)]), "a")
    assert store.count("default") == 2
    assert store.missing("default", ["a:0", "a:2"]) == ["a:2"]
    (best, score), *_ = store.search("default", unit(1, 0), 5)
    assert best == "a:0"
    assert score == pytest.approx(1.0, abs=1e-5)
    assert store.search("default", unit(1, 0), 5, ["b"]) == []
    assert store.search("other", unit(1, 0), 5) == []
    assert VectorStore(tmp_path, "two").search("default", unit(1, 0), 5) == []
    store.delete_document("default", "a")
    assert store.count("default") == 0
