"""Retrieval at size, one client: percentiles of the whole search and of its stages, beside LangChain's EnsembleRetriever.

The corpus is made of sentences of real passages (SQuAD-style files, whose questions are asked too), dealt anew into chunks; without
files, of drawn words with Zipf's frequencies. ``--real`` passages are embedded by the real model. A chunk's vector is the
mean of the vectors of the passages that its sentences are from, with noise: a neighbour that costs no model. Embedding a
question is always real, and counted.

A corpus is kept below ``--keep`` and gone on with where it was left: 100,000 chunks take minutes of processor time.
"""

import argparse
import hashlib
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rjieba
from bench_collection import accepted
from rich.console import Console
from rich.table import Table

from services.rag.documents.chunking import sentences
from services.rag.embeddings import load_embedder
from services.rag.retrieval import CANDIDATES, Retriever
from services.rag.store.catalog import Catalog
from services.rag.store.index import Embedder, Indexes
from services.rag.store.records import Chunk, Page, chunk_id

Vectors = npt.NDArray[np.float32]

CHUNKS_A_DOCUMENT = 50
CHUNK_CHARACTERS = 200  # of CJK text; other text has three times as many
BATCH = 500
NOISE = 0.3  # length of the noise beside a vector of length 1


@dataclass(frozen=True)
class Source:
    """Passages of one language, cut into sentences, with their vectors' rows."""

    sentences: list[tuple[str, int]]
    wide: bool


@dataclass
class Corpus:
    sources: list[Source]
    vectors: Vectors  # of the real passages
    questions: list[str]

    def document(self, number: int) -> tuple[list[str], Vectors]:
        """Chunks of a document and their vectors; the same for the same number."""
        chance, noise = random.Random(number), np.random.default_rng(number)  # noqa: S311
        source = chance.choices(self.sources, [len(s.sentences) for s in self.sources])[0]
        size = CHUNK_CHARACTERS if source.wide else 3 * CHUNK_CHARACTERS
        texts: list[str] = []
        rows = np.empty((CHUNKS_A_DOCUMENT, self.vectors.shape[1]), np.float32)
        for at in range(CHUNKS_A_DOCUMENT):
            text, of = "", []
            while len(text) < 0.7 * size:
                sentence, row = chance.choice(source.sentences)
                text += ("" if source.wide or not text else " ") + sentence
                of.append(row)
            texts.append(text[: 2 * size])
            rows[at] = self.vectors[of].mean(axis=0)
        drawn = noise.standard_normal(rows.shape).astype(np.float32)
        rows += NOISE * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        return texts, np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench search", description=__doc__)
    parser.add_argument("sets", nargs="*", type=Path, help="SQuAD-style files; without, words are drawn")
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--real", type=int, default=600, help="passages embedded by the real model")
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--rival-queries", type=int, default=20, help="0: no rival")
    parser.add_argument("--embedder", default="embedded")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/docduet/embeddings").expanduser())
    parser.add_argument("--keep", type=Path, help="a folder for the corpus and its indexes")
    parser.add_argument("--json", type=Path, help="the figures go here as well")
    arguments = parser.parse_args()
    console = Console()
    embedder = load_embedder(arguments.embedder, arguments.cache)
    with tempfile.TemporaryDirectory(prefix="docduet-bench-") as temporary:
        folder: Path = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        corpus = _corpus(folder, arguments.sets, arguments.real, embedder)
        questions = random.Random(1).sample(corpus.questions, min(arguments.queries, len(corpus.questions)))  # noqa: S311
        figures = _measure(folder, corpus, arguments.chunks, embedder, questions, console)
        if arguments.rival_queries:
            asked = questions[: arguments.rival_queries]
            figures |= _measure_rival(folder, corpus, arguments.chunks, embedder, asked, console)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


# -- the corpus ------------------------------------------------------------------------------------------------


def _corpus(folder: Path, sets: Sequence[Path], real: int, embedder: Embedder) -> Corpus:
    groups, questions = _read(sets) if sets else _drawn()
    share = real / sum(map(len, groups))
    sources: list[Source] = []
    passages: list[str] = []
    for group in groups:
        some = random.Random(2).sample(group, min(len(group), max(1, round(share * len(group)))))  # noqa: S311
        cut = [(p[s.start : s.end], len(passages) + i) for i, p in enumerate(some) for s in sentences(p)]
        sources.append(Source(cut, wide=sum(not c.isascii() for c in some[0]) > len(some[0]) / 2))
        passages += some
    digest = hashlib.sha256("\0".join([embedder.fingerprint, *passages]).encode()).hexdigest()[:12]
    kept = folder / f"real-{digest}.npy"
    vectors = np.load(kept) if kept.exists() else embedder.embed_documents(passages)
    np.save(kept, vectors)
    return Corpus(sources, vectors, questions)


def _read(sets: Sequence[Path]) -> tuple[list[list[str]], list[str]]:
    groups: list[list[str]] = []
    questions: list[str] = []
    for path in sets:
        paragraphs = [p for article in json.loads(path.read_text())["data"] for p in article["paragraphs"]]
        groups.append([p["context"] for p in paragraphs])
        questions += [q["question"] for p in paragraphs for q in p["qas"]]
    return groups, questions


def _drawn() -> tuple[list[list[str]], list[str]]:
    chance = random.Random(3)  # noqa: S311
    latin = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(20_000)]
    wide = ["".join(chr(0x4E00 + int(3000 * chance.random() ** 3)) for _ in range(2)) for _ in range(20_000)]
    zipf = [1 / rank for rank in range(1, 20_001)]

    def passage(words: list[str], between: str, end: str) -> str:
        lengths = [chance.randint(8, 25) for _ in range(6)]
        return between.join(between.join(chance.choices(words, zipf, k=n)) + end for n in lengths)

    groups = [[passage(wide, "", "。") for _ in range(400)], [passage(latin, " ", ".") for _ in range(200)]]
    questions = ["".join(chance.choices(wide, zipf, k=6)) + "？" for _ in range(400)]
    return groups, questions + [" ".join(chance.choices(latin, zipf, k=8)) + "?" for _ in range(200)]


# -- docduet ---------------------------------------------------------------------------------------------------


def _measure(
    folder: Path, corpus: Corpus, chunks: int, embedder: Embedder, questions: list[str], console: Console
) -> dict[str, Any]:
    catalog = Catalog(folder / "data")
    indexes = Indexes(catalog, Indexes.open_chroma(folder / "data", None), embedder, None)
    began = time.perf_counter()
    stored = _store(catalog, indexes, corpus, chunks, console)
    if stored:
        console.print(f"{stored:,} chunks stored in {time.perf_counter() - began:.0f} s")
    retriever = Retriever(catalog, indexes)
    documents = [d for d in catalog.documents() if d.status == "indexed"]
    one = {"document_id": documents[0].id}
    many = {"document_id": [d.id for d in documents[::3]]}
    collection = catalog.collection("default").id
    index = indexes.active
    held = [id_ for id_, _ in index.vectors.search(collection, embedder.embed_query(questions[0]), 80)]
    vectors = {q: embedder.embed_query(q) for q in questions}
    stages: dict[str, Callable[[str], object]] = {
        f"search, {mode}{', ' + name if name else ''}": _searching(retriever, mode, filter)
        for name, filter in (("", None), ("one document", one), (f"{len(many['document_id'])} documents", many))
        for mode in ("hybrid", "dense", "lexical")
    }
    stages |= {
        "— embedding the question": embedder.embed_query,
        "— vectors.search": lambda q: index.vectors.search(collection, vectors[q], CANDIDATES),
        "— lexical.search": lambda q: index.lexical.search(collection, q, CANDIDATES),
        "— lexical.texts of 80": lambda q: index.lexical.texts(collection, held),
        "— vectors.vectors of 80": lambda q: index.vectors.vectors(collection, held),
        "— catalog.visible_chunks of 80": lambda q: catalog.visible_chunks(held),
    }
    title = f"docduet, {index.vectors.count(collection):,} chunks of {len(documents):,} documents (ms)"
    figures = _run(stages, questions, title, console)
    retriever.close()
    indexes.close()
    catalog.close()
    return figures


def _searching(retriever: Retriever, mode: Any, filter: Any) -> Callable[[str], object]:
    return lambda question: retriever.search(question, 10, collection="default", filter=filter, mode=mode)


def _store(catalog: Catalog, indexes: Indexes, corpus: Corpus, chunks: int, console: Console) -> int:
    """What is still missing of ``chunks``, as the service stores documents; returns how many chunks that was."""
    there = {d.filename for d in catalog.documents() if d.status == "indexed"}
    wanted = [n for n in range(-(-chunks // CHUNKS_A_DOCUMENT)) if f"{n:05}.txt" not in there]
    for part in (wanted[at : at + BATCH // CHUNKS_A_DOCUMENT] for at in range(0, len(wanted), BATCH // 50)):
        documents, vectors, jobs = [], [], []
        for number in part:
            texts, rows = corpus.document(number)
            data = "\n".join([str(number), *texts]).encode("utf-8", "replace")
            document, job = accepted(catalog, number, data)
            held = [
                Chunk(chunk_id(document.id, i, text), document.id, i, i + 1, 0, len(text), text)
                for i, text in enumerate(texts)
            ]
            catalog.put_text(job, [Page(i + 1, t) for i, t in enumerate(texts)], held, [], len(texts), "bench")
            documents.append((document, held))
            vectors.append(rows)
            jobs.append(job)
        indexes.active.put_vectors([(d, c) for d, held in documents for c in held], np.concatenate(vectors))
        indexes.active.put_words(documents)
        catalog.finish(jobs)
        if part[-1] % 200 < len(part):
            console.print(f"  {part[-1] * CHUNKS_A_DOCUMENT:,} chunks stored", style="dim")
    return len(wanted) * CHUNKS_A_DOCUMENT


# -- the rival -------------------------------------------------------------------------------------------------


def _measure_rival(
    folder: Path, corpus: Corpus, chunks: int, embedder: Embedder, questions: list[str], console: Console
) -> dict[str, Any]:
    """EnsembleRetriever over BM25Retriever and Chroma, as in LangChain's tutorial; jieba for BM25, which splits at spaces."""
    from langchain_chroma import Chroma
    from langchain_classic.retrievers import EnsembleRetriever
    from langchain_community.retrievers import BM25Retriever
    from langchain_core.embeddings import Embeddings

    class Same(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [list(map(float, row)) for row in embedder.embed_documents(texts)]

        def embed_query(self, text: str) -> list[float]:
            return [float(x) for x in embedder.embed_query(text)]

    store = Chroma("rival", embedding_function=Same(), persist_directory=str(folder / "rival"))
    collection = store._collection  # its own way in would embed every text
    for number in range(collection.count() // CHUNKS_A_DOCUMENT, -(-chunks // CHUNKS_A_DOCUMENT)):
        texts, rows = corpus.document(number)
        ids = [f"{number}:{i}" for i in range(len(texts))]
        collection.upsert(
            ids=ids, embeddings=rows, documents=texts, metadatas=[{"source": f"{number:05}.txt"}] * len(ids)
        )
    texts = [t for n in range(-(-chunks // CHUNKS_A_DOCUMENT)) for t in corpus.document(n)[0]]
    words = BM25Retriever.from_texts(texts, preprocess_func=lambda text: rjieba.cut_for_search(text.lower()), k=10)
    dense = store.as_retriever(search_kwargs={"k": 10})
    both = EnsembleRetriever(retrievers=[words, dense], weights=[0.5, 0.5])
    stages: dict[str, Callable[[str], object]] = {
        "EnsembleRetriever": both.invoke,
        "— BM25Retriever": words.invoke,
        "— Chroma": dense.invoke,
    }
    return _run(stages, questions, f"LangChain, {len(texts):,} chunks (ms)", console)


# -- measuring -------------------------------------------------------------------------------------------------


def _run(
    stages: dict[str, Callable[[str], object]], questions: Sequence[str], title: str, console: Console
) -> dict[str, Any]:
    table = Table(title=title)
    for column in ("", "p50", "p95", "p99", "most", "p99 / p95"):
        table.add_column(column, justify="right" if column else "left")
    figures: dict[str, Any] = {}
    for name, ask in stages.items():
        for question in questions[:3]:  # files into memory
            ask(question)
        p50, p95, p99, most = np.percentile(list(_times(ask, questions)), [50, 95, 99, 100])
        table.add_row(name, *(f"{value:.1f}" for value in (p50, p95, p99, most)), f"{p99 / p95:.2f}")
        figures[name] = {"p50": p50, "p95": p95, "p99": p99, "most": most, "questions": len(questions)}
    console.print(table)
    return figures


def _times(ask: Callable[[str], object], questions: Sequence[str]) -> Iterator[float]:
    for question in questions:
        began = time.perf_counter()
        ask(question)
        yield 1e3 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()
