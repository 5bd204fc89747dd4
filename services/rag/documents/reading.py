"""The reader seam: a file becomes pages, in a child process with limits.

A hostile or broken file can loop, eat memory or crash its parser; it does so in a process of its own that is killed
and reported, and the service does not notice. Pages cross the pipe as JSON lines (see ``worker.py``).
"""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PageText:
    number: int  # 1-based
    total: int
    text: str


@dataclass(frozen=True)
class PageFailure:
    number: int
    total: int
    reason: str


class ReadError(Exception):
    """The file as a whole cannot be read; the message says why."""


@dataclass(frozen=True)
class Limits:
    seconds: float
    memory_mb: int


def read_pages(path: Path, limits: Limits) -> Iterator[PageText | PageFailure]:
    """Every page of ``path`` in order, as the child process reads them.

    Closing the iterator early kills the child.

    Raises:
        ReadError: the file cannot be read, or reading it went over ``limits``.
    """
    command = [sys.executable, "-m", "services.rag.documents.worker", str(path), str(limits.memory_mb)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)  # noqa: S603
    overdue = threading.Event()

    def kill() -> None:
        overdue.set()
        child.kill()

    timer = threading.Timer(limits.seconds, kill)
    timer.daemon = True
    timer.start()
    errors: list[bytes] = []
    # stderr is drained beside stdout: a parser that complains at length must not fill the pipe and hang.
    drain = threading.Thread(target=lambda: errors.append((child.stderr.read() if child.stderr else b"")[-2000:]))
    drain.start()
    failure: str | None = None
    last = 0
    try:
        assert child.stdout is not None
        for line in child.stdout:
            message = json.loads(line)
            if "error" in message:
                failure = message["error"]
                break
            last = message["number"]
            if "text" in message:
                yield PageText(**message)
            else:
                yield PageFailure(**message)
        if failure is None:
            child.wait()
    finally:
        timer.cancel()
        if child.poll() is None:
            child.kill()
        child.wait()
        drain.join()
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
    if failure is not None:
        raise ReadError(failure)
    if overdue.is_set():
        raise ReadError(f"reading took longer than {limits.seconds:g} s (stopped after page {last})")
    if child.returncode != 0:
        tail = errors[0].decode(errors="replace").strip().splitlines()[-1:] if errors else []
        why = "ran out of memory" if any("MemoryError" in t for t in tail) else f"crashed (exit {child.returncode})"
        raise ReadError(f"the reader {why} after page {last} (memory limit {limits.memory_mb} MB)")
