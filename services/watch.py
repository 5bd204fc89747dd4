"""``docduet watch``: a collection follows a folder.

Level-triggered: each look lists the folder, and whenever it differs from what was last made true, one comparison with the
service's own list says what to do. So nothing is remembered on disk, a missed event costs one interval, and a watch that
was off catches up by itself. Notifications of the operating system only bring the next look forward.
"""

import argparse
import contextlib
import hashlib
import math
import os
import queue
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import watchfiles

from services.client import PATIENCE, RagClient, ServiceError, persist
from services.commands.delivery import Outcome, followed, refusal
from services.commands.ingest import ensure_collection, told
from services.commands.output import UsageError, brief, console, count, errors, safe
from services.files import SKIPPED_FOLDERS, Found, Listing, Signature, name_of, walk
from services.folder_plan import MARK, Document, plan

SETTLE_SECONDS = 1.0  # a file is sent when two looks this far apart found it the same
_BLOCK = 1 << 20
_BUSY_LOOKS = 10  # after so many in which something was being written, the rest no longer waits for it
_END_EVERYTHING = frozenset({401, 403, 404})  # not this file's fault: a wrong key, a collection that was deleted

T = TypeVar("T")


class Watch:
    def __init__(
        self,
        client: RagClient,
        folder: Path,
        collection: str,
        *,
        mark: str | None = None,
        poll: float = 30.0,
        settle: float = SETTLE_SECONDS,
        patience: float = math.inf,
        allow_empty: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """``poll``, ``settle``: seconds; ``patience``: how long the service may be away; ``say`` takes Rich's markup."""
        self._client, self._folder, self._collection = client, folder, collection
        self.prefix = name_of(folder)
        self.mark = mark or default_mark(folder)
        self._poll, self._settle, self._patience = poll, settle, patience
        self._allow_empty, self._tell = allow_empty, say
        self._stop, self._wake = threading.Event(), threading.Event()
        self._listing = Listing()
        self._seen: set[Signature] = set()  # of the look before: what is the same twice is quiet
        self._hashes: dict[Signature, str] = {}
        self._unusable: dict[Signature, str] = {}  # why a file cannot be read
        self._refused: dict[str, str] = {}  # content → why the service does not take it
        self._said: dict[str, str] = {}  # topic → its last line: nothing is said every second
        self._true: tuple[dict[str, str], set[str]] | None = None  # the folder as the collection was last made to be
        self._identity = (0, 0)
        self._jobs: queue.SimpleQueue[tuple[str, str, str] | None] = queue.SimpleQueue()
        self.failed = 0

    def stop(self) -> None:
        """From any thread."""
        self._stop.set()
        self._wake.set()

    def run(self, once: bool = False) -> int:
        """Follow the folder until ``stop``; with ``once``, until the collection is like it and the jobs have ended.

        Returns how many things failed.

        Raises:
            ServiceError: the service refuses the key or the collection, or is away for longer than ``patience``.
        """
        with contextlib.suppress(_StoppedError):
            self._run(once)
        return self.failed

    def _run(self, once: bool) -> None:
        if self._call(lambda: ensure_collection(self._client, self._collection)):
            self._tell(f"created the collection {safe(self._collection)}")
        following = threading.Thread(target=self._follow_jobs, daemon=True)
        following.start()
        if not once:
            threading.Thread(target=self._listen, daemon=True).start()
        busy = 0
        while not self._stop.is_set():
            self._wake.clear()
            found = self._look()
            if found is None:
                if once:
                    break
                self._wake.wait(self._poll)
                continue
            local, moving = found
            busy = busy + 1 if moving else 0
            if not moving or busy > _BUSY_LOOKS:  # together, so that a move between folders is seen as one
                if self._true != (local, moving):
                    self._reconcile(local, moving)
                    self._true = (local, moving)
                if once:
                    for name in sorted(moving):
                        self._problem(name, f"[yellow]not sent[/] {safe(name)}: it is still being written")
                    break
            if moving:
                self._stop.wait(self._settle)  # an event must not make the second look come too soon
            else:
                self._wake.wait(self._poll)
        if once:
            self._jobs.put(None)
            following.join()

    def _look(self) -> tuple[dict[str, str], set[str]] | None:
        """Name → SHA-256 of what is quiet, and the names of what is being written. None: the folder is not there."""
        try:
            status = self._folder.stat()
            self._listing = walk(self._folder)
        except OSError as error:
            why = f"{safe(self._folder)} is gone or cannot be read ({safe(error.strerror or error)})"
            self._problem("folder", f"[yellow]{why}[/]: nothing is deleted; is its drive there?")
            return None
        self._identity = (status.st_dev, status.st_ino)
        if self._said.pop("folder", None):
            self._tell(f"{safe(self._folder)} is back")
        for archive in [f for f in self._listing.files if f.name.lower().endswith(".zip")]:
            self._once(
                archive.name, f"[dim]{safe(archive.name)} is an archive: unpack it here, or 'docduet ingest' it[/]"
            )
            self._listing.files.remove(archive)
        for line in self._listing.unreadable:
            self._problem(line, f"[red]cannot be read:[/] {safe(line)}")
        local: dict[str, str] = {}
        moving: set[str] = set()
        hashes: dict[Signature, str] = {}
        for file in self._listing.files:
            content = self._content(file) if file.signature in self._seen else None
            if content:
                hashes[file.signature] = local[file.name] = content
            elif file.signature not in self._unusable:
                moving.add(file.name)
        self._hashes, self._seen = hashes, {f.signature for f in self._listing.files}
        self._unusable = {s: why for s, why in self._unusable.items() if s in self._seen}
        return local, moving

    def _content(self, file: Found) -> str | None:
        """SHA-256, from memory when the file is as it was."""
        known = self._hashes.get(file.signature)
        if known or file.signature in self._unusable:
            return known
        digest = hashlib.sha256()
        try:
            with file.path.open("rb") as opened:
                while block := opened.read(_BLOCK):
                    digest.update(block)
                status = os.fstat(opened.fileno())
        except FileNotFoundError:
            return None
        except OSError as error:
            self._unusable[file.signature] = str(error.strerror or error)
            self._problem(
                file.name, f"[red]failed[/]  {safe(file.name)}: cannot be read: {safe(error.strerror or error)}"
            )
            return None
        same = (status.st_size, status.st_mtime_ns, status.st_ino) == file.signature
        return digest.hexdigest() if same else None

    def _reconcile(self, local: Mapping[str, str], moving: set[str]) -> None:
        documents = self._call(lambda: self._client.documents(self._collection))
        self._tell_of_others(documents)
        usable = {name: content for name, content in local.items() if content not in self._refused}
        there = {f.name for f in self._listing.files}
        made = plan(usable, there - set(usable), documents, self.mark, self.prefix)
        for name, why in made.conflicts.items():
            self._problem(name, f"[yellow]left alone[/] {safe(name)}: {safe(why)}")
        if self._may_delete(made.deletes):
            for document in made.deletes:
                if self._attempt(str(document["filename"]), partial(self._client.delete, str(document["id"]))):
                    self._tell(f"  removed {safe(document['filename'])} (in the trash)")
        for document, name in made.renames:
            if self._attempt(name, partial(self._client.change, str(document["id"]), filename=name)):
                self._tell(f"  renamed {safe(document['filename'])} to {safe(name)}")
        files = {f.name: f for f in self._listing.files}
        for file in sorted((files[name] for name in made.uploads), key=lambda f: (f.size, f.name)):
            self._send(file, local[file.name])

    def _may_delete(self, deletes: list[Document]) -> bool:
        """A drive that is not there looks like an empty folder, and a folder that cannot be read like a removed one."""
        if not deletes:
            return False
        keeps = f"{count(len(deletes), 'document')} that it had sent"
        if not self._listing.files and not self._allow_empty:
            self._problem(
                "empty",
                f"[yellow]{safe(self._folder)} holds no document[/]: {keeps} are kept, in case its drive is not there; "
                "--allow-empty deletes them",
            )
            return False
        if self._listing.unreadable:
            self._problem("unreadable", f"[yellow]parts of {safe(self._folder)} cannot be read[/]: {keeps} are kept")
            return False
        self._said.pop("empty", None)
        self._said.pop("unreadable", None)
        return True

    def _tell_of_others(self, documents: Iterable[Document]) -> None:
        marks = Counter(
            str((d.get("metadata") or {}).get(MARK))
            for d in documents
            if str(d["filename"]).startswith(self.prefix + "/") and (d.get("metadata") or {}).get(MARK)
        )
        for mark, number in marks.items():
            if mark != self.mark:
                self._once(
                    mark,
                    f"[dim]{count(number, 'document')} under {safe(self.prefix)}/ were sent by the watch {safe(mark)} and are "
                    f"left to it; to go on as that watch: --name {safe(mark)}[/]",
                )

    def _send(self, file: Found, content: str) -> None:
        try:
            answer = self._call(
                lambda: self._client.upload(file.path, self._collection, name=file.name, metadata={MARK: self.mark})
            )
        except OSError:
            return  # the next look sees what became of it
        except ServiceError as error:
            if error.status in _END_EVERYTHING or error.status is None:
                raise
            self._refused[content] = str(error)
            self._problem(
                file.name,
                f"[red]failed[/]  {safe(file.name)}: {safe(brief(refusal(error, file.name)))}; sent again when it changes",
            )
            return
        self._said.pop(file.name, None)
        members = answer.get("documents") or []
        if any(str(member["filename"]).startswith(f"{file.name}/") for member in members):
            self._refused[content] = "an archive"  # under another suffix: its members are no files of this folder
            self._problem(
                file.name, f"[yellow]{safe(file.name)} is an archive[/]: unpack it here, or 'docduet ingest' it"
            )
            return
        self._jobs.put((file.name, str(answer["job_id"]), str(answer["document_id"])))

    def _attempt(self, name: str, change: Callable[[], object]) -> bool:
        try:
            self._call(change)
        except ServiceError as error:
            if error.status in (401, 403) or error.status is None:
                raise
            if error.status != 404:  # gone already
                self._problem(name, f"[red]failed[/]  {safe(name)}: {safe(error)}")
            return False
        return True

    # the service

    def _call(self, request: Callable[[], T]) -> T:
        result = persist(request, self._patience, self._wait)
        if self._said.pop("service", None):
            self._tell("the service is back")
        return result

    def _wait(self, problem: ServiceError, seconds: float) -> None:
        self._once("service", f"[yellow]{safe(problem)}[/]; waiting")
        if self._stop.wait(seconds):
            raise _StoppedError("stopped")

    def _follow_jobs(self) -> None:
        while job := self._jobs.get():
            name, job_id, document_id = job
            try:
                outcome = followed(self._client, name, job_id, document_id, patience=self._patience, waiting=self._wait)
            except _StoppedError:
                return
            except Exception as error:  # whatever it is, the next job is followed
                outcome = Outcome(name, "failed", error=f"accepted, but its end is not known: {error}")
            self.failed += outcome.status != "indexed"
            self._tell(told(outcome))

    # notifications

    def _listen(self) -> None:
        """Brings the next look forward. Network drives send none, and a system may have no watches left: then looks
        come every ``poll`` seconds."""
        while not self._stop.is_set():
            identity, fresh = self._identity, True
            try:
                for changes in watchfiles.watch(
                    self._folder,
                    watch_filter=self._matters,
                    debounce=400,
                    rust_timeout=1000,
                    yield_on_timeout=True,
                    raise_interrupt=False,
                    stop_event=self._stop,
                ):
                    if changes or fresh:  # what happened before the notifications began is looked for once
                        self._wake.set()
                    fresh = False
                    if self._identity != identity:
                        break  # another folder under the same path: a drive came or went
                self._said.pop("notifications", None)
            except Exception as error:  # the library's own, and OSError
                if self._folder.exists():
                    why = f"the system tells of no changes ({safe(error)})"
                    self._once("notifications", f"[yellow]{why}[/]: looking every {self._poll:g} s")
                self._stop.wait(self._poll)

    def _matters(self, change: watchfiles.Change, path: str) -> bool:
        parts = os.path.relpath(path, os.path.abspath(self._folder)).split(os.sep)
        return not any((part.startswith(".") and part != ".") or part in SKIPPED_FOLDERS for part in parts)

    # what is said

    def _once(self, topic: str, line: str) -> bool:
        if self._said.get(topic) == line:
            return False
        self._said[topic] = line
        self._tell(line)
        return True

    def _problem(self, topic: str, line: str) -> None:
        self.failed += self._once(topic, line)


class _StoppedError(ServiceError):
    """Waiting for the service ended because the watch did."""


def default_mark(folder: Path) -> str:
    """ "docs-3f9a1c": the folder's name, and which folder of which machine: two of one name are two watches."""
    where = f"{socket.gethostname()}\0{os.path.abspath(folder)}"
    return f"{name_of(folder)}-{hashlib.sha256(os.fsencode(where)).hexdigest()[:6]}"


def run(arguments: argparse.Namespace, client: RagClient) -> int:
    """The command. Ends with 0 on Ctrl-C and SIGTERM; with ``--once``, 1 when something failed.

    Raises:
        UsageError: there is no such folder.
        ServiceError: as ``Watch.run``.
    """
    folder: Path = arguments.folder
    if not folder.is_dir():
        raise UsageError(f"{folder} {'is no folder' if folder.exists() else 'does not exist'}")
    if not name_of(folder):
        raise UsageError(f"{folder} is the whole machine: name a folder")

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    def say(line: str) -> None:
        console.print(line)
        console.file.flush()

    watch = Watch(
        client,
        folder,
        arguments.collection,
        mark=arguments.name,
        poll=arguments.poll,
        patience=PATIENCE if arguments.once else math.inf,
        allow_empty=arguments.allow_empty,
        say=say,
    )
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        if not arguments.once:
            say(f"watching {safe(folder)} for {safe(arguments.collection)} as {safe(watch.mark)}; Ctrl-C ends it")
        failed = watch.run(arguments.once)
    except KeyboardInterrupt:
        watch.stop()
        errors.print("stopped; what was accepted goes on in the service")
        return 130 if arguments.once else 0
    finally:
        signal.signal(signal.SIGTERM, before)
    return 1 if failed else 0
