"""``docduet calibrate``: fit the ranking and the refusal to an embedding model, or to one's own questions."""

import argparse
import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from services.client import RagClient, ServiceError
from services.commands.output import UsageError, console, count, errors, safe
from services.evaluation import corpus
from services.evaluation.corpus import Corpus, Pages, gold_pages
from services.evaluation.sets import QuestionSet, SetError, order, part, read


def run(arguments: argparse.Namespace, client: RagClient) -> int:
    """0: calibrated, shown or reset.

    Raises:
        UsageError: a file is no question set, or nothing was named.
        ServiceError: the service cannot be reached, or the questions are too few.
    """
    if arguments.show or arguments.reset:
        _show(client.calibration(reset=arguments.reset))
        return 0
    if not arguments.sets:
        raise UsageError("name a question set (a SQuAD-style file, or a list of questions), --show or --reset")
    try:
        sets = [part(read(path), *arguments.part) for path in arguments.sets]
    except SetError as error:
        raise UsageError(str(error)) from error
    made: list[Corpus] = []
    try:
        known = [_known(arguments, client, question_set, made) for question_set in sets]
        found = _fit(arguments, client, [k for k in known if k["questions"]])
    finally:
        if not arguments.keep:
            _tidy(client, made)
    _tell(arguments, found)
    return 0


def _known(
    arguments: argparse.Namespace, client: RagClient, question_set: QuestionSet, made: list[Corpus]
) -> dict[str, Any]:
    """The questions of a set whose documents are in the service, with their pages."""
    if question_set.documents:
        name = arguments.collection or corpus.collection_name(question_set)
        with _bar(f"{question_set.name}: documents", len(question_set.documents)) as show:
            there = corpus.put(client, question_set, name, lambda done, total: show(done))
        if there.created:
            made.append(there)
    else:
        there = corpus.find(client, question_set, arguments.collection or "default")
    for document, why in list(there.failed.items())[:5]:
        errors.print(f"[yellow]left out:[/] {safe(document)}: {safe(why)}")
    pages = Pages(client)
    chosen = [q for q in order(question_set.questions, 0) if q.answerable and q.query and q.document in there.ids]
    return {
        "collection": there.collection,
        "questions": [
            {"question": q.query, "document_id": there.ids[q.document], "pages": list(gold_pages(there, pages, q))}
            for q in chosen[: arguments.questions]
        ],
    }


def _fit(arguments: argparse.Namespace, client: RagClient, known: list[dict[str, Any]]) -> dict[str, Any]:
    total = sum(len(k["questions"]) for k in known)
    if not total:
        raise UsageError("none of the questions names a document that is in the service")
    with _bar("questions", total) as show:
        for event, data in client.calibrate(known, arguments.false_refusals / 100, keep=not arguments.dry_run):
            if event == "progress":
                show(data["done"])
            elif event == "result":
                return data
    raise ServiceError("the service closed the connection before it was done; its log tells more")


def _tell(arguments: argparse.Namespace, found: dict[str, Any]) -> None:
    console.print(f"{count(found['questions'], 'question')}; the page was among the candidates of {found['found']:,}")
    console.print(f"weights: {_weights(found['weights'])}", markup=False)
    console.print(f"page in the first place: {found['first']:.1%} (with the calibration before: {found['before']:.1%})")
    console.print(
        f"refused although the page is there: {found['false_refusals']:.1%}; passed on to the model although it was taken "
        f"away: {found['false_answers']:.1%}"
    )
    console.print("(each half of the questions was judged by a fit on the other half)")
    threshold = math.floor(found["threshold"] * 100) / 100  # never more than was found
    console.print(f"for {arguments.false_refusals} % false refusals set RAG_REFUSAL_THRESHOLD={threshold:.2f}")
    console.print("the service uses it from now on" if found["kept"] else "nothing was changed (--dry-run)")


def _show(present: dict[str, Any]) -> None:
    kinds = {
        "own": "fitted in this service by 'docduet calibrate'",
        "shipped": "the one that comes with docduet for this embedding model",
        "default": "the one that comes with docduet for any embedding model: 'docduet calibrate SET' fits one to yours",
    }
    console.print(f"{kinds.get(present['source'], present['source'])} ({present['fingerprint']})", markup=False)
    console.print(f"weights: {_weights(present['weights'])}", markup=False)
    console.print(f"RAG_REFUSAL_THRESHOLD={present['threshold']:g}")


def _weights(weights: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in weights.items())


def _tidy(client: RagClient, made: list[Corpus]) -> None:
    for there in made:
        try:
            corpus.remove(client, there)
        except ServiceError as error:
            errors.print(f"[yellow]the collection {safe(there.collection)} is still there:[/] {safe(error)}")


@contextlib.contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line elsewhere; yields what is told how many are done."""
    if not console.is_terminal:
        console.print(f"{safe(what)}: {total:,}")
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.completed}/{task.total}"))
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(safe(what), total=total)
        yield lambda done: progress.update(task, completed=done)
