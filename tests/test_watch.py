"""A collection follows a folder: what a comparison decides, and the watch itself against a small service over real HTTP."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import watchfiles
from hypothesis import given
from hypothesis import strategies as st

from services.client import RagClient, ServiceError
from services.folder_plan import MARK, Plan, plan
from services.watch import Watch, default_mark
from tests.support.rag_stand_in import Fault, RagStandIn
from tests.support.servers import ROOT

NAMES = [f"docs/{n}.txt" for n in "abcd"]
CONTENTS = ["1", "2", "3", "4"]
Document = dict[str, Any]


# the comparison


def document(content: str, name: str, mark: str | None = "me") -> Document:
    return {"id": f"id{content}", "sha256": content, "filename": name, "metadata": {MARK: mark} if mark else {}}


def applied(made: Plan, local: dict[str, str], documents: list[Document]) -> list[Document]:
    """What the service holds afterwards, by its rules: one document a content, one a name; checks each step on the way."""
    held = {d["id"]: dict(d) for d in documents}
    for d in made.deletes:
        del held[d["id"]]
    for d, name in made.renames:
        assert name not in {h["filename"] for h in held.values()}, "a name that is taken"
        held[d["id"]]["filename"] = name
    for name in made.uploads:
        assert local[name] not in {h["sha256"] for h in held.values()}, "sent although it is there"
        held = {i: h for i, h in held.items() if h["filename"] != name}
        held[f"id{local[name]}"] = document(local[name], name)
    return list(held.values())


folders = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(CONTENTS))


@st.composite
def collections(draw: st.DrawFn, unique: bool = True) -> list[Document]:
    names = draw(
        st.lists(st.sampled_from([*NAMES, "docs/z.txt", "elsewhere/a.txt", "by hand.txt"]), unique=unique, max_size=4)
    )
    contents = draw(st.permutations(CONTENTS))
    marks = draw(st.lists(st.sampled_from(["me", "me", None, "other"]), min_size=4, max_size=4))
    return [document(c, n, m) for c, n, m in zip(contents, names, marks, strict=False)]


@given(folders, collections())
def test_after_a_plan_the_collection_is_like_the_folder(local: dict[str, str], documents: list[Document]) -> None:
    made = plan(local, [], documents, "me", "docs")
    after = applied(made, local, documents)
    if not made.conflicts:
        assert set(local.values()) <= {d["sha256"] for d in after}
        mine = [d for d in after if d["metadata"].get(MARK) == "me" and d["filename"].startswith("docs/")]
        assert {d["sha256"] for d in mine} <= set(local.values())
        assert all(local.get(d["filename"]) == d["sha256"] for d in mine)
        again = plan(local, [], after, "me", "docs")
        assert again == Plan()


@given(folders, st.sets(st.sampled_from(NAMES)), collections(unique=False))
def test_what_others_sent_is_neither_deleted_nor_renamed(
    local: dict[str, str], unsettled: set[str], documents: list[Document]
) -> None:
    local = {name: content for name, content in local.items() if name not in unsettled}
    made = plan(local, unsettled, documents, "me", "docs")
    touched = [*made.deletes, *(d for d, _ in made.renames)]
    assert all(d["metadata"].get(MARK) == "me" and d["filename"].startswith("docs/") for d in touched)
    assert not {d["filename"] for d in touched} & unsettled
    others = {d["filename"] for d in documents if d["metadata"].get(MARK) == "other"}
    assert not set(made.uploads) & others
    assert not any(d["sha256"] in local.values() for d in made.deletes)


def test_two_files_that_swap_their_names_are_renamed_through_a_third() -> None:
    made = plan({"docs/a": "2", "docs/b": "1"}, [], [document("1", "docs/a"), document("2", "docs/b")], "me", "docs")
    assert [(d["id"], name) for d, name in made.renames] == [
        ("id2", "docs/.id2.moving"),
        ("id1", "docs/b"),
        ("id2", "docs/a"),
    ]
    assert (made.deletes, made.uploads) == ([], [])


def test_a_new_version_that_is_being_indexed_is_not_cut_short() -> None:
    both = [document("1", "docs/a"), document("2", "docs/a")]
    assert plan({"docs/a": "2"}, [], both, "me", "docs") == Plan()
    both[1]["status"] = "indexed"  # the swap is over: what is left of the name is no version any more
    assert plan({"docs/a": "2"}, [], both, "me", "docs") == Plan(deletes=[both[0]])


# the watch


@pytest.fixture
def service() -> Iterator[RagStandIn]:
    with RagStandIn() as running:
        yield running


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    return tmp_path / "docs"


class Followed:
    def __init__(self, service: RagStandIn, docs: Path) -> None:
        self.service, self.docs = service, docs
        self.said: list[str] = []

    def once(self, **options: Any) -> int:
        """Compare, send and wait for the jobs; what it said is in ``said``."""
        self.said = []
        options = {"settle": 0.0, "patience": 5.0, "say": self.said.append, **options}
        return Watch(RagClient(self.service.url), self.docs, "default", **options).run(once=True)

    @property
    def text(self) -> str:
        return "\n".join(self.said)

    def sent(self) -> list[str]:
        """The names of the uploads since the last call."""
        names = [u["filename"] for u in self.service.uploads]
        self.service.uploads.clear()
        return names


@pytest.fixture
def followed(service: RagStandIn, docs: Path) -> Followed:
    return Followed(service, docs)


def names(service: RagStandIn) -> dict[str, str]:
    return {name: content.decode() for name, content in service.names().items()}


def test_new_changed_and_removed_files_follow(followed: Followed, service: RagStandIn, docs: Path) -> None:
    (docs / "sub").mkdir()
    (docs / "a.txt").write_text("one")
    (docs / "sub" / "b.txt").write_text("two")
    assert followed.once() == 0
    assert names(service) == {"docs/a.txt": "one", "docs/sub/b.txt": "two"}
    assert all(d["metadata"] == {MARK: default_mark(docs)} for d in service.documents.values())
    assert "indexed" in followed.text
    followed.sent()
    assert followed.once() == 0
    assert (followed.sent(), followed.said) == ([], [])
    (docs / "a.txt").write_text("one, changed")
    shutil.rmtree(docs / "sub")
    assert followed.once() == 0
    assert followed.sent() == ["docs/a.txt"]
    assert names(service) == {"docs/a.txt": "one, changed"}
    assert {d["filename"] for d in service.trash.values()} == {"docs/a.txt", "docs/sub/b.txt"}


def test_a_rename_sends_no_bytes(followed: Followed, service: RagStandIn, docs: Path) -> None:
    (docs / "a.txt").write_text("one")
    followed.once()
    followed.sent()
    (docs / "new").mkdir()
    (docs / "a.txt").rename(docs / "new" / "b.txt")
    assert followed.once() == 0
    assert followed.sent() == []
    assert names(service) == {"docs/new/b.txt": "one"}
    assert service.trash == {}
    assert "renamed docs/a.txt to docs/new/b.txt" in followed.text


def test_two_paths_with_the_same_bytes_are_one_document_until_the_last_is_gone(
    followed: Followed, service: RagStandIn, docs: Path
) -> None:
    for name in ("a.txt", "b.txt", "keep.txt"):
        (docs / name).write_text("keep" if name == "keep.txt" else "same")
    followed.once()
    assert sorted(followed.sent()) == ["docs/a.txt", "docs/keep.txt"]
    (docs / "a.txt").unlink()
    followed.once()
    assert names(service) == {"docs/b.txt": "same", "docs/keep.txt": "keep"}
    (docs / "b.txt").unlink()
    followed.once()
    assert names(service) == {"docs/keep.txt": "keep"}
    assert followed.sent() == []


def test_what_people_uploaded_is_never_deleted(followed: Followed, service: RagStandIn, docs: Path) -> None:
    service.add("docs/by hand.txt", b"mine")
    service.add("elsewhere.txt", b"mine too")
    service.add("docs/other.txt", b"theirs", metadata={MARK: "docs-another"})
    (docs / "a.txt").write_text("one")
    assert followed.once() == 0
    assert len(service.documents) == 4
    assert "1 document under docs/ were sent by the watch docs-another" in followed.text
    assert "--name docs-another" in followed.text
    followed.once(mark="docs-another")
    assert "docs/other.txt" not in names(service)
    assert {"docs/by hand.txt", "elsewhere.txt", "docs/a.txt"} == set(names(service))


@pytest.mark.parametrize("how", ["vanished", "empty", "only temporary files"])
def test_a_drive_that_is_not_there_deletes_nothing(
    followed: Followed, service: RagStandIn, docs: Path, how: str
) -> None:
    (docs / "a.txt").write_text("one")
    followed.once()
    shutil.rmtree(docs)
    if how != "vanished":
        docs.mkdir()
    if how == "only temporary files":
        (docs / "~$a.docx").write_text("x")
    assert followed.once() == 1
    assert names(service) == {"docs/a.txt": "one"}
    said = "is gone or cannot be read" if how == "vanished" else "1 document that it had sent are kept"
    assert said in followed.text
    if how != "vanished":
        assert followed.once(allow_empty=True) == 0
        assert names(service) == {}


def test_a_folder_inside_that_cannot_be_read_deletes_nothing(
    followed: Followed, service: RagStandIn, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (docs / "sub").mkdir()
    (docs / "sub" / "a.txt").write_text("one")
    (docs / "b.txt").write_text("two")
    followed.once()
    scandir = os.scandir

    def refused(path: Path) -> object:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert followed.once() > 0
    assert set(names(service)) == {"docs/sub/a.txt", "docs/b.txt"}
    assert "cannot be read" in followed.text


def test_a_file_that_is_being_written_is_not_sent(
    followed: Followed, service: RagStandIn, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (docs / "a.txt").write_text("done")
    growing = docs / "growing.txt"
    growing.write_text("x")
    wait = threading.Event.wait

    def writes(event: threading.Event, timeout: float | None = None) -> bool:
        if timeout == 0.0:  # between two looks
            with growing.open("a") as file:
                file.write("x")
        return wait(event, timeout)

    monkeypatch.setattr(threading.Event, "wait", writes)
    assert followed.once() == 1
    assert names(service) == {"docs/a.txt": "done"}
    assert "not sent[/] docs/growing.txt: it is still being written" in followed.text
    monkeypatch.undo()
    assert followed.once() == 0
    assert "docs/growing.txt" in names(service)


def test_what_failed_is_told_and_sent_again_only_when_it_changes(
    followed: Followed, service: RagStandIn, docs: Path
) -> None:
    (docs / "a.pdf").write_text("FAIL:torn")
    (docs / "b.pdf").write_text("UNSUPPORTED")
    (docs / "c.pdf").write_text("")
    assert followed.once() == 3
    for line in ("docs/a.pdf: torn", "docs/b.pdf: is nothing that can be read; sent again", "docs/c.pdf: is empty"):
        assert line in followed.text
    followed.sent()
    followed.once()
    assert "docs/a.pdf" not in followed.sent()  # the service has it, and has said what is wrong
    (docs / "a.pdf").write_text("mended")
    (docs / "b.pdf").write_text("mended too")
    (docs / "c.pdf").unlink()
    assert followed.once() == 0
    assert names(service) == {"docs/a.pdf": "mended", "docs/b.pdf": "mended too"}


def test_an_archive_is_left_to_people(followed: Followed, service: RagStandIn, docs: Path) -> None:
    (docs / "z.zip").write_bytes(b"PK")
    assert followed.once() == 0
    assert followed.sent() == []
    assert "docs/z.zip is an archive" in followed.text


def test_a_wrong_key_ends_it(followed: Followed, service: RagStandIn, docs: Path) -> None:
    service.key = "right"
    with pytest.raises(ServiceError, match="RAG_API_KEYS"):
        followed.once()


def test_a_service_that_is_away_is_waited_for(followed: Followed, service: RagStandIn, docs: Path) -> None:
    (docs / "a.txt").write_text("one")
    service.faults = [Fault("GET /collections", 503, 2), Fault("POST /documents", 0), Fault("GET /jobs", 0)]
    assert followed.once() == 0
    assert names(service) == {"docs/a.txt": "one"}
    assert followed.text.count("; waiting") >= 1
    assert "the service is back" in followed.text


@given(st.text(min_size=1))
def test_marks_differ_between_folders_of_one_name(where: str) -> None:
    first = Path("/srv") / hashlib.sha256(where.encode("utf-8", "replace")).hexdigest() / "docs"
    assert default_mark(first) == default_mark(first)
    assert default_mark(first).startswith("docs-")
    assert default_mark(first) != default_mark(Path("/srv/docs"))


# as a process


class Running:
    """``docduet watch`` in a process of its own."""

    def __init__(self, service: RagStandIn, docs: Path, *options: str) -> None:
        arguments = ["-m", "services.cli", "watch", str(docs), "--url", service.url, *options]
        self.process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def until(self, true: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert self.process.poll() is None, self.process.communicate()[0]
            if time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(self.process.communicate()[0])
            time.sleep(0.02)

    def end(self, number: int = signal.SIGTERM) -> str:
        self.process.send_signal(number)
        out = self.process.communicate(timeout=30)[0]
        assert self.process.returncode == 0, out
        return out


def test_it_follows_until_it_is_told_to_end(service: RagStandIn, docs: Path) -> None:
    (docs / "a.txt").write_text("one")
    running = Running(service, docs, "--poll", "600")  # only notifications can be the reason
    running.until(lambda: names(service) == {"docs/a.txt": "one"})
    (docs / "b.txt").write_text("two")
    running.until(lambda: set(names(service)) == {"docs/a.txt", "docs/b.txt"})
    service.stop()
    (docs / "b.txt").rename(docs / "c.txt")
    (docs / "a.txt").write_text("one, changed while the service was away")
    service.start()
    running.until(lambda: set(names(service)) == {"docs/a.txt", "docs/c.txt"} and len(service.trash) == 1)
    out = running.end()
    assert out.startswith(f"watching {docs} for default as docs-")
    assert "renamed docs/b.txt to docs/c.txt" in out
    assert "stopped; what was accepted goes on in the service" in out


class InThread:
    """A watch in a thread, for what a process cannot be made to meet."""

    def __init__(self, service: RagStandIn, docs: Path) -> None:
        self.said: list[str] = []
        self.watch = Watch(RagClient(service.url), docs, "default", poll=0.1, settle=0.05, say=self.said.append)
        self.thread = threading.Thread(target=self.watch.run, daemon=True)

    def __enter__(self) -> "InThread":
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.watch.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()

    def until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not true():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.01)

    def until_said(self, words: str) -> None:
        self.until(lambda: any(words in line for line in list(self.said)))


def test_without_notifications_it_looks_every_few_seconds(
    service: RagStandIn, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> Iterator[object]:
        raise OSError("no watches left")

    monkeypatch.setattr(watchfiles, "watch", broken)
    with InThread(service, docs) as running:
        (docs / "a.txt").write_text("one")
        running.until(lambda: "docs/a.txt" in names(service))
        running.until_said("looking every 0.1 s")


def test_a_drive_that_comes_back_is_followed_on(service: RagStandIn, docs: Path) -> None:
    (docs / "a.txt").write_text("one")
    with InThread(service, docs) as running:
        running.until_said("indexed")
        docs.rename(docs.with_name("unmounted"))
        running.until_said("is gone or cannot be read")
        docs.mkdir()
        running.until_said("1 document that it had sent are kept")
        docs.rmdir()
        docs.with_name("unmounted").rename(docs)
        (docs / "b.txt").write_text("two")
        running.until(lambda: set(names(service)) == {"docs/a.txt", "docs/b.txt"})
        running.until_said("is back")
    assert service.trash == {}
    assert [u["filename"] for u in service.uploads] == ["docs/a.txt", "docs/b.txt"]


def test_a_stopped_watch_does_not_wait_for_a_service_that_is_away(service: RagStandIn, docs: Path) -> None:
    service.stop()
    with InThread(service, docs) as running:
        running.until_said("; waiting")
