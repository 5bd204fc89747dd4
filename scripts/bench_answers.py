"""Answers and retrieval beside what a user would otherwise have: the same questions, model server and embedder's weights.

The rivals are LangChain's: the tutorials' chain (TextLoader, RecursiveCharacterTextSplitter of 1,000 characters, the e5
embedder, Chroma, RetrievalQA with its default "stuff" prompt over four passages), and the same chain over EnsembleRetriever
(BM25 and Chroma, half and half), once with BM25's default of splitting at spaces and once with jieba's words. docduet is its
two services over HTTP. Every answer is at temperature 0 and at most 512 tokens long.

Everything measured stands in the output folder; the same command goes on where it was cut short.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from services.client import RagClient, ServiceError
from services.evaluation import bootstrap, corpus, figures
from services.evaluation.journal import Journal, JournalError, Key, Row
from services.evaluation.metrics import contains, f1, first_rank, language_of, ndcg, recall, reciprocal_rank
from services.evaluation.results import put
from services.evaluation.run import MODES, Plan, Runner, answer_key, plan, search_key
from services.evaluation.sets import Question, QuestionSet, SetError, order, read
from services.rag import e5
from services.rag.config import Settings
from services.supervisor import Pair, PairError, free_port
from services.wheels import console_progress

RIVALS = ("tutorial", "ensemble", "ensemble, jieba")
ASKABLE = ("tutorial", "ensemble, jieba")  # whose answers are compared: BM25 over spaces finds nothing in Chinese
MAX_TOKENS = 512
MEASURES = ("recall@1", "recall@4", "recall@10", "mrr@10", "ndcg@10")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench answers")
    parser.add_argument("sets", nargs="+", type=Path, help="SQuAD-style files")
    parser.add_argument("--questions", type=int, default=200, help="searched for, of each set (200)")
    parser.add_argument("--answers", type=int, default=20, help="of these asked, of every system (20)")
    parser.add_argument("--ask", nargs="*", choices=ASKABLE, default=list(ASKABLE), help="the rivals to ask (both)")
    parser.add_argument("--model", default="embedded", help="MODEL_ID (embedded)")
    parser.add_argument(
        "--output", type=Path, default=Path("evaluations/bench-answers"), help="measurements are kept here"
    )
    arguments = parser.parse_args()
    console = Console()
    try:
        sets = [read(path) for path in arguments.sets]
        if any(not s.documents for s in sets):
            parser.error("only SQuAD-style files bring the documents that the rivals need")
        with Journal(arguments.output, {"model": arguments.model}) as journal:
            told = _Bench(arguments, journal, console).run(sets)
    except (SetError, JournalError, ServiceError, PairError) as error:
        raise SystemExit(f"scripts/bench answers: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("scripts/bench answers: interrupted; the same command goes on") from None
    put(arguments.output / "answers.json", json.dumps(told, ensure_ascii=False, indent=1))
    for of in told:
        _print(of, console)


class _Bench:
    def __init__(self, arguments: argparse.Namespace, journal: Journal, console: Console) -> None:
        self._arguments, self._journal, self._console = arguments, journal, console
        self._cache = Settings(_env_file=None).cache_dir

    def run(self, sets: Sequence[QuestionSet]) -> list[dict[str, Any]]:
        plans: list[tuple[QuestionSet, Plan]] = []
        with ExitStack() as stack:
            client = None
            for question_set in sets:
                ordered = [q for q in order(question_set.questions, 0) if q.answerable]
                searched = ordered[: self._arguments.questions]
                asked = Plan(searched, searched[: self._arguments.answers], [])
                plans.append((question_set, asked))
                # The rivals' vectors and searches come first, while nothing else runs.
                self._rivals(question_set, asked, {"search": asked.searched})
                client = client or stack.enter_context(self._pair())
                self._docduet(client.rag_url, question_set, asked)
                if asked.asked:
                    self._rivals(question_set, asked, {"answer": asked.asked}, client.model_url)
        return [self._figures(question_set, asked) for question_set, asked in plans]

    def _pair(self) -> Pair:
        """Both services, on a data folder of this benchmark: a second run finds its documents there."""
        folder = self._arguments.output
        return _Ready(
            {
                "MODEL_ID": self._arguments.model,
                "MODEL_PORT": str(free_port()),
                "RAG_PORT": str(free_port()),
                "RAG_DATA_DIR": str((folder / "data").resolve()),
                "RAG_EMBEDDING_MODEL": "embedded",
                "RAG_MAX_TOKENS": str(MAX_TOKENS),
                "RAG_CACHE_DIR": str(self._cache),
            },
            folder,
            self._console,
        )

    def _docduet(self, url: str, question_set: QuestionSet, wanted: Plan) -> None:
        client = RagClient(url)
        name = corpus.collection_name(question_set)
        with self._console.status(f"{question_set.name}: docduet, documents"):
            found = corpus.put(client, question_set, name, lambda done, total: None)
        chosen = plan(wanted.searched, found, None, len(wanted.asked), 0)
        runner = Runner(client, found, self._journal, question_set.name, k=20, model=self._arguments.model)
        for mode in MODES:
            with self._console.status(f"{question_set.name}: docduet, {mode} search"):
                runner.search(chosen.searched, mode, lambda question: None)
        with self._console.status(f"{question_set.name}: docduet, answers") as status:
            at = iter(range(1, len(chosen.asked) + 1))
            runner.ask(
                chosen.asked,
                lambda q: status.update(f"{question_set.name}: docduet, answer {next(at)} of {len(chosen.asked)}"),
            )
        client.close()

    def _rivals(
        self, question_set: QuestionSet, wanted: Plan, work: dict[str, Sequence[Question]], llm: str = ""
    ) -> None:
        def missing(system: str, kind: str) -> dict[str, str]:
            key = _key(question_set, system, kind)
            return {q.id: q.text for q in work.get(kind, ()) if not self._journal.done((*key, q.id))}

        search = missing(RIVALS[-1], "search") | missing(RIVALS[0], "search")
        ask = {system: missing(system, "answer") for system in self._arguments.ask}
        if not search and not any(ask.values()):
            return
        with tempfile.TemporaryDirectory(prefix="docduet-bench-") as folder:
            for name, text in question_set.documents.items():
                (Path(folder) / name).write_text(text, encoding="utf-8")
            with console_progress("embedding model") as progress:
                model = e5.model_folder(self._cache / "embeddings", progress)
            told = {
                "model": str(model),
                "store": str(self._arguments.output / f"chroma-{question_set.digest[:10]}"),
                "folder": folder,
                "llm": f"{llm}/v1",
                "llm_name": self._arguments.model,
                "max_tokens": MAX_TOKENS,
                "search": search,
                "ask": ask,
            }
            what = f"{question_set.name}: LangChain, {' and '.join(work)}"
            with self._console.status(what) as status:
                for number, line in enumerate(_lines(told), 1):
                    status.update(f"{what} {number}")
                    key = (*_key(question_set, line.pop("system"), line.pop("kind")), line.pop("id"))
                    self._journal.add(key, line)

    def _figures(self, question_set: QuestionSet, wanted: Plan) -> dict[str, Any]:
        systems = {f"docduet, {mode}": _own(self._journal, question_set, mode, wanted) for mode in MODES}
        systems |= {rival: self._rival_columns(question_set, rival, wanted) for rival in RIVALS}
        model = self._arguments.model
        answers = {"docduet": {q.id: answer_key(question_set.name, model, q, False) for q in wanted.asked}}
        answers |= {
            r: {q.id: (*_key(question_set, r, "answer"), q.id) for q in wanted.asked} for r in self._arguments.ask
        }
        scores = {system: self._scores(wanted.asked, keys) for system, keys in answers.items()}
        common = [q.id for q in wanted.asked if all(q.id in s for s in scores.values())]
        return {
            "set": question_set.name,
            "documents": len(question_set.documents),
            "searched": len(wanted.searched),
            "asked": len(common),
            "search": {
                name: {m: vars(f) for m, values in c.items() if (f := bootstrap.figure([(v, 1.0) for v in values]))}
                for name, c in systems.items()
            },
            "error ratios": {
                f"hybrid to the better of {a} and {b}": vars(r)
                for a, b in (("docduet, dense", "docduet, lexical"), *((x, x) for x in RIVALS))
                if (r := _error_ratio(systems, a, b))
            },
            "answers": {
                name: {
                    "f1": statistics.fmean(s[i]["f1"] for i in common),
                    "containment": statistics.fmean(s[i]["contains"] for i in common),
                    "p50 s": statistics.median(s[i]["ms"] for i in common) / 1000,
                }
                for name, s in scores.items()
                if common
            },
            "answer ratios": {
                f"{measure}, docduet to {rival}": vars(q)
                for rival in self._arguments.ask
                for measure in ("f1", "contains")
                if (q := _quotient(scores, rival, measure, common))
            },
        }

    def _rival_columns(self, question_set: QuestionSet, rival: str, wanted: Plan) -> dict[str, list[float]]:
        ranks = []
        for q in wanted.searched:
            row = self._journal[*_key(question_set, rival, "search"), q.id]
            ranks.append(first_rank([(name, 1) for name in row["found"]], lambda page, q=q: page[0] == q.document))  # type: ignore[misc]
        return _columns(ranks)

    def _scores(self, asked: Sequence[Question], keys: dict[str, Key]) -> dict[str, Row]:
        out = {}
        for q in asked:
            row = self._journal.get(keys[q.id])
            if row and "error" not in row:
                answer = row["answer"]
                out[q.id] = {
                    "f1": f1(answer, q.answers, language_of(q.text)),
                    "contains": float(contains(answer, q.answers)),
                    "ms": row["ms"],
                }
        return out


class _Ready(Pair):
    """A pair that is entered once it answers."""

    def __init__(self, env: dict[str, str], logs: Path, console: Console) -> None:
        super().__init__(env, logs)
        self._console = console

    def __enter__(self) -> "_Ready":
        super().__enter__()
        try:
            with self._console.status("starting both services") as status:
                self.wait_ready(lambda state: status.update(state))
        except BaseException:
            self._stop()
            raise
        return self


def _lines(told: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the rivals' process says, as it says it."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "ANONYMIZED_TELEMETRY": "false"}
    script = Path(__file__).with_name("bench_answers_rivals.py")
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with process.stdin as stdin:
                json.dump(told, stdin)
            for line in process.stdout:
                yield json.loads(line)
            if process.wait():
                log.seek(0)
                raise SystemExit(f"scripts/bench: the rivals' process failed: {log.read()[-2000:]}")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _key(question_set: QuestionSet, system: str, kind: str) -> tuple[str, str]:
    return (question_set.name, f"{kind} by {system}")


def _own(journal: Journal, question_set: QuestionSet, mode: str, wanted: Plan) -> dict[str, list[float]]:
    return _columns([journal[search_key(question_set.name, mode, q)]["rank"] for q in wanted.searched])


def _columns(ranks: Sequence[int | None]) -> dict[str, list[float]]:
    out = {f"recall@{k}": [recall(r, k) for r in ranks] for k in figures.CUTS}
    return out | {"mrr@10": [reciprocal_rank(r) for r in ranks], "ndcg@10": [ndcg(r) for r in ranks]}


def _error_ratio(systems: dict[str, dict[str, list[float]]], a: str, b: str) -> bootstrap.Figure | None:
    return bootstrap.error_ratio([systems[a]["ndcg@10"], systems[b]["ndcg@10"]], systems["docduet, hybrid"]["ndcg@10"])


def _quotient(
    scores: dict[str, dict[str, Row]], rival: str, measure: str, common: Sequence[str]
) -> bootstrap.Figure | None:
    return bootstrap.quotient(
        [scores[rival][i][measure] for i in common], [scores["docduet"][i][measure] for i in common]
    )


def _print(of: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{of['set']}: {of['documents']} documents, {of['searched']} questions")
    for column in ("", *MEASURES):
        table.add_column(column, justify="right" if column else "left")
    for name, found in of["search"].items():
        table.add_row(name, *(f"{found[m]['value']:.3f}" for m in MEASURES))
    console.print(table)
    for name, ratio in of["error ratios"].items():
        a, _, b = name.removeprefix("hybrid to the better of ").partition(" and ")
        told = name if a != b else f"hybrid to {a}"
        console.print(f"1 - nDCG@10, {told}: {_shown(ratio)}")
    if not of["answers"]:
        return
    table = Table(title=f"{of['set']}: {of['asked']} answers")
    for column in ("", "token F1", "holds the gold answer", "seconds (median)"):
        table.add_column(column, justify="right" if column else "left")
    for name, a in of["answers"].items():
        table.add_row(name, f"{a['f1']:.3f}", f"{a['containment']:.1%}", f"{a['p50 s']:.1f}")
    console.print(table)
    for name, ratio in of["answer ratios"].items():
        console.print(f"{name}: {_shown(ratio)}")


def _shown(ratio: dict[str, float]) -> str:
    return f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


if __name__ == "__main__":
    main()
