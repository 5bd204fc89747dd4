"""What was measured so far, in the output folder: a line a measurement, so that an interrupted run goes on."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

SCHEMA = 1
Row = dict[str, Any]
Key = tuple[str, ...]


class JournalError(Exception):
    """The folder cannot hold this run; the message says why and what to do."""


class Journal:
    """``rows.jsonl``: first what the rows belong to, then the rows. A line cut short by a kill is measured again.

    Raises:
        JournalError: the folder cannot be written, another run uses it, or its rows are of another service or setting.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self._path = folder / "rows.jsonl"
        self._rows: dict[Key, Row] = {}
        identity = {"schema": SCHEMA, **identity}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / ".lock")
            self._lock.acquire(timeout=0)
            known = self._read(identity)
            self._file = self._path.open("a", encoding="utf-8")
            if not known:
                self._write(identity)
        except Timeout as error:
            raise JournalError(f"another run writes to {folder}: wait for it, or name another folder") from error
        except OSError as error:
            raise JournalError(f"{folder} cannot be written: {error.strerror or error}") from error
        self.known = len(self._rows)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._lock.release()

    def __getitem__(self, key: Key) -> Row:
        return self._rows[key]

    def get(self, key: Key) -> Row | None:
        return self._rows.get(key)

    def done(self, key: Key) -> bool:
        """Whether it was measured; what failed is measured again."""
        row = self._rows.get(key)
        return row is not None and "error" not in row

    def add(self, key: Key, row: Row) -> None:
        self._write({"key": list(key), **row})
        self._rows[key] = row

    def _write(self, line: dict[str, Any]) -> None:
        # One write: an interrupt in between would leave half a line, which the next line would be glued to.
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def _read(self, identity: dict[str, Any]) -> bool:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return False
        lines = content.split(b"\n")
        if lines[-1]:  # cut short: what is appended must start a line of its own
            with self._path.open("ab") as file:
                file.write(b"\n")
        parsed = [p for line in lines if (p := _object(line)) is not None]
        if not parsed:
            return False
        first = parsed[0]
        if "key" in first or first != identity:
            differing = [name for name in identity if first.get(name) != identity[name]] or ["another file"]
            told = "; ".join(f"{name}: {first.get(name)!r}, now {identity.get(name)!r}" for name in differing)
            raise JournalError(
                f"{self._path} holds measurements of something else ({told}): name another folder with --output"
            )
        for row in parsed[1:]:
            key = row.pop("key", None)
            if isinstance(key, list):
                self._rows[tuple(map(str, key))] = row
        return True


def _object(line: bytes) -> Row | None:
    try:
        parsed = json.loads(line)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None
