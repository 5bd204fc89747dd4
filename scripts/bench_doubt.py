"""How much the model's hesitation tells: questions with their own paragraph, and with the neighbour that comes nearest instead.

Of SQuAD-style files, against a running model service. Only how an answer would begin is looked at. A question whose answer the
neighbour happens to hold is not asked with it.
"""

import argparse
import asyncio
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import HttpUrl
from rich.console import Console
from rich.table import Table

from services.evaluation.metrics import contains
from services.rag.config import Settings
from services.rag.doubt import doubt
from services.rag.model_client import ModelClient
from services.rag.passages import Passage
from services.rag.prompts import answer_messages, language_of
from services.rag.relevance import coverage

THRESHOLDS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench doubt", description=__doc__)
    parser.add_argument("sets", nargs="+", type=Path, help="SQuAD-style files with several paragraphs an article")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="the model service")
    parser.add_argument("--questions", type=int, default=20, help="of each set (20)")
    arguments = parser.parse_args()
    table = Table(title=f"refused where the doubt reaches …, of {arguments.questions} questions a set")
    for column in ("set", "", "asked", *map(str, THRESHOLDS)):
        table.add_column(column)
    for path in arguments.sets:
        found = asyncio.run(_measured(path, arguments.questions, arguments.url))
        for kind in ("there", "left out"):
            doubts = found[kind]
            shares = (f"{sum(d >= t for d in doubts) / max(len(doubts), 1):.0%}" for t in THRESHOLDS)
            table.add_row(path.stem, kind, str(len(doubts)), *shares)
    Console().print(table)


async def _measured(path: Path, questions: int, url: str) -> dict[str, list[float]]:
    client = ModelClient(Settings(_env_file=None, model_url=HttpUrl(url)))
    found: dict[str, list[float]] = defaultdict(list)
    try:
        for question, paragraph, kind in _asked(path, questions):
            messages = answer_messages(question, [Passage("doc", "a.txt", 1, 0, paragraph, 0.9)])
            first: list[Mapping[str, float]] = []
            async for _ in client.stream(messages, max_tokens=1, opening=first.append):
                pass
            if not first:
                raise SystemExit(f"scripts/bench doubt: {url} tells no probabilities")
            found[kind].append(doubt(first[0], language_of(question)))
    finally:
        await client.close()
    return found


def _asked(path: Path, questions: int) -> Iterator[tuple[str, str, str]]:
    articles = [article["paragraphs"] for article in json.loads(path.read_text())["data"]]
    every = [
        (q["question"], [a["text"] for a in q["answers"]], p["context"], [o["context"] for o in article if o is not p])
        for article in articles
        if len(article) > 1
        for p in article
        for q in p["qas"]
        if q["question"].strip()
    ]
    if not every:
        raise SystemExit(f"scripts/bench doubt: no article of {path.name} has a second paragraph")
    for question, gold, own, others in random.Random(0).sample(every, min(questions, len(every))):  # noqa: S311
        yield question, own, "there"
        nearest = max(others, key=lambda other: coverage(question, other))
        if not contains(nearest, gold):
            yield question, nearest, "left out"


if __name__ == "__main__":
    main()
