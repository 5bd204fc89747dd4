"""Finds the passages that bear on a question.

Dense and lexical search side by side give candidates; whichever search found one, it is compared with the question in
all ways (:mod:`services.rag.relevance`), and a model of these makes the ranking (:mod:`services.rag.fusion`). What is
returned are passages: the chunks that were found with what stands around them (:mod:`services.rag.passages`).

Every score that leaves this file is on one scale: the estimated probability, 0 to 1, that the passage bears on the
question. The refusal threshold is a point on that scale.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from services.rag.background import Backgrounds
from services.rag.calibration import Calibrations, Sample
from services.rag.errors import InvalidRequest, NotFound, RagError
from services.rag.fusion import Calibration, hedged
from services.rag.passages import PASSAGE_TOKENS, Passage, joined
from services.rag.relevance import Array, Asked, Background, Row, features, is_cjk
from services.rag.store.catalog import Catalog
from services.rag.store.index import Embedder, Index, Indexes, unusable
from services.rag.store.records import ATTACHED, Chunk, Collection, Document, Metadata

log = logging.getLogger("docduet.rag")

Mode = Literal["hybrid", "dense", "lexical"]
Place = tuple[str, int]  # document id, page

MAX_K = 100
MAX_QUERY_CHARACTERS = 8000
CANDIDATES = 40  # of each search
RERANKED = 20
FILTER_FIELDS = ("document_id", "filename")
# A filter's list may be as long as a collection has documents, not as long as a request can be.
MAX_FILTER_VALUES = 100_000
# A filter that leaves no more chunks than this has them all compared.
FEW_CHUNKS = 500
# A document that takes another's place while a search runs makes the search look again; this often is never needed.
_LOOKS = 10
# Characters on each side of a chunk among which its passage grows.
_AROUND = 2000


@dataclass(frozen=True)
class _Hits:
    """What the two searches found: ids with cosine similarity and with BM25, best first."""

    dense: list[tuple[str, float]]
    lexical: list[tuple[str, float]]
    vector: npt.NDArray[np.float32] | None  # the question's


@dataclass(frozen=True)
class _Candidate:
    chunk: Chunk
    document: Document
    label: str

    @property
    def place(self) -> Place:
        return self.document.id, self.chunk.page


class Reranker(Protocol):
    """A cross-encoder: it reads question and text together. Thread-safe."""

    def score(self, query: str, texts: Sequence[str]) -> Sequence[float]:
        """One a text; higher is better."""


class Retriever:
    def __init__(
        self,
        catalog: Catalog,
        indexes: Indexes,
        calibrations: Calibrations | None = None,
        reranker: Reranker | None = None,
        *,
        passage_tokens: int = PASSAGE_TOKENS,
    ) -> None:
        """``passage_tokens`` is what the passage around a chunk grows to, estimated; 0 for the chunks alone."""
        self._catalog = catalog
        self._passage_tokens = passage_tokens
        self._indexes = indexes
        self._calibrations = calibrations or Calibrations()
        self._reranker = reranker
        self._reranking_failed = False
        self._backgrounds = Backgrounds(catalog)
        self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="search")
        # The sentences of an answer are compared with the same passages, one after the other.
        self._spans: tuple[tuple[str, ...], npt.NDArray[np.float32]] = ((), np.empty((0, 0), np.float32))

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
    ) -> list[Passage]:
        """The ``k`` passages that bear on ``query`` best, best first.

        ``dense`` and ``lexical`` rank by cosine similarity and by BM25 alone.

        Raises:
            InvalidRequest: an empty or oversized query, ``k`` out of 1 … :data:`MAX_K`, an unknown filter field.
            NotFound: there is no such collection.
            StorageError: the index cannot be read.
        """
        query = _checked(query)
        if not 1 <= k <= MAX_K:
            raise InvalidRequest(f"k is {k}, it must be between 1 and {MAX_K}", param="k")
        found: list[Passage] = []
        for _ in range(_LOOKS):
            swaps = self._catalog.swaps
            found = self._look(query, k, self._catalog.collection(collection), filter, mode)
            # Between the hits and their texts a new version took the old one's place: neither may be in them.
            if swaps == self._catalog.swaps:
                break
        return found

    def samples(self, query: str, collection: str, right: Callable[[Place], bool]) -> tuple[Sample, Sample]:
        """What a calibration is fitted on: the candidates of a question, and those without the pages that are ``right``."""
        query, target = _checked(query), self._catalog.collection(collection)
        with self._indexes.use() as index:
            hits = self._hits(index, query, 2 * CANDIDATES, target.id, None, "hybrid")
            candidates, rows = self._candidates(index, target.id, hits)
            out = []
            for left_out in (False, True):
                kept = [i for i, c in enumerate(candidates) if not (left_out and right(c.place))]
                chosen = _first({candidates[i].chunk.id for i in kept}, hits, CANDIDATES)
                kept = [i for i in kept if candidates[i].chunk.id in chosen]
                found = [candidates[i] for i in kept]
                values = self._features(index, target, query, hits.vector, [rows[i] for i in kept])
                numbers = {place: n for n, place in enumerate(dict.fromkeys(c.place for c in found))}
                is_right = np.array([right(c.place) for c in found], np.bool_)
                out.append(Sample(values, tuple(numbers[c.place] for c in found), is_right, left_out))
        return out[0], out[1]

    def nearness(self, text: str, spans: Sequence[str]) -> list[float]:
        """How near in meaning each of ``spans`` is to ``text``, which is in another script: standard deviations above what is
        usual of two such texts, as the calibration of the embedder tells; empty where it does not."""
        with self._indexes.use() as index:
            embedder, calibration = index.embedder, _calibration(self._calibrations, index)
        usual = calibration.prior(is_cjk(text)).get(not is_cjk(text))
        if embedder is None or usual is None or not spans:
            return []
        mean, deviation = usual
        key = (embedder.fingerprint, *spans)
        try:
            if (known := self._spans)[0] != key:
                known = self._spans = (key, embedder.embed_documents(spans))
            near = known[1] @ _embedded(embedder, text)
        except Exception:  # memory, a driver: an answer that is half written goes on without this
            log.exception("the embedding model failed on an answer: it is cited by names and numbers alone")
            return []
        return [float(n) for n in (near - mean) / deviation]

    def _look(
        self, query: str, k: int, collection: Collection, filter: Mapping[str, Any] | None, mode: Mode
    ) -> list[Passage]:
        within = self._documents(collection, filter)
        if within == []:
            return []
        with self._indexes.use() as index:
            hits = self._hits(index, query, max(CANDIDATES, 2 * k), collection.id, within, mode)
            candidates, rows = self._candidates(index, collection.id, hits)
            values = self._features(index, collection, query, hits.vector, rows)
            calibration = _calibration(self._calibrations, index)
        model = calibration.words if hits.vector is None else calibration.hybrid
        searched = self._catalog.chunk_count(collection.id, within)
        probabilities = hedged(model.probabilities(values, [row.page for row in rows]), searched, calibration.size)
        if mode == "dense" and hits.vector is not None:
            scores = _by_rank(candidates, hits.dense)
        elif mode == "lexical" or hits.vector is None:
            scores = _by_rank(candidates, hits.lexical)
        else:
            scores = model.scores(values)
        order = sorted(range(len(candidates)), key=lambda i: (-scores[i], candidates[i].chunk.id))
        if mode == "hybrid":
            # The probabilities of two scripts are not on one line; what comes first is at least as probable as what follows.
            probabilities[order] = np.maximum.accumulate(probabilities[order][::-1])[::-1]
        if mode == "hybrid" and self._reranker is not None:
            order = self._reranked(self._reranker, query, candidates, order)
        ranked = [candidates[i] for i in order]
        found = [_passage(candidates[i], float(probabilities[i])) for i in order]
        return joined(
            found, k, lambda numbers: [self._around(ranked[n].chunk) for n in numbers], tokens=self._passage_tokens
        )

    def _reranked(
        self, reranker: Reranker, query: str, candidates: Sequence[_Candidate], order: list[int]
    ) -> list[int]:
        """The best anew, by a reader that is too slow for all. Its scores rank only: probabilities stay on their scale.

        It reads the chunks that were found: what they grow to depends on which of them come first.
        """
        best, rest = order[:RERANKED], order[RERANKED:]
        if len(best) < 2:
            return order
        try:
            scores = np.asarray(reranker.score(query, [candidates[i].chunk.text for i in best]), np.float64)
            if scores.shape != (len(best),) or not np.isfinite(scores).all():
                raise ValueError(f"{len(best)} finite scores were wanted, and these came: {scores}")
        except Exception:  # memory, a driver, broken weights: an order there is already
            # Once: it would fail for every question alike.
            log.log(
                logging.DEBUG if self._reranking_failed else logging.ERROR,
                "the reranker failed: searches keep the order they have without it",
                exc_info=True,
            )
            self._reranking_failed = True
            return order
        return [best[n] for n in np.argsort(-scores, kind="stable")] + rest

    def _around(self, chunk: Chunk) -> tuple[int, str]:
        """A slice of the chunk's page: where it starts, and its text."""
        start = max(chunk.start - _AROUND, 0)
        try:
            text = self._catalog.page(chunk.document_id, chunk.page).text[start : chunk.end + _AROUND]
        except NotFound:
            text = ""
        # The document was read again, or went, since it was found.
        if text[chunk.start - start : chunk.end - start] != chunk.text:
            return chunk.start, chunk.text
        return start, text

    def _candidates(self, index: Index, collection_id: str, hits: _Hits) -> tuple[list[_Candidate], list[Row]]:
        """The chunks that were found and may be shown, as they are compared with the question.

        A hit on what belongs to a chunk is a hit on the chunk.
        """
        similarity = dict(hits.dense)
        every = list(dict.fromkeys(id_ for id_, _ in (*hits.dense, *hits.lexical)))
        chunks = list(dict.fromkeys(id_.partition(ATTACHED)[0] for id_ in every))
        absent = [id_ for id_ in dict.fromkeys((*chunks, *every)) if id_ not in similarity]
        try:
            looked_up = (
                self._pool.submit(index.vectors.vectors, collection_id, absent) if hits.vector is not None else None
            )
            visible = self._catalog.visible_chunks(chunks)
            texts = index.lexical.texts(collection_id, list(dict.fromkeys((*chunks, *every))))
            if looked_up is not None and hits.vector is not None:
                similarity.update((id_, float(v @ hits.vector)) for id_, v in looked_up.result().items())
        except RagError:
            raise
        except Exception as error:
            raise unusable(error) from error
        attached: dict[str, list[str]] = {}
        for id_ in every:
            attached.setdefault(id_.partition(ATTACHED)[0], []).append(id_)
        candidates, rows = [], []
        for chunk_id in (id_ for id_ in chunks if id_ in visible):
            candidate = _Candidate(*visible[chunk_id])
            text, context = texts.get(chunk_id, ("", ""))
            beside = [texts[id_][0] for id_ in attached[chunk_id] if id_ != chunk_id and id_ in texts]
            cosines = [similarity[id_] for id_ in (chunk_id, *attached[chunk_id]) if id_ in similarity]
            candidates.append(candidate)
            rows.append(
                Row(candidate.place, text, " ".join([context, *beside]).strip(), max(cosines, default=math.nan))
            )
        return candidates, rows

    def _features(
        self,
        index: Index,
        collection: Collection,
        query: str,
        vector: npt.NDArray[np.float32] | None,
        rows: Sequence[Row],
    ) -> Array:
        asked = Asked(query, lambda wanted: index.lexical.weights(collection.id, wanted))
        background = Background(np.empty(0), np.empty(0, np.bool_), {})
        if vector is not None:
            background = self._backgrounds.of(
                index, collection, vector, asked.cjk, _calibration(self._calibrations, index)
            )
        return features(asked, rows, background)

    def _hits(
        self, index: Index, query: str, wide: int, collection_id: str, within: list[str] | None, mode: Mode
    ) -> _Hits:
        """Both searches, side by side. Without the embedder that made the index its words have to do."""
        embedder = index.embedder
        dense = lexical = None
        vector: npt.NDArray[np.float32] | None = None
        try:
            if mode != "dense" or embedder is None:
                lexical = self._pool.submit(index.lexical.search, collection_id, query, wide, within)
            if mode != "lexical" and embedder is not None:
                vector = _embedded(embedder, query)
                few = None if within is None else index.lexical.few(collection_id, within, FEW_CHUNKS)
                if few:
                    dense = index.vectors.compare(collection_id, vector, few)[:wide]
                else:  # too many, or their words are not there yet
                    dense = index.vectors.search(collection_id, vector, wide, within)
            return _Hits(dense or [], lexical.result() if lexical else [], vector)
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
        wanted: dict[str, set[tuple[bool, Any]]] = {}
        for name, value in filter.items():
            values = value if isinstance(value, list) else [value]
            kinds = str if name in FILTER_FIELDS else str | int | float | bool
            if len(values) > MAX_FILTER_VALUES:
                raise InvalidRequest(
                    f"filter.{name} has {len(values)} values, at most {MAX_FILTER_VALUES} are taken", param="filter"
                )
            if not values or not all(isinstance(v, kinds) for v in values):
                what = "a string" if name in FILTER_FIELDS else "a string, a number, true or false"
                raise InvalidRequest(f"filter.{name} must be {what}, or a list of such", param="filter")
            wanted[name] = {_key(value) for value in values}
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


def _fits(values: Metadata, wanted: Mapping[str, set[tuple[bool, Any]]]) -> bool:
    return all(name in values and _key(values[name]) in allowed for name, allowed in wanted.items())


def _key(value: Any) -> tuple[bool, Any]:
    # Python takes True for 1; a filter does not.
    return isinstance(value, bool), value


def _embedded(embedder: Embedder, query: str) -> npt.NDArray[np.float32]:
    try:
        return embedder.embed_query(query)
    except RagError:
        raise
    except Exception as error:
        raise RagError(
            f"the embedding model failed on the question ({type(error).__name__}: {error}): restart the service, or search with "
            "mode=lexical, which does without it"
        ) from error


def _calibration(calibrations: Calibrations, index: Index) -> Calibration:
    return calibrations.of(index.row.fingerprint, index.model_id)


def _checked(query: str) -> str:
    query = query.encode("utf-8", "replace").decode().strip()
    if not query:
        raise InvalidRequest("the query is empty", param="query")
    if len(query) > MAX_QUERY_CHARACTERS:
        raise InvalidRequest(
            f"the query has {len(query)} characters, at most {MAX_QUERY_CHARACTERS} are searched", param="query"
        )
    return query


def _first(allowed: set[str], hits: _Hits, n: int) -> set[str]:
    """Of the allowed chunks those that are among the first ``n`` of a search."""
    out: set[str] = set()
    for ranking in (hits.dense, hits.lexical):
        ids = dict.fromkeys(id_.partition(ATTACHED)[0] for id_, _ in ranking)
        out.update([id_ for id_ in ids if id_ in allowed][:n])
    return out


def _by_rank(candidates: Sequence[_Candidate], hits: Sequence[tuple[str, float]]) -> Array:
    """Scores that keep the order of a search."""
    rank: dict[str, int] = {}
    for id_, _ in hits:
        rank.setdefault(id_.partition(ATTACHED)[0], len(rank))
    return np.array([-rank[c.chunk.id] for c in candidates], np.float64)


def _passage(candidate: _Candidate, score: float) -> Passage:
    chunk, document = candidate.chunk, candidate.document
    return Passage(
        document.id,
        document.filename,
        chunk.page,
        chunk.start,
        chunk.text,
        round(score, 4),
        candidate.label,
        document.sequence,
    )
