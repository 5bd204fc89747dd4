"""``python -m services.rag.documents.worker``: the reading process.

It imports the readers once and then forks a process for each file, which costs milliseconds where an interpreter costs
a second. The parent of the forks never opens a file and never starts a thread; it waits for a line on stdin or for its
child's end, whichever is first, and when stdin ends (the service is gone, however it went) it kills what it forked.

stdin, a JSON object a line: a request ``{"op": "read"|"detect"|"expand"|"render", "path", …}``, or ``{"kill": true}``.
stdout, a JSON object a line: ``{"begin": pid}``, then from the child ``{"page"}``, ``{"failure"}``, ``{"format"}``,
``{"member"}`` or ``{"picture"}``, then one of ``{"done"}``, ``{"error"}`` (a ReadError's message) and ``{"raised"}`` (any other
exception), or none of them if it ran out of memory or crashed, and at last ``{"exit": status, "rss_mb"}``. A child that is
killed while it writes leaves part of a line.
"""

import contextlib
import ctypes
import dataclasses
import gc
import importlib
import json
import logging
import os
import re
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from services.rag.documents.pages import Options, PageFailure, PageText, ReadError

MAX_TEXT = 2_000_000  # characters of a page: a novel and a half
OUT_OF_MEMORY = 71  # an exit status, for that takes no memory to send; any other failure to answer is 70
# Libraries that start threads, of which a fork copies none: only a child may import these. numpy starts none where the
# service tells OpenBLAS so (channel.py), and takes 0.2 s a file to import; on Linux we can look whether it keeps to that.
_THREADED = frozenset({"scipy", "pandas", "onnxruntime", "cv2", "torch", "rapidocr"})
if sys.platform != "linux":
    _THREADED |= {"numpy"}
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38

_FOLDERS = re.compile(r"(?<![\w:/.\\])(?:[A-Za-z]:)?(?:[/\\][\w.@+-]+){2,}[/\\](?=[\w.@+-])")  # of an absolute path


def main(arguments: list[str]) -> None:
    """``--once``: no fork on this system. ``--cold``: import nothing beforehand."""
    out = os.dup(1)  # a parser that prints must not print into the answer
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    logging.disable(logging.CRITICAL)  # parsers report each oddity of a broken file; the outcome is what counts
    if "--once" in arguments:
        _write(out, {"begin": os.getpid()})
        _serve(json.loads(sys.stdin.buffer.readline()), out)
        _write(out, {"exit": 0, "rss_mb": 0})
        return
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # the service decides when to end, and then stdin ends
    with contextlib.suppress(OSError):
        os.nice(10)
    _leave_network()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what a reader forks and leaves behind comes here, to be ended
    if "--cold" not in arguments:
        _preload()
        if _threads() > 1:  # a library that we did not know of: start over without it
            os.dup2(out, 1)
            os.execv(sys.executable, [sys.executable, "-m", "services.rag.documents.worker", "--cold"])  # noqa: S606
    Zygote(out).loop()


class Zygote:
    """Forks a process a file, one at a time, and outlives each of them."""

    def __init__(self, out: int) -> None:
        self._out = out
        self._child: int | None = None
        self._wakeup, end = os.pipe()
        for fd in (self._wakeup, end):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, for only handled signals reach the pipe
        signal.set_wakeup_fd(end, warn_on_full_buffer=False)
        gc.collect()
        gc.freeze()  # or the collector would touch, and so copy, every page of memory that the children share

    def loop(self) -> None:
        """Until stdin ends."""
        pending = b""
        try:
            while True:
                ready, _, _ = select.select([0, self._wakeup], [], [])
                if self._wakeup in ready:
                    os.read(self._wakeup, 4096)
                    self._reap(os.WNOHANG)
                if 0 not in ready:
                    continue
                data = os.read(0, 65536)
                if not data:
                    break
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._handle(line)
        except BrokenPipeError:  # nobody is there to read the answer
            pass
        finally:
            if self._child is not None:
                self._kill(self._child)
                os.waitpid(self._child, 0)
            _end_orphans()

    def _handle(self, line: bytes) -> None:
        request = json.loads(line)
        if "kill" in request:
            if self._child is not None:
                self._kill(self._child)
            return
        if self._child is not None:  # a service that asks again has given the last file up
            self._kill(self._child)
            self._reap(0)
        try:
            parent, self._child = os.getpid(), os.fork()
        except OSError as error:
            _write(self._out, {"unavailable": f"no process can be started to read the file: {error.strerror}"})
            return
        if self._child == 0:
            _child(request, self._out, parent)

    def _reap(self, flags: int) -> None:
        if self._child is None:
            return
        if hasattr(os, "waitid") and os.waitid(os.P_PID, self._child, os.WEXITED | os.WNOWAIT | flags):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child, signal.SIGKILL)  # not yet reaped, so the number is still the child's
        pid, status, usage = os.wait4(self._child, flags)
        if pid == 0:
            return
        self._child = None
        _end_orphans()
        per_mb = 1 << 20 if sys.platform == "darwin" else 1 << 10
        code = os.waitstatus_to_exitcode(status)
        _put(self._out, b"\n")  # ends what the child may have left half written
        _write(self._out, {"exit": code, "rss_mb": usage.ru_maxrss // per_mb})

    @staticmethod
    def _kill(child: int) -> None:
        for kill in (os.killpg, os.kill):  # the group does not exist before the child has made it
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(child, signal.SIGKILL)


def _end_orphans() -> None:
    """Kills and waits for every process whose parents are gone (Linux; elsewhere the group has to do)."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    with contextlib.suppress(OSError):  # ChildProcessError: none is left
        while pids := children.read_text().split():
            for pid in pids:
                os.kill(int(pid), signal.SIGKILL)
            os.waitpid(-1, 0)


def _child(request: dict[str, Any], out: int, parent: int) -> None:
    """The forked process: one file, and then the end. Never returns."""
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(code)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        _write(out, {"begin": os.getpid()})
        _limit(request["limits"])
        _serve(request, out)
        code = 0
    except MemoryError:
        code = OUT_OF_MEMORY
    finally:  # whatever is in flight: nothing of the parent's may run here
        os._exit(code)


def _serve(request: dict[str, Any], out: int) -> None:
    path = Path(request["path"])
    try:
        for message in _answers(request, path):
            _write(out, message)
        _write(out, {"done": True})
    except (MemoryError, BrokenPipeError):
        raise
    except ReadError as error:
        _write(out, {"error": _plain(str(error), path, 1000)})
    except BaseException as error:
        _write(out, {"raised": _plain(f"{type(error).__name__}: {error}", path, 300)})


def _answers(request: dict[str, Any], path: Path) -> Iterator[dict[str, Any]]:
    if request["op"] == "detect":
        detect = importlib.import_module(request["module"] or "services.rag.documents.detect").detect
        yield {"format": str(detect(path, request["filename"]))}
    elif request["op"] == "expand":
        from services.rag.documents.archive import ArchiveLimits

        expand = importlib.import_module(request["module"] or "services.rag.documents.archive").expand
        limits, options = ArchiveLimits(**request["archive_limits"]), Options(**request["options"])
        for member in expand(path, Path(request["into"]), limits, options):
            yield {"member": type(member).__name__, **_jsonable(member)}
    elif request["op"] == "render":
        from services.rag.documents.rendering import View

        render = importlib.import_module(request["module"] or "services.rag.documents.rendering").render
        yield {"picture": render(path, request["format"], View(**request["view"]))}
    else:
        options = Options(**request["options"])
        last = options.first_page - 1
        for page in importlib.import_module(request["module"] or _module(request["format"])).read(path, options):
            message = _page(page, path)
            if page.number < options.first_page:
                continue
            if page.number <= last:
                raise ValueError(f"the reader gave page {page.number} after page {last}")
            last = page.number
            yield message


def _module(name: str) -> str:
    from services.rag.documents.detect import FORMATS

    known = FORMATS.get(name)
    if known is None or not known.module:
        raise ReadError(f"there is no reader for {name!r} files")
    return known.module


def _page(page: object, path: Path) -> dict[str, Any]:
    if isinstance(page, PageFailure):
        return {
            "failure": {
                "number": page.number,
                "total": page.total,
                "reason": _plain(page.reason, path, 1000),
                "label": page.label[:300],
            }
        }
    if not isinstance(page, PageText):
        raise TypeError(f"the reader gave {type(page).__name__} instead of a page")
    if not page.text.strip():
        empty = PageFailure(page.number, page.total, "the page has no text", page.label)
        return _page(empty, path)
    fields = dataclasses.asdict(page)
    fields["label"] = page.label[:300]
    fields["notes"] = [note[:1000] for note in page.notes[:50]]
    if len(page.text) > MAX_TEXT:
        fields["text"] = page.text[:MAX_TEXT]
        fields["notes"].append(f"the text was cut after {MAX_TEXT:,} of {len(page.text):,} characters")
    # Half a surrogate pair, which broken fonts produce, is no text to any database.
    fields["text"] = fields["text"].encode("utf-8", "replace").decode()
    return {"page": fields}


def _jsonable(value: Any) -> dict[str, Any]:
    return {key: str(item) if isinstance(item, Path) else item for key, item in dataclasses.asdict(value).items()}


def _plain(message: str, path: Path, length: int) -> str:
    """One line, without the places where the service keeps the file and its libraries."""
    if "Traceback (most recent call last)" in message:  # some libraries put theirs into the message
        message = message.strip().splitlines()[-1]
    message = _FOLDERS.sub("", message.replace(str(path), "the file"))
    return " ".join(message.split())[:length]


def _write(out: int, message: dict[str, Any]) -> None:
    _put(out, json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")


def _put(out: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(out, view) :]


def _limit(limits: dict[str, int]) -> None:
    """Processor seconds, bytes of memory and of a written file, open files; no core dumps (they would hold the text)."""
    import resource

    wanted = {
        "RLIMIT_CPU": limits["cpu_seconds"],
        "RLIMIT_AS": limits["memory_mb"] << 20,
        "RLIMIT_FSIZE": limits["write_bytes"],
        "RLIMIT_NOFILE": 256,
        "RLIMIT_CORE": 0,
    }
    for name, value in wanted.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):  # macOS has some of them in name only
            number = getattr(resource, name)
            hard = resource.getrlimit(number)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            # One second between the two: SIGXCPU tells what SIGKILL would not.
            resource.setrlimit(number, (value - 1 if name == "RLIMIT_CPU" else value, value))
    # When the machine as a whole is short of memory, this process goes first and the service stays.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800")


def _leave_network() -> None:
    """A namespace without network, where the system lets us make one: no parser has any business there."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if os.geteuid() == 0:
        libc.unshare(_CLONE_NEWNET)
        return
    # Not for root, who would lose its rights to other users' files in a user namespace of its own.
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0:
        with contextlib.suppress(OSError):
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
            Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _threads() -> int:
    return len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 1


class _NoThreads:
    """An import hook that keeps the libraries of ``_THREADED`` out."""

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] in _THREADED:
            raise ImportError(f"{name} is imported in the child", name=name)


def _preload() -> None:
    """Imports the readers here, once. One that needs a library of ``_THREADED`` to be imported is left to the child."""
    guard = _NoThreads()
    sys.meta_path.insert(0, guard)  # find_spec is all that is asked of a finder
    try:
        with contextlib.suppress(ImportError):
            from services.rag.documents.detect import FORMATS

            modules = {known.module for known in FORMATS.values() if known.module}
            for module in sorted(modules | {"services.rag.documents.archive"}):
                with contextlib.suppress(Exception):
                    importlib.import_module(module)
    finally:
        sys.meta_path.remove(guard)


if __name__ == "__main__":
    main(sys.argv[1:])
