"""Citations across languages: how many sentences find their own translation, and how many find another where theirs is not there.

Two SQuAD-style files with the same paragraphs in two scripts, in one order (XQuAD's). A sentence of the one is the answer; the
passages are four paragraphs of its article in the other, with its own paragraph and without it. Paragraphs that have as many
sentences in both are taken, so it is known which sentence is whose.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from bench_collection import embedded, stored
from rich.console import Console
from rich.table import Table

from services.rag.answer_text import Sentence
from services.rag.citations import Evidence, Nearness
from services.rag.documents.chunking import sentences
from services.rag.passages import Passage
from services.rag.retrieval import Retriever

PASSAGES = 4
Article = list[str]  # its paragraphs


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench meaning", description=__doc__)
    parser.add_argument("sets", nargs=2, type=Path, help="the same paragraphs in two scripts")
    parser.add_argument("--articles", type=int, default=20, help="of each (20)")
    arguments = parser.parse_args()
    one, other = (_articles(path)[: arguments.articles] for path in arguments.sets)
    names = [path.stem for path in arguments.sets]
    table = Table(title=f"{len(one)} articles")
    for column in ("answers", "passages", "a source by", "sentences", "cited right", "cited wrong", "left out: cited"):
        table.add_column(column)
    with stored([], embedded()) as (catalog, indexes):
        retriever = Retriever(catalog, indexes)
        judges: dict[str, Nearness | None] = {"name and number": None, "and by meaning": retriever.nearness}
        for said, read, label in ((one, other, names), (other, one, names[::-1])):
            for judge, nearness in judges.items():
                found: Counter[str] = Counter()
                for article, translated in zip(said, read, strict=True):
                    found.update(_judged(article, translated, nearness))
                shares = (f"{found[what] / found['asked']:.1%}" for what in ("right", "wrong", "left out"))
                table.add_row(*label, judge, str(found["asked"]), *shares)
        retriever.close()
    Console().print(table)


def _articles(path: Path) -> list[Article]:
    return [[p["context"] for p in article["paragraphs"]] for article in json.loads(path.read_text())["data"]]


def _judged(said: Article, read: Article, nearness: Nearness | None) -> Counter[str]:
    found: Counter[str] = Counter()
    for number, (paragraph, own) in enumerate(zip(said, read, strict=True)):
        answers, sources = _sentences(paragraph), _sentences(own)
        rest = [text for at, text in enumerate(read) if at != number]
        if len(answers) != len(sources) or len(rest) < PASSAGES:
            continue
        there = Evidence(_passages([own, *rest[: PASSAGES - 1]]), nearness=nearness)
        left_out = Evidence(_passages(rest[:PASSAGES]), nearness=nearness)
        for answer, source in zip(answers, sources, strict=True):
            found["asked"] += 1
            cited = there.support(Sentence(answer))
            if isinstance(cited, list):
                found["right" if all(c.quote in source or source in c.quote for c in cited) else "wrong"] += 1
            found["left out"] += isinstance(left_out.support(Sentence(answer)), list)
    return found


def _sentences(text: str) -> list[str]:
    return [text[s.start : s.end].strip() for s in sentences(text)]


def _passages(texts: list[str]) -> list[Passage]:
    return [Passage(str(at), f"{at}.txt", 1, 0, text, 0.9) for at, text in enumerate(texts)]


if __name__ == "__main__":
    main()
