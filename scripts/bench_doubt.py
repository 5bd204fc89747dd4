"""How much the model's hesitation tells beside search: questions whose paragraph is there, and the same with it left out.

Of SQuAD-style files, against a running model service: each file's paragraphs are a collection in this process, searched as
the service searches. Only how an answer would begin is looked at. Of the questions whose paragraph was left out, those that
search refuses are counted and not asked, and those that another passage answers are passed over.
"""

import argparse
import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench_collection import embedded, stored
from pydantic import HttpUrl
from rich.console import Console
from rich.table import Table

from services.evaluation.metrics import contains
from services.rag.budget import Budget
from services.rag.config import Settings
from services.rag.doubt import doubt, refuses
from services.rag.errors import RagError
from services.rag.model_client import ModelClient
from services.rag.passages import Passage
from services.rag.prompts import answer_messages, language_of
from services.rag.retrieval import Retriever

THRESHOLDS = (1.0, 0.05, 0.01, 0.005, 0.002, 0.001, 0.0005)


@dataclass
class Found:
    """Of questions of one kind: what search and the model said of each that was asked, as (relevance, doubt)."""

    refused: int = 0  # by search
    asked: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Question:
    text: str
    gold: list[str]
    document: int


class Pair:
    """A collection in this process and a running model service."""

    def __init__(self, retriever: Retriever, documents: int, settings: Settings) -> None:
        self.settings = settings
        self._names = [f"{number:05}.txt" for number in range(documents)]
        self._retriever = retriever
        self.model = ModelClient(settings)
        self._budget = Budget(self.model, settings.passage_tokens)

    def search(self, question: Question, *, left_out: bool) -> list[Passage]:
        kept = [name for at, name in enumerate(self._names) if at != question.document]
        return self._retriever.search(
            question.text, self.settings.k, collection="default", filter={"filename": kept} if left_out else None
        )

    async def read(self, question: Question, found: list[Passage]) -> Sequence[Passage]:
        """What of it the model reads."""
        options = {"max_tokens": self.settings.max_tokens}
        fitted = await self._budget.fit({"options": options, "standalone": question.text, "history": []}, found)
        passages: list[Passage] = fitted["passages"]
        return passages

    async def doubted(self, question: str, passages: Sequence[Passage]) -> float:
        first: list[Mapping[str, float]] = []
        async for _ in self.model.stream(answer_messages(question, passages), max_tokens=1, opening=first.append):
            pass
        if not first:
            raise SystemExit(f"scripts/bench doubt: {self.model.url} tells no probabilities")
        return doubt(first[0], language_of(question))


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench doubt", description=__doc__)
    parser.add_argument("sets", nargs="+", type=Path, help="SQuAD-style files")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="the model service")
    parser.add_argument("--questions", type=int, default=20, help="of each kind and set (20)")
    parser.add_argument("--paragraphs", type=int, default=300, help="of each set, as they come (300)")
    parser.add_argument("--json", type=Path, help="each question's relevance and doubt go here as well")
    arguments = parser.parse_args()
    settings = Settings(_env_file=None, model_url=HttpUrl(arguments.url))
    table = Table(title="refused by RAG_DOUBT_THRESHOLD, of those asked")
    for column in ("set", "", "refused by search", "asked", *(f"{t:g}" for t in THRESHOLDS)):
        table.add_column(column)
    embedder, console = embedded(), Console(width=140)
    figures: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for path in arguments.sets:
        texts, questions = _read(path, arguments.paragraphs)
        with stored(texts, embedder) as (catalog, indexes):
            retriever = Retriever(catalog, indexes)
            try:
                found = asyncio.run(_measured(Pair(retriever, len(texts), settings), questions, arguments.questions))
            except RagError as error:
                raise SystemExit(f"scripts/bench doubt: {error}") from None
            finally:
                retriever.close()
        figures[path.stem] = {kind: of.asked for kind, of in found.items()}
        for kind, of in found.items():
            shares = (
                f"{sum(refuses(d, relevance, t) for relevance, d in of.asked) / max(len(of.asked), 1):.0%}"
                for t in THRESHOLDS
            )
            refused = f"{of.refused} of {of.refused + len(of.asked)}"
            table.add_row(path.stem, kind, refused, str(len(of.asked)), *shares)
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


async def _measured(pair: Pair, questions: Sequence[Question], wanted: int) -> dict[str, Found]:
    kinds = {"there": Found(), "left out": Found()}
    try:
        for at, (name, found) in enumerate(kinds.items()):
            for question in questions[at::2]:
                if len(found.asked) == wanted:
                    break
                passages = pair.search(question, left_out=name == "left out")
                relevance = max((p.score for p in passages), default=0.0)
                if relevance < pair.settings.refusal_threshold:
                    found.refused += 1
                    continue
                read = await pair.read(question, passages)
                if name == "left out" and any(contains(p.text, question.gold) for p in read):
                    continue
                found.asked.append((relevance, await pair.doubted(question.text, read)))
    finally:
        await pair.model.close()
    return kinds


def _read(path: Path, paragraphs: int) -> tuple[list[str], list[Question]]:
    every = [p for article in json.loads(path.read_text())["data"] for p in article["paragraphs"]][:paragraphs]
    texts = list(dict.fromkeys(p["context"] for p in every))
    questions = [
        Question(q["question"], [a["text"] for a in q["answers"]], texts.index(p["context"]))
        for p in every
        for q in p["qas"]
        if q["question"].strip()
    ]
    random.Random(0).shuffle(questions)  # noqa: S311 (a sample, no secret)
    return texts, questions


if __name__ == "__main__":
    main()
