"""The catalog's tables, and the way from each earlier version to this one."""

import sqlite3

VERSION = 3

DEFAULT_COLLECTION_ID = "default"

SCHEMA = """
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
"""

# A note is what a model wrote about a text (NULL: nothing of use); chunks of any document that have this text share it.
_NOTES = """
CREATE TABLE notes (
    id INTEGER PRIMARY KEY, text_sha256 TEXT NOT NULL, model TEXT NOT NULL, version INTEGER NOT NULL, note TEXT,
    created_at REAL NOT NULL, UNIQUE (text_sha256, model, version)
);
CREATE TABLE chunk_notes (
    chunk_id TEXT PRIMARY KEY REFERENCES chunks(id) ON DELETE CASCADE, note_id INTEGER NOT NULL REFERENCES notes(id)
) WITHOUT ROWID;
CREATE INDEX chunk_notes_by_note ON chunk_notes (note_id);
CREATE TABLE note_choices (
    document_id TEXT PRIMARY KEY REFERENCES documents(id) ON DELETE CASCADE, wanted INTEGER NOT NULL
) WITHOUT ROWID;
"""
SCHEMA += _NOTES

_NOW = "(julianday('now') - 2440587.5) * 86400.0"
_DEFAULT_COLLECTION = f"INSERT OR IGNORE INTO collections VALUES ('{DEFAULT_COLLECTION_ID}', 'default', {_NOW}, NULL);"  # noqa: S608

# A collection of version 1 was only its name: the name becomes its id, so that documents keep theirs and the indexes, which
# are filed under it, stay usable (generation 0). Failed pages had no reasons.
_FROM_1 = """
ALTER TABLE documents RENAME TO documents_1;
ALTER TABLE pages RENAME TO pages_1;
ALTER TABLE chunks RENAME TO chunks_1;
ALTER TABLE jobs RENAME TO jobs_1;
DROP INDEX jobs_by_document;
DROP INDEX jobs_by_state;
{schema}
{default}
INSERT INTO collections SELECT DISTINCT collection, collection, {now}, NULL FROM documents_1
    WHERE collection != 'default';
INSERT INTO documents SELECT id, collection, filename, 'pdf', sha256, size,
    CASE status WHEN 'deleting' THEN 'deleted' ELSE status END, error, pages, chunks,
    CASE WHEN chunks IS NOT NULL THEN '1' END, '{{}}', ROW_NUMBER() OVER (ORDER BY created_at, rowid), NULL, NULL,
    created_at, indexed_at, CASE status WHEN 'deleting' THEN {now} END FROM documents_1;
INSERT INTO removals SELECT id, collection FROM documents_1 WHERE status = 'deleting';
INSERT INTO pages SELECT document_id, number, text, '', 'text' FROM pages_1;
INSERT INTO chunks SELECT id, document_id, ordinal, page, start, end, text FROM chunks_1;
WITH RECURSIVE split (id, head, rest) AS (
    SELECT id, '', failed_pages || ',' FROM documents_1 WHERE failed_pages != ''
    UNION ALL
    SELECT id, substr(rest, 1, instr(rest, ',') - 1), substr(rest, instr(rest, ',') + 1) FROM split WHERE rest != ''
)
INSERT INTO page_reports SELECT id, CAST(head AS INTEGER), 1, 'the page had no text when an earlier version read it'
    FROM split WHERE head != '';
INSERT INTO jobs SELECT j.id, j.document_id, j.filename, coalesce(d.size, 0), j.state, j.error, j.page, j.pages_total,
    j.pages_read, j.chunks_total, j.chunks_embedded, NULL, j.created_at, j.updated_at
    FROM jobs_1 j LEFT JOIN documents_1 d ON d.id = j.document_id;
INSERT INTO indexes SELECT 0, fingerprint, '', 'active', 'made by an earlier version', 0, {now}
    FROM documents_1 WHERE fingerprint IS NOT NULL GROUP BY fingerprint ORDER BY COUNT(*) DESC LIMIT 1;
DROP TABLE pages_1;
DROP TABLE chunks_1;
DROP TABLE jobs_1;
DROP TABLE documents_1;
"""


def migrate(db: sqlite3.Connection, version: int) -> None:
    """Bring a catalog of ``version`` (0: empty) to :data:`VERSION`, in one transaction."""
    script = {
        0: SCHEMA + _DEFAULT_COLLECTION,
        1: _FROM_1.format(schema=SCHEMA, default=_DEFAULT_COLLECTION, now=_NOW),
        2: _NOTES,
    }[version]
    # Renaming a table would otherwise rewrite the references of others, and drop rows by cascade.
    db.execute("PRAGMA foreign_keys = OFF")
    db.execute("PRAGMA legacy_alter_table = ON")
    try:
        db.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {VERSION}; COMMIT;")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    finally:
        db.execute("PRAGMA legacy_alter_table = OFF")
        db.execute("PRAGMA foreign_keys = ON")
