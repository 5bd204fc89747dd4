"""``docduet eval``: measure a live pair on question sets, or compare two such measurements."""

import argparse
import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from services.client import RagClient, ServiceError, Unreachable, persist
from services.commands.output import UsageError, console, count, errors, safe
from services.evaluation import comparison, corpus, figures, report, results
from services.evaluation.corpus import Corpus
from services.evaluation.journal import Journal, JournalError
from services.evaluation.metrics import folds_traditional
from services.evaluation.results import ResultsError, SetResult
from services.evaluation.run import MODES, Plan, Runner, plan
from services.evaluation.sets import QuestionSet, SetError, order, part, read

FOLDER = "evaluations"


def run(arguments: argparse.Namespace, client: RagClient) -> int:
    """0: all was measured; 1: some questions failed; 130: interrupted, what there is is written.

    Raises:
        UsageError: a file is no question set, or the output folder holds something else.
        ServiceError: the service cannot be reached, or refuses the key or the collection; what there is is written.
    """
    try:
        if arguments.compare:
            return _compare(arguments.compare[0], arguments.compare[1], arguments.output)
        if not arguments.sets:
            raise UsageError(
                "name a question set (a SQuAD-style file, or a list of questions), or --compare A.json B.json"
            )
        sets = [part(read(path), *arguments.part) for path in arguments.sets]
        if len({s.name for s in sets}) < len(sets):
            raise UsageError("two of the sets have the same name: rename one file")
        with _stoppable():
            return _Evaluation(arguments, client, sets).run()
    except (SetError, JournalError, ResultsError) as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise ServiceError(f"the output cannot be written: {error}") from error


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does: what there is is written."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Evaluation:
    def __init__(self, arguments: argparse.Namespace, client: RagClient, sets: list[QuestionSet]) -> None:
        self._arguments, self._client, self._sets = arguments, client, sets
        stamp = time.strftime("%Y-%m-%d-%H%M%S")
        self._folder: Path = arguments.output or Path(FOLDER) / f"{stamp}-{sets[0].name}"
        self._done: list[SetResult] = []
        self._plans: list[tuple[QuestionSet, Corpus, Plan]] = []

    def run(self) -> int:
        service = _service(self._client)
        if self._arguments.answers or self._arguments.unanswerable:
            ready, reason = self._client.ready()
            if not ready:
                raise ServiceError(
                    f"questions cannot be answered now: {reason}; --answers 0 --unanswerable 0 measures search alone"
                )
        if not folds_traditional():
            errors.print(
                "[yellow]note:[/] traditional characters are not folded: pip install 'docduet\\[rag]' brings OpenCC"
            )
        with Journal(self._folder, self._identity(service)) as journal:
            if journal.known:
                console.print(
                    f"{count(journal.known, 'measurement')} of an earlier run in {safe(self._folder)} are kept"
                )
            try:
                self._measure(journal, service["model"])
            except KeyboardInterrupt:
                self._write(journal, service, complete=False)
                errors.print(f"interrupted; the same command with --output {safe(self._folder)} goes on")
                return 130
            except ServiceError as error:
                self._write(journal, service, complete=False)
                raise ServiceError(f"{error}; the same command with --output {self._folder} goes on") from error
            told = self._write(journal, service, complete=True)
        self._tidy()
        self._print(told)
        failed = sum(s["counts"]["errors"] for s in told["sets"])
        missing = sum(len(s["documents missing"]) for s in told["sets"])
        console.print(f"{safe(self._folder / 'report.html')}, {safe(self._folder / 'results.json')}")
        if failed:
            errors.print(
                f"[red]{count(failed, 'question')} failed[/]: the report lists them; the same command asks them again"
            )
        if missing:
            errors.print(f"[yellow]{count(missing, 'document')} of the sets are missing[/]: the report names them")
        return 1 if failed else 0

    def _identity(self, service: dict[str, Any]) -> dict[str, Any]:
        return {"service": service["service"], "embedder": service["embedder"], "k": self._arguments.k}

    def _measure(self, journal: Journal, model: str) -> None:
        a = self._arguments
        for question_set in self._sets:
            if question_set.blank:
                told = f"{count(question_set.blank, 'question')} of {question_set.name}"
                errors.print(f"[yellow]note:[/] {safe(told)} without a word, passed over")
            found = self._corpus(question_set)
            chosen = plan(order(question_set.questions, a.seed), found, a.questions, a.answers, a.unanswerable)
            if not chosen.searched and not chosen.steps:
                why = next(iter(found.failed.items()), None)
                raise UsageError(
                    f"nothing of {question_set.name} can be asked of the collection {found.collection!r}"
                    + (f" ({why[0]}: {why[1]})" if why else "")
                )
            self._plans.append((question_set, found, chosen))
            runner = Runner(self._client, found, journal, _label(question_set), k=a.k, model=model)
            for mode in a.mode if chosen.searched else ():
                with _bar(f"{question_set.name}: {mode} search", len(chosen.searched)) as advance:
                    runner.search(chosen.searched, mode, advance)
            if chosen.steps:
                with _bar(f"{question_set.name}: answers", chosen.steps) as advance:
                    runner.ask(chosen.asked, advance)
                    runner.ask(chosen.left_out, advance, left_out=True)

    def _corpus(self, question_set: QuestionSet) -> Corpus:
        if not question_set.documents:
            return corpus.find(self._client, question_set, self._arguments.collection or "default")
        name = self._arguments.collection or corpus.collection_name(question_set)
        with _bar(f"{question_set.name}: documents", len(question_set.documents)) as advance:
            at = 0

            def progress(done: int, total: int) -> None:
                nonlocal at
                for _ in range(done - at):
                    advance("")
                at = max(at, done)

            return corpus.put(self._client, question_set, name, progress)

    def _write(self, journal: Journal, service: dict[str, Any], complete: bool) -> Any:
        a = self._arguments
        measured = [
            SetResult(
                question_set.name,
                question_set.digest,
                found.collection,
                {
                    "documents": len(found.everything),
                    "searched": len(chosen.searched),
                    "asked": len(chosen.asked),
                    "unanswerable": len(chosen.left_out),
                },
                figures.rows(journal, _label(question_set), service["model"], chosen),
                found.failed,
            )
            for question_set, found, chosen in self._plans
        ]
        settings = {
            "modes": list(a.mode),
            "k": a.k,
            "seed": a.seed,
            "part": "/".join(map(str, a.part)),
            "traditional folded": folds_traditional(),
            "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        told = results.write(self._folder / "results.json", settings, service, measured, complete)
        results.put(self._folder / "report.html", report.report(told))
        return told

    def _tidy(self) -> None:
        """A collection that this run made goes again; one that was there before was kept on purpose."""
        for question_set, found, _ in self._plans:
            if not found.created or not question_set.documents:
                continue
            if self._arguments.keep:
                console.print(f"kept the collection {safe(found.collection)}")
                continue
            try:
                corpus.remove(self._client, found)
            except ServiceError as error:
                errors.print(f"[yellow]the collection {safe(found.collection)} is still there:[/] {safe(error)}")

    def _print(self, told: dict[str, Any]) -> None:
        for s in told["sets"]:
            _show(_table(s))


def _label(question_set: QuestionSet) -> str:
    return f"{question_set.name}:{question_set.digest[:10]}"


def _service(client: RagClient) -> dict[str, Any]:
    """What answers: a comparison of two runs has to say so, and rows of two services must not mix."""
    try:
        return client.about()
    except Unreachable:
        raise  # nobody has started it; waiting would hide that
    except ServiceError:
        return persist(client.about)


def _show(table: Table) -> None:
    """A pipe has no width: nothing is cut there."""
    (console if console.is_terminal else Console(file=console.file, width=120)).print(table)


def _table(of: dict[str, Any]) -> Table:
    table = Table(title=f"{safe(of['name'])}, with 95 % intervals", title_justify="left", box=box.SIMPLE)
    table.add_column("", no_wrap=True)
    table.add_column("figure", justify="right")
    table.add_column("questions", justify="right")
    for name, values in of["figures"].items():
        table.add_row(safe(name), figures.shown(name, values), str(values["n"]))
    for name, ms in of["milliseconds"].items():
        table.add_row(f"{safe(name)}, milliseconds", f"p50 {ms['p50']:,.0f}, p95 {ms['p95']:,.0f}", str(ms["n"]))
    return table


@contextlib.contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, a line elsewhere; yields what is called after each step."""
    if not console.is_terminal:
        console.print(f"{safe(what)}: {total:,}")
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.completed}/{task.total}"))
    with Progress(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(safe(what), total=total)
        yield lambda question: progress.advance(task)


def _compare(first: Path, second: Path, output: Path | None) -> int:
    a, b = results.load(first), results.load(second)
    sets = comparison.compare(a, b)
    if not sets:
        raise UsageError("the two runs have no set in common")
    for s in sets:
        table = Table(title=safe(s["name"]), title_justify="left", box=box.SIMPLE)
        for column in ("figure", "A", "B", "B - A, with its 95 % interval", "p", "questions"):
            table.add_column(column, justify="left" if column == "figure" else "right", no_wrap=column == "figure")
        for name, f in s["figures"].items():
            told = f"{f['value']:+.3f} ({f['low']:+.3f} to {f['high']:+.3f}){' *' if f['significant'] else '  '}"
            table.add_row(safe(name), f"{f['a']:.3f}", f"{f['b']:.3f}", told, f"{f['p']:.3f}", str(f["n"]))
        _show(table)
        if not s["same_file"]:
            errors.print(f"[yellow]note:[/] the two runs read different files called {safe(s['name'])}")
    console.print("* chance alone would hardly do this: the interval leaves 0 out")
    folder = output or (second if second.is_dir() else second.parent)
    folder.mkdir(parents=True, exist_ok=True)
    results.put(folder / "comparison.json", json.dumps(sets, ensure_ascii=False, indent=1))
    results.put(folder / "comparison.html", report.comparison(str(first), str(second), sets))
    console.print(safe(folder / "comparison.html"))
    return 0


def modes(text: str) -> list[str]:
    """``hybrid,dense`` → both, once each."""
    given = list(dict.fromkeys(m.strip() for m in text.split(",") if m.strip()))
    if not given or any(m not in MODES for m in given):
        raise argparse.ArgumentTypeError(f"{text!r}: give some of {', '.join(MODES)}, with commas between")
    return [m for m in MODES if m in given]
