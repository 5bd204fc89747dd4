"""The catalog: documents, versions, trash, collections, jobs, and the way from earlier versions."""

import hashlib
import os
import sqlite3
import threading
from pathlib import Path

import pytest

from services.rag.errors import Conflict, InvalidRequest, NotFound, StartupError
from services.rag.store.catalog import Catalog
from services.rag.store.records import Chunk, Document, Job, Page, PageReport, chunk_id

# The tables as version 1 made them.
VERSION_1 = """
CREATE TABLE documents (
    id TEXT PRIMARY KEY, collection TEXT NOT NULL, filename TEXT NOT NULL, sha256 TEXT NOT NULL, size INTEGER NOT NULL,
    status TEXT NOT NULL, error TEXT, pages INTEGER, chunks INTEGER, failed_pages TEXT NOT NULL DEFAULT '',
    fingerprint TEXT, created_at REAL NOT NULL, indexed_at REAL,
    UNIQUE (collection, sha256)
);
CREATE TABLE pages (
    document_id TEXT NOT NULL REFERENCES documents(id) ON DELETE CASCADE,
    number INTEGER NOT NULL, text TEXT NOT NULL,
    PRIMARY KEY (document_id, number)
) WITHOUT ROWID;
CREATE TABLE chunks (
    id TEXT PRIMARY KEY, document_id TEXT NOT NULL REFERENCES documents(id) ON DELETE CASCADE,
    ordinal INTEGER NOT NULL, page INTEGER NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL, text TEXT NOT NULL,
    UNIQUE (document_id, ordinal)
);
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, document_id TEXT NOT NULL, filename TEXT NOT NULL, state TEXT NOT NULL,
    error TEXT, page INTEGER, pages_total INTEGER, pages_read INTEGER NOT NULL DEFAULT 0,
    chunks_total INTEGER, chunks_embedded INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL, updated_at REAL NOT NULL
);
CREATE INDEX jobs_by_document ON jobs (document_id);
CREATE INDEX jobs_by_state ON jobs (state, created_at);
INSERT INTO documents VALUES
    ('a', 'default', 'a.pdf', 'sha-a', 3, 'indexed', NULL, 3, 1, '2,3', 'model:1', 1.0, 2.0),
    ('b', 'sea', 'b.pdf', 'sha-b', 4, 'failed', 'no text', NULL, NULL, '', NULL, 3.0, NULL),
    ('c', 'sea', 'c.pdf', 'sha-c', 5, 'deleting', NULL, 1, 1, '', 'model:1', 4.0, 5.0),
    ('d', 'sea', 'd.pdf', 'sha-d', 6, 'embedding', NULL, 1, 1, '', NULL, 6.0, NULL);
INSERT INTO pages VALUES ('a', 1, 'leases'), ('c', 1, 'gone'), ('d', 1, 'harbour');
INSERT INTO chunks VALUES ('a:0', 'a', 0, 1, 0, 6, 'leases'), ('c:0', 'c', 0, 1, 0, 4, 'gone'),
    ('d:0', 'd', 0, 1, 0, 7, 'harbour');
INSERT INTO jobs VALUES ('j1', 'a', 'a.pdf', 'indexed', NULL, NULL, 3, 3, 1, 1, 1.0, 2.0),
    ('j2', 'd', 'd.pdf', 'embedding', NULL, NULL, 1, 1, 1, 0, 6.0, 6.0);
PRAGMA user_version = 1;
"""


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "data")


def accept(catalog: Catalog, content: bytes = b"x", name: str = "a.pdf", **more) -> tuple[Document, Job]:
    incoming = catalog.incoming_dir / "upload"
    incoming.write_bytes(content)
    options = {"collection": "default", "format": "pdf", "reader": "1"} | more
    return catalog.accept(incoming, filename=name, content_sha256=hashlib.sha256(content).hexdigest(), **options)


def index(
    catalog: Catalog, job: Job, text: str = "租约", reports: tuple[PageReport, ...] = (), reader: str = "1"
) -> None:
    """Bring a job to its end as a reader and the writer would."""
    id_ = chunk_id(job.document_id, 0, text)
    chunk = Chunk(id_, job.document_id, 0, 1, 0, len(text), text)
    assert catalog.put_text(job, [Page(1, text)], [chunk], reports, 1 + len(reports), reader)
    catalog.finish([job])


def status(catalog: Catalog, document: Document) -> str:
    return {d.id: d.status for d in [*catalog.documents(), *catalog.trash()]}[document.id]


def test_accepting_queues_a_job_and_keeps_the_file(catalog: Catalog) -> None:
    document, job = accept(catalog, b"content", metadata={"author": "Kim", "year": 2020})
    assert (document.status, job.state) == ("accepted", "accepted")
    assert document.metadata == {"author": "Kim", "year": 2020}
    assert catalog.file_path(document).read_bytes() == b"content"
    assert [j.id for j in catalog.open_jobs()] == [job.id]


def test_accepted_means_on_the_disk(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str | int] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        fsync(handle)
        happened.append(os.fstat(handle).st_ino)

    monkeypatch.setattr(os, "fsync", noted)
    catalog._db.set_trace_callback(lambda statement: happened.append(statement.split()[0]))
    document, _ = accept(catalog, b"content")
    catalog._db.set_trace_callback(None)
    file, folder = catalog.file_path(document).stat().st_ino, catalog.files_dir.stat().st_ino
    steps = [step for step in happened if step in (file, folder, "INSERT", "COMMIT")]
    assert steps[:2] == [file, folder]
    assert steps[-1] == "COMMIT"
    assert steps.count("COMMIT") == 1
    assert "INSERT" in steps


def test_a_commit_of_any_thread_is_durable(catalog: Catalog) -> None:
    found: list[int] = []

    def look() -> None:
        found.extend(catalog._db.execute("PRAGMA synchronous").fetchone())

    look()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [2, 2]  # FULL: in WAL mode a lower one may lose the last commits when the power fails


def test_the_same_content_is_one_document_and_one_job(catalog: Catalog) -> None:
    first, second = accept(catalog, b"same"), accept(catalog, b"same", name="other-name.pdf")
    assert first[0].id == second[0].id
    assert first[1].id == second[1].id
    assert len(catalog.documents()) == 1


@pytest.mark.parametrize("first", ["old content", "new content"])
def test_a_renamed_file_and_a_new_one_under_its_old_name_are_both_kept(catalog: Catalog, first: str) -> None:
    index(catalog, accept(catalog, b"old", name="a.pdf")[1])
    sent = [(b"old", "b.pdf"), (b"new", "a.pdf")]
    for content, name in sent if first == "old content" else reversed(sent):
        job = accept(catalog, content, name=name)[1]
        if job.state != "indexed":
            index(catalog, job)
    assert sorted(d.filename for d in catalog.documents() if d.status == "indexed") == ["a.pdf", "b.pdf"]


def test_a_failed_document_is_tried_again(catalog: Catalog) -> None:
    _, job = accept(catalog)
    catalog.fail(job, "no text")
    document, again = accept(catalog)
    assert again.id != job.id
    assert (document.status, document.error) == ("accepted", None)


def test_failed_pages_are_read_again_by_another_reader_only(catalog: Catalog) -> None:
    failed = (PageReport(2, True, "a scan"),)
    _, job = accept(catalog)
    index(catalog, job, reports=failed, reader="1")
    assert accept(catalog)[1].id == job.id
    document, again = accept(catalog, reader="1+ocr")
    assert again.id != job.id
    assert (again.state, document.reader) == ("accepted", None)


def test_chunks_are_visible_only_once_the_document_is_indexed(catalog: Catalog) -> None:
    document, job = accept(catalog)
    chunk = Chunk("id", document.id, 0, 1, 0, 2, "租约")
    catalog.put_text(job, [Page(1, "租约", "slide 1")], [chunk], [PageReport(2, True, "a scan")], 2, "1")
    assert catalog.visible_chunks(["id"]) == {}
    catalog.finish([job])
    found, of, label = catalog.visible_chunks(["id"])["id"]
    assert (found, label) == (chunk, "slide 1")
    assert (of.status, of.pages, of.chunks) == ("indexed", 2, 1)
    assert catalog.page_reports([document.id]) == {document.id: [PageReport(2, True, "a scan")]}


def test_a_new_version_takes_the_old_ones_place_when_it_is_indexed(catalog: Catalog) -> None:
    old, job = accept(catalog, b"one")
    index(catalog, job)
    new, job = accept(catalog, b"two")
    assert (status(catalog, old), status(catalog, new)) == ("indexed", "accepted")
    swaps = catalog.swaps
    index(catalog, job)
    assert (status(catalog, old), status(catalog, new)) == ("deleted", "indexed")
    assert catalog.trash()[0].replaced_by == new.id
    assert catalog.swaps > swaps


def test_a_new_version_that_fails_leaves_the_old_one(catalog: Catalog) -> None:
    old, job = accept(catalog, b"one")
    index(catalog, job)
    new, job = accept(catalog, b"two")
    catalog.fail(job, "broken")
    assert (status(catalog, old), status(catalog, new)) == ("indexed", "failed")
    index(catalog, accept(catalog, b"three")[1])
    assert (status(catalog, old), status(catalog, new)) == ("deleted", "deleted")


def test_of_versions_that_end_out_of_order_the_last_accepted_stays(catalog: Catalog) -> None:
    first, one = accept(catalog, b"one")
    second, two = accept(catalog, b"two")
    index(catalog, two)
    index(catalog, one)
    assert (status(catalog, first), status(catalog, second)) == ("deleted", "indexed")


def test_going_back_to_an_earlier_version(catalog: Catalog) -> None:
    first, one = accept(catalog, b"one")
    index(catalog, one)
    second, two = accept(catalog, b"two")
    index(catalog, two)
    again, job = accept(catalog, b"one")
    assert again.id == first.id
    assert job.state == "embedding"  # its text is still there
    catalog.finish([job])
    assert (status(catalog, first), status(catalog, second)) == ("indexed", "deleted")


def test_replace_names_a_document_of_another_name(catalog: Catalog) -> None:
    old, job = accept(catalog, b"one", name="draft.pdf")
    index(catalog, job)
    new, job = accept(catalog, b"two", name="final.pdf", replace=old.id)
    index(catalog, job)
    assert (status(catalog, old), status(catalog, new)) == ("deleted", "indexed")
    with pytest.raises(NotFound, match="to replace"):
        accept(catalog, b"three", replace="nothing")
    catalog.create_collection("sea")
    with pytest.raises(NotFound, match="to replace"):
        accept(catalog, b"three", collection="sea", replace=new.id)


def test_replace_by_content_that_is_there_already(catalog: Catalog) -> None:
    old, job = accept(catalog, b"one", name="draft.pdf")
    index(catalog, job)
    new, job = accept(catalog, b"two", name="final.pdf")
    index(catalog, job)
    swaps = catalog.swaps
    accept(catalog, b"two", name="final.pdf", replace=old.id)
    assert (status(catalog, old), status(catalog, new)) == ("deleted", "indexed")
    assert catalog.swaps > swaps
    # The same out of the trash: it comes back, and takes the other's place once it is indexed.
    _, job = accept(catalog, b"one", name="draft.pdf", replace=new.id)
    catalog.finish([job])
    assert (status(catalog, old), status(catalog, new)) == ("indexed", "deleted")


def test_a_refused_upload_leaves_no_file(catalog: Catalog) -> None:
    with pytest.raises(NotFound):
        accept(catalog, b"one", replace="nothing")
    assert list(catalog.files_dir.iterdir()) == []


def test_names_are_versions_only_within_a_collection(catalog: Catalog) -> None:
    catalog.create_collection("sea")
    one, job = accept(catalog, b"one")
    index(catalog, job)
    _, job = accept(catalog, b"two", collection="sea")
    index(catalog, job)
    assert status(catalog, one) == "indexed"


def test_a_deleted_document_is_in_the_trash_and_its_job_cancelled(catalog: Catalog) -> None:
    document, job = accept(catalog)
    catalog.delete(document.id)
    with pytest.raises(NotFound):
        catalog.document(document.id)
    assert catalog.job(job.id).state == "cancelled"
    catalog.finish([job])  # a job that was just ending must not bring it back
    assert catalog.documents() == []
    assert catalog.removals() == [(document.id, "default")]
    assert catalog.file_path(document).exists()


def test_restore_brings_back_the_text_and_queues_the_vectors(catalog: Catalog) -> None:
    document, job = accept(catalog)
    index(catalog, job)
    catalog.delete(document.id)
    with pytest.raises(NotFound):
        catalog.restore("other")
    restored, job = catalog.restore(document.id)
    assert (restored.id, job.state) == (document.id, "embedding")
    assert [c.text for c in catalog.chunks_of(document.id)] == ["租约"]


def test_purge_removes_text_and_file_for_good(catalog: Catalog) -> None:
    document, job = accept(catalog)
    index(catalog, job)
    kept, _ = accept(catalog, b"kept", name="kept.pdf")
    catalog.delete(document.id)
    assert catalog.purge([kept.id]) == 0  # not in the trash
    assert catalog.purge() == 1
    assert catalog.trash() == []
    assert not catalog.file_path(document).exists()
    assert catalog.file_path(kept).exists()
    assert catalog.chunks_of(document.id) == []


def test_a_file_of_two_collections_stays_while_one_needs_it(catalog: Catalog) -> None:
    catalog.create_collection("other")
    one, _ = accept(catalog, b"same")
    two, _ = accept(catalog, b"same", collection="other")
    assert one.id != two.id
    catalog.delete(one.id)
    catalog.purge()
    assert catalog.file_path(two).exists()


def test_nothing_is_swept_while_a_backup_reads(catalog: Catalog) -> None:
    document, _ = accept(catalog)
    catalog.delete(document.id)
    with catalog.keeping_files():
        catalog.purge()
        assert catalog.file_path(document).exists()
    assert not catalog.file_path(document).exists()


def test_collections(catalog: Catalog) -> None:
    assert [c.name for c in catalog.collections()] == ["default"]
    with pytest.raises(NotFound, match="no collection 'sea'"):
        accept(catalog, collection="sea")
    catalog.create_collection("sea")
    with pytest.raises(Conflict):
        catalog.create_collection("sea")
    document, _ = accept(catalog, collection="sea")
    renamed = catalog.rename_collection("sea", "ocean")
    assert (renamed.name, renamed.documents) == ("ocean", 1)
    assert catalog.document(document.id).collection == "ocean"
    with pytest.raises(Conflict):
        catalog.rename_collection("ocean", "default")
    for change in (lambda: catalog.rename_collection("default", "x"), lambda: catalog.delete_collection("default")):
        with pytest.raises(InvalidRequest, match="always there"):
            change()
    assert [d.id for d in catalog.delete_collection("ocean")] == [document.id]
    assert [c.name for c in catalog.collections()] == ["default"]
    restored, _ = catalog.restore(document.id)
    assert restored.collection == "ocean"


def test_a_deleted_collections_name_is_free_again(catalog: Catalog) -> None:
    catalog.create_collection("sea")
    document, _ = accept(catalog, collection="sea")
    catalog.delete_collection("sea")
    catalog.create_collection("sea")
    assert catalog.documents("sea") == []
    with pytest.raises(Conflict):
        catalog.restore(document.id)
    catalog.purge()
    assert catalog.trash() == []


def test_rename_and_metadata_of_a_document(catalog: Catalog) -> None:
    one, _ = accept(catalog, b"one", name="one.pdf")
    accept(catalog, b"two", name="two.pdf")
    with pytest.raises(Conflict):
        catalog.update_document(one.id, filename="two.pdf")
    changed = catalog.update_document(one.id, filename="uno.pdf", metadata={"year": 1999})
    assert (changed.filename, changed.metadata) == ("uno.pdf", {"year": 1999})


def test_small_files_are_read_first_but_large_ones_in_their_time(catalog: Catalog) -> None:
    _, large = accept(catalog, bytes(100_000), name="large")
    _, small = accept(catalog, b"small", name="small")
    first = catalog.next_to_read()
    assert first is not None
    assert first.id == small.id
    second = catalog.next_to_read([small.id])
    assert second is not None
    assert second.id == large.id
    assert catalog.next_to_read([small.id, large.id]) is None


def test_cancel_and_retry(catalog: Catalog) -> None:
    document, job = accept(catalog, password="secret")
    with pytest.raises(Conflict, match="is accepted"):
        catalog.retry(job.id)
    cancelled = catalog.cancel(job.id)
    assert (cancelled.state, cancelled.password) == ("cancelled", None)
    assert catalog.document(document.id).status == "cancelled"
    assert not catalog.put_text(job, [], [], [], 1, "1")  # a reader that was at it comes too late
    _, again = catalog.retry(job.id, "secret")
    assert (again.state, again.password) == ("accepted", "secret")
    index(catalog, again)
    assert catalog.job(again.id).password is None
    assert catalog.cancel(again.id).state == "indexed"


def test_a_password_does_not_stay_in_the_file(catalog: Catalog) -> None:
    _, job = accept(catalog, password="correct-horse-battery")
    catalog.fail(job, "wrong password")
    catalog.close()
    for path in catalog.data_dir.glob("catalog.sqlite"):
        assert b"correct-horse-battery" not in path.read_bytes()


def test_reopening_finds_everything_and_drops_half_uploads(tmp_path: Path) -> None:
    first = Catalog(tmp_path)
    document, _ = accept(first)
    (first.incoming_dir / "half").write_bytes(b"half")
    (first.incoming_dir / "folder").mkdir()
    (first.incoming_dir / "folder" / "member").write_bytes(b"half")
    (first.files_dir / "never-committed").write_bytes(b"half")
    first.close()
    second = Catalog(tmp_path)
    assert second.document(document.id) == document
    assert list(second.incoming_dir.iterdir()) == []
    assert [p.name for p in second.files_dir.iterdir()] == [document.sha256]


def test_a_catalog_of_version_1_is_migrated(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "catalog.sqlite") as db:
        db.executescript(VERSION_1)
    (tmp_path / "files").mkdir()
    for name in ("sha-a", "sha-b", "sha-c", "sha-d"):
        (tmp_path / "files" / name).write_bytes(b"x")
    catalog = Catalog(tmp_path)
    assert [(d.id, d.collection, d.status) for d in catalog.documents()] == [
        ("a", "default", "indexed"), ("b", "sea", "failed"), ("d", "sea", "embedding"),
    ]  # fmt: skip
    assert [d.id for d in catalog.trash()] == ["c"]
    assert catalog.removals() == [("c", "sea")]
    assert [r.page for r in catalog.page_reports()["a"]] == [2, 3]
    assert catalog.page("a", 1).text == "leases"
    assert set(catalog.visible_chunks(["a:0", "c:0", "d:0"])) == {"a:0"}
    assert [j.id for j in catalog.to_embed(0)] == ["j2"]
    active = catalog.index("active")
    assert active is not None
    assert (active.generation, active.fingerprint) == (0, "model:1")
    assert (tmp_path / "catalog.version-1.sqlite").exists()  # what it was
    index(catalog, accept(catalog, b"new", name="new.pdf")[1])
    catalog.close()
    assert len(Catalog(tmp_path).documents()) == 4


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
