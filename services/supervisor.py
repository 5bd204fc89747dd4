"""Runs the pair in one place: starts both services as child processes, waits until they answer, stops them."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import httpx

STOP_SECONDS = 40.0


class PairError(Exception):
    """A service did not come up or ended; the message has its last words."""


class Child:
    def __init__(self, name: str, module: str, url: str, env: Mapping[str, str], log_path: Path | None) -> None:
        self.name, self.url, self.log_path = name, url, log_path
        self._log: IO[bytes] | None = log_path.open("wb") if log_path else None
        self.process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", module],
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT if self._log else None,
            # A process group of its own: Ctrl-C reaches us, and we stop the pair in order.
            start_new_session=True,
        )

    def state(self) -> str | None:
        """None when ready, else what it is doing."""
        if self.process.poll() is not None:
            raise PairError(f"the {self.name} service ended (exit {self.process.returncode}): {self.last_words()}")
        try:
            response = httpx.get(f"{self.url}/ready", timeout=5.0, trust_env=False)
        except httpx.HTTPError:
            return f"{self.name}: starting"
        if response.status_code == 200:
            return None
        try:
            body = response.json()
            reason = body.get("reason") or body["error"]["message"]
        except (ValueError, KeyError, TypeError, AttributeError):
            reason = f"answers {response.status_code}"
        return f"{self.name}: {reason}"

    def last_words(self) -> str:
        """The last line that is not part of a traceback, and where the rest is."""
        if self.log_path is None:
            return "see its output above"
        lines = [line for line in self.log_path.read_text(errors="replace").splitlines() if line.strip()]
        return f"{lines[-1] if lines else 'it printed nothing'} (whole log: {self.log_path})"

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()

    def wait(self) -> None:
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self._log:
            self._log.close()

    def progress(self) -> str:
        """The last line of the log where it is a progress line, else nothing."""
        if self.log_path is None:
            return ""
        tail = self.log_path.read_bytes()[-400:].decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(tail) if re.search(r"\d+ ?%", line)), "")


class Pair:
    """Context manager around both services; leaving it, by whatever way, leaves nothing running."""

    def __init__(self, env: Mapping[str, str], log_dir: Path | None) -> None:
        self._env, self._log_dir = dict(env), log_dir
        merged = {**os.environ, **env}
        self.model_url = f"http://127.0.0.1:{merged.get('MODEL_PORT', '8000')}"
        self.rag_url = f"http://127.0.0.1:{merged.get('RAG_PORT', '8001')}"
        self._env.setdefault("RAG_MODEL_URL", merged.get("RAG_MODEL_URL", f"{self.model_url}/v1"))
        if keys := merged.get("MODEL_API_KEYS", "").split(",")[0].strip():
            self._env.setdefault("RAG_MODEL_API_KEY", merged.get("RAG_MODEL_API_KEY") or keys)
        self.children: list[Child] = []

    def __enter__(self) -> Self:
        for name, url in (("model", self.model_url), ("rag", self.rag_url)):
            port = int(url.rsplit(":", 1)[1])
            if not _free(port):
                raise PairError(f"port {port} is taken: stop what uses it, or set {name.upper()}_PORT to another one")
        if self._log_dir:
            self._log_dir.mkdir(parents=True, exist_ok=True)
        # Python does not run `finally` on SIGTERM and SIGHUP by itself.
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            signal.signal(number, _interrupt)
        try:
            for name, module, url in (
                ("model", "services.model", self.model_url),
                ("rag", "services.rag", self.rag_url),
            ):
                log_path = self._log_dir / f"{name}.log" if self._log_dir else None
                self.children.append(Child(name, module, url, self._env, log_path))
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        # The asking side first: its open questions end before the answering side goes.
        for child in reversed(self.children):
            child.stop()
        for child in reversed(self.children):
            child.wait()

    def wait_ready(self, show: Callable[[str], None], seconds: float = 1800.0) -> None:
        """Return when both services are ready; ``show`` is told what they are doing.

        Raises:
            PairError: one of them ended, or is not ready after ``seconds``.
        """
        deadline = time.monotonic() + seconds
        while True:
            states = [state for child in self.children if (state := child.state())]
            if not states:
                return
            if time.monotonic() > deadline:
                raise PairError(f"not ready after {seconds:g} s: {'; '.join(states)}")
            show("; ".join(states))
            time.sleep(0.2)

    def watch(self) -> None:
        """Block until a service ends; then raise."""
        while True:
            for child in self.children:
                if child.process.poll() is not None:
                    raise PairError(
                        f"the {child.name} service ended (exit {child.process.returncode}): {child.last_words()}"
                    )
            time.sleep(0.5)


def free_port() -> int:
    """A port of the loopback interface that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
