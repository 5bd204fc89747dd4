"""Refusals in small collections, without a model: what search alone refuses when only a few paragraphs are there.

Of each SQuAD-style file, collections of so many paragraphs are made again and again, of all paragraphs of some articles every
second one. Asked are questions about the paragraphs that are there, about their neighbours that were left out, and about
other articles. A question is refused when the best passage is below RAG_REFUSAL_THRESHOLD.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_collection import embedded, stored
from rich.console import Console
from rich.table import Table

from services.rag.config import Settings
from services.rag.retrieval import Retriever

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
    embedder, threshold = embedded(), Settings(_env_file=None).refusal_threshold
    table = Table(title=f"refused by search alone, threshold {threshold}")
    for column in ("set", "paragraphs", *(f"{kind}: questions · refused" for kind in KINDS)):
        table.add_column(column)
    for path in arguments.sets:
        articles = [a["paragraphs"] for a in json.loads(path.read_text())["data"]]
        for size in arguments.paragraphs:
            asked: Counter[str] = Counter()
            refused: Counter[str] = Counter()
            for number in range(max(1, arguments.trials // size)):
                trial = _trial(articles, size, random.Random(f"{size} {number}"))  # noqa: S311
                with stored([p["context"] for p in trial.paragraphs], embedder) as (catalog, indexes):
                    retriever = Retriever(catalog, indexes)
                    for kind, questions in trial.questions.items():
                        for question in questions:
                            found = retriever.search(question, 1, collection="default")
                            asked[kind] += 1
                            refused[kind] += not found or found[0].score < threshold
                    retriever.close()
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


if __name__ == "__main__":
    main()
