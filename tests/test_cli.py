"""The ``docduet`` command against a small service over real HTTP: what it prints, sends and exits with."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from services import cli
from services.client import RagClient, ServiceError, Unreachable, persist
from services.commands import output
from services.commands.delivery import Outcome
from services.commands.ingest import metadata_of, summary, told
from services.commands.progress import shortened
from services.files import DOCUMENT_SUFFIXES, Listing, clean_name, is_temporary, walk
from services.rag.documents.detect import FORMATS
from tests.support.rag_stand_in import Fault, RagStandIn
from tests.support.servers import ROOT, free_port

DATA = ROOT.parent / "shared" / "data"

COMMANDS = """up ingest watch ask search documents delete undelete trash purge collections jobs cancel retry reindex verify
    backup restore eval calibrate models""".split()

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def service() -> Iterator[RagStandIn]:
    with RagStandIn() as running:
        yield running


@pytest.fixture
def docduet(service: RagStandIn, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command; (exit code, stdout, stderr)."""
    monkeypatch.setenv("DOCDUET_URL", service.url)
    monkeypatch.delenv("DOCDUET_API_KEY", raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as ended:
            code = int(str(ended.code))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def put(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


# ingest


def test_a_folder_ends_with_each_file_told(docduet: Run, service: RagStandIn, tmp_path: Path) -> None:
    docs = put(
        tmp_path / "docs", a_txt="plain", sub__b_md="# deeper", scan_pdf="SCAN", bad_pdf="FAIL:no pages", empty_txt=""
    )
    code, out, _ = docduet("ingest", docs)
    assert code == 1
    assert set(service.names()) == {"docs/a.txt", "docs/sub/b.md", "docs/scan.pdf", "docs/bad.pdf"}
    assert "  indexed docs/sub/b.md: 1 page, 3 chunks" in out
    assert "  indexed docs/scan.pdf: 2 pages, 3 chunks; page 2: a scan, OCR is off" in out
    assert "  failed  docs/bad.pdf: no pages" in out
    assert "  failed  docs/empty.txt: is empty (0 bytes)" in out
    told = out[out.index("\n\n") :]
    assert "     3 indexed  4 pages, 9 chunks\n     1 of these have pages without text\n     2 failed\n" in told
    assert "docs/scan.pdf\n      page 2: a scan, OCR is off\n" in told
    assert "  docs/bad.pdf\n      no pages\n" in told


def test_what_was_there_is_said_to_have_been(docduet: Run, tmp_path: Path) -> None:
    docs = put(tmp_path / "docs", a_txt="plain")
    assert docduet("ingest", docs)[0] == 0
    code, out, _ = docduet("ingest", docs)
    assert code == 0
    assert "  already indexed docs/a.txt" in out
    assert "     1 already there\n" in out
    assert "1 indexed" not in out


def test_what_is_no_document_is_left_out_and_listed(docduet: Run, service: RagStandIn, tmp_path: Path) -> None:
    docs = put(
        tmp_path / "docs", a_PDF="x", _hidden_pdf="x", _git__b_txt="x", node_modules__c_txt="x", code_py="x", lib_o="x"
    )
    (docs / "node_modules").mkdir()
    (docs / "node_modules" / "d.txt").write_text("x")
    (docs / "README").write_text("x")
    (docs / "2309.16609").write_bytes(b"%PDF-1.7 under another name")
    (docs / "~$a.docx").write_text("x")
    (docs / "half.pdf.crdownload").write_text("x")
    code, out, _ = docduet("ingest", docs)
    assert code == 0
    assert set(service.names()) == {"docs/a.PDF", "docs/2309.16609"} or set(service.names()) == {"docs/2309.16609"}
    assert "Skipped 5 files that are no documents: temporary files 2" in out
    for kind in (".py 1", ".o 1", "without a suffix 1", "Name a file itself to send it."):
        assert kind in out
    assert docduet("ingest", docs / "code.py")[0] == 0
    assert "code.py" in {u["filename"] for u in service.uploads}


def test_links_lead_neither_out_nor_in_circles(tmp_path: Path) -> None:
    outside = put(tmp_path / "outside", secret_txt="x")
    docs = put(tmp_path / "docs", a_txt="x", sub__b_txt="y")
    (docs / "loop").symlink_to(docs)
    (docs / "out").symlink_to(outside)
    (docs / "out.txt").symlink_to(outside / "secret.txt")
    (docs / "broken.txt").symlink_to(docs / "nothing")
    (docs / "inside.txt").symlink_to(docs / "a.txt")
    os.mkfifo(docs / "pipe.txt")
    listing = walk(docs)
    assert [f.name for f in listing.files] == ["docs/a.txt", "docs/inside.txt", "docs/sub/b.txt"]
    assert listing.skipped == {"links out of the folder": 2, "broken links": 1, "devices and pipes": 1}


def test_a_folder_that_cannot_be_read_is_a_failure(
    docduet: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = put(tmp_path / "docs", a_txt="x", locked__b_txt="y")
    scandir = os.scandir

    def refused(path: Path) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    code, out, _ = docduet("ingest", docs)
    assert code == 1
    assert "     1 failed" in out
    assert "  docs/locked\n      cannot be read: Permission denied" in out


def test_names_come_from_the_folder_as_given(
    docduet: Run, service: RagStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = put(tmp_path / "docs", a__b_txt="x")
    monkeypatch.chdir(docs / "a")
    for path, name in ((".", "a/b.txt"), ("..", "docs/a/b.txt"), ("b.txt", "b.txt"), ("../../docs/", "docs/a/b.txt")):
        assert docduet("ingest", path)[0] == 0
        assert service.uploads[-1]["filename"] == name


def test_two_files_of_one_name_are_not_sent_to_replace_each_other(
    docduet: Run, service: RagStandIn, tmp_path: Path
) -> None:
    one, two = put(tmp_path / "1", a_txt="x"), put(tmp_path / "2", a_txt="y")
    code, _, err = docduet("ingest", one / "a.txt", two / "a.txt")
    assert code == 2
    assert "would both be called 'a.txt', and the second would replace the first" in err
    assert service.uploads == []
    assert docduet("ingest", one, one / "a.txt")[0] == 0  # the same file twice is one
    assert [u["filename"] for u in service.uploads] == ["1/a.txt"]


def test_metadata_password_and_replace_are_sent(docduet: Run, service: RagStandIn, tmp_path: Path) -> None:
    file = put(tmp_path, a_txt="x") / "a.txt"
    secret = tmp_path / "secret"
    secret.write_text("open sesame\n")
    more = ["--metadata", "year=2024", "--metadata", "by=Li Wei", "--password-file", secret, "--replace", "old"]
    assert docduet("ingest", file, *more)[0] == 0
    assert service.uploads == [
        {
            "filename": "a.txt",
            "collection": "default",
            "metadata": {"year": 2024, "by": "Li Wei"},
            "password": "open sesame",
            "replace": "old",
        }
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2024", 2024),
        ("-1.5", -1.5),
        ("true", True),
        ("1.10", "1.10"),
        ("007", "007"),
        ('"2024"', "2024"),
        ("[1]", "[1]"),
        ("null", "null"),
        ("a=b", "a=b"),
        ("", ""),
        ("NaN", "NaN"),
    ],
)
def test_a_metadata_value_is_a_number_only_if_it_reads_back_the_same(text: str, value: object) -> None:
    assert metadata_of([f"k={text}"]) == {"k": value}
    assert type(metadata_of([f"k={text}"])["k"]) is type(value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ingest", "nowhere.pdf"], "nowhere.pdf does not exist"),
        (["ingest", "{docs}", "--metadata", "year"], "write KEY=VALUE"),
        (["ingest", "{docs}", "--replace", "x"], "--replace takes one file; this is 2 files"),
        (["ingest", "{docs}", "--jobs", "0"], "'0' is not a number from 1 to 32"),
        (["ingest", "{docs}", "--password", "a", "--password-file", "b"], "not allowed with"),
        (["ingest", "{docs}", "--password-file", "nowhere"], "--password-file nowhere cannot be read"),
        (["retry"], "name the documents or jobs to retry, or all of them with --failed"),
        (["purge", "x"], "add --yes"),
        (["watch", "nowhere"], "nowhere does not exist"),
        (["restore", "nowhere"], "nowhere cannot be read: No such file or directory"),
        (["backup", "{docs}"], "is a folder: name the file to write"),
    ],
)
def test_what_makes_no_sense_is_told_and_ends_with_2(
    docduet: Run, service: RagStandIn, tmp_path: Path, arguments: list[str], said: str
) -> None:
    docs = put(tmp_path / "docs", a_txt="x", b_txt="y")
    code, _, err = docduet(*[a.format(docs=docs) for a in arguments])
    assert code == 2
    assert said in err
    assert service.uploads == []


def test_a_missing_collection_is_made_and_told(docduet: Run, service: RagStandIn, tmp_path: Path) -> None:
    code, out, _ = docduet("ingest", put(tmp_path / "docs", a_txt="x"), "--collection", "law")
    assert code == 0
    assert "created the collection law" in out
    assert set(service.names("law")) == {"docs/a.txt"}


def test_a_zip_is_told_member_by_member(docduet: Run, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    code, out, _ = docduet("ingest", tmp_path / "z.zip")
    assert code == 1
    assert "  indexed z.zip/a.txt" in out
    assert "  failed  z.zip/bad.exe: is nothing that can be read" in out


def test_small_files_go_first_and_no_more_at_a_time_than_asked(
    docduet: Run, service: RagStandIn, tmp_path: Path
) -> None:
    docs = put(tmp_path / "docs", **{f"f{n}_txt": "x" * (100 - n) for n in range(12)})
    assert docduet("ingest", docs, "--jobs", "1")[0] == 0
    assert [u["filename"] for u in service.uploads] == [f"docs/f{n}.txt" for n in reversed(range(12))]
    assert service.peak == 1


def test_quiet_says_only_what_did_not_work(docduet: Run, tmp_path: Path) -> None:
    assert docduet("ingest", put(tmp_path / "good", a_txt="x"), "--quiet") == (0, "", "")
    code, out, _ = docduet("ingest", put(tmp_path / "bad", b_txt="FAIL:torn"), "--quiet")
    assert code == 1
    assert "  bad/b.txt\n      torn" in out


def test_a_busy_service_is_waited_for_as_long_as_it_says(
    docduet: Run, service: RagStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("services.commands.progress.time.sleep", pauses.append)
    service.faults = [
        Fault("POST /documents", 503, 2, {"Retry-After": "7"}),
        Fault("POST /documents", 0),
        Fault("GET /jobs/", 0),
        Fault("GET /jobs/", 503),
    ]
    code, out, _ = docduet("ingest", put(tmp_path / "docs", a_txt="x"))
    assert code == 0, out
    assert pauses[:2] == [7.0, 7.0]
    assert len(pauses) == 5


def test_a_restart_in_the_middle_is_lived_through(docduet: Run, service: RagStandIn, tmp_path: Path) -> None:
    docs = put(tmp_path / "docs", a_txt="x", b_txt="y")
    service.hold.clear()
    outcome: list[tuple[int, str, str]] = []
    thread = threading.Thread(target=lambda: outcome.append(docduet("ingest", docs)))
    thread.start()
    while sum(line.endswith("/events") for line in service.requests) < 2:
        assert thread.is_alive()
        threading.Event().wait(0.01)
    service.stop()
    service.hold.set()
    service.start()
    thread.join(60)
    assert outcome[0][0] == 0, outcome
    assert "     2 indexed" in outcome[0][1]


def test_a_full_disk_ends_it_and_nothing_is_lost_silently(docduet: Run, service: RagStandIn, tmp_path: Path) -> None:
    service.faults = [Fault("POST /documents", 507, 99, message="the disk is full")]
    docs = put(tmp_path / "docs", **{f"f{n}_txt": str(n) for n in range(6)})
    code, out, _ = docduet("ingest", docs, "--jobs", "1", "--patience", "0.1")
    assert code == 1
    assert out.count("  failed  ") == 6
    assert out.count("not sent: the disk is full (HTTP 507)") == 10  # five files, in their lines and in the summary
    assert service.requests.count("POST /documents") <= 8  # the first file's tries


def test_a_wrong_key_is_told_once_with_what_to_do(docduet: Run, service: RagStandIn, tmp_path: Path) -> None:
    service.key = "right"
    code, out, err = docduet("ingest", put(tmp_path / "docs", a_txt="x"), "--key", "wrong")
    assert (code, out) == (1, "")
    assert "this service wants a key: pass one of the service's RAG_API_KEYS as --key or in DOCDUET_API_KEY" in err
    assert docduet("ingest", tmp_path / "docs", "--key", "right")[0] == 0


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "127.0.0.1:{port}", "http://127.0.0.1:{port}/"])
def test_nobody_there_is_told_at_once(docduet: Run, tmp_path: Path, url: str) -> None:
    docs = put(tmp_path / "docs", a_txt="x")
    for command in (["ingest", docs], ["documents"], ["verify"], ["backup", tmp_path / "b.tar"]):
        code, _, err = docduet(*command, "--url", url.format(port=free_port()))
        assert code == 1
        assert "cannot be reached" in err
        assert "start it with 'docduet up'" in err


@pytest.mark.parametrize("url", ["ftp://x", "http://[", "http://a b", "::", "http://127.0.0.1:99999"])
def test_an_address_that_is_none_is_an_error_of_one_line(docduet: Run, url: str) -> None:
    code, out, err = docduet("documents", "--url", url)
    assert (code, out) == (1, "")
    assert err.startswith("docduet documents: ")
    assert err.count("\n") == 1
    assert "a mistake in docduet" not in err


def test_ctrl_c_says_what_goes_on_and_what_was_not_sent(service: RagStandIn, tmp_path: Path) -> None:
    service.hold.clear()
    docs = put(tmp_path / "docs", a_txt="x", b_txt="yy")
    process = subprocess.Popen(
        [sys.executable, "-m", "services.cli", "ingest", str(docs), "--url", service.url],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while sum(line.endswith("/events") for line in service.requests) < 2:
        assert process.poll() is None, process.communicate()
        threading.Event().wait(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (
        "interrupted: 2 files accepted (2 not finished: the service goes on with them, see 'docduet jobs'), 0 not sent"
        in err
    )


def test_good_and_bad_files_together(docduet: Run, service: RagStandIn) -> None:
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not here: the corpus of good and bad files")
    code, out, _ = docduet("ingest", DATA)
    assert code == 1  # zero_bytes.pdf
    assert "  data/pdf_bad/zero_bytes.pdf\n      is empty (0 bytes)" in out
    assert f"{len(service.uploads) - 1:>6} indexed" in out
    assert all(u["filename"].startswith("data/") for u in service.uploads)


# what is printed


def test_a_name_cannot_write_to_the_terminal(docduet: Run, service: RagStandIn, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a\x1b[31m[bold]red[bold]\u202egpj.txt").write_text("x")
    _, out, _ = docduet("ingest", tmp_path / "d")
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "d/a�[31m[bold]red[bold]�gpj.txt" in out
    _, out, _ = docduet("documents")
    assert "\x1b" not in out
    assert "d/a�[31m[bold]red[bold]�gpj.txt" in out


@given(st.text(max_size=60), st.integers(8, 40))
def test_a_shortened_name_is_as_wide_as_its_column(name: str, columns: int) -> None:
    short = shortened(name, columns)
    assert Text(short).cell_len == columns
    shown = output.printable(name)
    assert (
        short.rstrip() == shown.rstrip()
        or shown.endswith(short.rstrip()[1:])
        or shown.rstrip().endswith(short[1:].rstrip())
    )


@given(st.text())
def test_printable_text_has_no_controls(text: str) -> None:
    shown = output.printable(text)
    assert len(shown) == len(text)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)


@given(st.sets(st.integers(1, 60)))
def test_every_failed_page_is_named_once(pages: set[int]) -> None:
    reports = [{"page": p, "failed": True, "message": "odd" if p % 2 else "even"} for p in pages]
    named: list[int] = []
    for line in output.page_failures({"failed_pages": sorted(pages), "page_reports": reports}):
        where, _, reason = line.partition(": ")
        for run in where.removeprefix("page").removeprefix("s").strip().split(", "):
            first, _, last = run.partition("-")
            named += range(int(first), int(last or first) + 1)
            assert reason == ("odd" if int(first) % 2 else "even")
    assert sorted(named) == sorted(pages)


def test_a_summary_fits_into_80_columns() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, no_color=True, soft_wrap=True, highlight=False)
    long = "d/" + "很长的名字" * 20 + ".pdf"
    outcomes = [
        Outcome(long, "failed", error="the reason " * 20),
        Outcome("b", "indexed", 3, 4, ["page 2: " + "x y " * 40]),
    ]
    listing = Listing()
    listing.skipped.update({f".k{n}": n for n in range(1, 20)})
    summary(outcomes, listing, console)
    lines = [Text.from_ansi(line) for line in out.getvalue().splitlines()]
    assert all(line.cell_len <= 80 for line in lines)
    assert "and 7 other kinds" in " ".join(line.plain for line in lines)


def test_an_outcome_is_one_line() -> None:
    assert Text.from_markup(told(Outcome("a", "failed", error="one\ntwo"))).plain == "  failed  a: one two"


@given(st.text(min_size=1, max_size=20))
def test_a_cleaned_name_can_be_sent(name: str) -> None:
    clean_name(name.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")).encode("utf-8")


def test_temporary_names() -> None:
    assert all(map(is_temporary, ["~$a.docx", "a.pdf.part", "a.CRDOWNLOAD", ".a.swp", "a.txt~", ".~lock.a.odt#"]))
    assert not any(map(is_temporary, ["a.pdf", "part.pdf", "~a.pdf", "a.partial.pdf"]))


def test_every_format_of_the_service_is_a_document_to_the_client() -> None:
    assert {suffix for format in FORMATS.values() for suffix in format.suffixes} <= DOCUMENT_SUFFIXES


# the other commands


def ids(service: RagStandIn) -> list[str]:
    return list(service.documents)


def test_documents_lists_what_failed_and_why(docduet: Run, tmp_path: Path) -> None:
    docduet("ingest", put(tmp_path / "docs", a_txt="x", b_txt="FAIL:torn", c_txt="SCAN"))
    code, out, _ = docduet("documents")
    assert code == 0
    lines = out.splitlines()
    assert any(
        line.startswith("indexed    ") and line.endswith("default/docs/a.txt  1 page, 3 chunks") for line in lines
    )
    assert lines[next(n for n, line in enumerate(lines) if "docs/b.txt" in line) + 1] == "           torn"
    assert (
        lines[next(n for n, line in enumerate(lines) if "docs/c.txt" in line) + 1]
        == "           page 2: a scan, OCR is off"
    )
    _, out, _ = docduet("documents", "--status", "failed", "--json")
    assert [d["filename"] for d in json.loads(out)] == ["docs/b.txt"]
    assert docduet("documents", "--collection", "other")[1] == ""


def test_to_the_trash_and_back(docduet: Run, service: RagStandIn, tmp_path: Path) -> None:
    docduet("ingest", put(tmp_path / "docs", a_txt="x", b_txt="y"))
    first, second = ids(service)
    code, out, err = docduet("delete", first, "nothing", second)
    assert code == 1
    assert f"{first} is in the trash: 'docduet undelete {first}' brings it back" in out
    assert second in out
    assert "docduet delete: nothing: there is no document nothing (HTTP 404)" in err
    assert docduet("trash")[1].count("default/docs/") == 2
    assert docduet("undelete", first)[0] == 0
    assert set(service.documents) == {first}
    code, out, err = docduet("purge")
    assert code == 2
    assert "add --yes" in err
    assert service.trash
    assert docduet("purge", "--yes")[1] == "1 document removed for good\n"
    assert not service.trash


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("\n", 1), ("", 1)])
def test_purge_asks_on_a_terminal(
    docduet: Run, service: RagStandIn, monkeypatch: pytest.MonkeyPatch, answer: str, left: int
) -> None:
    document, _ = service.add("a.txt", b"x")
    service.trash[document["id"]] = service.documents.pop(document["id"])
    terminal = io.StringIO(answer)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    code, out, _ = docduet("purge")
    assert "Remove 1 document in the trash for good? [y/N]" in out
    assert (code, len(service.trash)) == (left, left)


def test_an_id_cannot_reach_another_route(docduet: Run, service: RagStandIn) -> None:
    service.add("a.txt", b"x")
    for given_id in ("../trash", "..", ".", "x/../../trash", "?a=b", "#"):
        assert docduet("delete", given_id)[0] == 1
    assert not any(line.startswith("DELETE /trash") or line == "DELETE /documents" for line in service.requests)


def test_collections(docduet: Run, service: RagStandIn) -> None:
    assert docduet("collections", "create", "law")[0] == 0
    assert docduet("collections", "rename", "law", "Recht und Gesetz")[0] == 0
    assert docduet("collections")[1] == "      0  Recht und Gesetz\n      0  default\n"
    assert docduet("collections", "delete", "Recht und Gesetz")[0] == 0
    assert service.collections == {"default"}
    code, _, err = docduet("collections", "rename", "default", "x")
    assert code == 1
    assert "default cannot be renamed" in err


def test_jobs_cancel_and_retry(docduet: Run, service: RagStandIn, tmp_path: Path) -> None:
    service.add("slow.txt", b"slow")
    _, out, _ = docduet("jobs")
    assert out.startswith("accepted   job1  slow.txt")
    assert docduet("cancel", "job1")[1] == "job1 (slow.txt): cancelled\n"
    assert docduet("jobs")[1] == ""
    assert docduet("jobs", "--all")[1].startswith("cancelled  job1  slow.txt")
    code, _, err = docduet("cancel", "job9")
    assert code == 1
    assert "there is no job job9" in err

    docduet("ingest", put(tmp_path / "docs", a_pdf="FAIL:encrypted"))
    failed = next(d["id"] for d in service.documents.values() if d["filename"] == "docs/a.pdf")
    code, out, _ = docduet("retry", failed)
    assert code == 1
    assert "encrypted" in out
    code, out, _ = docduet("retry", "--failed", "--password", "open sesame")
    assert code == 0
    assert "  indexed docs/a.pdf" in out


def test_reindex_waits_until_the_index_is_ready(
    docduet: Run, service: RagStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.commands.upkeep._POLL_SECONDS", 0.0)
    service.faults = [Fault("GET /index", 0, after=2)]
    service.rebuild_error = "the disk is full"
    code, out, err = docduet("reindex")
    assert (code, out) == (0, "the index is rebuilt: 30 chunks\n")
    assert err == "waiting: the disk is full\n"
    assert service.rebuild_looks == 0
    assert docduet("reindex", "--no-wait")[0] == 0
    assert service.rebuild_looks == 3
    assert docduet("reindex")[0] == 0  # one that is under way is followed, not begun again
    assert service.requests.count("POST /index/rebuild") == 2


def test_verify_names_each_difference(docduet: Run, service: RagStandIn) -> None:
    code, out, _ = docduet("verify", "--files")
    assert (code, out) == (0, "all agree: 0 documents, 1 files\n")
    service.differences = [
        {"kind": "missing vectors", "document_id": "d1", "filename": "a.pdf", "detail": "3 of 9 chunks"}
    ]
    code, out, _ = docduet("verify")
    assert code == 1
    assert "missing vectors  a.pdf  d1  3 of 9 chunks\n" in out
    code, out, _ = docduet("verify", "--json")
    assert code == 1
    assert json.loads(out)["differences"] == service.differences


def test_a_backup_is_whole_or_not_there(docduet: Run, service: RagStandIn, tmp_path: Path) -> None:
    target = tmp_path / "b.tar"
    code, out, _ = docduet("backup", target)
    assert code == 0
    assert "2 files" in out
    with tarfile.open(target) as tar:
        assert tar.getnames() == ["catalog.sqlite", "files/a"]
    assert docduet("backup", target)[0] == 2
    good = service.archive
    for broken in (good[:2560], good[:2048], good[:1024], good[:1500], b"", b"<html>" * 400):
        service.archive = broken
        code, _, err = docduet("backup", target, "--force")
        assert code == 1, broken[:20]
        assert "try again" in err
        assert target.read_bytes() == good
        assert os.listdir(tmp_path) == ["b.tar"]
    service.archive = good
    service.faults = [Fault("GET /backup", 0)]
    assert docduet("backup", target, "--force")[0] == 1
    assert target.read_bytes() == good
    assert docduet("backup", target, "--force")[0] == 0


def test_restore_waits_for_the_jobs(docduet: Run, service: RagStandIn, tmp_path: Path) -> None:
    target = tmp_path / "b.tar"
    docduet("backup", target)
    code, out, _ = docduet("restore", target)
    assert code == 0
    assert out == "2 documents restored; 1 were there already\n1 document indexed\n"
    assert service.restored == [target.stat().st_size]
    (tmp_path / "x").write_text("no tar")
    assert docduet("restore", tmp_path / "x")[0] == 2


def test_something_else_at_the_address_is_told(docduet: Run, service: RagStandIn) -> None:
    code, _, err = docduet("documents", "--url", f"{service.url}/ready")
    assert code == 1
    assert err.startswith("docduet documents: ")
    assert "Traceback" not in err


def test_it_runs_as_a_module() -> None:
    ran = subprocess.run([sys.executable, "-m", "services.cli", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0
    for command in COMMANDS:
        assert f"\n    {command} " in ran.stdout or f"\n    {command}\n" in ran.stdout, command


def test_every_command_and_option_is_documented_and_every_documented_option_is_there(docduet: Run) -> None:
    # scripts/bench has options of its own.
    text = (ROOT / "docs" / "command-line.md").read_text().partition("\n## Bench\n")[0]
    known = set()
    for command in COMMANDS:
        code, out, _ = docduet(command, "--help")
        assert code == 0
        assert re.search(rf"`(docduet )?{command}\b", text), command
        known |= set(re.findall(r"--[a-z][a-z-]+", out))
    assert set(re.findall(r"--[a-z][a-z-]+", text)) == known - {"--help"}


# the client


def test_persist_gives_up_after_its_patience_and_on_a_refusal() -> None:
    pauses: list[float] = []
    calls = iter([Unreachable("away"), ServiceError("full", status=503, retry_after=3.0), None])

    def call() -> str:
        if error := next(calls):
            raise error
        return "done"

    assert persist(call, 60.0, lambda problem, seconds: pauses.append(seconds)) == "done"
    assert pauses == [0.5, 3.0]
    with pytest.raises(ServiceError, match="refused"):
        persist(lambda: (_ for _ in ()).throw(ServiceError("refused", status=400)), 60.0)
    with pytest.raises(ServiceError, match="an hour"):  # longer than there is patience for: told at once
        persist(lambda: (_ for _ in ()).throw(ServiceError("an hour", status=503, retry_after=3600)), 60.0)


@pytest.mark.parametrize("size", [0, 200_000, 900_000])
def test_a_file_that_changes_while_it_is_sent_is_told(service: RagStandIn, tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 500_000)
    with pytest.raises(ServiceError, match="changed while it was sent: send it again"):
        RagClient(service.url).upload(path, "default", sent=lambda read: os.truncate(path, size))
    assert service.names() == {}


def test_a_key_that_is_none_is_told(docduet: Run) -> None:
    for key in ("schlüssel 钥匙", "a\nb"):
        code, _, err = docduet("documents", "--key", key)
        assert code == 1
        assert "a mistake in docduet" not in err


def test_pages_and_files_and_changes(service: RagStandIn) -> None:
    document, _ = service.add("a.txt", b"x")
    talk = RagClient(service.url)
    assert talk.change(document["id"], filename="b.txt", metadata={"year": 1})["metadata"] == {"year": 1}
    assert set(service.names()) == {"b.txt"}
    with pytest.raises(ServiceError, match="404"):
        talk.page(document["id"], 1)
    with pytest.raises(ServiceError, match="404"):
        list(talk.file(document["id"]))
