"""``scripts/demo`` after set-up: both services on the embedded models, the samples, two questions, the addresses."""

import argparse
import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from services.client import RagClient, ServiceError
from services.commands.ask import print_answer
from services.commands.ingest import ingest_files
from services.supervisor import Pair, PairError

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = ("租约的软限制和硬限制分别是多久？", "How long does the battery of the Harrow H2 last?")

console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Both services, two sample PDFs, two questions.")
    parser.add_argument("--once", action="store_true", help="stop the services at the end and exit")
    parser.add_argument(
        "--model", default=os.environ.get("MODEL_ID", "embedded"), help="MODEL_ID (embedded:0.5b: small)"
    )
    arguments = parser.parse_args()
    state_dir = ROOT / ".docduet"
    env = {
        "MODEL_ID": arguments.model,
        "RAG_EMBEDDING_MODEL": os.environ.get("RAG_EMBEDDING_MODEL", "embedded"),
        "RAG_DATA_DIR": os.environ.get("RAG_DATA_DIR", str(state_dir / "data")),
    }
    step = "starting the services"
    try:
        with Pair(env, log_dir=state_dir / "logs") as pair:
            _start(pair, arguments.model)
            key = os.environ.get("RAG_API_KEYS", "").split(",")[0].strip()
            client = RagClient(pair.rag_url, key)
            step = "ingesting samples/"
            console.print("[bold]Ingesting samples/[/]")
            samples = sorted((ROOT / "samples").glob("*.pdf"))
            if ingest_files(client, samples, "default", console):
                raise ServiceError(f"see the reason above and {state_dir / 'logs' / 'rag.log'}")
            for question in QUESTIONS:
                step = f"asking {question!r}"
                console.print(f"\n[bold]Question:[/] {escape(question)}")
                began = time.perf_counter()
                print_answer(client, question, "default", console)
                console.print(f"  ({time.perf_counter() - began:.1f} s)", style="dim")
            console.print(
                f"\n[bold]Up:[/] chat {pair.rag_url}/chat/playground/  playground {pair.rag_url}/rag/playground/\n"
                f"    API docs {pair.rag_url}/docs and {pair.model_url}/docs\n"
                f'    your own documents: .venv/bin/docduet ingest FILE… && .venv/bin/docduet ask "…"'
            )
            if not arguments.once:
                step = "running"
                console.print("Ctrl-C stops both services.")
                pair.watch()
    except (PairError, ServiceError) as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]scripts/demo: {step} failed:[/] {escape(str(error))}")
        return 1
    except KeyboardInterrupt:
        console.print("stopped" if step == "running" else f"interrupted while {step}")
        return 0 if step == "running" else 130
    console.print("Stopped both services." if arguments.once else "")
    return 0


def _start(pair: Pair, model: str) -> None:
    """Wait until both answer. The weights' download shows as a progress bar: it is the slow part of a first run."""
    console.print(f"[bold]Starting both services[/] (model {model}; logs in .docduet/logs)")
    shown: dict[str, str] = {}
    with console.status("starting") as status:

        def show(state: str) -> None:
            progress = {child.name: child.progress() for child in pair.children}
            status.update(escape("  ".join(filter(None, [state, *progress.values()]))))
            for name, line in progress.items():
                if not console.is_terminal and line and shown.get(name) != line:
                    console.print(f"  {line}", markup=False)
                shown[name] = line or shown.get(name, "")

        pair.wait_ready(show)


if __name__ == "__main__":
    sys.exit(main())
