"""Real service processes for the tests: started on a free port, waited for, and stopped.

A service that does not come up raises `ServiceDidNotStart` with its whole log in the message: a test run on a machine that
nobody can log in to has nothing else to go by.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import httpx

ROOT = Path(__file__).resolve().parents[2]
# The developer's own settings must not leak into what a test starts.
_FOREIGN = ("MODEL_", "RAG_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


class ServiceDidNotStart(Exception):
    """The process ended, or was not ready in time; the message holds its log."""


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Service:
    """A running service process; a context manager that stops it. `url` has no trailing slash."""

    url: str
    process: subprocess.Popen[bytes]
    log_path: Path
    _closed: bool = field(default=False, repr=False)

    def log(self) -> str:
        """All that the process wrote to stdout and stderr so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str, timeout: float = 10) -> httpx.Response:
        """A GET of `path`, straight to the service (no proxy of the environment is asked)."""
        return httpx.get(self.url + path, timeout=timeout, trust_env=False)

    def wait_ready(self, timeout: float) -> None:
        """Polls `/ready` until it is 200; raises ServiceDidNotStart when the process ends or the time is up."""
        deadline = time.monotonic() + timeout
        last = "no answer yet"
        while time.monotonic() < deadline:
            code = self.process.poll()
            if code is not None:
                raise ServiceDidNotStart(
                    f"{self.url} ended with code {code} before it was ready. Its log:\n{self.log()}"
                )
            try:
                response = self.get("/ready", timeout=2)
                if response.status_code == 200:
                    return
                last = f"{response.status_code} {response.text[:300]}"
            except httpx.TransportError as error:
                last = repr(error)
            time.sleep(0.05)
        raise ServiceDidNotStart(f"{self.url} was not ready in {timeout} s (last: {last}). Its log:\n{self.log()}")

    def wait_listening(self, timeout: float = 30) -> None:
        """Polls until the port accepts a connection, ready or not."""
        port = int(self.url.rsplit(":", 1)[1])
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            code = self.process.poll()
            if code is not None:
                raise ServiceDidNotStart(f"{self.url} ended with code {code}. Its log:\n{self.log()}")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise ServiceDidNotStart(f"{self.url} did not listen in {timeout} s. Its log:\n{self.log()}")

    def send(self, signal_number: int) -> None:
        self.process.send_signal(signal_number)

    def wait(self, timeout: float = 40) -> int:
        """The exit code; raises subprocess.TimeoutExpired."""
        return self.process.wait(timeout)

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        self.process.kill()
        self.process.wait(10)

    def stop(self, timeout: float = 40) -> int:
        """SIGTERM, then SIGKILL when `timeout` seconds were not enough; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode

    def __enter__(self) -> Service:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._closed:
            return
        self._closed = True
        self.stop()
        if kind is not None:  # pytest shows captured output of failing tests only
            print(f"--- log of {self.url} ---\n{self.log()[-20_000:]}")


@functools.cache
def _logs() -> tempfile.TemporaryDirectory[str]:
    """Gone when the test run ends: what a failure needs of them was printed."""
    return tempfile.TemporaryDirectory(prefix="docduet-test-")


def spawn_service(module: str, env: Mapping[str, str], *, log_dir: Path | None = None) -> Service:
    """Starts `python -m module` on a free port and returns at once.

    The variable that sets the port follows from the module's name (`services.rag` -> `RAG_PORT`); the process sees the
    environment of the test run without its `MODEL_*`, `RAG_*` and proxy variables, plus `env`.
    """
    prefix = module.rsplit(".", 1)[-1].upper()
    port = int(env.get(f"{prefix}_PORT") or free_port())
    variables = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    variables |= {"PYTHONUNBUFFERED": "1", f"{prefix}_PORT": str(port), f"{prefix}_HOST": "127.0.0.1", **env}
    # A folder each: a port may be given out again while the log of the one before is still asked for.
    log_path = (log_dir or Path(tempfile.mkdtemp(dir=_logs().name))) / f"{module}-{port}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module], cwd=ROOT, env=variables, stdout=log, stderr=subprocess.STDOUT
        )
    return Service(f"http://127.0.0.1:{port}", process, log_path)


def start_service(
    module: str, env: Mapping[str, str], *, ready_timeout: float = 60, log_dir: Path | None = None
) -> Service:
    """`spawn_service`, then waits until `/ready` is 200. Use it as a context manager, or call `.stop()`.

        with start_service("services.model", {"MODEL_ENGINE": "scripted"}) as model:
            httpx.get(model.url + "/v1/models")

    Raises ServiceDidNotStart, with the log in its message, and leaves no process behind.
    """
    service = spawn_service(module, env, log_dir=log_dir)
    try:
        service.wait_ready(ready_timeout)
    except BaseException:
        service.kill()
        raise
    return service
