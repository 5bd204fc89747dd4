"""Progress bars: one for each file that something happens to, and one for all."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from services.client import ServiceError
from services.commands.output import printable, safe

_NAME_COLUMNS = 29  # name, bar, note and time fit into 80


class Bar:
    """One file's line while something happens to it."""

    def __init__(self, progress: Progress | None, name: str, note: str) -> None:
        self._progress = progress
        self._task = TaskID(0)
        self._args = (shortened(name, _NAME_COLUMNS), note)

    def __enter__(self) -> "Bar":
        if self._progress:
            name, note = self._args
            self._task = self._progress.add_task(safe(name), total=1.0, note=safe(note))
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress:
            self._progress.remove_task(self._task)

    def update(self, fraction: float, note: str) -> None:
        if self._progress:
            self._progress.update(self._task, completed=fraction, note=safe(note))

    def waiting(self, problem: ServiceError, seconds: float) -> None:
        if self._progress:
            reason = "disk full" if problem.status == 507 else "busy" if problem.status else "service away"
            self._progress.update(self._task, note=f"{reason}, retrying")
        time.sleep(seconds)


class Bars:
    """The bars of a terminal; nothing at all elsewhere."""

    def __init__(self, console: Console, wanted: bool = True) -> None:
        self._progress: Progress | None = None
        self._all = TaskID(0)
        if wanted and console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=12),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )

    def __enter__(self) -> "Bars":
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress:
            self._progress.stop()

    def total(self, files: int) -> None:
        if self._progress and files > 1:
            self._all = self._progress.add_task("all files".ljust(_NAME_COLUMNS), total=files, note=f"0 of {files}")

    def advanced(self, done: int, files: int) -> None:
        if self._progress and files > 1:
            self._progress.update(self._all, completed=done, note=f"{done} of {files}")

    def bar(self, name: str, note: str) -> Bar:
        return Bar(self._progress, name, note)


def shortened(name: str, columns: int) -> str:
    """The end of a long name: folders are alike at their beginning. Exactly ``columns`` wide, wide letters counted."""
    text = Text(printable(name))
    while text.cell_len > columns:
        cut = text.plain.removeprefix("…")[max(1, (text.cell_len - columns) // 2) :]
        text = Text("…" + cut)
    return text.plain + " " * (columns - text.cell_len)


def fraction(job: Mapping[str, Any]) -> float:
    """Uploading and reading count for a tenth each, embedding for the rest."""

    def share(done: str, total: str) -> float:
        return min(1.0, float(job.get(done) or 0) / float(job[total])) if job.get(total) else 0.0

    if job["state"] == "indexed":
        return 1.0
    return 0.1 + 0.1 * share("pages_read", "pages_total") + 0.8 * share("chunks_embedded", "chunks_total")


def note(job: Mapping[str, Any]) -> str:
    if job["state"] == "reading":
        return f"page {job.get('pages_read') or 0}/{job.get('pages_total') or '?'}"
    if job["state"] == "embedding":
        done, left = job.get("chunks_embedded") or 0, job.get("estimate_seconds")
        # Before the first one it waits for other files, and the estimate knows nothing of that.
        more = f", {_duration(left)} left" if done and left else ""
        return f"chunk {done}/{job.get('chunks_total') or '?'}{more}"
    return "waiting" if job["state"] == "accepted" else str(job["state"])


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
