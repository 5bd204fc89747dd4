"""Vectors in Chroma: an index of the catalog's chunks that can be dropped and made again. Only this file imports chromadb.

A Chroma collection is named after the docduet collection, the embedder's fingerprint and the index's generation: vectors of
two embedders never meet in one. Scores are cosine similarities.
"""

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import numpy.typing as npt
from chromadb.api.shared_system_client import SharedSystemClient
from chromadb.config import Settings as ChromaSettings

from services.rag.errors import StartupError
from services.rag.store.records import ATTACHED

Vectors = npt.NDArray[np.float32]

_PREFIX = "docduet-"
_PAGE = 1000  # ids listed at a time
# What of a chunk is embedded: 1 its text, 2 its text under the heading that it stands under.
EMBEDDED = 2
# Of the nearest of all documents these many are looked at before Chroma is asked to filter, which takes it the longer the
# more chunks pass: it lists them all.
_LOOKED_AT = 1000


class ChromaDamaged(Exception):
    """The Chroma folder cannot be opened; it is only an index."""


class Chroma:
    """The database that holds the collections of all generations."""

    def __init__(self, path: Path, url: str | None = None) -> None:
        """Open the folder ``path``, or the server at ``url``.

        Raises:
            StartupError: the server does not answer.
            ChromaDamaged: the folder cannot be opened.
        """
        self._path, self._url = path, url
        self.client = self._opened()

    def _opened(self) -> Any:
        path, url = self._path, self._url
        # Telemetry is off here, whatever the environment says: nothing leaves the machine.
        settings = ChromaSettings(anonymized_telemetry=False)
        try:
            if url:
                host, _, port = url.split("://", 1)[-1].rstrip("/").partition(":")
                ssl = url.startswith("https")
                return chromadb.HttpClient(
                    host=host, port=int(port or (443 if ssl else 8000)), ssl=ssl, settings=settings
                )
            return chromadb.PersistentClient(path=str(path), settings=settings)
        except BaseException as error:  # its Rust half panics on a damaged file, which is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            if url:
                raise StartupError(
                    f"the Chroma server at RAG_CHROMA_URL={url} cannot be opened: {error}. "
                    "Start it, or unset RAG_CHROMA_URL."
                ) from error
            SharedSystemClient.clear_system_cache()  # it keeps the half-made one for the next who asks
            raise ChromaDamaged(f"the Chroma folder {path} cannot be opened: {error}") from error

    def reopen(self) -> None:
        """Open the folder anew after an error: of the connections to it, those that were made while the disk was full or
        read-only stay useless. Where it cannot be opened now, all stays as it is; a server needs nothing of the kind."""
        if self._url:
            return
        SharedSystemClient.clear_system_cache()  # whoever searches now keeps what it has
        with contextlib.suppress(ChromaDamaged):
            self.client = self._opened()

    def heartbeat(self) -> None:
        """Raise when the store does not answer."""
        self.client.heartbeat()

    def drop_all_but(self, generations: Sequence["VectorStore"]) -> None:
        """Remove the collections of other generations: those that a kill left, and retired ones."""
        for collection in self.client.list_collections():
            metadata = collection.metadata or {}
            if collection.name.startswith(_PREFIX) and not any(store.owns(metadata) for store in generations):
                self.client.delete_collection(collection.name)


class VectorStore:
    """One generation's vectors. Thread-safe."""

    def __init__(self, chroma: Chroma, fingerprint: str, generation: int = 0) -> None:
        """``fingerprint`` is that of the embedder whose vectors come in and queries go out."""
        self._chroma = chroma
        self._fingerprint = fingerprint
        self._generation = generation
        self._lock = threading.Lock()
        self._collections: dict[str, Any] = {}
        self._collections_of: Any = None  # the client that they came from

    def owns(self, metadata: dict[str, Any]) -> bool:
        """Whether a Chroma collection with this metadata is of this generation."""
        return metadata.get("fingerprint") == self._fingerprint and metadata.get("generation", 0) == self._generation

    @property
    def outdated(self) -> bool:
        """Whether its vectors are of something else than what is embedded today. They can still be searched."""
        return any(
            metadata.get("embedded", 1) != EMBEDDED
            for metadata in (collection.metadata or {} for collection in self._chroma.client.list_collections())
            if self.owns(metadata)
        )

    def _collection(self, collection: str) -> Any:
        with self._lock:
            if self._collections_of is not (client := self._chroma.client):
                self._collections, self._collections_of = {}, client
            if collection not in self._collections:
                parts = [collection, self._fingerprint, *([str(self._generation)] if self._generation else [])]
                digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
                self._collections[collection] = client.get_or_create_collection(
                    f"{_PREFIX}{digest}",
                    embedding_function=None,
                    metadata={
                        "collection": collection,
                        "fingerprint": self._fingerprint,
                        "generation": self._generation,
                        "embedded": EMBEDDED,
                    },
                    configuration={"hnsw": {"space": "cosine"}},
                )
            return self._collections[collection]

    def upsert(self, collection: str, ids: Sequence[str], vectors: Vectors, document_ids: Sequence[str]) -> None:
        """Write vectors of shape (n, d), one a chunk id; the same ids again replace what was there."""
        self._collection(collection).upsert(
            ids=list(ids), embeddings=vectors, metadatas=[{"document_id": id_} for id_ in document_ids]
        )

    def missing(self, collection: str, ids: Sequence[str]) -> list[str]:
        """Those of ``ids`` that have no vector yet, in order."""
        present: set[str] = set()
        for at in range(0, len(ids), _PAGE):
            present.update(self._collection(collection).get(ids=list(ids[at : at + _PAGE]), include=[])["ids"])
        return [id_ for id_ in ids if id_ not in present]

    def vectors(self, collection: str, ids: Sequence[str]) -> dict[str, Vectors]:
        """The vectors of those of ``ids`` that are here."""
        if not ids:
            return {}  # Chroma would give all
        found = self._collection(collection).get(ids=list(ids), include=["embeddings"])
        return dict(zip(found["ids"], np.asarray(found["embeddings"], np.float32), strict=True))

    def ids(self, collection: str, *, attached: bool = False) -> Iterator[tuple[str, str]]:
        """(chunk id, document id) of every chunk's vector; with ``attached``, of what belongs to chunks too."""
        target = self._collection(collection)
        for at in range(0, target.count(), _PAGE):
            page = target.get(limit=_PAGE, offset=at, include=["metadatas"])
            for id_, metadata in zip(page["ids"], page["metadatas"], strict=True):
                if attached or ATTACHED not in id_:
                    yield id_, str(metadata["document_id"])

    def search(
        self, collection: str, vector: Vectors, k: int, document_ids: Sequence[str] | None = None
    ) -> list[tuple[str, float]]:
        """The ``k`` nearest ids with their cosine similarity, best first.

        An id is a chunk's, or that of something attached to one, and begins with its document's id and a colon.
        """
        if document_ids is None:
            return self._nearest(collection, vector, k)
        allowed = set(document_ids)
        near = self._nearest(collection, vector, max(k, _LOOKED_AT))
        found = [(id_, similarity) for id_, similarity in near if id_.partition(":")[0] in allowed]
        if len(found) >= k or len(near) < _LOOKED_AT:
            return found[:k]
        return self._nearest(collection, vector, k, where={"document_id": {"$in": sorted(allowed)}})

    def compare(self, collection: str, vector: Vectors, ids: Sequence[str]) -> list[tuple[str, float]]:
        """Those of ``ids`` that are here with their cosine similarity, best first.

        Reading a few hundred vectors takes a fraction of what Chroma's own filter does in a large collection.
        """
        found = self.vectors(collection, ids)
        return sorted(((id_, float(v @ vector)) for id_, v in found.items()), key=lambda hit: (-hit[1], hit[0]))

    def _nearest(self, collection: str, vector: Vectors, k: int, **only: Any) -> list[tuple[str, float]]:
        # No count() beforehand: it reads every row, 30 ms of them at 100,000, and fewer than k are no error.
        found = self._collection(collection).query(
            query_embeddings=[vector], n_results=k, include=["distances"], **only
        )
        return [(id_, 1.0 - float(d)) for id_, d in zip(found["ids"][0], found["distances"][0], strict=True)]

    def probe(self, collection: str) -> None:
        """Raise when the collection's graph cannot be searched; its list of ids may be readable all the same."""
        target = self._collection(collection)
        some = target.get(limit=1, include=["embeddings"])
        if some["ids"]:
            target.query(query_embeddings=some["embeddings"], n_results=1, include=["distances"])

    def delete_document(self, collection: str, document_id: str) -> int:
        """Returns how many vectors it had."""
        target = self._collection(collection)
        ids = target.get(where={"document_id": document_id}, include=[])["ids"]
        if ids:
            target.delete(ids=ids)
        return len(ids)

    def delete(self, collection: str, ids: Sequence[str]) -> None:
        for at in range(0, len(ids), _PAGE):
            self._collection(collection).delete(ids=list(ids[at : at + _PAGE]))

    def count(self, collection: str) -> int:
        return int(self._collection(collection).count())

    def drop(self) -> None:
        """Remove the whole generation."""
        for collection in self._chroma.client.list_collections():
            if collection.name.startswith(_PREFIX) and self.owns(collection.metadata or {}):
                with contextlib.suppress(Exception):  # another's retry; what is left goes at the next start
                    self._chroma.client.delete_collection(collection.name)
        with self._lock:
            self._collections.clear()
