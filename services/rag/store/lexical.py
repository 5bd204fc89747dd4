"""The lexical index: SQLite FTS5 (BM25) over segmented text. An index of the catalog's chunks, not a source of truth."""

import re
import sqlite3
import threading
import unicodedata
from collections.abc import Iterable, Sequence
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
    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")  # an index: a lost tail is written again by the job
        self._db.execute(
            "CREATE VIRTUAL TABLE IF NOT EXISTS chunks USING fts5(terms, chunk_id UNINDEXED, document_id UNINDEXED,"
            " collection UNINDEXED, tokenize = \"unicode61 tokenchars ''\", detail = full)"
        )

    def put_document(self, collection: str, document_id: str, chunks: Iterable[tuple[str, str]]) -> None:
        """Replace the document's rows by ``(chunk id, text)`` pairs, in one transaction."""
        rows = [(" ".join(map(_ascii, terms(text))), chunk_id, document_id, collection) for chunk_id, text in chunks]
        with self._lock, self._db:
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM chunks WHERE document_id = ?", (document_id,))
            self._db.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?)", rows)
            self._db.execute("COMMIT")

    def delete_document(self, document_id: str) -> None:
        with self._lock:
            self._db.execute("DELETE FROM chunks WHERE document_id = ?", (document_id,))

    def counts(self) -> dict[str, int]:
        """Rows by document id."""
        with self._lock:
            return dict(self._db.execute("SELECT document_id, COUNT(*) FROM chunks GROUP BY document_id").fetchall())

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
            where = f"AND document_id IN ({','.join('?' * len(document_ids))})"
            args = list(document_ids)
        with self._lock:
            rows = self._db.execute(
                "SELECT chunk_id, bm25(chunks) FROM chunks WHERE chunks MATCH ? AND collection = ?"  # noqa: S608
                f" {where} ORDER BY rank LIMIT ?",
                (match, collection, *args, k),
            ).fetchall()
        return [(chunk_id, -score) for chunk_id, score in rows]

    def close(self) -> None:
        self._db.close()
