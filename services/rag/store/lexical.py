"""The lexical index: BM25 over the terms of texts, in SQLite. An index of the catalog's chunks, not a source of truth.

A search has two steps. FTS5 gives the rows that hold the question's rare terms, which is cheap because they are few; these
rows are then scored by all terms of the question. FTS5's own ranking visits every row
that holds any term, which at 100,000 chunks and characters as terms is nearly all of them, and its constants are fixed.
"""

import contextlib
import json
import logging
import math
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from services.rag import terms
from services.rag.store.records import ATTACHED

log = logging.getLogger("docduet.rag.lexical")

# BM25's constants (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009).
K1, B = 0.9, 0.75
# A term of a text's context (its document's name, the headings above it) counts as this many of its own.
CONTEXT_WEIGHT = 0.5
QUERY_TERMS = 64
# Rows that are looked up by the rare terms, and rows that are then scored. With 3,100 chunks and 1,200 questions, a tenth
# of the rows looked up and 200 scored lost no right answer from the first ten.
POSTINGS, SCORED = 20_000, 300
# A filter that leaves no more rows than this has them all scored.
FEW_ROWS = 2000
# In a collection of five chunks a word that two of them hold is not a common one. What a term says is judged as if a small
# collection were filled up to this many chunks, of which an average term stands in this share.
FILLED, USUAL_SHARE = 256, 0.01

_SCHEMA = """
CREATE TABLE collections (
    number INTEGER PRIMARY KEY, collection TEXT NOT NULL UNIQUE, rows INTEGER NOT NULL, length REAL NOT NULL
);
CREATE TABLE rows (
    id INTEGER PRIMARY KEY, chunk_id TEXT NOT NULL, document_id TEXT NOT NULL, collection INTEGER NOT NULL,
    length REAL NOT NULL, text TEXT NOT NULL, context TEXT NOT NULL
);
CREATE INDEX rows_by_chunk ON rows (chunk_id);
CREATE INDEX rows_by_document ON rows (document_id);
CREATE TABLE frequencies (
    collection INTEGER NOT NULL, term TEXT NOT NULL, rows INTEGER NOT NULL, PRIMARY KEY (collection, term)
) WITHOUT ROWID;
CREATE VIRTUAL TABLE postings USING fts5(
    terms, content = '', detail = none, columnsize = 0, tokenize = 'unicode61 remove_diacritics 0'
);
"""
# Characters that FTS5's tokenizer takes as they are.
_PLAIN = re.compile("[a-z0-9\u3400-\u4db5\u4e00-\u9fa5]+")

Ids = npt.NDArray[np.int64]
Counts = npt.NDArray[np.float64]


def _token(collection: int, term: str) -> str:
    """A term of a collection, as one word to FTS5: what another collection holds changes no search."""
    return f"{collection}z{term if _PLAIN.fullmatch(term) else 'z' + term.encode().hex()}"


class LexicalIndex:
    """One generation's rows, in a file of their own. Thread-safe: one writer, and a connection for each searching thread."""

    def __init__(self, path: Path) -> None:
        """Open the file, which is begun anew where it is damaged or its terms were cut otherwise."""
        self.path = path
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()  # writers
        try:
            self._open()
        except sqlite3.DatabaseError:  # damaged: it is only an index
            self.drop()
            self._open()

    def _open(self) -> None:
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found == terms.version():
            return
        if self._db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            log.warning("%s was made with other terms: it is made again from the documents", self.path.name)
            self.drop()
        self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {terms.version()}; COMMIT;")

    @property
    def _db(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")  # an index: a lost tail is found and written again at start
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

    @contextlib.contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        """One moment's state."""
        db = self._db
        db.execute("BEGIN")
        try:
            yield db
        finally:
            db.execute("COMMIT")

    # -- writing -----------------------------------------------------------------------------------------------

    def put_documents(
        self, documents: Mapping[tuple[str, str], Iterable[tuple[str, str] | tuple[str, str, str]]]
    ) -> None:
        """Replace the rows of documents, in one transaction.

        By (collection, document id): ``(chunk id, text)``, or ``(chunk id, text, context)`` with what is searched beside it.
        """
        self._put(documents, replace=True)

    def put_document(
        self, collection: str, document_id: str, rows: Iterable[tuple[str, str] | tuple[str, str, str]]
    ) -> None:
        """:meth:`put_documents` for one."""
        self._put({(collection, document_id): rows}, replace=True)

    def attach(self, collection: str, document_id: str, rows: Iterable[tuple[str, str]]) -> None:
        """Add rows that belong to chunks of a document, under ids with
        :data:`services.rag.store.records.ATTACHED`; they go when the document goes."""
        self._put({(collection, document_id): rows}, replace=False)

    def detach(self, ids: Iterable[str]) -> None:
        """Take out what :meth:`attach` put in."""
        with self._write() as db:
            for id_ in ids:
                self._delete(db, "chunk_id = ?", id_)

    def _put(
        self, documents: Mapping[tuple[str, str], Iterable[tuple[str, str] | tuple[str, str, str]]], *, replace: bool
    ) -> None:
        cut = {
            key: [(row[0], terms.indexed(row[1]), terms.indexed(row[2]) if len(row) == 3 else "") for row in rows]
            for key, rows in documents.items()
        }
        with self._write() as db:
            for (collection, document_id), rows in cut.items():
                if replace:
                    self._delete(db, "document_id = ?", document_id)
                else:
                    for chunk_id, _, _ in rows:
                        self._delete(db, "chunk_id = ?", chunk_id)
                self._insert(db, collection, document_id, rows)

    @staticmethod
    def _insert(
        db: sqlite3.Connection, collection: str, document_id: str, rows: Sequence[tuple[str, str, str]]
    ) -> None:
        db.execute("INSERT OR IGNORE INTO collections VALUES (NULL, ?, 0, 0)", (collection,))
        (number,) = db.execute("SELECT number FROM collections WHERE collection = ?", (collection,)).fetchone()
        frequencies: Counter[str] = Counter()
        total = 0.0
        for chunk_id, text, context in rows:
            own, beside = terms.split(text), terms.split(context)
            length = len(own) + CONTEXT_WEIGHT * len(beside)
            distinct = {*own, *beside}
            cursor = db.execute(
                "INSERT INTO rows VALUES (NULL, ?, ?, ?, ?, ?, ?)",
                (chunk_id, document_id, number, length, text, context),
            )
            db.execute(
                "INSERT INTO postings (rowid, terms) VALUES (?, ?)",
                (cursor.lastrowid, " ".join(_token(number, term) for term in distinct)),
            )
            frequencies.update(distinct)
            total += length
        db.executemany(
            "INSERT INTO frequencies VALUES (?, ?, ?)"
            " ON CONFLICT (collection, term) DO UPDATE SET rows = rows + excluded.rows",
            [(number, term, count) for term, count in frequencies.items()],
        )
        db.execute(
            "UPDATE collections SET rows = rows + ?, length = length + ? WHERE number = ?", (len(rows), total, number)
        )

    def delete_document(self, document_id: str) -> None:
        with self._write() as db:
            self._delete(db, "document_id = ?", document_id)

    @staticmethod
    def _delete(db: sqlite3.Connection, where: str, value: str) -> None:
        found = db.execute(
            f"SELECT id, collection, length, text, context FROM rows WHERE {where}",  # noqa: S608
            (value,),
        ).fetchall()
        frequencies: Counter[tuple[int, str]] = Counter()
        for id_, number, length, text, context in found:
            distinct = {*terms.split(text), *terms.split(context)}
            # FTS5 keeps no text here: it is told what to forget.
            db.execute(
                "INSERT INTO postings (postings, rowid, terms) VALUES ('delete', ?, ?)",
                (id_, " ".join(_token(number, term) for term in distinct)),
            )
            db.execute("DELETE FROM rows WHERE id = ?", (id_,))
            db.execute("UPDATE collections SET rows = rows - 1, length = length - ? WHERE number = ?", (length, number))
            frequencies.update((number, term) for term in distinct)
        db.executemany(
            "UPDATE frequencies SET rows = rows - ? WHERE collection = ? AND term = ?",
            [(count, *key) for key, count in frequencies.items()],
        )
        db.executemany("DELETE FROM frequencies WHERE collection = ? AND term = ? AND rows <= 0", frequencies)

    # -- reading -----------------------------------------------------------------------------------------------

    def ids(self, collection: str, *, attached: bool = False) -> Iterator[tuple[str, str]]:
        """(chunk id, document id) of every chunk of a collection; with ``attached``, of what belongs to chunks too."""
        yield from self._db.execute(
            "SELECT chunk_id, document_id FROM rows JOIN collections c ON c.number = rows.collection"
            " WHERE c.collection = ? AND (? OR instr(chunk_id, ?) = 0)",
            (collection, attached, ATTACHED),
        ).fetchall()

    def attached(self, document_id: str) -> list[str]:
        """The ids under which something belongs to a document's chunks."""
        rows = self._db.execute("SELECT chunk_id FROM rows WHERE document_id = ?", (document_id,))
        return [row[0] for row in rows if ATTACHED in row[0]]

    def collections(self) -> list[str]:
        return [row[0] for row in self._db.execute("SELECT collection FROM collections WHERE rows > 0")]

    def search(
        self, collection: str, query: str, k: int, document_ids: Sequence[str] | None = None
    ) -> list[tuple[str, float]]:
        """The ``k`` best ids by BM25 (higher is better), best first; empty when the query has no content term.

        An id is a chunk's, or that of something attached to one.
        """
        with self._read() as db:
            statistics = _Statistics(db, collection, terms.query_terms(query)[:QUERY_TERMS])
            if not statistics.weights:
                return []
            rows = self._candidates(db, statistics, max(k, SCORED), document_ids)
            found = statistics.score(rows)
        found = {id_: score for id_, score in found.items() if score > 0}
        return sorted(found.items(), key=lambda item: (-item[1], item[0]))[:k]

    def few(self, collection: str, document_ids: Sequence[str], most: int) -> list[str] | None:
        """The ids of all that is here of these documents; None where that is more than ``most``."""
        rows = self._db.execute(
            "SELECT chunk_id FROM rows WHERE document_id IN (SELECT value FROM json_each(?))"
            " AND collection = (SELECT number FROM collections WHERE collection = ?) LIMIT ?",
            (json.dumps(list(document_ids)), collection, most + 1),
        ).fetchall()
        return [row[0] for row in rows] if len(rows) <= most else None

    def texts(self, collection: str, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Of those of ``ids`` that are here, text and context as :func:`services.rag.terms.indexed` gives them."""
        rows = self._db.execute(
            "SELECT chunk_id, text, context FROM rows WHERE chunk_id IN (SELECT value FROM json_each(?))"
            " AND collection = (SELECT number FROM collections WHERE collection = ?)",
            (json.dumps(list(ids)), collection),
        )
        return {row[0]: (row[1], row[2]) for row in rows}

    def weights(self, collection: str, index_terms: Iterable[str]) -> dict[str, float]:
        """What each term says: BM25's inverse document frequency in the collection, > 0; the highest where nothing holds it.

        A collection of fewer than :data:`FILLED` chunks counts as filled up with ordinary ones.
        """
        with self._read() as db:
            statistics = _Statistics(db, collection, list(index_terms))
        return {term: statistics.filled_weight(term) for term in statistics.terms}

    @staticmethod
    def _candidates(
        db: sqlite3.Connection, statistics: "_Statistics", wanted: int, document_ids: Sequence[str] | None
    ) -> list[int]:
        """Rows worth scoring: those that hold the terms that say most."""
        allowed: Ids | None = None
        if document_ids is not None:
            where = "FROM rows WHERE document_id IN (SELECT value FROM json_each(?)) AND collection = ?"
            args = (json.dumps(list(document_ids)), statistics.number)
            allowed = _numbers(db, f"SELECT id {where}", args)
            if len(allowed) <= FEW_ROWS:
                return [int(id_) for id_ in allowed]
        rare = sorted(statistics.frequencies, key=lambda term: (statistics.frequencies[term], term))
        parts: list[Ids] = []
        said: list[float] = []
        looked_up, enough = 0, False
        for term in rare:
            if enough and looked_up + statistics.frequencies[term] > POSTINGS:
                break
            token = _token(statistics.number, term)
            part = _numbers(db, "SELECT rowid FROM postings WHERE postings MATCH ?", (f'"{token}"',))
            looked_up += len(part)
            if allowed is not None:
                part = part[np.isin(part, allowed, assume_unique=True)]
            parts.append(part)
            said.append(statistics.weights[term])
            enough = sum(map(len, parts)) >= wanted
        every, place = np.unique(np.concatenate(parts), return_inverse=True)
        score = np.bincount(place, np.repeat(said, [len(part) for part in parts]))
        best = np.argsort(-score, kind="stable")[:wanted]
        return [int(id_) for id_ in every[best]]

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


class _Statistics:
    """A question's terms in a collection: how many rows hold each, and what it says."""

    def __init__(self, db: sqlite3.Connection, collection: str, wanted: Sequence[str]) -> None:
        self._db = db
        self.terms = wanted
        row = db.execute("SELECT number, rows, length FROM collections WHERE collection = ?", (collection,)).fetchone()
        number, rows, length = row or (0, 0, 0.0)
        self.number: int = number
        self.rows: int = rows
        self.mean_length = length / self.rows if self.rows else 1.0
        found = db.execute(
            "SELECT term, rows FROM frequencies WHERE collection = ? AND term IN (SELECT value FROM json_each(?))",
            (self.number, json.dumps(list(wanted))),
        )
        self.frequencies: dict[str, int] = dict(found.fetchall())
        self.weights = {t: _weight(self.frequencies[t], self.rows) for t in wanted if t in self.frequencies}

    def filled_weight(self, term: str) -> float:
        missing = max(FILLED - self.rows, 0)
        return _weight(self.frequencies.get(term, 0) + USUAL_SHARE * missing, self.rows + missing)

    def score(self, ids: Sequence[int]) -> dict[str, float]:
        """BM25 by chunk id, of the rows with these ids."""
        found = self._db.execute(
            "SELECT chunk_id, length, text, context FROM rows"
            " WHERE id IN (SELECT value FROM json_each(?)) AND collection = ?",
            (json.dumps(list(ids)), self.number),
        )
        rows = found.fetchall()
        if not rows:
            return {}
        wanted = list(self.weights)
        counts = _counts([row[2] for row in rows], wanted)
        counts += CONTEXT_WEIGHT * _counts([row[3] for row in rows], wanted)
        lengths = np.array([row[1] for row in rows])
        norms = K1 * (1.0 - B + B * lengths / self.mean_length)
        weights = (K1 + 1.0) * np.array([self.weights[term] for term in wanted])
        scores = (counts / (counts + norms[:, None])) @ weights
        return {row[0]: float(score) for row, score in zip(rows, scores, strict=True)}


def _weight(holding: float, rows: int) -> float:
    return math.log(1.0 + (rows - holding + 0.5) / (holding + 0.5))


def _counts(texts: Sequence[str], wanted: Sequence[str]) -> Counts:
    """How often each text, as the index keeps it, holds each term: (texts, terms).

    CJK terms are characters and pairs, which are found in all texts in one pass; there are few others.
    """
    out = np.zeros((len(texts), len(wanted)))
    pairs = [(term, place) for place, term in enumerate(wanted) if terms.is_cjk(term)]
    for place, term in enumerate(wanted):
        if not terms.is_cjk(term):
            # Spaces of its own around each piece: a term that stands there twice in a row is found twice.
            out[:, place] = [f" {text.replace(' ', '  ')} ".count(f" {term} ") for text in texts]
    if not pairs or not any(texts):
        return out
    characters = sorted({character for term, _ in pairs for character in term})
    number_of = np.zeros(0x110000, np.uint16)
    number_of[[ord(character) for character in characters]] = np.arange(1, len(characters) + 1)
    single = np.full(len(characters) + 1, -1)
    double = np.full((len(characters) + 1, len(characters) + 1), -1)
    for term, place in pairs:
        numbers = [characters.index(character) + 1 for character in term]
        if len(numbers) == 1:
            single[numbers[0]] = place
        else:
            double[numbers[0], numbers[1]] = place
    numbers_at = number_of[np.frombuffer("\n".join(texts).encode("utf-32-le"), np.uint32)]
    text_at = np.repeat(np.arange(len(texts)), [len(text) + 1 for text in texts])[:-1]
    at = np.flatnonzero(numbers_at)
    first = at[:-1][at[1:] == at[:-1] + 1]
    held = np.concatenate([single[numbers_at[at]], double[numbers_at[first], numbers_at[first + 1]]])
    text = np.concatenate([text_at[at], text_at[first]])
    known = held >= 0
    return out + np.bincount(text[known] * len(wanted) + held[known], minlength=out.size).reshape(out.shape)


def _numbers(db: sqlite3.Connection, query: str, args: Sequence[object]) -> Ids:
    """A column of integers; joined by SQLite, because fetching a row each takes four times as long."""
    (joined,) = db.execute(f"WITH found (n) AS ({query}) SELECT group_concat(n) FROM found", args).fetchone()  # noqa: S608
    return np.fromstring(joined, np.int64, sep=",") if joined else np.empty(0, np.int64)
