"""The indexes as generations: the one that answers, and the one that is being built to take its place.

A generation is a set of Chroma collections and a lexical file, made by one embedder. It holds nothing that the catalog does
not have: it can be dropped, and is then made again while the other answers.
"""

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from services.rag.context import Context, contexts, embedded
from services.rag.errors import StorageError
from services.rag.store.catalog import Catalog
from services.rag.store.chroma import Chroma, ChromaDamaged, VectorStore
from services.rag.store.generations import COMPACT
from services.rag.store.lexical import LexicalIndex
from services.rag.store.records import NOTE, Chunk, Document, IndexRow

log = logging.getLogger("docduet.rag.index")

Vectors = npt.NDArray[np.float32]


class Embedder(Protocol):
    @property
    def model_id(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    def embed_documents(self, texts: Sequence[str]) -> Vectors: ...
    def embed_query(self, text: str) -> Vectors: ...


class Contexts:
    """What is searched beside the chunks' texts. Keeps the last document's, whose chunks come in several batches."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._named: tuple[str, str, object] | None = None
        self._last: dict[str, Context] = {}
        self._lock = threading.Lock()

    def of(self, document: Document, chunks: Sequence[Chunk]) -> dict[str, Context]:
        """By chunk id, of these chunks at least."""
        named = (document.id, document.filename, document.metadata)
        with self._lock:
            # A chunk's id is bound to its text: what was read anew has other ids.
            if named != self._named or not all(chunk.id in self._last for chunk in chunks):
                every = [*self._catalog.chunks_of(document.id), *chunks]
                self._last, self._named = contexts(document, self._catalog.pages_of(document.id), every), named
            return self._last


class Index:
    """One generation. ``embedder`` is None when the one that made it is not at hand: it then searches by words alone."""

    def __init__(
        self, row: IndexRow, vectors: VectorStore, lexical: LexicalIndex, embedder: Embedder | None, contexts: Contexts
    ) -> None:
        self.row = row
        self._contexts = contexts
        self.vectors = vectors
        self.lexical = lexical
        self.embedder = embedder
        self._users = 0
        self._unused = threading.Condition()

    @property
    def model_id(self) -> str:
        """Of the embedder that made it."""
        return self.embedder.model_id if self.embedder is not None else self.row.model_id

    def acquire(self) -> None:
        """Keep the generation from being dropped until :meth:`release`."""
        with self._unused:
            self._users += 1

    def release(self) -> None:
        with self._unused:
            self._users -= 1
            self._unused.notify_all()

    def embedded(self, chunks: Sequence[tuple[Document, Chunk]]) -> list[str]:
        """What is embedded of each chunk: its text under its heading."""
        groups: dict[str, tuple[Document, list[Chunk]]] = {}
        for document, chunk in chunks:
            groups.setdefault(document.id, (document, []))[1].append(chunk)
        texts: dict[str, str] = {}
        for document, group in groups.values():
            found = self._contexts.of(document, group)
            texts.update((chunk.id, embedded(chunk.text, found.get(chunk.id))) for chunk in group)
        return [texts[chunk.id] for _, chunk in chunks]

    def put_vectors(self, chunks: Sequence[tuple[Document, Chunk]], vectors: Vectors) -> None:
        """Write vectors of shape (n, d), one a chunk."""
        groups: dict[str, list[int]] = {}
        for position, (document, _) in enumerate(chunks):
            groups.setdefault(document.collection_id, []).append(position)
        for collection, positions in groups.items():
            self.vectors.upsert(
                collection,
                [chunks[i][1].id for i in positions],
                vectors[positions],
                [chunks[i][0].id for i in positions],
            )

    def put_words(self, documents: Iterable[tuple[Document, Iterable[Chunk]]]) -> None:
        """Replace the lexical rows of these documents."""
        rows = {}
        for document, chunks in documents:
            chunks = list(chunks)
            found = self._contexts.of(document, chunks)
            rows[document.collection_id, document.id] = [(c.id, c.text, found[c.id].words) for c in chunks]
        self.lexical.put_documents(rows)

    def put_note_vectors(
        self, document: Document, chunks: Iterable[Chunk], notes: Mapping[str, str], limit: int
    ) -> bool:
        """Have vectors of these notes, by chunk id, and of no others of the document; at most ``limit`` are made.

        Returns whether that was all.
        """
        if self.embedder is None:
            return True
        ids = [chunk.id + NOTE for chunk in chunks]
        absent = set(self.vectors.missing(document.collection_id, ids))
        wanted = {chunk_id + NOTE: text for chunk_id, text in notes.items()}
        self.vectors.delete(document.collection_id, [id_ for id_ in ids if id_ not in absent and id_ not in wanted])
        new = [id_ for id_ in wanted if id_ in absent]
        if new:
            made = self.embedder.embed_documents([wanted[id_] for id_ in new[:limit]])
            self.vectors.upsert(document.collection_id, new[:limit], made, [document.id] * len(new[:limit]))
        return len(new) <= limit

    def put_note_words(self, document: Document, notes: Mapping[str, str]) -> None:
        """Have lexical rows of these notes, by chunk id, and of no others of the document."""
        wanted = {chunk_id + NOTE: text for chunk_id, text in notes.items()}
        there = {id_ for id_ in self.lexical.attached(document.id) if id_.endswith(NOTE)}
        if there - wanted.keys():
            self.lexical.detach(there - wanted.keys())
        if new := [(id_, text) for id_, text in wanted.items() if id_ not in there]:
            self.lexical.attach(document.collection_id, document.id, new)

    def remove(self, document_id: str, collection_id: str) -> int:
        """Let go of a document; returns how many vectors it had."""
        self.lexical.delete_document(document_id)
        try:
            return self.vectors.delete_document(collection_id, document_id)
        except Exception:
            # A damaged generation that only answers by words until the new one is made: its vectors go with it.
            if self.embedder is not None:
                raise
            return 0

    def drop(self) -> None:
        """Remove the generation once nobody uses it."""
        with self._unused:
            self._unused.wait_for(lambda: not self._users, timeout=60)
        self.vectors.drop()
        self.lexical.drop()


class Indexes:
    """The active generation, and the one being built, if any. One thread changes them; any may search."""

    def __init__(self, catalog: Catalog, chroma: Chroma, embedder: Embedder, old_embedder: Embedder | None) -> None:
        """Open what the catalog names; make an active generation where there is none.

        ``old_embedder`` made the active generation, where that was not ``embedder``.
        """
        self._catalog = catalog
        self._chroma = chroma
        self._contexts = Contexts(catalog)
        self._swapping = threading.Lock()
        self.embedder = embedder
        row = catalog.index("active") or catalog.add_index("active", embedder.fingerprint, embedder.model_id, "first")
        same = row.fingerprint == embedder.fingerprint
        self.active = self._open(row, embedder if same else old_embedder)
        building = catalog.index("building")
        if building is not None and building.fingerprint != embedder.fingerprint:
            catalog.drop_index("building")
            building = None
        self.building = None if building is None else self._open(building, embedder)
        if self.building is not None and self.building.vectors.outdated:
            catalog.drop_index("building")
            self.building.lexical.close()
            self.building = None
        self._sweep()

    @staticmethod
    def open_chroma(data_dir: Path, url: str | None) -> Chroma:
        """Chroma, in a new folder where the old one is damaged: what it held is made again from the catalog."""
        path = data_dir / "chroma"
        try:
            return Chroma(path, url)
        except ChromaDamaged as error:
            aside = next(p for n in range(1, 1000) if not (p := data_dir / f"chroma.damaged-{n}").exists())
            log.error("%s; it is moved to %s and made again from the catalog", error, aside)
            path.rename(aside)
            return Chroma(path, url)

    def _open(self, row: IndexRow, embedder: Embedder | None) -> Index:
        name = f"lexical-{row.generation}.sqlite" if row.generation else "lexical.sqlite"
        vectors = VectorStore(self._chroma, row.fingerprint, row.generation)
        return Index(row, vectors, LexicalIndex(self._catalog.data_dir / name), embedder, self._contexts)

    def _sweep(self) -> None:
        """Remove what a kill left of other generations."""
        kept = [index for index in (self.active, self.building) if index is not None]
        self._chroma.drop_all_but([index.vectors for index in kept])
        for path in self._catalog.data_dir.glob("lexical*.sqlite"):
            if path not in [index.lexical.path for index in kept]:
                for suffix in ("-wal", "-shm", ""):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)

    @property
    def all(self) -> list[Index]:
        """Those that a change has to reach."""
        return [self.active, *([self.building] if self.building is not None else [])]

    @contextlib.contextmanager
    def use(self) -> Iterator[Index]:
        """The generation that answers now, kept until the search is done."""
        with self._swapping:
            index = self.active
            index.acquire()
        try:
            yield index
        finally:
            index.release()

    def build(self, reason: str) -> Index:
        """Begin a new generation. One that is under way goes on instead, unless it only compacts and more is asked for:
        it moves the very vectors that may be what is wrong."""
        old = self.building
        if old is not None and (old.row.reason != COMPACT or reason == COMPACT):
            return old
        row = self._catalog.add_index("building", self.embedder.fingerprint, self.embedder.model_id, reason)
        self.building = self._open(row, self.embedder)
        if old is not None:
            old.drop()
        return self.building

    def swap(self) -> None:
        """The generation that was being built answers from now on; the old one is removed."""
        built, old = self.building, self.active
        if built is None:
            return
        self._catalog.activate(built.row.generation)
        with self._swapping:
            self.active, self.building = built, None
        old.drop()

    def check(self) -> None:
        """Raise when the store does not answer."""
        self._chroma.heartbeat()

    def recover(self) -> None:
        """After an error: raise when the store does not answer, else make sure that it was not a stale connection's."""
        self.check()
        self._chroma.reopen()

    def close(self) -> None:
        for index in self.all:
            index.lexical.close()


def unusable(error: Exception) -> StorageError:
    """What a search that met a broken index says."""
    return StorageError(
        f"the index cannot be read ({type(error).__name__}: {error}); `docduet reindex` makes it again from the documents"
    )
