"""Finds the passages that bear on a question: dense and lexical search, fused by reciprocal rank.

Every score that leaves this file is on one scale: the estimated probability, 0 to 1, that the passage bears on the
question (:func:`relevance`). The refusal threshold is a point on that scale.
"""

import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from services.rag.documents.reflow import CJK
from services.rag.errors import InvalidRequest, RagError
from services.rag.store.catalog import Catalog
from services.rag.store.index import Index, Indexes, unusable
from services.rag.store.lexical import content_terms
from services.rag.store.records import Chunk, Collection, Document, Metadata

Mode = Literal["hybrid", "dense", "lexical"]

MAX_K = 100
MAX_QUERY_CHARACTERS = 8000
# Reciprocal rank fusion's constant, from Cormack et al. (SIGIR 2009).
RRF_K = 60
CANDIDATES = 40
_CJK_CHARACTER = re.compile(f"[{CJK}]")
FILTER_FIELDS = ("document_id", "filename")
# A document that takes another's place while a search runs makes the search look again; this often is never needed.
_LOOKS = 10


@dataclass(frozen=True)
class Found:
    chunk: Chunk
    document: Document
    label: str  # the page's, where it has one
    score: float  # probability of relevance, 0 to 1


@dataclass(frozen=True)
class Calibration:
    """A logistic model of relevance: weights of cosine similarity and of coverage, and the intercept.

    Embedders differ in where their similarities lie (e5's are squeezed into 0.75 to 0.95), so the weights belong to an
    embedder. ``scripts/calibrate.py`` fits them on SQuAD-style files.
    """

    cosine: float
    coverage: float
    intercept: float
    # For a passage in another language than the question, where no word can match.
    cosine_alone: float
    intercept_alone: float


CALIBRATIONS: dict[str, Calibration] = {
    "embedded": Calibration(24.7, 7.5, -25.1, cosine_alone=51.1, intercept_alone=-44.3),
}
# Without a fit the similarity says nothing reliable: coverage decides, and another language gets the benefit of the doubt.
DEFAULT_CALIBRATION = Calibration(0.0, 9.3, -4.6, cosine_alone=0.0, intercept_alone=0.0)


class Retriever:
    def __init__(self, catalog: Catalog, indexes: Indexes) -> None:
        self._catalog = catalog
        self._indexes = indexes
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="search")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def search(
        self,
        query: str,
        k: int,
        *,
        collection: str,
        filter: Mapping[str, Any] | None = None,
        mode: Mode = "hybrid",
    ) -> list[Found]:
        """The ``k`` passages that bear on ``query`` best, best first.

        Raises:
            InvalidRequest: an empty or oversized query, ``k`` out of 1 … :data:`MAX_K`, an unknown filter field.
            NotFound: there is no such collection.
            StorageError: the index cannot be read.
        """
        query = query.encode("utf-8", "replace").decode().strip()
        if not query:
            raise InvalidRequest("the query is empty", param="query")
        if len(query) > MAX_QUERY_CHARACTERS:
            raise InvalidRequest(
                f"the query has {len(query)} characters, at most {MAX_QUERY_CHARACTERS} are searched", param="query"
            )
        if not 1 <= k <= MAX_K:
            raise InvalidRequest(f"k is {k}, it must be between 1 and {MAX_K}", param="k")
        found: list[Found] = []
        for _ in range(_LOOKS):
            swaps = self._catalog.swaps
            found = self._look(query, k, self._catalog.collection(collection), filter, mode)
            # Between the hits and their texts a new version took the old one's place: neither may be in them.
            if swaps == self._catalog.swaps:
                break
        return found

    def _look(
        self, query: str, k: int, collection: Collection, filter: Mapping[str, Any] | None, mode: Mode
    ) -> list[Found]:
        within = self._documents(collection, filter)
        if within == []:
            return []
        with self._indexes.use() as index:
            dense_hits, lexical_hits = self._hits(index, query, max(CANDIDATES, 2 * k), collection.id, within, mode)
            model_id = index.embedder.model_id if index.embedder is not None else index.row.model_id
        calibration = CALIBRATIONS.get(model_id, DEFAULT_CALIBRATION)
        ranked = fuse([[i for i, _ in dense_hits], [i for i, _ in lexical_hits]])
        visible = self._catalog.visible_chunks(ranked)
        similarity = dict(dense_hits)
        found = []
        for chunk_id in ranked:
            if chunk_id in visible:
                chunk, document, label = visible[chunk_id]
                cosine = similarity.get(chunk_id) if mode != "lexical" else None
                score = relevance(query, chunk.text, cosine, calibration)
                found.append(Found(chunk, document, label, round(score, 4)))
            if len(found) == k:
                break
        return found

    def _hits(
        self, index: Index, query: str, wide: int, collection_id: str, within: list[str] | None, mode: Mode
    ) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
        """(dense, lexical), side by side. Without the embedder that made the index its words have to do."""
        embedder = index.embedder
        dense = lexical = None
        if mode != "lexical" and embedder is not None:
            dense = self._pool.submit(
                lambda: index.vectors.search(collection_id, embedder.embed_query(query), wide, within)
            )
        if mode != "dense" or embedder is None:
            lexical = self._pool.submit(index.lexical.search, collection_id, query, wide, within)
        try:
            return dense.result() if dense else [], lexical.result() if lexical else []
        except RagError:
            raise
        except Exception as error:
            raise unusable(error) from error

    def _documents(self, collection: Collection, filter: Mapping[str, Any] | None) -> list[str] | None:
        """The ids of the documents that ``filter`` selects; None for all.

        A filter names ``document_id``, ``filename`` or fields of the documents' metadata, each with a value or a list.
        """
        if not filter:
            return None
        wanted: dict[str, list[Any]] = {}
        for name, value in filter.items():
            values = value if isinstance(value, list) else [value]
            kinds = str if name in FILTER_FIELDS else str | int | float | bool
            if not values or not all(isinstance(v, kinds) for v in values):
                what = "a string" if name in FILTER_FIELDS else "a string, a number, true or false"
                raise InvalidRequest(f"filter.{name} must be {what}, or a list of such", param="filter")
            wanted[name] = values
        documents = self._catalog.document_ids(collection.id)
        known = {*FILTER_FIELDS, *(name for _, _, metadata in documents for name in metadata)}
        if unknown := [name for name in wanted if name not in known]:
            raise InvalidRequest(
                f"the filter has unknown fields {', '.join(map(repr, unknown))}; the collection {collection.name!r} knows "
                + ", ".join(sorted(known)[:50]),
                param="filter",
            )
        return [
            doc_id
            for doc_id, filename, metadata in documents
            if _fits({**metadata, "document_id": doc_id, "filename": filename}, wanted)
        ]


def _fits(values: Metadata, wanted: Mapping[str, list[Any]]) -> bool:
    # Python takes True for 1; a filter does not.
    return all(
        any(v == values[name] and isinstance(v, bool) == isinstance(values[name], bool) for v in allowed)
        if name in values
        else False
        for name, allowed in wanted.items()
    )


def fuse(rankings: Sequence[Sequence[str]]) -> list[str]:
    """Reciprocal rank fusion: ids by the sum of 1 / (60 + rank) over the rankings that hold them, best first."""
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, id_ in enumerate(ranking, start=1):
            scores[id_] = scores.get(id_, 0.0) + 1.0 / (RRF_K + rank)
    return sorted(scores, key=lambda id_: (-scores[id_], id_))


def relevance(question: str, text: str, cosine: float | None, calibration: Calibration) -> float:
    """Probability, 0 to 1, that a passage bears on a question.

    Two signals that fail differently: ``cosine`` similarity (None: the dense search did not find it) and coverage, the
    share of the question's content terms that the passage holds.
    """
    covered = coverage(question, text)
    if covered == 0.0 and cosine is not None and _is_cjk(question) != _is_cjk(text):
        logit = calibration.cosine_alone * cosine + calibration.intercept_alone
    else:
        # What only the lexical search found lies below the dense results; its coverage has to carry it.
        near = _FAR_COSINE if cosine is None else cosine
        logit = calibration.cosine * near + calibration.coverage * covered + calibration.intercept
    return 1.0 / (1.0 + math.exp(-logit))


_FAR_COSINE = 0.80


def coverage(question: str, text: str) -> float:
    """Share, 0 to 1, of the question's content terms that ``text`` holds."""
    terms = set(content_terms(question))
    held = set(content_terms(text))
    total = sum(map(_weight, terms))
    return sum(_weight(t) for t in terms if t in held) / total if total else 0.0


def _is_cjk(text: str) -> bool:
    return len(_CJK_CHARACTER.findall(text)) * 4 > len(text)


def _weight(term: str) -> float:
    # A word says more than the single characters that it was also cut into.
    return 0.3 if len(term) == 1 and not term.isascii() else 1.0
