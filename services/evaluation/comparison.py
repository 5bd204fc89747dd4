"""Two runs over the same questions: each figure's difference, and whether chance explains it."""

from dataclasses import asdict
from typing import Any

from services.evaluation import bootstrap, figures


def compare(a: dict[str, Any], b: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry a set that both hold: ``{"name", "same_file", "figures": {name: Difference…}, "milliseconds": …}``.

    Only questions that both runs measured count, so the figures can differ from those of either run alone.
    """
    others = {s["name"]: s for s in b["sets"]}
    out = []
    for first in a["sets"]:
        if (second := others.get(first["name"])) is None:
            continue
        left, right = figures.columns(first["rows"]), figures.columns(second["rows"])
        differences = {}
        for name in left:
            common = [key for key in left[name] if key in right.get(name, {})]
            if not common:
                continue
            found = bootstrap.difference([left[name][key] for key in common], [right[name][key] for key in common])
            if found:
                differences[name] = {**asdict(found), "significant": found.significant}
        before, after = first["milliseconds"], second["milliseconds"]
        out.append(
            {
                "name": first["name"],
                "same_file": first["digest"] == second["digest"],
                "figures": differences,
                "milliseconds": {n: {"a": before[n], "b": after[n]} for n in before if n in after},
                "changed": _changed(first["rows"], second["rows"]),
            }
        )
    return out


def _changed(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Questions that moved most: by rank of the gold page, then by the answer's F1."""
    before = {row["key"]: row for row in a}
    moved = []
    for row in b:
        if (old := before.get(row["key"])) is None:
            continue
        for mode, search in row.get("search", {}).items():
            was = old.get("search", {}).get(mode, {})
            if "rank" in search and "rank" in was and was["rank"] != search["rank"]:
                gain = (1 / search["rank"] if search["rank"] else 0.0) - (1 / was["rank"] if was["rank"] else 0.0)
                moved.append((gain, row["question"], f"rank, {mode}", _rank(was["rank"]), _rank(search["rank"])))
        one, two = old.get("answer", {}), row.get("answer", {})
        if "f1" in one and "f1" in two and one["f1"] != two["f1"]:
            moved.append((two["f1"] - one["f1"], row["question"], "F1", f"{one['f1']:.2f}", f"{two['f1']:.2f}"))
    moved.sort(key=lambda m: -abs(m[0]))
    names = ("gain", "question", "what", "a", "b")
    return [dict(zip(names, m, strict=True)) for m in moved[:40]]


def _rank(rank: int | None) -> str:
    return "-" if rank is None else str(rank)
