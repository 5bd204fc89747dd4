"""Vectors in Chroma: an index of the catalog's chunks that can be dropped and made again. Only this file imports chromadb.

A Chroma collection is named after the docduet collection and the embedder's fingerprint: vectors of two embedders never
meet in one. Scores are cosine similarities.
"""

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import numpy.typing as npt
from chromadb.config import Settings as ChromaSettings

from services.rag.errors import StartupError

Vectors = npt.NDArray[np.float32]


class VectorStore:
    def __init__(self, path: Path, fingerprint: str, *, url: str | None = None) -> None:
        """Open the store.

        Args:
            path: folder of the embedded database; unused when ``url`` names a Chroma server.
            fingerprint: of the embedder whose vectors come in and queries go out.

        Raises:
            StartupError: the folder cannot be opened or the server does not answer.
        """
        # Telemetry is off here, whatever the environment says: nothing leaves the machine.
        settings = ChromaSettings(anonymized_telemetry=False)
        try:
            if url:
                host, _, port = url.split("://", 1)[-1].rstrip("/").partition(":")
                ssl = url.startswith("https")
                self._client: Any = chromadb.HttpClient(
                    host=host, port=int(port or (443 if ssl else 8000)), ssl=ssl, settings=settings
                )
            else:
                self._client = chromadb.PersistentClient(path=str(path), settings=settings)
        except Exception as error:
            where = f"the Chroma server at RAG_CHROMA_URL={url}" if url else f"the Chroma folder {path}"
            raise StartupError(
                f"{where} cannot be opened: {error}. "
                + (
                    "Start it, or unset RAG_CHROMA_URL."
                    if url
                    else "It is only an index: move it away and start again."
                )
            ) from error
        self._fingerprint = fingerprint
        self._lock = threading.Lock()
        self._collections: dict[str, Any] = {}

    def _collection(self, collection: str) -> Any:
        with self._lock:
            if collection not in self._collections:
                digest = hashlib.sha256(f"{collection}\0{self._fingerprint}".encode()).hexdigest()[:32]
                self._collections[collection] = self._client.get_or_create_collection(
                    f"docduet-{digest}",
                    embedding_function=None,
                    metadata={"collection": collection, "fingerprint": self._fingerprint},
                    configuration={"hnsw": {"space": "cosine"}},
                )
            return self._collections[collection]

    def upsert(self, collection: str, ids: Sequence[str], vectors: Vectors, document_id: str) -> None:
        """Write vectors of shape (n, d); the same ids again replace what was there."""
        self._collection(collection).upsert(
            ids=list(ids), embeddings=vectors, metadatas=[{"document_id": document_id} for _ in ids]
        )

    def missing(self, collection: str, ids: Sequence[str]) -> list[str]:
        """Those of ``ids`` that have no vector yet, in order."""
        present: set[str] = set()
        for at in range(0, len(ids), 500):
            present.update(self._collection(collection).get(ids=list(ids[at : at + 500]), include=[])["ids"])
        return [id_ for id_ in ids if id_ not in present]

    def search(
        self, collection: str, vector: Vectors, k: int, document_ids: Sequence[str] | None = None
    ) -> list[tuple[str, float]]:
        """The ``k`` nearest chunk ids with their cosine similarity, best first."""
        where = {"document_id": {"$in": list(document_ids)}} if document_ids is not None else None
        target = self._collection(collection)
        k = min(k, target.count())
        if k == 0:
            return []
        found = target.query(query_embeddings=[vector], n_results=k, where=where, include=["distances"])
        return [(id_, 1.0 - float(d)) for id_, d in zip(found["ids"][0], found["distances"][0], strict=True)]

    def collections(self) -> list[str]:
        """The docduet collections that this process has touched."""
        with self._lock:
            return list(self._collections)

    def delete_document(self, collection: str, document_id: str) -> None:
        self._collection(collection).delete(where={"document_id": document_id})

    def count(self, collection: str) -> int:
        return int(self._collection(collection).count())

    def heartbeat(self) -> None:
        """Raise when the store does not answer."""
        self._client.heartbeat()
