"""Folders of earlier versions: the catalog becomes today's, and the service answers from what they hold."""

import sqlite3
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from services.rag.embeddings import HashEmbedder
from services.rag.store import schema
from services.rag.store.catalog import Catalog
from services.rag.store.index import Indexes
from services.rag.store.records import document_id
from tests.rag.conftest import rag_env, upload, wait, wait_for_index
from tests.rag.test_catalog import VERSION_1, accept, index
from tests.support.pdfs import make_pdf
from tests.support.servers import Service, start_service

# The tables as version 2 made them, with documents in all states.
VERSION_2 = """
CREATE TABLE collections (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, created_at REAL NOT NULL, deleted_at REAL
);
CREATE UNIQUE INDEX collections_by_name ON collections (name) WHERE deleted_at IS NULL;
CREATE TABLE documents (
    id TEXT PRIMARY KEY, collection_id TEXT NOT NULL REFERENCES collections(id), filename TEXT NOT NULL,
    format TEXT NOT NULL, sha256 TEXT NOT NULL, size INTEGER NOT NULL, status TEXT NOT NULL, error TEXT,
    pages INTEGER, chunks INTEGER, reader TEXT, metadata TEXT NOT NULL DEFAULT '{}', sequence INTEGER NOT NULL UNIQUE,
    replaces TEXT, replaced_by TEXT, created_at REAL NOT NULL, indexed_at REAL, deleted_at REAL
);
CREATE INDEX documents_by_name ON documents (collection_id, filename);
CREATE INDEX documents_by_content ON documents (sha256);
CREATE TABLE pages (
    document_id TEXT NOT NULL REFERENCES documents(id) ON DELETE CASCADE,
    number INTEGER NOT NULL, text TEXT NOT NULL, label TEXT NOT NULL DEFAULT '', method TEXT NOT NULL DEFAULT 'text',
    PRIMARY KEY (document_id, number)
) WITHOUT ROWID;
CREATE TABLE page_reports (
    document_id TEXT NOT NULL REFERENCES documents(id) ON DELETE CASCADE,
    page INTEGER NOT NULL, failed INTEGER NOT NULL, message TEXT NOT NULL
);
CREATE INDEX page_reports_by_document ON page_reports (document_id, page);
CREATE TABLE chunks (
    id TEXT PRIMARY KEY, document_id TEXT NOT NULL REFERENCES documents(id) ON DELETE CASCADE,
    ordinal INTEGER NOT NULL, page INTEGER NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL, text TEXT NOT NULL,
    UNIQUE (document_id, ordinal)
);
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, document_id TEXT NOT NULL, filename TEXT NOT NULL, size INTEGER NOT NULL, state TEXT NOT NULL,
    error TEXT, page INTEGER, pages_total INTEGER, pages_read INTEGER NOT NULL DEFAULT 0,
    chunks_total INTEGER, chunks_embedded INTEGER NOT NULL DEFAULT 0, password TEXT,
    created_at REAL NOT NULL, updated_at REAL NOT NULL
);
CREATE INDEX jobs_by_document ON jobs (document_id);
CREATE INDEX jobs_by_state ON jobs (state, created_at);
CREATE TABLE indexes (
    generation INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL, model_id TEXT NOT NULL, state TEXT NOT NULL UNIQUE,
    reason TEXT NOT NULL, deleted INTEGER NOT NULL DEFAULT 0, created_at REAL NOT NULL
);
CREATE TABLE removals (
    document_id TEXT PRIMARY KEY, collection_id TEXT NOT NULL
);
INSERT INTO collections VALUES ('default', 'default', 0.0, NULL), ('s', 'sea', 1.0, NULL), ('g', 'gone', 1.0, 2.0);
INSERT INTO documents VALUES
    ('a', 'default', 'a.pdf', 'pdf', 'sha-a', 1, 'indexed', NULL, 2, 1, '2', '{"year": 1999}', 1, NULL, NULL, 1.0, 2.0, NULL),
    ('b', 's', 'b.pdf', 'pdf', 'sha-b', 1, 'failed', 'no text', NULL, NULL, NULL, '{}', 2, NULL, NULL, 3.0, NULL, NULL),
    ('c', 's', 'd.md', 'markdown', 'sha-c', 1, 'deleted', NULL, 1, 1, '2', '{}', 3, NULL, 'd', 4.0, 5.0, 6.0),
    ('d', 's', 'd.md', 'markdown', 'sha-d', 1, 'embedding', NULL, 1, 1, '2', '{}', 4, 'c', NULL, 6.0, NULL, NULL);
INSERT INTO pages VALUES ('a', 1, 'leases', 'i', 'text'), ('c', 1, 'gone', '', 'text'), ('d', 1, 'harbour', '', 'ocr');
INSERT INTO page_reports VALUES ('a', 2, 1, 'a scan');
INSERT INTO chunks VALUES ('a:0:x', 'a', 0, 1, 0, 6, 'leases'), ('c:0:x', 'c', 0, 1, 0, 4, 'gone'),
    ('d:0:x', 'd', 0, 1, 0, 7, 'harbour');
INSERT INTO jobs VALUES ('j1', 'a', 'a.pdf', 1, 'indexed', NULL, NULL, 2, 2, 1, 1, NULL, 1.0, 2.0),
    ('j2', 'd', 'd.md', 1, 'embedding', NULL, NULL, 1, 1, 1, 0, 'secret', 6.0, 6.0);
INSERT INTO indexes VALUES (3, 'model:1', 'model', 'active', 'asked for', 7, 1.0),
    (4, 'model:2', 'model-2', 'building', 'another embedding model', 0, 2.0);
INSERT INTO removals VALUES ('c', 's');
PRAGMA user_version = 2;
"""

EARLIER = {1: VERSION_1, 2: VERSION_2}


def make(folder: Path, script: str) -> None:
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as db:
        db.executescript(script)
    (folder / "files").mkdir()
    for name in ("sha-a", "sha-b", "sha-c", "sha-d"):
        (folder / "files" / name).write_bytes(b"x")


def tables(path: Path) -> tuple[int, set[tuple[str, str, str]]]:
    """The version, and (kind, name, SQL) of everything that is defined."""
    with closing(sqlite3.connect(path)) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return version, set(db.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"))


def test_every_earlier_version_is_here() -> None:
    assert list(EARLIER) == list(range(1, schema.VERSION))


@pytest.mark.parametrize("version", EARLIER)
def test_a_migrated_catalog_has_the_tables_of_a_new_one(tmp_path: Path, version: int) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    make(old, EARLIER[version])
    before = tables(old / "catalog.sqlite")
    for folder in (old, new):
        Catalog(folder).close()
    assert tables(old / "catalog.sqlite") == tables(new / "catalog.sqlite")
    assert tables(old / f"catalog.version-{version}.sqlite") == before
    # Opened again, nothing changes, and all can be done with it.
    catalog = Catalog(old)
    assert len(catalog.documents()) == 3
    document, job = accept(catalog, b"new", name="new.pdf")
    index(catalog, job)
    [chunk] = catalog.chunks_of(document.id)
    catalog.put_note(chunk, "model", 1, "What is a lease?")
    catalog.choose_notes(document.id, True)
    assert catalog.notes_of(document.id) == {chunk.id: "What is a lease?"}
    catalog.close()


def test_a_catalog_of_version_2_keeps_all(tmp_path: Path) -> None:
    make(tmp_path, VERSION_2)
    before = rows(tmp_path / "catalog.sqlite")
    assert len(before) == 8
    catalog = Catalog(tmp_path)
    after = rows(tmp_path / "catalog.sqlite")
    assert {table: after[table] for table in before} == before
    assert [(d.id, d.collection, d.status) for d in catalog.documents()] == [
        ("a", "default", "indexed"), ("b", "sea", "failed"), ("d", "sea", "embedding"),
    ]  # fmt: skip
    assert [(d.id, d.replaced_by) for d in catalog.trash()] == [("c", "d")]
    assert set(catalog.visible_chunks(["a:0:x", "c:0:x", "d:0:x"])) == {"a:0:x"}
    building = catalog.index("building")
    assert building is not None
    assert (building.generation, building.fingerprint) == (4, "model:2")
    [job] = catalog.to_embed(0)
    catalog.finish([job])
    assert catalog.document("d").status == "indexed"
    assert [c.text for c in catalog.without_note(10)] == []
    catalog.notes_wanted = True
    assert [c.text for c in catalog.without_note(10)] == ["leases", "harbour"]
    catalog.close()


def rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """All rows, by table."""
    with closing(sqlite3.connect(path)) as db:
        names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        return {name: db.execute(f"SELECT * FROM {name}").fetchall() for name in names}  # noqa: S608


def folder_of_0_1(folder: Path, texts: dict[str, str]) -> dict[str, str]:
    """A folder as version 0.1 left it with these documents, by name: their ids. One more was accepted and not yet read."""
    embedder = HashEmbedder()
    (folder / "files").mkdir(parents=True)
    ids: dict[str, str] = {}
    # Its schema, without the rows.
    statements = VERSION_1.partition("INSERT INTO")[0] + "PRAGMA user_version = 1;"
    chroma = Indexes.open_chroma(folder, None).client
    digest = sha256(f"default\0{embedder.fingerprint}".encode()).hexdigest()[:32]
    vectors = chroma.get_or_create_collection(
        f"docduet-{digest}",
        embedding_function=None,
        metadata={"collection": "default", "fingerprint": embedder.fingerprint},
        configuration={"hnsw": {"space": "cosine"}},
    )
    with (
        closing(sqlite3.connect(folder / "catalog.sqlite")) as db,
        closing(sqlite3.connect(folder / "lexical.sqlite")) as words,
    ):
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(statements)
        words.execute("PRAGMA journal_mode = WAL")
        words.execute(
            "CREATE VIRTUAL TABLE chunks USING fts5(terms, chunk_id UNINDEXED, document_id UNINDEXED,"
            " collection UNINDEXED, tokenize = \"unicode61 tokenchars ''\", detail = full)"
        )
        for now, (name, text) in enumerate(texts.items(), 1):
            path = make_pdf(folder / name, [text])
            digest = sha256(path.read_bytes()).hexdigest()
            path.rename(folder / "files" / digest)
            id_ = ids[name] = document_id("default", digest)
            size = (folder / "files" / digest).stat().st_size
            whole = name != "waiting.pdf"
            state = "indexed" if whole else "accepted"
            db.execute(
                "INSERT INTO documents VALUES (?, 'default', ?, ?, ?, ?, NULL, ?, ?, '', ?, ?, ?)",
                (id_, name, digest, size, state, 1 if whole else None, 1 if whole else None,
                 embedder.fingerprint if whole else None, now, now if whole else None),
            )  # fmt: skip
            db.execute(
                "INSERT INTO jobs VALUES (?, ?, ?, ?, NULL, NULL, ?, ?, ?, ?, ?, ?)",
                (f"job-{name}", id_, name, state, whole or None, int(whole), whole or None, int(whole), now, now),
            )
            if whole:
                db.execute("INSERT INTO pages VALUES (?, 1, ?)", (id_, text))
                db.execute("INSERT INTO chunks VALUES (?, ?, 0, 1, 0, ?, ?)", (f"{id_}:0", id_, len(text), text))
                words.execute("INSERT INTO chunks VALUES (?, ?, ?, 'default')", (text.casefold(), f"{id_}:0", id_))
                vectors.upsert(
                    ids=[f"{id_}:0"],
                    embeddings=embedder.embed_documents([text]),
                    metadatas=[{"document_id": id_}],
                )
        db.commit()
        words.commit()
    return ids


def test_a_folder_of_version_0_1_answers_a_search(model: Service, tmp_path: Path) -> None:
    texts = {
        "lease.pdf": "The hard limit of a lease is 2 hours.",
        "ferry.pdf": "The ferryman is paid at the landing stage.",
        "waiting.pdf": "The windmill stands on the hill behind the harbour.",
    }
    folder = tmp_path / "data"
    ids = folder_of_0_1(folder, texts)
    questions = {"lease.pdf": "hard limit of a lease", "ferry.pdf": "ferryman landing stage", "waiting.pdf": "windmill"}

    def best(client: httpx.Client, name: str, mode: str) -> str:
        response = client.post("/search", json={"query": questions[name], "mode": mode, "k": 1})
        assert response.status_code == 200, response.text
        [passage] = response.json()["passages"]
        assert passage["text"] == texts[name]
        return str(passage["document_id"])

    with (
        start_service("services.rag", rag_env(model.url, folder)) as rag,
        httpx.Client(base_url=rag.url, timeout=30, trust_env=False) as client,
    ):
        # From the vectors that 0.1 made, or from new ones: which of them is there already is not to be seen.
        for name in ("lease.pdf", "ferry.pdf"):
            assert best(client, name, "dense") == ids[name]
        assert wait(client, "job-waiting.pdf")["state"] == "indexed"
        wait_for_index(client)
        for name, id_ in ids.items():
            for mode in ("dense", "lexical", "hybrid"):
                assert best(client, name, mode) == id_
        verified = client.get("/index/verify", params={"files": True}).json()
        assert (verified["differences"], verified["checked"]["chunks"]) == ([], 3)
        # The same content is still the same document; a new version takes its place.
        content = client.get(f"/documents/{ids['lease.pdf']}/file").content
        again = client.post("/documents", files={"file": ("lease.pdf", content)}).json()
        assert again["document_id"] == ids["lease.pdf"]
        texts["lease.pdf"] = "The hard limit of a lease is 3 hours."
        job = upload(client, make_pdf(tmp_path / "lease.pdf", [texts["lease.pdf"]]))
        assert wait(client, job["job_id"])["state"] == "indexed"
        assert best(client, "lease.pdf", "hybrid") == job["document_id"]
        assert [d["id"] for d in client.get("/trash").json()["documents"]] == [ids["lease.pdf"]]
    assert (folder / "catalog.version-1.sqlite").exists()
    assert [path.name for path in folder.glob("lexical*.sqlite")] != ["lexical.sqlite"]
