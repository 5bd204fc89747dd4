"""Ingestion beside the tutorial's own path: the same files, the same embedder's weights, in turns, in one run.

The rival is what LangChain's tutorials write: ``PyPDFLoader.load_and_split``, ``HuggingFaceEmbeddings``,
``Chroma.from_documents``; once as it comes (4,000 characters a chunk, of which the embedder sees the first 512 tokens),
and once with a splitter told to make chunks of docduet's size. docduet is its service, with uploads over HTTP: once
without OCR, which the tutorial does not do either, and once as it comes. Both get their model loaded before the clock starts.

That speed is not bought by indexing less is checked with questions made from the files: sentences that stand on one page
only, half of them as pypdf reads them and half as docduet does, with every third word left out. Found means that one of
the four best passages is of that page.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import rjieba
from rich.console import Console
from rich.table import Table

from services.rag import e5
from services.rag.config import Settings
from services.supervisor import free_port
from services.wheels import console_progress

RIVAL = r"""
import json, resource, sys, tempfile, time
from pathlib import Path
from langchain_chroma import Chroma
from langchain_community.document_loaders import PyPDFLoader
from langchain_huggingface import HuggingFaceEmbeddings
from langchain_text_splitters import RecursiveCharacterTextSplitter
from services.rag.documents.chunking import CHUNK_TOKENS, OVERLAP_TOKENS, estimate_tokens
order = json.load(sys.stdin)
embedder = HuggingFaceEmbeddings(
    model_name=order["model"], model_kwargs={"device": "cpu"},
    encode_kwargs={"prompt": "passage: "}, query_encode_kwargs={"prompt": "query: "})
embedder.embed_query("warm-up")
splitter = None
if order["small"]:
    splitter = RecursiveCharacterTextSplitter(
        chunk_size=CHUNK_TOKENS, chunk_overlap=OVERLAP_TOKENS, length_function=estimate_tokens,
        separators=["\n\n", "\n", "。", ". ", " ", ""])
def used():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
with tempfile.TemporaryDirectory() as folder:
    began, cpu, documents, pages = time.perf_counter(), used(), [], 0
    for file in order["files"]:
        loader = PyPDFLoader(file)
        documents += loader.load_and_split(splitter) if splitter else loader.load_and_split()
    store = Chroma.from_documents(documents, embedder, persist_directory=folder)
    seconds, cpu = time.perf_counter() - began, used() - cpu
    texts = [document.page_content for document in documents]
    tokenizer = embedder._client.tokenizer
    lengths = [len(tokenizer(text, truncation=False, verbose=False)["input_ids"]) for text in texts]
    found = [[[Path(d.metadata["source"]).name, d.metadata["page"] + 1] for d in store.similarity_search(q, k=4)]
             for q in order["questions"]]
    print(json.dumps({"seconds": seconds, "cpu": cpu, "chunks": len(texts), "characters": sum(map(len, texts)),
        "seen": sum(min(n, 512) for n in lengths) / sum(lengths), "found": found}))
"""
RIVALS = {"tutorial": False, "tutorial, small chunks": True}
OWN = {"docduet": {"RAG_OCR": "off"}, "docduet with OCR": {"RAG_OCR": "auto"}}
QUESTIONS = 200
K = 4


@dataclass(frozen=True)
class Question:
    text: str
    filename: str
    page: int  # 1-based


@dataclass
class Run:
    """One path through all files."""

    seconds: float
    cpu: float  # user and system time of all its processes
    chunks: int
    characters: int
    seen: float  # share of the chunks' tokens that the embedder takes in
    found: list[list[tuple[str, int]]] = field(default_factory=list)  # pages of the best passages, a question


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench ingest")
    parser.add_argument("files", nargs="*", type=Path, help="PDF files, or folders of them")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--memory", action="store_true", help="only: memory while a PDF of 2,000 pages is taken in")
    parser.add_argument("--pages", type=int, default=2000, help="of that PDF")
    parser.add_argument("--store", type=int, nargs="?", const=100_000, help="only: cost a chunk up to so many chunks")
    arguments = parser.parse_args()
    console = Console()
    if arguments.store:
        from bench_store import measure_store

        measure_store(arguments.store, console)
    elif arguments.memory:
        _memory(arguments.pages, console)
    else:
        files = sorted(
            path for given in arguments.files for path in (given.glob("**/*.pdf") if given.is_dir() else [given])
        )
        if not files:
            parser.error("name PDF files, or folders that hold some")
        if len({file.name for file in files}) < len(files):
            parser.error("two of the files have the same name: leave one out")
        _compare(files, arguments.rounds, console)


# -- speed and recall


def _compare(files: list[Path], rounds: int, console: Console) -> None:
    with console_progress("embedding model") as progress:
        model = e5.model_folder(_cache(), progress)
    counts, pypdf_texts = _pypdf_pages(files)
    with service(OWN["docduet"]) as docduet:
        _, own_texts = _ingest(docduet, files)
        questions = _questions([pypdf_texts, own_texts], counts)
    runs: dict[str, list[Run]] = {name: [] for name in (*RIVALS, *OWN)}
    for number in range(rounds):
        names = list(runs)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            with console.status(f"round {number + 1} of {rounds}: {name}"):
                run = _run(name, model, files, questions)
            console.print(f"{name}: {run.chunks} chunks in {run.seconds:.1f} s ({run.cpu:.1f} s of processor time)")
            runs[name].append(run)
    _print(runs, questions, sum(counts.values()), console)


def _run(name: str, model: Path, files: list[Path], questions: list[Question]) -> Run:
    if name in OWN:
        with service(OWN[name]) as docduet:
            run, _ = _ingest(docduet, files)
            run.found = [docduet.search(question.text) for question in questions]
            return run
    order = {
        "model": str(model),
        "files": [str(file) for file in files],
        "small": RIVALS[name],
        "questions": [question.text for question in questions],
    }
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "ANONYMIZED_TELEMETRY": "false"}
    done = subprocess.run(
        [sys.executable, "-c", RIVAL], input=json.dumps(order), env=environment, text=True, capture_output=True
    )
    if done.returncode:
        raise SystemExit(f"scripts/bench: the tutorial's path failed: {done.stderr[-2000:]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return Run(**{**answer, "found": [[(name, page) for name, page in pages] for pages in answer["found"]]})


class Docduet:
    """A service with an empty data folder."""

    def __init__(self, process: subprocess.Popen[bytes], client: httpx.Client, log: Path) -> None:
        self.process = process
        self.log = log
        self.client = client

    def search(self, question: str) -> list[tuple[str, int]]:
        body = {"query": question, "k": K, "mode": "dense"}
        passages = self._json("POST", "/search", json=body)["passages"]
        return [(passage["filename"], passage["page"]) for passage in passages]

    def upload(self, file: Path) -> None:
        with file.open("rb") as content:
            self._json("POST", "/documents", files={"file": (file.name, content)})

    def documents(self) -> list[dict[str, Any]]:
        documents: list[dict[str, Any]] = self._json("GET", "/documents")["documents"]
        return documents

    def wait(self) -> None:
        """Until every upload is indexed."""
        while open_ := [d for d in self.documents() if d["status"] != "indexed"]:
            if failed := [d for d in open_ if d["status"] == "failed"]:
                raise SystemExit(f"scripts/bench: {failed[0]['filename']}: {failed[0]['error']}")
            time.sleep(0.1)

    def texts(self) -> dict[tuple[str, int], str]:
        found = {}
        for document in self.documents():
            for page in range(1, document["pages"] + 1):
                answer = self.client.get(f"/documents/{document['id']}/pages/{page}")
                if answer.status_code == 200:  # else it has no text
                    found[document["filename"], page] = answer.json()["text"]
        return found

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        answer = self.client.request(method, path, **options)
        if answer.is_error:
            log = self.log.read_text(errors="replace")[-2000:]
            raise SystemExit(f"scripts/bench: {method} {path} answers {answer.status_code}: {answer.text[:500]}\n{log}")
        found: dict[str, Any] = answer.json()
        return found


@contextmanager
def service(settings: dict[str, str]) -> Iterator[Docduet]:
    """A RAG service of its own, with its model loaded."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="docduet-bench-"))
        port = free_port()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAG_")},
            "RAG_DATA_DIR": folder,
            "RAG_CACHE_DIR": str(_cache().parent),
            "RAG_PORT": str(port),
            "RAG_EMBEDDING_MODEL": "embedded",
            "RAG_MODEL_URL": "http://127.0.0.1:9/v1",  # nobody: no question is answered here
            **settings,
        }
        log_path = Path(folder) / "service.log"
        log = stack.enter_context(log_path.open("wb"))
        process = subprocess.Popen([sys.executable, "-m", "services.rag"], env=environment, stdout=log, stderr=log)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600, trust_env=False))
        query = {"query": "warm-up", "k": 1}
        while True:
            if process.poll() is not None:
                raise SystemExit(f"scripts/bench: the service ended: {log_path.read_text(errors='replace')[-2000:]}")
            try:
                if client.post("/search", json=query).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        yield Docduet(process, client, log_path)


def _ingest(docduet: Docduet, files: list[Path]) -> tuple[Run, dict[tuple[str, int], str]]:
    began, cpu = time.perf_counter(), _cpu(docduet.process.pid)
    for file in files:
        docduet.upload(file)
    docduet.wait()
    seconds, cpu = time.perf_counter() - began, _cpu(docduet.process.pid) - cpu
    texts = docduet.texts()
    chunks = sum(document["chunks"] for document in docduet.documents())
    return Run(seconds, cpu, chunks, sum(map(len, texts.values())), 1.0), texts


def _pypdf_pages(files: list[Path]) -> tuple[dict[str, int], dict[tuple[str, int], str]]:
    from pypdf import PdfReader

    texts = {
        (file.name, number): page.extract_text()
        for file in files
        for number, page in enumerate(PdfReader(file).pages, start=1)
    }
    return dict(Counter(name for name, _ in texts)), texts


def _questions(readings: list[dict[tuple[str, int], str]], counts: dict[str, int]) -> list[Question]:
    """Sentences of one page only, in equal numbers from every reading and file, with every third word left out."""
    chance = random.Random(0)  # noqa: S311
    found: list[Question] = []
    for texts in readings:
        standing = Counter(sentence for text in texts.values() for sentence in set(_sentences(text)))
        for filename in counts:
            once = [
                (sentence, page)
                for (name, page), text in sorted(texts.items())
                if name == filename
                for sentence in _sentences(text)
                if standing[sentence] == 1
            ]
            for sentence, page in chance.sample(once, min(len(once), QUESTIONS // len(readings) // len(counts))):
                words = [word for i, word in enumerate(rjieba.cut(sentence)) if i % 3 != 2 or word.isspace()]
                found.append(Question("".join(words), filename, page))
    return found


def _sentences(text: str) -> list[str]:
    """Those of a question's length, in one line."""
    flat = re.sub(r"\s+", " ", text)
    pieces = re.split(r"(?<=[。！？!?；])|(?<=[a-z)]\.)\s", flat)
    return [p.strip() for p in pieces if 20 <= len(p.strip()) <= 250 and sum(map(str.isalpha, p)) > 0.6 * len(p)]


def _print(runs: dict[str, list[Run]], questions: list[Question], pages: int, console: Console) -> None:
    title = f"{pages} pages, median of {len(runs['docduet'])} rounds; recall@{K} by page of {len(questions)} questions"
    table = Table(title=title)
    for column in ("", "seconds", "processor s", "chunks", "characters", "seen", "chunks/s", "pages/s", "recall"):
        table.add_column(column, justify="left" if not column else "right")
    middle = {
        name: {what: statistics.median(getattr(r, what) for r in of) for what in ("seconds", "cpu")}
        for name, of in runs.items()
    }
    for name, of in runs.items():
        run, seconds = of[0], middle[name]["seconds"]
        hits = [(q.filename, q.page) in pages_ for q, pages_ in zip(questions, run.found, strict=True)]
        table.add_row(
            *(name, f"{seconds:.1f}", f"{middle[name]['cpu']:.1f}", str(run.chunks), f"{run.characters:,}"),
            *(
                f"{run.seen:.0%}",
                f"{run.chunks / seconds:.1f}",
                f"{pages / seconds:.2f}",
                f"{statistics.mean(hits):.3f}",
            ),
        )
    console.print(table)
    for own in OWN:
        for name in RIVALS:
            time_, cpu = (middle[name][what] / middle[own][what] for what in ("seconds", "cpu"))
            chunks = runs[own][0].chunks / runs[name][0].chunks
            spread = [f"{a.seconds / b.seconds:.2f}" for a, b in zip(runs[name], runs[own], strict=True)]
            console.print(
                f"{own} beside {name}: {time_:.2f} times the pages a second (rounds: {', '.join(spread)}), "
                f"{time_ * chunks:.2f} times the chunks a second; by processor time {cpu:.2f} and {cpu * chunks:.2f}"
            )


# -- memory


def _memory(pages: int, console: Console) -> None:
    with tempfile.TemporaryDirectory(prefix="docduet-bench-") as folder:
        file = Path(folder) / "long.pdf"
        _long_pdf(file, pages)
        with service({}) as docduet:
            idle = _pss(docduet.process.pid)
            samples: list[tuple[float, int]] = []
            stop = threading.Event()

            def watch() -> None:
                while not stop.wait(0.2):
                    samples.append((_pss(docduet.process.pid), len(_tree(docduet.process.pid))))

            thread = threading.Thread(target=watch)
            thread.start()
            try:
                run, _ = _ingest(docduet, [file])
            finally:
                stop.set()
                thread.join()
    tenth = max(1, len(samples) // 10)
    console.print(
        f"{pages} pages, {file.name} of {run.chunks} chunks in {run.seconds:.0f} s: {idle:.0f} MiB before; at most "
        f"{max(size for size, _ in samples):.0f} MiB in all {max(count for _, count in samples)} processes together "
        f"(the first tenth of the time {max(size for size, _ in samples[:tenth]):.0f}, the last "
        f"{max(size for size, _ in samples[-tenth:]):.0f})"
    )


def _long_pdf(path: Path, pages: int) -> None:
    from fpdf import FPDF

    chance = random.Random(0)  # noqa: S311
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(5000)]
    pdf = FPDF()
    pdf.set_font("Helvetica", size=11)
    for number in range(1, pages + 1):
        pdf.add_page()
        sentences = [" ".join(chance.choices(words, k=15)).capitalize() + "." for _ in range(16)]
        pdf.multi_cell(0, 6, f"Page {number}. " + " ".join(sentences))
    pdf.output(str(path))


# -- a process and its children


def _tree(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            children.setdefault(int(_stat(path)[1]), []).append(int(path.parent.name))
        except OSError:
            continue  # it ended meanwhile
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def _stat(path: Path) -> list[str]:
    """The fields after the name, which may hold spaces."""
    return path.read_text().rpartition(")")[2].split()


def _cpu(pid: int) -> float:
    """Seconds of user and system time of a process and its children, ended ones included."""
    ticks = 0
    for one in _tree(pid):
        try:
            ticks += sum(map(int, _stat(Path(f"/proc/{one}/stat"))[11:15]))
        except OSError:
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def _pss(pid: int) -> float:
    """MiB of a process and its children, shared pages counted once."""
    total = 0
    for one in _tree(pid):
        try:
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:
            continue
        total += int(text.split("\nPss:")[1].split()[0])
    return total / 1024


def _cache() -> Path:
    return Settings(_env_file=None).cache_dir / "embeddings"


if __name__ == "__main__":
    main()
