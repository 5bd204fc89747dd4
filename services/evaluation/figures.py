"""From rows to figures: what each question adds to a figure, and the figures with their intervals."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from services.evaluation import bootstrap
from services.evaluation.bootstrap import Part
from services.evaluation.journal import Journal, Row
from services.evaluation.metrics import contains, f1, language_of, ndcg, percentile, recall, reciprocal_rank
from services.evaluation.run import MODES, Plan, answer_key, search_key
from services.evaluation.sets import Question

Columns = dict[str, dict[str, Part]]  # figure → question → its part

CUTS = (1, 4, 10)
# What a reader should see first, in this order; the rest follows.
TITLES = {
    **{f"recall@{k}": f"Recall@{k}: the gold page is among the first {k}" for k in CUTS},
    "mrr@10": "MRR@10: the mean of 1 / rank of the gold page",
    "ndcg@10": "nDCG@10: the same with 1 / log2(1 + rank)",
    "containment": "The answer holds a gold answer",
    "f1": "Token F1 of the answer",
    "exact citations": "Citations whose quote stands where they say",
    "citation precision": "Citations that are exact and on a page that bears the answer out",
    "page recall": "Answers that cite the gold page",
    "false refusals": "Answerable questions that were refused",
    "false answers": "Unanswerable questions that were answered",
}
LESS_IS_BETTER = frozenset({"false refusals", "false answers", "error ratio"})


def rows(journal: Journal, label: str, model: str, plan: Plan) -> list[Row]:
    """One row a question: what was asked, where the answer stands, and what came back."""
    searched = {q.id for q in plan.searched}
    out: dict[str, Row] = {}
    for question in {q.id: q for q in (*plan.searched, *plan.asked)}.values():
        row = _head(question)
        row["search"] = {
            m: r for m in MODES if question.id in searched and (r := journal.get(search_key(label, m, question)))
        }
        out[question.id] = row
    for question in plan.asked:
        if answer := journal.get(answer_key(label, model, question, False)):
            out[question.id]["answer"] = scored(question, answer)
    for question in plan.left_out:
        if answer := journal.get(answer_key(label, model, question, True)):
            kind = "left out" if question.answerable else "unanswerable"
            out[f"{question.id} ({kind})"] = _head(question) | {"kind": kind, "answer": scored(question, answer)}
    return [row | {"key": key} for key, row in out.items() if row.get("search") or "answer" in row]


def _head(question: Question) -> Row:
    return {
        "question": question.text,
        "kind": "answerable",
        "answers": list(question.answers),
        "document": question.document,
        "pages": list(question.pages),
        **({"standalone": question.standalone} if question.standalone else {}),
    }


def scored(question: Question, answer: Row) -> Row:
    """The row of an answer with what it is worth."""
    if "error" in answer or not question.answers:
        return answer
    return answer | {
        "contains": contains(answer["answer"], question.answers),
        "f1": round(f1(answer["answer"], question.answers, language_of(question.text)), 4),
    }


def columns(of: Sequence[Row]) -> Columns:
    """Each question's part of each figure. ``search.hybrid.ndcg@10``, ``answer.f1``, ``answer.false answers``."""
    out: Columns = {}

    def put(figure: str, row: Row, numerator: float, denominator: float = 1.0) -> None:
        out.setdefault(figure, {})[row["key"]] = (float(numerator), float(denominator))

    for row in of:
        for mode, search in row.get("search", {}).items():
            if "error" in search:
                continue
            rank = search["rank"]
            for k in CUTS:
                put(f"search.{mode}.recall@{k}", row, recall(rank, k))
            put(f"search.{mode}.mrr@10", row, reciprocal_rank(rank))
            put(f"search.{mode}.ndcg@10", row, ndcg(rank))
        answer = row.get("answer")
        if answer is None or "error" in answer:
            continue
        if row["kind"] != "answerable":
            put("answer.false answers", row, answer["answerable"])
            continue
        put("answer.false refusals", row, not answer["answerable"])
        if "f1" in answer:
            put("answer.containment", row, answer["contains"])
            put("answer.f1", row, answer["f1"])
        cited = answer["citations"]
        put("answer.exact citations", row, sum(c["exact"] for c in cited), len(cited))
        put("answer.citation precision", row, sum(c["exact"] and c["supports"] for c in cited), len(cited))
        put("answer.page recall", row, any(c["gold"] for c in cited))
    return out


def figures(of: Sequence[Row]) -> dict[str, dict[str, float]]:
    """``{"search.hybrid.ndcg@10": {"value", "low", "high", "n"}, …}``, and ``search.error ratio`` where it can be told:
    1 - nDCG@10 of hybrid over that of the better of its parts."""
    parts = columns(of)
    alike: dict[tuple[str, ...], list[str]] = {}  # figures of the same questions
    for name, by in parts.items():
        alike.setdefault(tuple(by), []).append(name)
    found = {
        name: one
        for keys, names in alike.items()
        for name, one in zip(names, bootstrap.figures([[parts[n][k] for k in keys] for n in names]), strict=True)
    }
    out = {name: asdict(one) for name in parts if (one := found[name])}
    by_mode = {mode: parts.get(f"search.{mode}.ndcg@10", {}) for mode in MODES}
    common = [key for key in by_mode["hybrid"] if all(key in by for by in by_mode.values())]
    if common:
        fused, *parts_of_it = ([by[key][0] for key in common] for by in by_mode.values())
        if ratio := bootstrap.error_ratio(parts_of_it, fused):
            out["search.error ratio"] = asdict(ratio)
    return out


def times(of: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Milliseconds: ``{"search.hybrid": {"p50", "p95", "n"}, "first token": …, "answer": …}``.

    An answer that was refused without asking the model is no measure of it, so only answered questions count.
    """
    taken: dict[str, list[float]] = {}
    for row in of:
        for mode, search in row.get("search", {}).items():
            if "ms" in search:
                taken.setdefault(f"search.{mode}", []).append(search["ms"])
        answer = row.get("answer", {})
        if answer.get("answerable"):
            taken.setdefault("first token", []).append(answer["first_ms"])
            taken.setdefault("answer", []).append(answer["ms"])
    return {
        name: {"p50": round(percentile(ms, 0.5), 1), "p95": round(percentile(ms, 0.95), 1), "n": len(ms)}
        for name, ms in taken.items()
    }


def errors(of: Iterable[Row]) -> list[tuple[str, str, str]]:
    """(question, how it was asked, what went wrong)."""
    out = []
    for row in of:
        out += [(row["question"], mode, s["error"]) for mode, s in row.get("search", {}).items() if "error" in s]
        if "error" in row.get("answer", {}):
            out.append((row["question"], "answer", row["answer"]["error"]))
    return out


def elsewhere(of: Iterable[Row]) -> int:
    """Questions whose document was left out, and whose answer holds the gold answer and cites a page that bears it out:
    the answer stood in another document too."""
    return sum(
        bool(answer["answerable"] and answer.get("contains") and any(c["supports"] for c in answer["citations"]))
        for row in of
        if row["kind"] == "left out" and "error" not in (answer := row["answer"])
    )


def shown(name: str, values: Mapping[str, Any]) -> str:
    """``0.912 (0.89 to 0.93)``; shares of answers in percent."""
    low, value, high = values["low"], values["value"], values["high"]
    if name.startswith("answer.") and name != "answer.f1":
        return f"{value:.1%} ({low:.0%} to {high:.0%})"
    return f"{value:.3f} ({low:.3f} to {high:.3f})"
