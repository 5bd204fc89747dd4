"""A collection in this process, for measurements of search that need no service: each text a document of one page."""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from services.rag.config import Settings
from services.rag.documents.chunking import chunk
from services.rag.embeddings import load_embedder
from services.rag.store.catalog import Catalog
from services.rag.store.index import Embedder, Indexes
from services.rag.store.records import Chunk, Document, Job, Page, chunk_id


def embedded() -> Embedder:
    return load_embedder("embedded", Settings(_env_file=None).cache_dir / "embeddings")


def accepted(catalog: Catalog, number: int, data: bytes) -> tuple[Document, Job]:
    """Text number so and so, taken into the default collection and not yet read."""
    incoming = catalog.incoming_dir / str(number)
    incoming.write_bytes(data)
    return catalog.accept(
        incoming,
        collection="default",
        filename=f"{number:05}.txt",
        content_sha256=hashlib.sha256(data).hexdigest(),
        format="text",
        reader="bench",
    )


@contextmanager
def stored(texts: Sequence[str], embedder: Embedder) -> Iterator[tuple[Catalog, Indexes]]:
    """Stored as the service stores documents, in its default collection; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="docduet-bench-") as folder:
        catalog = Catalog(Path(folder))
        indexes = Indexes(catalog, Indexes.open_chroma(Path(folder), None), embedder, None)
        documents: list[tuple[Document, list[Chunk]]] = []
        jobs: list[Job] = []
        for number, text in enumerate(dict.fromkeys(texts)):
            data = text.encode("utf-8", "replace")
            document, job = accepted(catalog, number, data)
            cut = [(at, span.start, text[span.start : span.end]) for at, span in enumerate(chunk(text))]
            held = [Chunk(chunk_id(document.id, at, t), document.id, at, 1, s, s + len(t), t) for at, s, t in cut]
            catalog.put_text(job, [Page(1, text)], held, [], 1, "bench")
            documents.append((document, held))
            jobs.append(job)
        if every := [(document, c) for document, held in documents for c in held]:
            indexes.active.put_vectors(every, embedder.embed_documents(indexes.active.embedded(every)))
            indexes.active.put_words(documents)
            catalog.finish(jobs)
        try:
            yield catalog, indexes
        finally:
            indexes.close()
            catalog.close()
