"""`python -m services.model`: reads the settings, listens, loads the model, and stops in good order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from types import FrameType

import uvicorn

from services.model import engines, logs
from services.model.app import create_app
from services.model.config import Settings, load_settings
from services.model.engine.base import Engine
from services.model.errors import StartupError
from services.model.service import ModelService

log = logging.getLogger("docduet.model")

# After draining, connections get this long to take their last bytes.
_LAST_BYTES_SECONDS = 2


def main() -> int:
    """Runs until a signal. Returns the exit code: 0 after a signal, 1 when it could not start or load."""
    try:
        settings = load_settings()
        logs.set_up(settings.log_level, settings.log_format)
        engine, names = engines.build(settings)
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
