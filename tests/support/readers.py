"""A reader that does what the file tells it to: loop, crash, eat memory. For tests of the process around it.

The file is JSON: ``{"pages": 5, "total": 5, "at": {"3": "segv"}}``: five pages, and at the third the parser crashes.
"""

import ctypes
import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from services.rag.documents.pages import Options, PageFailure, PageText, ReadError

LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)


def read(path: Path, options: Options) -> Iterator[PageText | PageFailure]:
    script = json.loads(path.read_text())
    pages, at = script["pages"], script.get("at", {})
    total = script.get("total", pages)
    if "opening" in script:
        _act(script["opening"], path)
    for number in range(options.first_page, pages + 1):
        act = at.get(str(number), at.get("*"))
        match act:
            case "empty":
                yield PageText(number, total, " \n ")
            case "failure":
                yield PageFailure(number, total, "this page is a picture")
            case "skip":
                pass
            case "again":
                yield PageText(number - 1, total, "the page before, once more")
            case "not a page":
                yield {"number": number}  # type: ignore[misc]
            case "huge":
                yield PageText(number, total, "好" * 2_500_000)
            case "long line":
                yield PageText(number, total, "text", label="x", notes=("\x00" * 3_000_000,) * 50)
            case "surrogate":
                yield PageText(number, total, "half \ud83d a pair", label="sheet 1", notes=("a note",), method="ocr")
            case "pids":
                yield PageText(number, total, f"{os.getpid()} {os.getppid()}")
            case "fork":
                yield PageText(number, total, " ".join(map(str, _leave_children())))
            case "limits":
                limits = [resource.getrlimit(number)[0] for number in LIMITS]
                yield PageText(number, total, json.dumps([*limits, os.getpriority(os.PRIO_PROCESS, 0)]))
            case _:
                if act is not None:
                    _act(act, path)
                yield PageText(number, total, f"page {number}")
    if "closing" in script:
        _act(script["closing"], path)


def detect(path: Path, filename: str = "") -> str:
    script = json.loads(path.read_text())
    if "detect" in script:
        _act(script["detect"], path)
    return "script"


def expand(path: Path, into: Path, limits: object, options: Options) -> Iterator[object]:
    _act(json.loads(path.read_text())["opening"], path)
    yield None


def _act(act: str, path: Path) -> None:
    name, _, argument = act.partition(":")
    actions: dict[str, Any] = {
        "loop": _loop,
        "sleep": lambda: time.sleep(3600),
        "memory": _eat,
        "malloc": _eat_in_c,
        "segv": lambda: ctypes.string_at(0),
        "abort": os.abort,
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "kill parent": _kill_parent,
        "os._exit": lambda: os._exit(0),
        "sys.exit": sys.exit,
        "print": _print,
        "close": lambda: os.closerange(0, 256),
        "garbage": _garbage,
        "half a line": _half_a_line,
        "deaf": _deaf,
        "write": lambda: path.with_name("written").write_bytes(b"x" * (1 << 20)),
        "recursion": lambda: _act("recursion", path),
        "connect": lambda: socket.create_connection(("127.0.0.1", int(argument)), timeout=5).close(),
    }
    if name == "raise":
        raise ValueError(f"{path} is odd\n" + argument + f" at {os.__file__}:1 " + "x" * 1000)
    if name == "raise traceback":
        try:
            raise ValueError("deep inside")
        except ValueError:
            raise RuntimeError(traceback.format_exc()) from None
    if name == "read error":
        raise ReadError("the rest is encrypted")
    actions[name]()


def _loop() -> None:
    while True:
        pass


def _eat() -> None:
    eaten = []
    while True:
        eaten.append(bytearray(8 << 20))


def _eat_in_c() -> None:
    malloc = ctypes.CDLL(None).malloc
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    while True:
        ctypes.memset(malloc(8 << 20), 1, 8 << 20)  # a C library that does not look at what malloc gave it


def _print() -> None:
    for fd in (1, 2):
        os.write(fd, b'{"page": {}}\n' * 100_000)
    print("a parser that talks")


def _everywhere(data: bytes) -> None:
    for fd in range(3, 64):
        try:
            os.write(fd, data)
        except OSError:
            continue


def _garbage() -> None:
    _everywhere(b"\xff\xfe{]\n" * 3)


def _half_a_line() -> None:
    _everywhere(b'{"page": {"number"')
    ctypes.string_at(0)


def _kill_parent() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(3600)


def _deaf() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU):
        signal.signal(number, signal.SIG_IGN)
    _loop()


def _leave_children() -> list[int]:
    """Two processes that outlive the reader if nobody ends them: one in its group, one in a session of its own."""
    pids = []
    for own_session in (False, True):
        ready, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            if own_session:
                os.setsid()
            os.write(tell, b".")
            time.sleep(3600)
            os._exit(0)
        os.read(ready, 1)
        pids.append(pid)
    return pids
