"""``docduet ask`` and ``docduet search``."""

import argparse

from rich.console import Console

from services.client import RagClient
from services.commands.output import console, printable


def ask(arguments: argparse.Namespace, client: RagClient) -> int:
    """3: the documents do not hold an answer."""
    answerable = print_answer(client, arguments.question, arguments.collection, console)
    return 0 if answerable else 3


def print_answer(client: RagClient, question: str, collection: str, out: Console) -> bool:
    """Print the answer as it streams, then its citations; returns whether the documents held one."""
    citations: list[dict[str, object]] = []
    answerable = unsupported = False
    for chunk in client.ask(question, collection=collection):
        if text := chunk.get("answer"):
            out.print("\n".join(map(printable, text.split("\n"))), end="", markup=False)
            out.file.flush()
        answerable = chunk.get("answerable", answerable)
        citations += chunk.get("citations", [])
        unsupported = unsupported or bool(chunk.get("unsupported"))
    out.print()
    for c in citations:
        line = f"  [{c['index']}] {c['filename']}, {_place(c)}: {c['quote']}"
        out.print(printable(line), style="dim", markup=False)
    if unsupported:
        out.print("  [?] nothing in the documents bears this out", style="dim", markup=False)
    return answerable


def search(arguments: argparse.Namespace, client: RagClient) -> int:
    """3: nothing was found."""
    found = client.search(arguments.query, k=arguments.k, mode=arguments.mode, collection=arguments.collection)
    for p in found:
        console.print(printable(f"{p['score']:.2f}  {p['filename']}, {_place(p)}"), style="bold", markup=False)
        console.print(f"      {printable(p['text'][:200])}", markup=False)
    return 0 if found else 3


def _place(passage: dict[str, object]) -> str:
    """What a person calls the place: "slide 3"; a printed page has its number."""
    return str(passage.get("label") or f"page {passage['page']}")
