"""The reading process against readers that loop, crash, eat memory and lie. Real processes, real signals."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.rag.documents import reading
from services.rag.documents.archive import ArchiveLimits, Member, MemberFailure
from services.rag.documents.pages import Page, PageFailure, PageText
from services.rag.documents.reading import (
    Cancelled,
    Limits,
    Options,
    ReadError,
    ReadingProcess,
    ReadingUnavailable,
    read_pages,
)

READERS = {"script": "tests.support.readers", "detect": "tests.support.readers"}
ROOMY = Limits(page_seconds=60, file_seconds=120, memory_mb=512)
HASTY = Limits(page_seconds=1, file_seconds=120, memory_mb=512)
linux = pytest.mark.skipif(sys.platform != "linux", reason="these limits are Linux's")


@pytest.fixture(scope="module")
def process() -> Iterator[ReadingProcess]:
    """One for all tests: whatever a test does to its file, the next file is read."""
    with ReadingProcess(ROOMY, READERS) as process:
        yield process


@pytest.fixture
def fresh() -> Iterator[ReadingProcess]:
    with ReadingProcess(ROOMY, READERS) as process:
        yield process


@pytest.fixture(scope="module")
def hasty() -> Iterator[ReadingProcess]:
    with ReadingProcess(HASTY, READERS) as process:
        yield process


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., Path]:
    def write(pages: int = 3, at: dict[int | str, str] | None = None, **more: Any) -> Path:
        path = tmp_path / f"script-{len(list(tmp_path.iterdir()))}"
        path.write_text(json.dumps({"pages": pages, "at": at or {}, **more}))
        return path

    return write


def reasons(pages: list[Page]) -> dict[int, str]:
    return {page.number: page.reason for page in pages if isinstance(page, PageFailure)}


def texts(pages: list[Page]) -> list[int]:
    return [page.number for page in pages if isinstance(page, PageText)]


def wait_for_end(*pids: int) -> None:
    """Returns when none of the processes exists any more; the test's own timeout is the limit."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            assert select.select([descriptor], [], [], 60)[0], f"process {pid} lives on"
        finally:
            os.close(descriptor)


# What is read


def test_pages_come_in_order_with_all_that_they_carry(process: ReadingProcess, script: Callable[..., Path]) -> None:
    pages = list(process.read(script(3, {2: "surrogate", 3: "failure"}), "script"))
    assert pages == [
        PageText(1, 3, "page 1"),
        PageText(2, 3, "half ? a pair", "sheet 1", "ocr", ("a note",)),
        PageFailure(3, 3, "this page is a picture"),
    ]


def test_reading_starts_at_the_page_that_is_asked_for(process: ReadingProcess, script: Callable[..., Path]) -> None:
    assert texts(list(process.read(script(5), "script", Options(first_page=4)))) == [4, 5]


def test_every_file_has_a_process_of_its_own_and_one_parent(
    process: ReadingProcess, script: Callable[..., Path]
) -> None:
    path = script(1, {1: "pids"})
    answers = [next(iter(process.read(path, "script"))) for _ in range(5)]
    pids = [page.text.split() for page in answers if isinstance(page, PageText)]
    assert len({own for own, _ in pids}) == 5
    assert len({parent for _, parent in pids}) == 1


@linux
def test_the_parent_has_one_thread_after_it_has_imported_every_reader(
    process: ReadingProcess, script: Callable[..., Path]
) -> None:
    page = next(iter(process.read(script(1, {1: "pids"}), "script")))
    assert isinstance(page, PageText)
    assert os.listdir(f"/proc/{page.text.split()[1]}/task") == page.text.split()[1:]


@linux
def test_a_parent_that_finds_a_second_thread_starts_over_without_it(script: Callable[..., Path]) -> None:
    start = """
import threading
from services.rag.documents import worker
threading.Thread(target=threading.Event().wait, daemon=True).start()
worker.main([])
"""
    limits = {"cpu_seconds": 60, "memory_mb": 512, "write_bytes": 0}
    request = {"op": "read", "path": str(script(1)), "module": READERS["script"], "limits": limits, "options": {}}
    with subprocess.Popen(
        [sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(json.dumps(request) + "\n")
        parent.stdin.flush()
        assert "begin" in json.loads(parent.stdout.readline())
        assert b"--cold" in Path(f"/proc/{parent.pid}/cmdline").read_bytes()
        assert len(os.listdir(f"/proc/{parent.pid}/task")) == 1
        assert json.loads(parent.stdout.readline())["page"]["text"] == "page 1"
        parent.stdin.close()


def test_an_unknown_format_is_refused(process: ReadingProcess, script: Callable[..., Path]) -> None:
    with pytest.raises(ReadError, match="no reader for 'sculpture'"):
        list(process.read(script(), "sculpture"))


def test_a_file_is_identified_in_a_process_too(process: ReadingProcess, script: Callable[..., Path]) -> None:
    assert process.detect(script(), "a.txt") == "script"
    with pytest.raises(ReadError, match=r"cannot be identified: the reader crashed \(SIGSEGV\)"):
        process.detect(script(detect="segv"))
    assert process.detect(script()) == "script"


def test_a_page_without_text_is_a_failure(process: ReadingProcess, script: Callable[..., Path]) -> None:
    assert reasons(list(process.read(script(3, {2: "empty"}), "script"))) == {2: "the page has no text"}


def test_a_page_of_novels_is_cut_and_says_so(process: ReadingProcess, script: Callable[..., Path]) -> None:
    page = list(process.read(script(2, {2: "huge"}), "script"))[1]
    assert isinstance(page, PageText)
    assert page.text == "好" * 2_000_000
    assert page.notes == ("the text was cut after 2,000,000 of 2,500,000 characters",)


def test_notes_that_never_end_do_not_either(process: ReadingProcess, script: Callable[..., Path]) -> None:
    page = list(process.read(script(2, {2: "long line"}), "script"))[1]
    assert isinstance(page, PageText)
    assert len(page.notes) == 50


def test_a_line_without_end_is_an_error_of_its_page(
    fresh: ReadingProcess, script: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.rag.documents.channel.MAX_LINE", 100_000)
    pages = list(fresh.read(script(3, {2: "huge"}), "script"))
    assert reasons(pages) == {2: "the reader sent something that is not a page"}
    assert texts(pages) == [1, 3]


def test_a_million_pages_end_at_the_limit_and_fill_no_memory(
    process: ReadingProcess, script: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.rag.documents.recovery.MAX_PAGES", 20_000)
    pages = list(process.read(script(1_000_000), "script"))
    assert len(pages) == 20_000
    assert list(reasons(pages)) == [20_000]
    assert texts(list(process.read(script(2), "script"))) == [1, 2]


# Pages that break their reader

CRASHES = {
    "segv": "the reader crashed (SIGSEGV)",
    "abort": "the reader crashed (SIGABRT)",
    "kill": "the reader was killed (SIGKILL): most likely the machine ran out of memory",
    "memory": "the reader ran out of memory (limit 512 MB)",
    "malloc": "the reader ran out of memory (limit 512 MB)",
    "os._exit": "the reader ended without a result (exit 0)",
    "sys.exit": "the reader failed (SystemExit:)",
    "close": "the reader ended without a result (exit 70)",
    "garbage": "the reader sent something that is not a page",
    "half a line": "the reader crashed (SIGSEGV)",
    "not a page": "the reader failed (TypeError: the reader gave dict instead of a page)",
    "again": "the reader failed (ValueError: the reader gave page 1 after page 1)",
    "skip": "the reader left this page out",
}


@linux
@pytest.mark.parametrize("act", CRASHES)
def test_a_page_that_breaks_its_reader_is_named_and_the_rest_is_read(
    process: ReadingProcess, script: Callable[..., Path], act: str
) -> None:
    pages = list(process.read(script(4, {2: act}), "script"))
    assert reasons(pages) == {2: CRASHES[act]}
    assert texts(pages) == [1, 3, 4]
    assert all(page.total == 4 for page in pages)


@linux
@pytest.mark.parametrize("act", ["loop", "sleep", "deaf"])
def test_a_page_that_takes_too_long_is_named_and_the_rest_is_read(
    hasty: ReadingProcess, script: Callable[..., Path], act: str
) -> None:
    pages = list(hasty.read(script(4, {2: act}), "script"))
    assert reasons(pages) == {2: "reading it took longer than 1 s"}
    assert texts(pages) == [1, 3, 4]


def test_what_a_parser_prints_is_no_answer(process: ReadingProcess, script: Callable[..., Path]) -> None:
    assert texts(list(process.read(script(3, {2: "print"}), "script"))) == [1, 2, 3]


def test_an_exception_is_named_without_our_paths(process: ReadingProcess, script: Callable[..., Path]) -> None:
    path = script(3, {2: "raise:code "})
    reason = reasons(list(process.read(path, "script")))[2]
    assert reason.startswith("the reader failed (ValueError: the file is odd code at os.py:1 xxx")
    assert str(path.parent) not in reason
    assert len(reason) < 330
    pages = list(process.read(script(3, {2: "raise traceback"}), "script"))
    assert reasons(pages) == {2: "the reader failed (ValueError: deep inside)"}


def test_a_stack_that_overflows_costs_one_page(process: ReadingProcess, script: Callable[..., Path]) -> None:
    assert "RecursionError" in reasons(list(process.read(script(3, {2: "recursion"}), "script")))[2]


def test_the_first_page_can_break_too(process: ReadingProcess, script: Callable[..., Path]) -> None:
    pages = list(process.read(script(3, {1: "segv"}), "script"))
    assert reasons(pages) == {1: "the reader crashed (SIGSEGV)"}
    assert texts(pages) == [2, 3]


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("segv", r"crashed \(SIGSEGV\)"),
        ("read error", "the rest is encrypted"),
        ("raise:", "ValueError: the file is odd"),
    ],
)
def test_a_file_that_cannot_be_opened_is_refused(
    process: ReadingProcess, script: Callable[..., Path], act: str, reason: str
) -> None:
    with pytest.raises(ReadError, match=reason):
        list(process.read(script(opening=act), "script"))


def test_a_reader_that_breaks_at_every_page_is_given_up(process: ReadingProcess, script: Callable[..., Path]) -> None:
    pages = list(process.read(script(50, dict.fromkeys(range(2, 51), "segv")), "script"))
    assert texts(pages) == [1]
    assert list(reasons(pages)) == list(range(2, 51))


def test_a_crash_after_the_last_page_loses_none(process: ReadingProcess, script: Callable[..., Path]) -> None:
    assert texts(list(process.read(script(3, closing="segv"), "script"))) == [1, 2, 3]


def test_announced_pages_that_never_come_are_failures(process: ReadingProcess, script: Callable[..., Path]) -> None:
    pages = list(process.read(script(2, total=4), "script"))
    assert reasons(pages) == dict.fromkeys([3, 4], "the reader ended before this page")


def test_a_file_has_an_end_of_its_time(script: Callable[..., Path]) -> None:
    with ReadingProcess(Limits(60, 1, 512), READERS) as process:
        pages = list(process.read(script(5, {3: "sleep"}), "script"))
        assert texts(pages) == [1, 2]
        assert reasons(pages) == dict.fromkeys([3, 4, 5], "reading the file took longer than 1 s")
        with pytest.raises(ReadError, match="took longer than 1 s"):
            list(process.read(script(5, {1: "sleep"}), "script"))


@linux
def test_processor_time_ends_a_reader_that_nobody_waits_for(
    script: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with ReadingProcess(Limits(60, 1, 512), READERS) as process:
        pages = process.read(script(3, {1: "pids", 2: "loop"}), "script")
        first = next(pages)
        assert isinstance(first, PageText)
        wait_for_end(int(first.text.split()[0]))
        assert reasons(list(pages)) == dict.fromkeys([2, 3], "reading the file took more processor time than 1 s")


# What a reader may not do


@linux
def test_a_reader_has_limits_and_waits_for_the_service(
    process: ReadingProcess, script: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    page = next(iter(process.read(script(1, {1: "limits"}), "script")))
    assert isinstance(page, PageText)
    memory, seconds, written, files, core, niceness = json.loads(page.text)
    assert (memory, seconds, written, files, core) == (512 << 20, 240, 0, 256, 0)
    assert niceness > os.getpriority(os.PRIO_PROCESS, 0) or niceness == 19


@linux
def test_a_reader_cannot_write_files(process: ReadingProcess, script: Callable[..., Path]) -> None:
    assert "File too large" in reasons(list(process.read(script(3, {2: "write"}), "script")))[2]


@linux
def test_a_reader_does_not_reach_the_network_where_the_system_lets_us_prevent_it(
    process: ReadingProcess, script: Callable[..., Path]
) -> None:
    if os.geteuid() != 0 or subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system lets no process leave the network")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()
        pages = list(process.read(script(3, {2: f"connect:{port}"}), "script"))
    assert "unreachable" in reasons(pages)[2]


@linux
@pytest.mark.parametrize("how", ["exhausted", "closed", "killed"])
def test_what_a_reader_forks_ends_with_it(process: ReadingProcess, script: Callable[..., Path], how: str) -> None:
    pages = process.read(script(2, {1: "fork", 2: "segv" if how == "killed" else "page"}), "script")
    first = next(pages)
    assert isinstance(first, PageText)
    children = [int(pid) for pid in first.text.split()]
    if how == "closed":
        pages.close()  # type: ignore[attr-defined]
    else:
        list(pages)
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


# Archives


def test_an_archive_is_unpacked_member_by_member(process: ReadingProcess, tmp_path: Path) -> None:
    path, into = tmp_path / "a.zip", tmp_path / "into"
    into.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("租约/lease.txt", "The rent is due on the first.")
        archive.writestr("../escape.txt", "outside")
        archive.writestr("big.txt", "x" * 3000)
    members = list(process.expand(path, into, ArchiveLimits(member_bytes=2000)))
    read = {member.name: member.path.read_text() for member in members if isinstance(member, Member)}
    assert read == {"租约/lease.txt": "The rent is due on the first."}
    assert len([member for member in members if isinstance(member, MemberFailure)]) == 2


def test_an_archive_whose_unpacking_crashes_says_so(script: Callable[..., Path], tmp_path: Path) -> None:
    with (
        ReadingProcess(ROOMY, {"expand": "tests.support.readers"}) as process,
        pytest.raises(ReadError, match=r"not unpacked to its end: the reader crashed \(SIGSEGV\)"),
    ):
        list(process.expand(script(opening="segv"), tmp_path, ArchiveLimits()))


# Ends


def test_closing_the_iterator_kills_the_reader(process: ReadingProcess, script: Callable[..., Path]) -> None:
    pages = process.read(script(9, {1: "pids", 2: "sleep"}), "script")
    first = next(pages)
    pages.close()  # type: ignore[attr-defined]
    assert isinstance(first, PageText)
    with pytest.raises(ProcessLookupError):
        os.kill(int(first.text.split()[0]), 0)
    assert texts(list(process.read(script(), "script"))) == [1, 2, 3]


def test_cancelling_wakes_the_one_who_waits(process: ReadingProcess, script: Callable[..., Path]) -> None:
    pages = process.read(script(3, {1: "pids", 2: "sleep"}), "script")
    first = next(pages)
    assert isinstance(first, PageText)
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            next(pages)
        except Cancelled as error:
            caught.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    process.cancel()
    waiter.join(30)
    assert caught
    wait_for_end(int(first.text.split()[0]))
    assert texts(list(process.read(script(), "script"))) == [1, 2, 3]


def test_cancelling_between_pages_kills_at_once(process: ReadingProcess, script: Callable[..., Path]) -> None:
    pages = process.read(script(3, {1: "pids", 2: "sleep"}), "script")
    first = next(pages)
    process.cancel()
    assert isinstance(first, PageText)
    wait_for_end(int(first.text.split()[0]))
    with pytest.raises(Cancelled):
        next(pages)


def test_cancelling_nothing_does_nothing(process: ReadingProcess, script: Callable[..., Path]) -> None:
    process.cancel()
    assert texts(list(process.read(script(), "script"))) == [1, 2, 3]
    process.cancel()
    assert process.detect(script()) == "script"


def test_cancelling_over_and_over_hits_only_what_runs(process: ReadingProcess, script: Callable[..., Path]) -> None:
    """Cancels at random instants of many short files: each is read whole or cancelled, and nothing is left over."""
    path, stop = script(20), threading.Event()

    def cancel() -> None:
        while not stop.is_set():
            process.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    try:
        for _ in range(60):
            seen: list[Page] = []
            try:
                seen.extend(process.read(path, "script"))
            except Cancelled:
                continue
            assert texts(seen) == list(range(1, 21))
    finally:
        stop.set()
        canceller.join()
    assert texts(list(process.read(path, "script"))) == list(range(1, 21))


def test_close_ends_everything_and_a_call_that_runs(fresh: ReadingProcess, script: Callable[..., Path]) -> None:
    pages = fresh.read(script(3, {1: "pids", 2: "deaf"}), "script")
    first = next(pages)
    fresh.close()
    assert isinstance(first, PageText)
    wait_for_end(*map(int, first.text.split()))
    with pytest.raises(Cancelled):
        next(pages)
    with pytest.raises(ReadingUnavailable, match="closed"):
        fresh.detect(script())
    fresh.close()


def test_threads_wait_for_one_another(process: ReadingProcess, script: Callable[..., Path]) -> None:
    path, found = script(30), []
    threads = [
        threading.Thread(target=lambda: found.append(texts(list(process.read(path, "script"))))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [list(range(1, 31))] * 6


def test_a_second_call_of_the_same_thread_is_an_error_and_no_deadlock(
    process: ReadingProcess, script: Callable[..., Path]
) -> None:
    pages = process.read(script(), "script")
    next(pages)
    with pytest.raises(RuntimeError, match="still open"):
        process.detect(script())
    assert texts(list(pages)) == [2, 3]
    assert process.detect(script()) == "script"


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_reading_process_that_dies_idle_is_replaced(
    fresh: ReadingProcess, script: Callable[..., Path], number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "START_SECONDS", 5)
    path = script(1, {1: "pids"})
    parents = []
    for _ in range(2):
        page = next(iter(list(fresh.read(path, "script"))))
        assert isinstance(page, PageText)
        parents.append(int(page.text.split()[1]))
        os.kill(parents[-1], number)
    assert parents[0] != parents[1]
    fresh.close()
    wait_for_end(*parents)


@linux
def test_a_reading_process_that_dies_at_a_page_costs_that_page(
    process: ReadingProcess, script: Callable[..., Path]
) -> None:
    pages = list(process.read(script(4, {1: "pids", 2: "kill parent"}), "script"))
    assert texts(pages) == [1, 3, 4]
    assert reasons(pages) == {2: "the reader was ended together with the reading process"}
    assert isinstance(pages[0], PageText)
    wait_for_end(*map(int, pages[0].text.split()))


def test_signals_of_a_terminal_do_not_end_it(process: ReadingProcess, script: Callable[..., Path]) -> None:
    pages = process.read(script(3, {1: "pids"}), "script")
    first = next(pages)
    assert isinstance(first, PageText)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(int(first.text.split()[1]), number)
    assert texts(list(pages)) == [2, 3]


def test_a_process_that_cannot_start_is_not_the_files_fault(
    fresh: ReadingProcess, script: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(ReadingUnavailable, match="cannot be started"):
        list(fresh.read(script(), "script"))
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho the installation is broken >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(ReadingUnavailable, match="the installation is broken"):
        list(fresh.read(script(), "script"))
    monkeypatch.undo()
    assert texts(list(fresh.read(script(), "script"))) == [1, 2, 3]


def test_a_password_longer_than_a_pipe_is_refused(process: ReadingProcess, script: Callable[..., Path]) -> None:
    with pytest.raises(ReadError, match="password is too long"):
        list(process.read(script(), "script", Options(password="x" * 40_000)))
    assert texts(list(process.read(script(), "script"))) == [1, 2, 3]


SERVICE = """
import sys
from pathlib import Path
from services.rag.documents.reading import Limits, ReadingProcess

process = ReadingProcess(Limits(600, 600, 512), {"script": "tests.support.readers"})
for page in process.read(Path(sys.argv[1]), "script"):
    print(page.text, flush=True)
"""


@linux
@pytest.mark.parametrize("act", ["loop", "sleep", "deaf", "print"])
def test_a_service_that_is_killed_leaves_no_process(script: Callable[..., Path], act: str) -> None:
    path = script(1_000_000 if act == "print" else 3, {1: "fork", 2: "pids", 3: act})
    with subprocess.Popen([sys.executable, "-c", SERVICE, str(path)], stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        pids = [int(pid) for _ in range(2) for pid in service.stdout.readline().split()]
        assert len(pids) == 4
        service.kill()
    wait_for_end(*pids)


# A system without fork


def test_without_fork_every_file_has_an_interpreter_of_its_own(
    script: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_FORKS", False)
    with ReadingProcess(HASTY, READERS) as process:
        assert process.detect(script()) == "script"
        pages = list(process.read(script(4, {2: "segv"}), "script"))
        assert texts(pages) == [1, 3, 4]
        assert set(reasons(pages)) == {2}
        assert set(reasons(list(process.read(script(3, {2: "sleep"}), "script")))) == {2}


def test_one_file_with_a_process_of_its_own(script: Callable[..., Path]) -> None:
    with pytest.raises(ReadError, match="no reader"):
        list(read_pages(script(), ROOMY, format="sculpture"))
