"""The lexical index: SQLite FTS5 (BM25) over segmented text. An index of the catalog's chunks, not a source of truth."""

import contextlib
import json
import re
import sqlite3
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import rjieba

from services.rag.documents.reflow import CJK

# FTS5 gets ready-made tokens separated by spaces. A CJK character is written as its code point in ASCII, so that the
# tokenizer can neither split nor fold what the segmenter decided.
_WORD = re.compile(f"[{CJK}]+|[a-z0-9]+(?:[._+#'-][a-z0-9]+)*", re.IGNORECASE)
_CJK_RUN = re.compile(f"[{CJK}]")
_STOP_WORDS = frozenset(
    "的 了 和 是 在 吗 呢 吧 啊 嘛 么 就 都 而 及 与 或 个 中 为 以 于 上 下 也 有 这 那 其 它 他 她 被 把 对 从 到 由 "
    "什么 怎么 怎样 如何 多少 哪些 哪个 哪里 谁 几 请问 请 一个 可以 需要 "
    "a an the of to in on at for and or is are was were be been it its this that these those with by as from "
    "what which who whom how when where why do does did can could should would will shall i you we they".split()
)


def terms(text: str) -> list[str]:
    """What is matched: words of Latin script and digits, and jieba's words of CJK text; case and width folded."""
    out: list[str] = []
    for match in _WORD.finditer(unicodedata.normalize("NFKC", text).casefold()):
        run = match.group()
        if _CJK_RUN.match(run):
            for word in rjieba.cut_for_search(run):
                out.append(word)
                # Segmentation of a question and of a sentence may differ; single characters still meet.
                if len(word) > 1:
                    out.extend(word)
        else:
            out.append(run)
            parts = re.split(r"[._+#'-]", run)
            if len(parts) > 1:
                out.extend(p for p in parts if p)
    return out


def content_terms(text: str) -> list[str]:
    """:func:`terms` without the words that every text has."""
    return [t for t in terms(text) if t not in _STOP_WORDS]


def _ascii(term: str) -> str:
    return term if term.isascii() and term.isalnum() else "x" + term.encode("utf-8").hex()


class LexicalIndex:
    """One generation's rows, in a file of their own. Thread-safe: one writer, and a connection for each searching thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()  # writers
        try:
            self._create()
        except sqlite3.DatabaseError:  # damaged: it is only an index
            self.drop()
            self._create()

    def _create(self) -> None:
        self._db.execute("PRAGMA synchronous = NORMAL")  # an index: a lost tail is found and written again at start
        self._db.execute(
            "CREATE VIRTUAL TABLE IF NOT EXISTS chunks USING fts5(terms, chunk_id UNINDEXED, document_id UNINDEXED,"
            " collection UNINDEXED, tokenize = \"unicode61 tokenchars ''\", detail = full)"
        )
        # FTS5 finds a row by its words or its rowid only; deleting a document must not read the whole table.
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS owners (document_id TEXT NOT NULL, row INTEGER NOT NULL,"
            " PRIMARY KEY (document_id, row)) WITHOUT ROWID"
        )
        (rows,) = self._db.execute("SELECT count(*) FROM owners").fetchone()
        if not rows:  # a file of an earlier version
            self._db.execute("INSERT INTO owners SELECT document_id, rowid FROM chunks")

    @property
    def _db(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
            db.execute("PRAGMA journal_mode = WAL")
            self._local.db = db
            with self._lock:
                self._connections.append(db)
        return db

    @contextlib.contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        db = self._db
        with self._lock:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def put_documents(self, documents: Mapping[tuple[str, str], Iterable[tuple[str, str]]]) -> None:
        """Replace rows by ``(chunk id, text)`` pairs, by (collection, document id), in one transaction."""
        rows = [
            (" ".join(map(_ascii, terms(text))), chunk_id, document_id, collection)
            for (collection, document_id), chunks in documents.items()
            for chunk_id, text in chunks
        ]
        with self._write() as db:
            for _, document_id in documents:
                self._delete(db, document_id)
            for row in rows:
                cursor = db.execute("INSERT INTO chunks VALUES (?, ?, ?, ?)", row)
                db.execute("INSERT INTO owners VALUES (?, ?)", (row[2], cursor.lastrowid))

    def put_document(self, collection: str, document_id: str, chunks: Iterable[tuple[str, str]]) -> None:
        """:meth:`put_documents` for one."""
        self.put_documents({(collection, document_id): chunks})

    def delete_document(self, document_id: str) -> None:
        with self._write() as db:
            self._delete(db, document_id)

    @staticmethod
    def _delete(db: sqlite3.Connection, document_id: str) -> None:
        db.execute("DELETE FROM chunks WHERE rowid IN (SELECT row FROM owners WHERE document_id = ?)", (document_id,))
        db.execute("DELETE FROM owners WHERE document_id = ?", (document_id,))

    def ids(self, collection: str) -> Iterator[tuple[str, str]]:
        """(chunk id, document id) of every row of a collection."""
        rows = self._db.execute("SELECT chunk_id, document_id FROM chunks WHERE collection = ?", (collection,))
        yield from rows.fetchall()

    def collections(self) -> list[str]:
        return [row[0] for row in self._db.execute("SELECT DISTINCT collection FROM chunks")]

    def search(
        self, collection: str, query: str, k: int, document_ids: Sequence[str] | None = None
    ) -> list[tuple[str, float]]:
        """The ``k`` best chunk ids by BM25 (higher is better), best first; empty when the query has no content term."""
        words = list(dict.fromkeys(map(_ascii, content_terms(query))))[:64]
        if not words:
            return []
        match = " OR ".join(f'"{word}"' for word in words)
        where, args = "", []
        if document_ids is not None:
            where = "AND document_id IN (SELECT value FROM json_each(?))"
            args = [json.dumps(list(document_ids))]
        rows = self._db.execute(
            "SELECT chunk_id, bm25(chunks) FROM chunks WHERE chunks MATCH ? AND collection = ?"  # noqa: S608
            f" {where} ORDER BY rank LIMIT ?",
            (match, collection, *args, k),
        ).fetchall()
        return [(chunk_id, -score) for chunk_id, score in rows]

    def close(self) -> None:
        with self._lock:
            for db in self._connections:
                db.close()
            self._connections.clear()
        self._local = threading.local()

    def drop(self) -> None:
        """Remove the file."""
        self.close()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
