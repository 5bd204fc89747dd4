"""What storing a chunk costs as the index grows: catalog, vectors and words, with vectors that are drawn instead of computed.

The vectors lie in clusters, as those of real text do; a question is a point near one. Recall is that of the ten nearest,
against an exact search.
"""

import hashlib
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from services.rag.documents.indexing import BATCH_CHUNKS
from services.rag.store.catalog import Catalog
from services.rag.store.index import Index, Indexes
from services.rag.store.records import Chunk, Document, Job, Page, chunk_id

Vectors = npt.NDArray[np.float32]

DIMENSION = 384
CHUNKS_A_DOCUMENT = 128
WINDOW = 2048  # chunks over which a cost is taken: some of a store's work is done once in a thousand


class Drawn:
    """An embedder without a model: points of 400 clusters."""

    model_id = "drawn"
    fingerprint = "drawn:384:1"

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._centres = self._random.standard_normal((400, DIMENSION)).astype(np.float32)

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        noise = self._random.standard_normal((len(texts), DIMENSION)).astype(np.float32)
        points = 0.6 * self._centres[self._random.integers(0, len(self._centres), len(texts))] + noise
        unit: Vectors = points / np.linalg.norm(points, axis=1, keepdims=True)
        return unit

    def embed_query(self, text: str) -> Vectors:
        vector: Vectors = self.embed_documents([text])[0]
        return vector


@dataclass
class _Cost:
    wall: float = 0.0
    cpu: float = 0.0


def measure_store(chunks: int, console: Console) -> None:
    """Prints milliseconds a chunk at sizes up to ``chunks``, and the recall at the end."""
    table = Table(title=f"Storing a chunk, mean of the last {WINDOW} (ms)")
    for column in ("chunks", "wall", "processor", "ratio", "ratio, processor"):
        table.add_column(column, justify="right")
    costs: list[_Cost] = []
    first: tuple[float, float] | None = None
    marks = [n for n in (WINDOW, 10_000, 30_000) if n < chunks] + [chunks]
    with tempfile.TemporaryDirectory(prefix="docduet-bench-") as folder:
        embedder = Drawn()
        catalog = Catalog(Path(folder))
        indexes = Indexes(catalog, Indexes.open_chroma(Path(folder), None), embedder, None)
        held: list[Vectors] = []
        ids: list[str] = []
        for batch, cost in _store(catalog, indexes.active, embedder, chunks):
            costs.append(cost)
            held.append(batch[1])
            ids += batch[0]
            if marks and len(ids) >= marks[0]:
                last = costs[-(WINDOW // CHUNKS_A_DOCUMENT) :]
                wall, cpu = (
                    sum(getattr(c, kind) for c in last) * 1e3 / len(last) / CHUNKS_A_DOCUMENT
                    for kind in ("wall", "cpu")
                )
                first = first or (wall, cpu)
                table.add_row(
                    *(f"{len(ids):,}", f"{wall:.2f}", f"{cpu:.2f}"), f"{wall / first[0]:.2f}", f"{cpu / first[1]:.2f}"
                )
                marks.pop(0)
        console.print(table)
        recall, milliseconds = _recall(catalog, indexes, embedder, ids, np.concatenate(held))
        console.print(f"recall of the ten nearest {recall:.4f}, {milliseconds:.1f} ms a query")
        indexes.close()
        catalog.close()


def _store(
    catalog: Catalog, index: Index, embedder: Drawn, chunks: int
) -> Iterator[tuple[tuple[list[str], Vectors], _Cost]]:
    """Documents one after another, each as the service stores it once it has been read."""
    words = _words()
    chance = random.Random(0)  # noqa: S311
    for number in range(-(-chunks // CHUNKS_A_DOCUMENT)):
        texts = [" ".join(chance.choices(words, k=110)) for _ in range(CHUNKS_A_DOCUMENT)]
        job, document = _accept(catalog, f"{number}.txt", texts)
        held: list[Chunk] = []
        for ordinal, text in enumerate(texts):
            held.append(
                Chunk(chunk_id(document.id, ordinal, text), document.id, ordinal, ordinal + 1, 0, len(text), text)
            )
        vectors = embedder.embed_documents(texts)
        wall, cpu = time.perf_counter(), time.process_time()
        pages = [Page(n + 1, text) for n, text in enumerate(texts)]
        catalog.put_text(job, pages, held, [], len(pages), "bench")
        for at in range(0, len(held), BATCH_CHUNKS):
            part = held[at : at + BATCH_CHUNKS]
            index.put_vectors([(document, chunk) for chunk in part], vectors[at : at + BATCH_CHUNKS])
            catalog.update_jobs({job.id: {"chunks_embedded": at + len(part)}})
        index.put_words([(document, held)])
        catalog.finish([job])
        yield ([c.id for c in held], vectors), _Cost(time.perf_counter() - wall, time.process_time() - cpu)


def _accept(catalog: Catalog, name: str, texts: list[str]) -> tuple[Job, Document]:
    data = "\n".join(texts).encode()
    incoming = catalog.incoming_dir / name
    incoming.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    document, job = catalog.accept(
        incoming, collection="default", filename=name, content_sha256=digest, format="text", reader="bench"
    )
    return job, document


def _words() -> list[str]:
    chance = random.Random(1)  # noqa: S311
    latin = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(10_000)]
    chinese = ["".join(chr(chance.randint(0x4E00, 0x5200)) for _ in range(2)) for _ in range(5_000)]
    return latin + chinese


def _recall(
    catalog: Catalog, indexes: Indexes, embedder: Drawn, ids: list[str], vectors: Vectors
) -> tuple[float, float]:
    collection = catalog.collection("default").id
    found, times = [], []
    for _ in range(100):
        query = embedder.embed_query("")
        began = time.perf_counter()
        near = {id_ for id_, _ in indexes.active.vectors.search(collection, query, 10)}
        times.append(time.perf_counter() - began)
        exact = {ids[i] for i in np.argsort(-(vectors @ query))[:10]}
        found.append(len(near & exact) / 10)
    return statistics.mean(found), statistics.median(times) * 1e3
