"""The reading process as the service sees it: a file goes in, its pages come out, and nothing else can come of it.

A hostile or broken file can loop, eat memory or crash its parser. It does so in a process of its own, forked for it by
``worker.py``, which is killed and reported; the page that did it is named, and the rest is read (``recovery.py``).
"""

import base64
import dataclasses
import json
import math
import os
import signal
import threading
import time
import typing
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.rag.documents.channel import MAX_REQUEST, Channel
from services.rag.documents.pages import Options, Page, PageFailure, PageText, ReadError
from services.rag.documents.recovery import Broken, recover

if TYPE_CHECKING:
    from services.rag.documents.archive import ArchiveLimits, Member, MemberFailure
    from services.rag.documents.rendering import Picture, View

__all__ = [
    "Cancelled",
    "Limits",
    "Options",
    "PageFailure",
    "PageText",
    "ReadError",
    "ReadingProcess",
    "ReadingUnavailable",
    "read_pages",
]

START_SECONDS = 60.0  # for an interpreter and its imports on a machine that is busy with other things
GRACE_SECONDS = 5.0  # for the end of a process that was killed
SLOW_NICE = 19  # of a reader that gives way; the others are at 10
_FORKS = hasattr(os, "fork")


@dataclass(frozen=True)
class Limits:
    """What one file may take. Seconds count while the service waits for the reader, not while it uses what it got."""

    page_seconds: float = 60.0  # from one page to the next; a file that is opened or identified counts as a page
    file_seconds: float = 600.0
    memory_mb: int = 2048  # address space of the reader's process


class Cancelled(Exception):
    """Somebody called ``cancel`` while the file was read."""


class ReadingUnavailable(Exception):
    """The reading process cannot be started: nothing is wrong with the file, which can be read later."""


class ReadingProcess:
    """A warm process that forks one process for each file, with ``limits`` around it.

    It starts with the first call, and again whenever it is found dead. One call runs at a time: threads wait for one
    another, until the iterator that another one holds is exhausted or closed. ``cancel`` and ``close`` do not wait.
    """

    def __init__(self, limits: Limits, readers: Mapping[str, str] | None = None) -> None:
        """``readers`` names modules to use in place of the shipped ones, by format, or by ``detect`` or ``expand``."""
        self._limits = limits
        self._readers = dict(readers or {})
        self._channel: Channel | None = None
        self._turn = threading.Lock()
        self._owner: int | None = None  # the thread whose call runs
        self._state = threading.Lock()  # for the six below; never held for long
        self._running = False
        self._reader: int | None = None  # the process of the running file
        self._gives_way = False
        self._cancelled = False
        self._closed = False

    def __enter__(self) -> "ReadingProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def detect(self, path: Path, filename: str = "") -> str:
        """The format of a file, one of ``detect.FORMATS``.

        Raises:
            ReadError: it is nothing that can be read, or identifying it went over the limits.
            Cancelled, ReadingUnavailable: as ``read``.
        """
        request = self._request("detect", "detect", path, filename=filename)
        with self._call(), closing(self._messages(request, _Clock(self._limits))) as messages:
            try:
                for message in messages:
                    return str(message["format"])
                raise Broken("no format was found")
            except Broken as broken:
                raise ReadError(f"the file cannot be identified: {broken.reason}") from broken

    def read(self, path: Path, format: str, options: Options = Options()) -> Iterator[Page]:  # noqa: B008  # frozen
        """The pages from ``options.first_page`` to the last, each exactly once, as text or as a failure with its reason.

        Closing the iterator early kills the reader.

        Raises:
            ReadError: no page at all can be read; the message says why.
            Cancelled: ``cancel`` or ``close`` was called since the first page was asked for.
            ReadingUnavailable: the system has no room for a process, or the installation is broken.
        """
        clock = _Clock(self._limits)

        def attempt(first_page: int) -> Generator[Page, None, None]:
            wanted = dataclasses.asdict(dataclasses.replace(options, first_page=first_page))
            request = self._request("read", format, path, format=format, options=wanted)
            with closing(self._messages(request, clock)) as messages:
                for message in messages:
                    yield _page(message)

        with self._call(), closing(recover(attempt, options.first_page)) as pages:
            for page in pages:
                yield page
                self._owner = threading.get_ident()

    def expand(
        self,
        path: Path,
        into: Path,
        limits: "ArchiveLimits",
        options: Options = Options(),  # noqa: B008  # frozen
    ) -> "Iterator[Member | MemberFailure]":
        """Unpacks an archive into the folder ``into``, member by member, as ``archive.expand`` does.

        Raises:
            ReadError: the archive cannot be read, or not to its end; members that were given before are sound.
            Cancelled, ReadingUnavailable: as ``read``.
        """
        request = self._request(
            "expand",
            "expand",
            path,
            write_bytes=limits.member_bytes + (1 << 16),  # the archive's own check comes first and says more
            into=str(into),
            archive_limits=dataclasses.asdict(limits),
            options=dataclasses.asdict(options),
        )
        clock = _Clock(dataclasses.replace(self._limits, page_seconds=self._limits.file_seconds))
        with self._call(), closing(self._messages(request, clock)) as messages:
            try:
                for message in messages:
                    yield _member(message)
                    self._owner = threading.get_ident()
            except Broken as broken:
                raise ReadError(f"the archive was not unpacked to its end: {broken.reason}") from broken

    def render(self, path: Path, format: str, view: "View") -> "Picture":
        """The picture of a page.

        Raises:
            ReadError: there is none; the message says why.
            Cancelled, ReadingUnavailable: as ``read``.
        """
        request = self._request("render", "render", path, format=format, view=dataclasses.asdict(view))
        with self._call(), closing(self._messages(request, _Clock(self._limits))) as messages:
            try:
                for message in messages:
                    return _picture(message)
                raise Broken("no picture came")
            except Broken as broken:
                raise ReadError(f"the page cannot be drawn: {broken.reason}") from broken

    def cancel(self) -> None:
        """Kills the reader of the running file; its iterator raises ``Cancelled``. Without one, does nothing."""
        with self._state:
            if not self._running:
                return
            self._cancelled = True
            if self._channel is not None:  # with the lock held: a moment later it may read another file
                self._channel.stop()
                self._channel.interrupt()

    def give_way(self) -> None:
        """Lets the readers of other files have the processor before that of the running file, until this one's end."""
        with self._state:
            self._gives_way = self._running
            self._lower()

    def _lower(self) -> None:
        if self._gives_way and self._reader is not None:
            with suppress(AttributeError, OSError):  # it has ended; or the system has no priorities
                os.setpriority(os.PRIO_PROCESS, self._reader, SLOW_NICE)

    def close(self) -> None:
        """Ends the process and every process it forked. A call that runs raises ``Cancelled``."""
        with self._state:
            self._closed = True
            self._cancelled = self._running
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.interrupt()
            channel.end()

    @contextmanager
    def _call(self) -> Iterator[None]:
        if self._owner == threading.get_ident() and self._turn.locked():
            raise RuntimeError("the iterator of an earlier file is still open: exhaust it or close it first")
        with self._turn:
            with self._state:
                if self._closed:
                    raise ReadingUnavailable("the reading process has been closed")
                self._running, self._cancelled, self._gives_way = True, False, False
                if self._channel is not None:
                    self._channel.clear()
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = None
                with self._state:
                    self._running = False

    def _request(self, op: str, reader: str, path: Path, write_bytes: int = 0, **more: object) -> dict[str, object]:
        # Over all cores: a backstop for a service that does not ask for the next page, where no clock runs.
        seconds = math.ceil(self._limits.file_seconds * (os.cpu_count() or 1)) + 1
        limits = {"cpu_seconds": seconds, "memory_mb": self._limits.memory_mb, "write_bytes": write_bytes}
        return {"op": op, "path": str(path), "module": self._readers.get(reader), "limits": limits, **more}

    def _messages(self, request: dict[str, object], clock: "_Clock") -> Generator[dict[str, Any], None, None]:
        """What the process of one file says, until it is done; ``Broken`` if it never is. No process is left behind."""
        channel = self._begin(request)
        ended = False
        garbled = False
        try:
            while True:
                try:
                    message = _parse(self._receive(channel, clock.left()))
                except TimeoutError:
                    raise clock.overdue() from None
                except EOFError:
                    ended = True
                    self._check_cancelled()
                    raise Broken("the reader was ended together with the reading process") from None
                finally:
                    clock.stop()
                if "exit" in message:
                    ended = True
                    self._check_cancelled()
                    raise self._post_mortem(message)
                if garbled or "done" in message:
                    if garbled:
                        raise Broken("the reader sent something that is not a page")
                    return
                if "error" in message:
                    raise ReadError(str(message["error"]))
                if "raised" in message:
                    raise Broken(f"the reader failed ({message['raised']})")
                garbled = not message  # unless its end comes next, which explains half a line
                if message:
                    yield message
                    self._check_cancelled()
        finally:
            with self._state:
                self._reader = None
            if not ended:
                self._finish(channel)

    def _begin(self, request: dict[str, object]) -> Channel:
        """Sends the request to a reading process that takes it; a dead one is replaced, once."""
        reason = ""
        for _ in range(2):
            channel = self._warm()
            try:
                channel.send(request)
                message = _parse(self._receive(channel, START_SECONDS))
                if "begin" in message:
                    with self._state:
                        self._reader = int(message["begin"])
                        self._lower()
                    return channel
                reason = str(message.get("unavailable") or "it answers in another language")
            except ValueError as error:
                raise ReadError(f"the file name or the password is too long (limit {MAX_REQUEST} bytes)") from error
            except TimeoutError:
                reason = f"it did not answer in {START_SECONDS:g} s"
            except (EOFError, OSError) as error:
                reason = str(error)
            except Cancelled:
                self._finish(channel)
                raise
            self._discard(channel)
            reason = channel.last_words() or reason
        raise ReadingUnavailable(f"the reading process cannot be started: {reason or 'it ended at once'}")

    def _warm(self) -> Channel:
        with self._state:
            if self._closed:
                raise Cancelled
            channel = self._channel
            if channel is not None and channel.alive:
                return channel
        if channel is not None:
            self._discard(channel)
        try:
            fresh = Channel(once=not _FORKS)
        except OSError as error:
            raise ReadingUnavailable(f"the reading process cannot be started: {error}") from error
        with self._state:
            if not self._closed:
                self._channel = fresh
                return fresh
        fresh.end()
        raise Cancelled

    def _receive(self, channel: Channel, timeout: float) -> bytes:
        self._check_cancelled()
        try:
            return channel.receive(timeout)
        except InterruptedError:
            raise Cancelled from None

    def _check_cancelled(self) -> None:
        with self._state:
            if self._cancelled:
                raise Cancelled

    def _finish(self, channel: Channel) -> None:
        """Kills the file's process, if it still runs, and reads to its end, so that the next call finds silence."""
        channel.stop()
        until = time.monotonic() + GRACE_SECONDS
        while True:
            try:
                if "exit" in _parse(channel.receive(until - time.monotonic()), only=b'{"exit"'):
                    return
            except InterruptedError:
                channel.clear()
            except (TimeoutError, EOFError):
                self._discard(channel)
                return

    def _discard(self, channel: Channel) -> None:
        with self._state:
            if self._channel is channel:
                self._channel = None
        channel.end(grace=1)

    def _post_mortem(self, message: dict[str, Any]) -> Broken:
        from services.rag.documents.worker import OUT_OF_MEMORY

        code, limit = int(message["exit"]), self._limits.memory_mb
        number = -code if code < 0 else None
        if number == getattr(signal, "SIGXCPU", None):
            return Broken(f"reading the file took more processor time than {self._limits.file_seconds:g} s", final=True)
        # A parser in C that gets no memory often goes on with a null pointer: near the limit, that is what it died of.
        if code == OUT_OF_MEMORY or (code != 0 and int(message["rss_mb"]) > 0.75 * limit):
            return Broken(f"the reader ran out of memory (limit {limit} MB)")
        if number is None:
            return Broken(f"the reader ended without a result (exit {code})")
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        if name == "SIGKILL":
            return Broken("the reader was killed (SIGKILL): most likely the machine ran out of memory")
        return Broken(f"the reader crashed ({name})")


class _Clock:
    """What is left of a file's time, and of its page's."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._spent = 0.0
        self._since: float | None = None

    def left(self) -> float:
        self._since = time.monotonic()
        return min(self._limits.page_seconds, self._limits.file_seconds - self._spent)

    def stop(self) -> None:
        if self._since is not None:
            self._spent += time.monotonic() - self._since
            self._since = None

    def overdue(self) -> Broken:
        self.stop()
        if self._spent >= self._limits.file_seconds:
            return Broken(f"reading the file took longer than {self._limits.file_seconds:g} s", final=True)
        return Broken(f"reading it took longer than {self._limits.page_seconds:g} s")


def _parse(line: bytes, only: bytes = b"") -> dict[str, Any]:
    """A message; empty for a line that is none, or does not start with ``only``."""
    if not line.startswith(only):
        return {}
    try:
        message = json.loads(line.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def _page(message: dict[str, Any]) -> Page:
    match message:
        case {"failure": {"number": int(number), "total": int(total), "reason": str(reason), "label": str(label)}}:
            page: Page = PageFailure(number, max(number, total), reason, label)
        case {
            "page": {
                "number": int(number),
                "total": int(total),
                "text": str(text),
                "label": str(label),
                "method": "text" | "ocr" as method,
                "notes": list(notes),
            }
        }:
            page = PageText(number, max(number, total), text, label, method, tuple(map(str, notes)))
        case _:
            raise Broken("the reader sent something that is not a page")
    if page.number < 1:
        raise Broken("the reader sent something that is not a page")
    return page


def _picture(message: dict[str, Any]) -> "Picture":
    from services.rag.documents.rendering import Picture

    match message:
        case {
            "picture": {
                "data": str(data),
                "media_type": "image/png" | "image/jpeg" as media_type,
                "highlight": "none" | "exact" | "partial" as highlight,
            }
        }:
            with suppress(ValueError):
                return Picture(base64.b64decode(data, validate=True), media_type, highlight)
    raise Broken("the reader sent something that is no picture")


def _member(message: dict[str, Any]) -> "Member | MemberFailure":
    from services.rag.documents.archive import Member, MemberFailure

    fields = dict(message)
    try:
        kind: type[Member] | type[MemberFailure] = {"Member": Member, "MemberFailure": MemberFailure}[
            fields.pop("member")
        ]
        hints = typing.get_type_hints(kind)
        values: dict[str, Any] = {key: Path(value) if hints[key] is Path else value for key, value in fields.items()}
        return kind(**values)
    except (KeyError, TypeError) as error:
        raise Broken("the reader sent something that is no member of an archive") from error


def read_pages(
    path: Path,
    limits: Limits,
    options: Options = Options(),  # noqa: B008  # frozen
    format: str | None = None,
) -> Iterator[Page]:
    """As ``ReadingProcess.read``, with a process for this one file; detects its format if ``format`` is None."""
    with ReadingProcess(limits) as process:
        yield from process.read(path, format or process.detect(path, path.name), options)
