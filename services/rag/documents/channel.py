"""The two pipes to the reading process. Nothing here blocks for longer than it is told to, whatever the other end does."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque

MAX_REQUEST = 32_768  # bytes: half of what an empty pipe takes, so that sending never blocks
MAX_LINE = 16 << 20  # bytes: a page as long as the worker lets it be, were every character the longest in JSON
_BUFFERED = 1 << 20  # bytes read ahead of the consumer; beyond it the reader waits


class Channel:
    """One reading process: lines to it, lines from it, its end. Thread-safe."""

    def __init__(self, *, once: bool) -> None:
        """Starts it. OSError where the system has no room for a process."""
        environment = {
            **os.environ,
            "OPENBLAS_NUM_THREADS": "1",  # it starts a thread a core when it is imported, which no fork survives
            "MALLOC_ARENA_MAX": "2",  # each arena reserves 64 MB of the address space that is limited
        }
        command = [sys.executable, "-m", "services.rag.documents.worker", *(["--once"] if once else [])]
        self._once = once
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        self._changed = threading.Condition()
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._interrupted = False
        self._discarding = False
        self._complaint = b""
        self._sending = threading.Lock()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._drain, self._pump)]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, message: dict[str, object]) -> None:
        """OSError when the process is gone, ValueError when the message is longer than ``MAX_REQUEST``."""
        line = json.dumps(message).encode() + b"\n"
        if len(line) > MAX_REQUEST:
            raise ValueError(f"a request of {len(line)} bytes, where {MAX_REQUEST} are the most")
        with self._sending:
            stdin = self._process.stdin
            if stdin is None or stdin.closed:
                raise BrokenPipeError("the reading process has been ended")
            os.write(stdin.fileno(), line)

    def receive(self, timeout: float) -> bytes:
        """The next line; one longer than ``MAX_LINE`` comes in parts, which are no JSON.

        Raises:
            TimeoutError: none came in ``timeout`` seconds.
            EOFError: none will come.
            InterruptedError: ``interrupt`` was called since ``clear``.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._ended or self._interrupted, max(timeout, 0))
            if self._interrupted:
                raise InterruptedError
            if self._lines:
                line = self._lines.popleft()
                self._size -= len(line)
                self._changed.notify_all()
                return line
            if self._ended:
                raise EOFError
            raise TimeoutError

    def interrupt(self) -> None:
        """Wakes whoever receives, and whoever does so before ``clear``."""
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def clear(self) -> None:
        with self._changed:
            self._interrupted = False

    def stop(self) -> None:
        """Kills the process of the running file, if any; the reading process reports its end and stays."""
        with contextlib.suppress(OSError):
            if self._once:
                self._process.kill()
            else:
                self.send({"kill": True})

    def end(self, grace: float = 5.0) -> None:
        """Ends the reading process with all that it forked; by force after ``grace`` seconds."""
        with self._changed:
            self._discarding = True
            self._changed.notify_all()
        with self._sending, contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        if self._once:
            self._process.kill()
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        until = time.monotonic() + grace
        for thread in self._threads:  # a process that escaped may hold the pipes; it does not hold the service
            thread.join(max(0.0, until - time.monotonic()))

    def last_words(self) -> str:
        """The last line of stderr, for the message about a process that cannot start; complete after ``end``."""
        lines = self._complaint.decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""

    def _pump(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        with stdout:
            while line := stdout.readline(MAX_LINE):
                with self._changed:
                    self._changed.wait_for(lambda: self._size < _BUFFERED or self._discarding)
                    if not self._discarding and line != b"\n":
                        self._lines.append(line)
                        self._size += len(line)
                        self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _drain(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        with stderr:
            while data := stderr.read1(1 << 16):  # type: ignore[attr-defined]  # a BufferedReader
                self._complaint = (self._complaint + data)[-4000:]
