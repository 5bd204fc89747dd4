"""``results.json``: what was measured, of what, with which settings. Versioned, so that two can be compared."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.evaluation import figures
from services.evaluation.journal import SCHEMA, Row

KIND = "docduet evaluation"


class ResultsError(Exception):
    """The file is no results file of this version."""


@dataclass
class SetResult:
    """A set's part of the results."""

    name: str
    digest: str
    collection: str
    counts: dict[str, int]
    rows: list[Row]
    missing: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "digest": self.digest,
            "collection": self.collection,
            "counts": self.counts | {"errors": len(figures.errors(self.rows))},
            "figures": figures.figures(self.rows),
            "milliseconds": figures.times(self.rows),
            "answered from another document": figures.elsewhere(self.rows),
            "documents missing": self.missing,
            "rows": self.rows,
        }


def write(path: Path, settings: dict[str, Any], service: dict[str, Any], sets: list[SetResult], complete: bool) -> Any:
    """Returns what was written. The file appears whole or not at all."""
    results = {
        "kind": KIND,
        "schema": SCHEMA,
        "complete": complete,
        "settings": settings,
        "service": service,
        "sets": [s.as_json() for s in sets],
    }
    put(path, json.dumps(results, ensure_ascii=False, indent=1))
    return results


def put(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def load(path: Path) -> dict[str, Any]:
    """The results at ``path``, or in the folder ``path``.

    Raises:
        ResultsError: it cannot be read, or is something else.
    """
    file = path / "results.json" if path.is_dir() else path
    try:
        parsed = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{file} is no JSON: name the results.json of a 'docduet eval'") from error
    if not isinstance(parsed, dict) or parsed.get("kind") != KIND or not isinstance(parsed.get("sets"), list):
        raise ResultsError(f"{file} is no result of 'docduet eval'")
    if parsed.get("schema") != SCHEMA:
        raise ResultsError(
            f"{file} was written by another version of docduet (schema {parsed.get('schema')!r}): run it again"
        )
    try:
        for s in parsed["sets"]:
            figures.columns(s["rows"])
            s["name"], s["digest"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{file} is damaged: {error!r}") from error
    return parsed
