"""What of the gold answers stands in what a search gives, and how long that is: passages beside the chunks that were found."""

import argparse
import json
import random
from pathlib import Path

from bench_collection import embedded, stored
from rich.console import Console
from rich.table import Table

from services.evaluation.metrics import contains
from services.rag.documents.chunking import estimate_tokens
from services.rag.passages import PASSAGE_TOKENS
from services.rag.retrieval import Retriever


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench passages", description=__doc__)
    parser.add_argument("set", type=Path, help="a SQuAD-style file")
    parser.add_argument("--questions", type=int, default=150, help="a sample (150)")
    parser.add_argument("--k", type=int, nargs="+", default=[1, 2, 4], help="of a search (1 2 4)")
    arguments = parser.parse_args()
    paragraphs = [p for article in json.loads(arguments.set.read_text())["data"] for p in article["paragraphs"]]
    every = [(q["question"], [a["text"] for a in q["answers"]]) for p in paragraphs for q in p["qas"]]
    asked = random.Random(0).sample([q for q in every if q[0].strip() and q[1]], arguments.questions)  # noqa: S311
    table = Table(title=f"{arguments.set.stem}, {len(asked)} questions")
    for column in ("k", "", "hold the answer", "tokens, estimated"):
        table.add_column(column, justify="left" if not column else "right")
    with stored([p["context"] for p in paragraphs], embedded()) as (catalog, indexes):
        for k in arguments.k:
            for name, tokens in (("chunks", 0), ("passages", PASSAGE_TOKENS)):
                retriever = Retriever(catalog, indexes, passage_tokens=tokens)
                found = [[p.text for p in retriever.search(q, k, collection="default")] for q, _ in asked]
                retriever.close()
                hold = sum(any(contains(t, gold) for t in f) for f, (_, gold) in zip(found, asked, strict=True))
                size = sum(estimate_tokens(t) for texts in found for t in texts)
                table.add_row(str(k), name, f"{hold / len(asked):.1%}", f"{size / len(asked):,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
