"""Refusals in small collections, without a model: what search alone refuses when only a few paragraphs are there.

Of each SQuAD-style file, collections of so many paragraphs are made again and again, of all paragraphs of some articles every
second one. Asked are questions about the paragraphs that are there, about their neighbours that were left out, and about
other articles. A question is refused when the best passage is below RAG_REFUSAL_THRESHOLD.
"""

import argparse
import hashlib
import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from services.rag.config import Settings
from services.rag.documents.chunking import chunk
from services.rag.embeddings import load_embedder
from services.rag.retrieval import Retriever
from services.rag.store.catalog import Catalog
from services.rag.store.index import Embedder, Indexes
from services.rag.store.records import Chunk, Page, chunk_id

KINDS = ("there", "neighbours", "other articles")
Paragraph = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    paragraphs: Sequence[Paragraph]
    questions: dict[str, list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench small", description=__doc__)
    parser.add_argument("sets", nargs="+", type=Path, help="SQuAD-style files")
    parser.add_argument("--paragraphs", type=int, nargs="+", default=[2, 5, 20], help="in a collection (2 5 20)")
    parser.add_argument("--trials", type=int, default=40, help="paragraphs of all collections of a size together (40)")
    arguments = parser.parse_args()
    settings = Settings(_env_file=None)
    embedder = load_embedder("embedded", settings.cache_dir / "embeddings")
    table = Table(title=f"refused by search alone, threshold {settings.refusal_threshold}")
    for column in ("set", "paragraphs", *(f"{kind}: questions · refused" for kind in KINDS)):
        table.add_column(column)
    for path in arguments.sets:
        articles = [a["paragraphs"] for a in json.loads(path.read_text())["data"]]
        for size in arguments.paragraphs:
            asked: Counter[str] = Counter()
            refused: Counter[str] = Counter()
            for number in range(max(1, arguments.trials // size)):
                trial = _trial(articles, size, random.Random(f"{size} {number}"))  # noqa: S311
                with _collection(trial.paragraphs, embedder) as retriever:
                    for kind, questions in trial.questions.items():
                        for question in questions:
                            found = retriever.search(question, 1, collection="default")
                            asked[kind] += 1
                            refused[kind] += not found or found[0].score < settings.refusal_threshold
            shares = (f"{asked[kind]} · {refused[kind] / max(asked[kind], 1):.0%}" for kind in KINDS)
            table.add_row(path.stem, str(size), *shares)
    Console(width=120).print(table)


def _trial(articles: Sequence[list[Paragraph]], size: int, chance: random.Random) -> Trial:
    drawn = chance.sample(list(articles), len(articles))
    there: list[Paragraph] = []
    neighbours: list[Paragraph] = []
    while drawn and len(there) < size:
        article = drawn.pop()
        there += article[::2][: size - len(there)]
        neighbours += article[1::2]
    others = [p for article in drawn[:6] for p in article[:1]]

    def questions(paragraphs: Sequence[Paragraph], n: int) -> list[str]:
        asked = [[q["question"] for q in p["qas"] if q["question"].strip()] for p in paragraphs]
        return [chance.choice(of) for of in asked for _ in range(n) if of]

    return Trial(
        there, dict(zip(KINDS, (questions(there, 2), questions(neighbours, 1), questions(others, 1)), strict=True))
    )


@contextmanager
def _collection(paragraphs: Sequence[Paragraph], embedder: Embedder) -> Iterator[Retriever]:
    """A document of one page for each paragraph."""
    with tempfile.TemporaryDirectory(prefix="docduet-bench-") as folder:
        catalog = Catalog(Path(folder))
        indexes = Indexes(catalog, Indexes.open_chroma(Path(folder), None), embedder, None)
        documents, jobs = [], []
        for number, text in enumerate(dict.fromkeys(p["context"] for p in paragraphs)):
            data = text.encode()
            incoming = catalog.incoming_dir / str(number)
            incoming.write_bytes(data)
            document, job = catalog.accept(
                incoming,
                collection="default",
                filename=f"{number:05}.txt",
                content_sha256=hashlib.sha256(data).hexdigest(),
                format="text",
                reader="bench",
            )
            cut = [(at, span.start, text[span.start : span.end]) for at, span in enumerate(chunk(text))]
            held = [Chunk(chunk_id(document.id, at, t), document.id, at, 1, s, s + len(t), t) for at, s, t in cut]
            catalog.put_text(job, [Page(1, text)], held, [], 1, "bench")
            documents.append((document, held))
            jobs.append(job)
        every = [(document, c) for document, held in documents for c in held]
        indexes.active.put_vectors(every, embedder.embed_documents(indexes.active.embedded(every)))
        indexes.active.put_words(documents)
        catalog.finish(jobs)
        retriever = Retriever(catalog, indexes)
        try:
            yield retriever
        finally:
            retriever.close()
            indexes.close()
            catalog.close()


if __name__ == "__main__":
    main()
