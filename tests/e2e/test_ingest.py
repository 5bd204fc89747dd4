"""``docduet ingest`` and ``docduet watch --once`` as people run them: the command on a terminal, the service a process."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from services.commands.delivery import Outcome
from services.commands.ingest import summary
from services.commands.output import brief
from services.commands.progress import note, shortened
from services.files import Listing
from tests.support.files import make_docx, make_zip, paragraph
from tests.support.pdfs import make_pdf
from tests.support.servers import ROOT, Service, spawn_service

COLUMNS = 100
SECONDS = 240  # for a command to end, on a busy machine


# a terminal


@dataclass
class Screen:
    """What a terminal shows: of its language, what Rich speaks. Lines go on for ever, as with a long scrollback."""

    columns: int
    lines: list[list[str]] = field(default_factory=lambda: [[]])
    row: int = 0
    column: int = 0
    cursor_shown: bool = True

    def feed(self, text: str) -> "Screen":
        for control, arguments, final, character in re.findall(r"(\x1b\[([0-9;?]*)([A-Za-z]))|([\s\S])", text):
            if control:
                self._control(arguments, final)
            else:
                self._put(character)
        return self

    def _control(self, arguments: str, final: str) -> None:
        match final:
            case "A":
                self.row = max(0, self.row - int(arguments or 1))
            case "K":
                assert arguments == "2"
                self.lines[self.row] = []
            case "h" | "l":
                assert arguments == "?25"
                self.cursor_shown = final == "h"
            case "m":
                pass
            case _:
                raise AssertionError(f"an unknown control sequence: {arguments}{final}")

    def _put(self, character: str) -> None:
        assert character != "\x1b", "an escape that is no control sequence"
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self._down()
        else:
            width = 2 if unicodedata.east_asian_width(character) in "WF" else 1
            if self.column + width > self.columns:
                self._down()
                self.column = 0
            line = self.lines[self.row]
            line.extend(" " * (self.column - len(line)))
            line[self.column : self.column + width] = [character, *[""] * (width - 1)]
            self.column += width

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append([])

    def text(self) -> str:
        return "\n".join("".join(line).rstrip() for line in self.lines).rstrip("\n")


@given(st.lists(st.text(alphabet="ab租 约", max_size=30), max_size=8), st.integers(4, 40))
def test_the_screen_shows_what_is_printed_and_nothing_of_what_was_wiped(lines: list[str], columns: int) -> None:
    screen = Screen(columns)
    for line in lines:
        if columns >= len("a passing bar"):
            screen.feed("a passing bar\r\x1b[2K")
        screen.feed(f"{line}\r\n")
    shown = screen.text()
    assert shown.replace("\n", "").replace(" ", "") == "".join(lines).replace(" ", "")
    assert all(sum(2 if c in "租约" else 1 for c in line) <= columns for line in shown.split("\n"))


# what is said


@given(st.text(max_size=60).filter(lambda text: "What can be read" not in text and "form field" not in text))
def test_a_reason_loses_the_list_of_formats_and_the_words_of_http_and_nothing_else(text: str) -> None:
    assert brief(text) == text
    assert brief(f"{text}. What can be read: PDF and text.") == text
    assert brief(f"{text}: upload it again with the form field 'password'") == text
    assert brief(f"{text}: upload it again with the right one in the form field 'password'") == (
        f"{text}: upload it again with the right one"
    )


@given(st.integers(0, 5000), st.integers(1, 5000), st.floats(1, 9000))
def test_the_time_that_is_left_is_told_once_the_file_has_its_turn(done: int, total: int, seconds: float) -> None:
    job = {"state": "embedding", "chunks_embedded": done, "chunks_total": total, "estimate_seconds": seconds}
    assert note(job).startswith(f"chunk {done}/{total}")
    assert note(job).endswith(" left") == (done > 0)


# the command


@dataclass
class Ran:
    code: int
    said: str  # as it came

    @property
    def shown(self) -> str:
        """What is left on the screen, spaces and all."""
        return Screen(COLUMNS).feed(self.said).text()

    @property
    def frames(self) -> set[str]:
        """Every line that was on the screen at any time, without its colours."""
        return {re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip("\r") for line in re.split(r"[\r\n]+", self.said)}

    def bars(self, name: str) -> list[str]:
        """The bar lines of a file (or of all) that were ever drawn."""
        wide = shortened(name, 29)
        return sorted(frame for frame in self.frames if frame.startswith(wide) and "━" in frame)


Docduet = Callable[..., Ran]


def command(*arguments: object, url: str) -> tuple[list[str], dict[str, str]]:
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("DOCDUET_", "COLUMNS", "LINES", "NO_COLOR"))
    }
    environment |= {"TERM": "xterm", "DOCDUET_URL": url}
    return [sys.executable, "-m", "services.cli", *map(str, arguments)], environment


def on_a_terminal(*arguments: object, url: str) -> Ran:
    line, environment = command(*arguments, url=url)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    try:
        process = subprocess.Popen(
            line, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment, start_new_session=True
        )
    finally:
        os.close(theirs)
    said, deadline = b"", time.monotonic() + SECONDS
    try:
        while True:
            ready, _, _ = select.select([ours], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no end after {SECONDS} s:\n{said[-2000:].decode(errors='replace')}"
            try:
                block = os.read(ours, 1 << 16)
            except OSError:  # how Linux tells that the other side is closed
                break
            if not block:
                break
            said += block
        return Ran(process.wait(60), said.decode())
    finally:
        os.close(ours)
        process.kill()
        process.wait(10)


def into_a_pipe(*arguments: object, url: str) -> Ran:
    line, environment = command(*arguments, url=url)
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, timeout=SECONDS)
    return Ran(done.returncode, (done.stdout + done.stderr).decode())


@pytest.fixture(scope="module")
def rag(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Ingestion needs no model, so there is none."""
    env = {
        "RAG_MODEL_URL": "http://127.0.0.1:9/v1",
        "RAG_EMBEDDING_MODEL": "hashing",
        "RAG_OCR": "off",
        "RAG_DATA_DIR": str(tmp_path_factory.mktemp("rag") / "data"),
    }
    with spawn_service("services.rag", env) as service:
        service.wait_listening(120)
        yield service


@pytest.fixture
def client(rag: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=rag.url, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture
def docduet(rag: Service) -> Docduet:
    return lambda *arguments: on_a_terminal(*arguments, url=rag.url)


def documents(client: httpx.Client, collection: str) -> dict[str, dict[str, Any]]:
    found = client.get("/documents", params={"collection": collection}).json()["documents"]
    return {document["filename"]: document for document in found}


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """Good, bad, twice the same, empty, unreadable kinds, no document at all, and folders in the folder."""
    folder = tmp_path / "docs"
    (folder / "报告" / "2024").mkdir(parents=True)
    (folder / "node_modules").mkdir()
    make_pdf(folder / "manual.pdf", ["The soft limit of a lease is 90 seconds.", "Every block has 3 replicas."])
    make_pdf(folder / "half.pdf", ["The first page has a text.", None])
    make_docx(folder / "报告" / "2024" / "年报.docx", paragraph("今年的收成是去年的两倍。"))
    (folder / "报告" / "notes.md").write_text("# Notes\n\nThe kiln is fired on Fridays.\n")
    make_zip(folder / "bundle.zip", {"a.txt": "The archive has one good member.", "b.exe": b"MZ" + bytes(100)})
    (folder / "报告" / "copy.pdf").write_bytes((folder / "manual.pdf").read_bytes())
    (folder / "torn.pdf").write_bytes(b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n")
    make_pdf(folder / "locked.pdf", ["A secret."], password="open sesame")
    make_pdf(folder / "scan.pdf", [None])
    (folder / "empty.txt").write_bytes(b"")
    (folder / "letter.rtf").write_bytes(rb"{\rtf1 Dear Sir}")
    (folder / "tool.py").write_text("print()")
    (folder / "node_modules" / "readme.md").write_text("not mine")
    (folder / ".hidden.txt").write_text("not for others")
    return folder


GOOD = ("docs/manual.pdf", "docs/half.pdf", "docs/报告/2024/年报.docx", "docs/报告/notes.md", "docs/bundle.zip/a.txt")


def test_a_folder_on_a_terminal(docduet: Docduet, client: httpx.Client, docs: Path) -> None:
    ran = docduet("ingest", docs, "--collection", "terminal")
    assert ran.code == 1, ran.said
    held = documents(client, "terminal")

    # While it ran: a bar for each file that is sent, from the upload on, another while its job is followed, one for all.
    for name in (*GOOD[:4], "docs/bundle.zip", "docs/torn.pdf", "docs/empty.txt", "docs/letter.rtf"):
        assert any("uploading" in bar for bar in ran.bars(name)), (name, sorted(ran.frames))
    for name in (*GOOD, "docs/torn.pdf", "docs/scan.pdf"):
        assert any("uploading" not in bar for bar in ran.bars(name)), (name, sorted(ran.frames))
    assert any("0 of 11" in bar for bar in ran.bars("all files"))
    assert not ran.bars("docs/tool.py")

    # Afterwards: no bar is left, the cursor is back, and each file has its line and its reason.
    assert Screen(COLUMNS).feed(ran.said).cursor_shown
    assert "━" not in ran.shown
    lines = " ".join(ran.shown.split())  # a long line is cut by the screen's edge
    kept, twin = "docs/manual.pdf", "docs/报告/copy.pdf"
    good = GOOD
    assert twin not in held
    for name in good:
        assert f"indexed {name}: " in lines
        assert held[name]["status"] == "indexed"
    assert f"same {twin}: has the content of {kept}" in lines

    summary = ran.shown[ran.shown.index("\n\n") :]
    pages = sum(held[name]["pages"] for name in good)
    chunks = sum(held[name]["chunks"] for name in good)
    assert f"\n     5 indexed  {pages} pages, {chunks} chunks\n" in summary
    assert "\n     1 with the content of another document\n" in summary
    assert "\n     1 of these have pages without text\n" in summary
    assert "\n     6 failed\n" in summary
    assert (
        "\nPages without text:\n  docs/half.pdf\n      page 2: the page has no text: it has drawings only; OCR is off\n"
        in (summary)
    )
    reasons = failures(summary)
    assert reasons.keys() == {
        "docs/bundle.zip/b.exe",
        "docs/empty.txt",
        "docs/letter.rtf",
        "docs/locked.pdf",
        "docs/scan.pdf",
        "docs/torn.pdf",
    }
    assert "a Windows program" in reasons["docs/bundle.zip/b.exe"]
    assert reasons["docs/empty.txt"].startswith("is empty")
    assert reasons["docs/letter.rtf"] == "it is a rich text document (.rtf): save it as .docx"
    assert reasons["docs/locked.pdf"] == "the PDF needs a password"
    assert "page 1" in reasons["docs/scan.pdf"]
    assert "OCR is off" in reasons["docs/scan.pdf"]
    assert "PDF" in reasons["docs/torn.pdf"]
    assert not any(
        "HTTP" in reason or "Traceback" in reason or ROOT.as_posix() in reason for reason in reasons.values()
    )
    assert summary.count("What can be read: PDF, Word (.docx), ") == 1
    assert ran.said.count("What can be read") == 1, "once, and not after each reason"
    assert "A password goes with --password-file FILE" in summary
    assert "Skipped 1 file that is no document: .py 1. Name a file itself to send it." in summary
    # What failed after it was accepted can be looked at and retried; what was refused is not there at all.
    assert {name for name, document in held.items() if document["status"] == "failed"} == {
        "docs/locked.pdf",
        "docs/scan.pdf",
        "docs/torn.pdf",
    }
    assert len(held) == 8


def failures(summary: str) -> dict[str, str]:
    """Name → reason, put together from the lines under "Failed:"."""
    out: dict[str, str] = {}
    name = ""
    for line in summary[summary.index("\nFailed:\n") + 9 :].split("\n"):
        if line.startswith(" " * 6):
            out[name] = f"{out[name]} {line.strip()}".strip()
        elif line.startswith("  "):
            name = line.strip()
            out[name] = ""
        else:
            break
    return out


def test_the_same_into_a_pipe_and_again(rag: Service, client: httpx.Client, docs: Path) -> None:
    """A pipe gets whole lines and no control characters; the second run sends nothing twice."""
    first = into_a_pipe("ingest", docs, "--collection", "pipe", "--jobs", "1", url=rag.url)
    assert first.code == 1, first.said
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f━]", first.said)
    lines = first.said.split("\n")
    assert lines[0] == "created the collection pipe"
    for name in GOOD:
        assert sum(line.startswith(f"  indexed {name}: ") for line in lines) == 1
    assert f"{'':5}6 failed" in lines
    reason = next(line for line in lines if line.startswith("  failed  docs/torn.pdf: "))
    assert len(reason) > COLUMNS, "it is not cut"
    assert f"      {reason.partition(': ')[2]}" in lines, "the summary says the same"

    before = documents(client, "pipe")
    again = into_a_pipe("ingest", docs, "--collection", "pipe", url=rag.url)
    assert again.code == 1
    assert f"{'':5}5 already there" in again.said.split("\n")
    assert "  indexed" not in again.said
    after = documents(client, "pipe")
    assert {n: (d["id"], d["indexed_at"]) for n, d in after.items() if d["status"] == "indexed"} == {
        n: (d["id"], d["indexed_at"]) for n, d in before.items() if d["status"] == "indexed"
    }

    (docs / "报告" / "notes.md").write_text("# Notes\n\nThe kiln is fired on Saturdays.\n")
    changed = into_a_pipe("ingest", docs / "报告", "--collection", "pipe", url=rag.url)
    assert changed.code == 0, changed.said  # the bad ones lie beside this folder
    assert "  indexed 报告/notes.md: 1 page, 1 chunk" in changed.said.split("\n")


def test_a_good_folder_ends_with_0_and_a_missing_one_with_2(docduet: Docduet, client: httpx.Client, docs: Path) -> None:
    good = docduet("ingest", docs / "报告", "--collection", "good")
    assert good.code == 0, good.said
    assert "     3 indexed  " in good.shown
    assert "failed" not in good.shown.lower()
    assert documents(client, "good").keys() == {"报告/2024/年报.docx", "报告/notes.md", "报告/copy.pdf"}
    missing = docduet("ingest", docs / "nowhere")
    assert missing.code == 2
    # The terminal breaks a long path anywhere.
    assert "".join(missing.shown.split()).endswith("/nowheredoesnotexist")


def test_a_password_file_opens_what_was_locked(docduet: Docduet, client: httpx.Client, docs: Path) -> None:
    (docs / "secret").write_text("open sesame\n")
    ran = docduet("ingest", docs / "locked.pdf", "--collection", "locked", "--password-file", docs / "secret")
    assert ran.code == 0, ran.said
    assert "     1 indexed  1 page, 1 chunk" in ran.shown
    assert documents(client, "locked")["locked.pdf"]["status"] == "indexed"


def test_what_was_cancelled_is_told_apart_from_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    told = [Outcome("a.txt", "failed", error="torn"), Outcome("b.txt", "cancelled", error="cancelled by request")]
    summary(told, Listing(), Console(width=80))
    said = capsys.readouterr().out
    assert "     1 failed\n     1 cancelled\n" in said
    assert "Cancelled:\n  b.txt\n      cancelled by request\n" in said
    assert "Failed:\n  a.txt\n      torn\n" in said


def test_watch_once_makes_the_collection_like_the_folder(docduet: Docduet, client: httpx.Client, docs: Path) -> None:
    folder = docs / "报告"
    watch = ("watch", folder, "--once", "--collection", "watched")
    first = docduet(*watch)
    assert first.code == 0, first.said
    held = documents(client, "watched")
    assert held.keys() == {"报告/2024/年报.docx", "报告/notes.md", "报告/copy.pdf"}
    for name in held:
        assert f"  indexed {name}: " in first.shown
    assert "━" not in first.said

    quiet = docduet(*watch)
    assert (quiet.code, quiet.shown) == (0, "")

    (folder / "new.txt").write_text("The weir is lowered in spring.")  # new
    (folder / "notes.md").write_text("# Notes\n\nThe kiln is fired on Sundays.\n")  # changed
    (folder / "2024" / "年报.docx").unlink()  # removed
    (folder / "copy.pdf").rename(folder / "2024" / "manual.pdf")  # moved
    second = docduet(*watch)
    assert second.code == 0, second.said
    assert "  indexed 报告/new.txt: 1 page, 1 chunk" in second.shown
    assert "  indexed 报告/notes.md: 1 page, 1 chunk" in second.shown
    assert "  removed 报告/2024/年报.docx (in the trash)" in second.shown
    assert "  renamed 报告/copy.pdf to 报告/2024/manual.pdf" in second.shown
    now = documents(client, "watched")
    assert now.keys() == {"报告/new.txt", "报告/notes.md", "报告/2024/manual.pdf"}
    assert {document["status"] for document in now.values()} == {"indexed"}
    moved = now["报告/2024/manual.pdf"]
    assert (moved["id"], moved["indexed_at"]) == (held["报告/copy.pdf"]["id"], held["报告/copy.pdf"]["indexed_at"])
    trash = {d["id"] for d in client.get("/trash").json()["documents"]}
    assert {held["报告/2024/年报.docx"]["id"], held["报告/notes.md"]["id"]} <= trash
    for query, name in (
        ("When is the weir lowered?", "报告/new.txt"),
        ("When is the kiln fired?", "报告/notes.md"),
        ("What is the soft limit of a lease?", "报告/2024/manual.pdf"),
    ):
        [best, *_] = client.post("/search", json={"query": query, "collection": "watched"}).json()["passages"]
        assert best["filename"] == name
        assert "Fridays" not in best["text"]

    (folder / "torn.pdf").write_bytes((docs / "torn.pdf").read_bytes())
    bad = docduet(*watch)
    assert bad.code == 1
    assert "failed  报告/torn.pdf: " in bad.shown
    assert documents(client, "watched").keys() == {*now.keys(), "报告/torn.pdf"}
