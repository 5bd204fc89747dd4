"""Finds the passages that bear on a question: dense and lexical search, fused by reciprocal rank.

Every score that leaves this file is on one scale: the estimated probability, 0 to 1, that the passage bears on the
question (:func:`relevance`). The refusal threshold is a point on that scale.
"""

import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from services.rag.documents.reflow import CJK
from services.rag.errors import InvalidRequest
from services.rag.store.catalog import Catalog, Chunk, Document
from services.rag.store.chroma import VectorStore
from services.rag.store.lexical import LexicalIndex, content_terms

Mode = Literal["hybrid", "dense", "lexical"]

MAX_K = 100
MAX_QUERY_CHARACTERS = 8000
# Reciprocal rank fusion's constant, from Cormack et al. (SIGIR 2009).
RRF_K = 60
CANDIDATES = 40
_CJK_CHARACTER = re.compile(f"[{CJK}]")
FILTER_FIELDS = ("document_id", "filename")


class QueryEmbedder(Protocol):
    @property
    def model_id(self) -> str: ...
    def embed_query(self, text: str) -> npt.NDArray[np.float32]: ...


@dataclass(frozen=True)
class Found:
    chunk: Chunk
    document: Document
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
    def __init__(self, catalog: Catalog, vectors: VectorStore, lexical: LexicalIndex, embedder: QueryEmbedder) -> None:
        self._catalog = catalog
        self._vectors = vectors
        self._lexical = lexical
        self._embedder = embedder
        self._calibration = CALIBRATIONS.get(embedder.model_id, DEFAULT_CALIBRATION)
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
        within = self._documents(collection, filter)
        if within == []:
            return []
        wide = max(CANDIDATES, 2 * k)
        dense = lexical = None
        if mode != "lexical":
            dense = self._pool.submit(
                lambda: self._vectors.search(collection, self._embedder.embed_query(query), wide, within)
            )
        if mode != "dense":
            lexical = self._pool.submit(self._lexical.search, collection, query, wide, within)
        dense_hits = dense.result() if dense else []
        lexical_hits = lexical.result() if lexical else []
        ranked = fuse([[i for i, _ in dense_hits], [i for i, _ in lexical_hits]])
        visible = self._catalog.visible_chunks(ranked)
        similarity = dict(dense_hits)
        found = []
        for chunk_id in ranked:
            if chunk_id in visible:
                chunk, document = visible[chunk_id]
                cosine = similarity.get(chunk_id) if mode != "lexical" else None
                score = relevance(query, chunk.text, cosine, self._calibration)
                found.append(Found(chunk, document, round(score, 4)))
            if len(found) == k:
                break
        return found

    def _documents(self, collection: str, filter: Mapping[str, Any] | None) -> list[str] | None:
        """The document ids that ``filter`` selects; None for all."""
        if not filter:
            return None
        unknown = [name for name in filter if name not in FILTER_FIELDS]
        if unknown:
            raise InvalidRequest(
                f"the filter has unknown fields {', '.join(map(repr, unknown))}; known are {', '.join(FILTER_FIELDS)}",
                param="filter",
            )
        wanted: dict[str, list[str]] = {}
        for name, value in filter.items():
            values = value if isinstance(value, list) else [value]
            if not values or not all(isinstance(v, str) for v in values):
                raise InvalidRequest(f"filter.{name} must be a string or a list of strings", param="filter")
            wanted[name] = values
        return [
            d.id
            for d in self._catalog.documents(collection)
            if d.id in wanted.get("document_id", [d.id]) and d.filename in wanted.get("filename", [d.filename])
        ]


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
