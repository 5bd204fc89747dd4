"""Files on their way into the service: several connections send, several follow the jobs."""

import contextlib
import hashlib
import queue
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from services.client import PATIENCE, RagClient, ServiceError, Waiting, persist
from services.commands.output import page_failures
from services.commands.progress import Bar, Bars, fraction, note
from services.files import Found

_END_EVERYTHING = frozenset({401, 403, 404, 507})  # not this file's fault: the next ones would fare no better


@dataclass
class Outcome:
    """What became of a file, or of one member of a ZIP."""

    name: str
    status: str  # indexed, known (was there before), same (as another file), failed, cancelled
    pages: int = 0
    chunks: int = 0
    page_failures: list[str] = field(default_factory=list)
    error: str = ""
    held_as: str = ""  # the name of its document: one content is one document, and has one name


@dataclass
class _Accepted:
    name: str
    job_id: str
    document_id: str


class Delivery:
    """Sends files over several connections and follows their jobs.

    Uploads go small ones first, so that most files are safe in the service early; jobs are followed in the order of
    their acceptance, which is the order the service works in. ``run`` returns when all is told; an interrupt leaves it
    at once, and ``accepted`` and ``unsent`` tell how far it got.
    """

    def __init__(
        self,
        client: RagClient,
        collection: str,
        *,
        connections: int = 4,
        metadata: Mapping[str, object] | None = None,
        password: str | None = None,
        replace: str | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self._client, self._collection, self._connections = client, collection, connections
        self._fields: dict[str, Any] = {"metadata": metadata, "password": password, "replace": replace}
        self._patience = patience
        self._known: set[str] = set()
        self._followed: queue.SimpleQueue[_Accepted | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Outcome | BaseException | None] = queue.SimpleQueue()
        self._stopped: ServiceError | None = None
        self._lock = threading.Lock()
        self.accepted = self.unsent = self.open = self.done = 0

    def run(self, files: Sequence[Found], show: Bars, tell: Callable[[Outcome], None]) -> list[Outcome]:
        """``tell`` is called with each outcome as it comes, always from this thread."""
        before = self._client.documents(self._collection)
        self._known = {str(d["id"]) for d in before if d["status"] == "indexed"}
        waiting: queue.SimpleQueue[Found] = queue.SimpleQueue()
        once, copies = _without_copies(files, {str(d["filename"]) for d in before})
        for found in sorted(once, key=lambda f: (f.size, f.name)):
            waiting.put(found)
        for copy, name in copies.items():
            self._results.put(Outcome(copy, "same", held_as=name))
        self.unsent = len(once)
        show.total(len(files))
        senders = [threading.Thread(target=self._send_all, args=(waiting, show)) for _ in range(self._connections)]
        followers = [threading.Thread(target=self._follow_all, args=(show,)) for _ in range(self._connections)]
        for thread in senders + followers:
            thread.daemon = True  # an interrupt does not wait for a connection
            thread.start()
        outcomes: list[Outcome] = []
        ended = 0
        while ended < len(senders) + len(followers):
            result = self._results.get()
            if result is None:
                ended += 1
                if ended == len(senders):  # followers end only when told to, so these were the senders
                    for _ in followers:
                        self._followed.put(None)
            elif isinstance(result, BaseException):
                raise result
            else:
                outcomes.append(result)
                self.done += 1
                tell(result)
        return outcomes

    def _send_all(self, waiting: "queue.SimpleQueue[Found]", show: Bars) -> None:
        try:
            while True:
                try:
                    found = waiting.get_nowait()
                except queue.Empty:
                    break
                self._results_of_sending(found, show)
        except BaseException as error:  # a bug must end the command, not one thread of it
            self._results.put(error)
        finally:
            self._results.put(None)

    def _results_of_sending(self, found: Found, show: Bars) -> None:
        if self._stopped:
            self._fail(found.name, f"not sent: {self._stopped}")
            return
        with show.bar(found.name, "uploading") as bar:
            try:
                answer = persist(lambda: self._send(found, bar), self._patience, bar.waiting)
            except OSError as error:
                self._fail(found.name, f"cannot be read: {error.strerror or error}")
            except ServiceError as error:
                if error.status in _END_EVERYTHING or error.passing:
                    self._stopped = error
                self._fail(found.name, refusal(error, found.name))
            else:
                self._accept(found, answer)

    def _send(self, found: Found, bar: Bar) -> dict[str, Any]:
        def sent(read: int) -> None:
            bar.update(0.1 * min(1.0, read / max(found.size, 1)), "uploading")

        return self._client.upload(found.path, self._collection, name=found.name, sent=sent, **self._fields)

    def _accept(self, found: Found, answer: Mapping[str, Any]) -> None:
        members = answer.get("documents")
        with self._lock:
            self.unsent -= 1
            self.accepted += 1
        if members is None:
            self._open(_Accepted(found.name, str(answer["job_id"]), str(answer["document_id"])))
            return
        if not members:
            self._results.put(Outcome(found.name, "failed", error="the archive holds no document"))
        for member in members:
            name = str(member.get("filename") or found.name)
            if member.get("error"):
                self._results.put(Outcome(name, "failed", error=str(member["error"])))
            else:
                self._open(_Accepted(name, str(member["job_id"]), str(member["document_id"])))

    def _open(self, accepted: _Accepted) -> None:
        with self._lock:
            self.open += 1
        self._followed.put(accepted)

    def _follow_all(self, show: Bars) -> None:
        try:
            while accepted := self._followed.get():
                with show.bar(accepted.name, "waiting") as bar:
                    self._results.put(self._follow(accepted, bar))
                with self._lock:
                    self.open -= 1
        except BaseException as error:
            self._results.put(error)
        finally:
            self._results.put(None)

    def _follow(self, accepted: _Accepted, bar: Bar) -> Outcome:
        try:
            outcome = followed(
                self._client,
                accepted.name,
                accepted.job_id,
                accepted.document_id,
                patience=self._patience,
                waiting=bar.waiting,
                progress=lambda job: bar.update(fraction(job), note(job)),
                known=accepted.document_id in self._known,
            )
        except ServiceError as error:
            return Outcome(accepted.name, "failed", error=f"accepted, but its end is not known: {error}")
        twin = outcome.held_as not in ("", accepted.name.replace("\\", "/"))  # the service turns these round
        return replace(outcome, status="same") if twin else outcome

    def _fail(self, name: str, error: str) -> None:
        with self._lock:
            self.unsent -= 1
        self._results.put(Outcome(name, "failed", error=error))


def _without_copies(files: Sequence[Found], known: Collection[str]) -> tuple[list[Found], dict[str, str]]:
    """Each content once, and the names of the others with the name that theirs is sent under.

    A document has one name, the last it was sent under: sent under all its names, it would change it with every run.
    """
    alike: dict[tuple[int, str], list[Found]] = {}
    sizes: dict[int, list[Found]] = {}
    for found in files:
        sizes.setdefault(found.size, []).append(found)
    for size, group in sizes.items():
        for found in group:
            digest = found.name
            if len(group) > 1:
                with contextlib.suppress(OSError), found.path.open("rb") as file:  # else sending it tells
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            alike.setdefault((size, digest), []).append(found)
    once: list[Found] = []
    copies: dict[str, str] = {}
    for group in alike.values():
        kept = min(group, key=lambda f: (f.name not in known, f.name))
        once.append(kept)
        copies |= {found.name: kept.name for found in group if found is not kept}
    return once, copies


def followed(
    client: RagClient,
    name: str,
    job_id: str,
    document_id: str,
    *,
    patience: float,
    waiting: Waiting,
    progress: Callable[[Mapping[str, Any]], None] = lambda job: None,
    known: bool = False,
) -> Outcome:
    """Follow a job to its end; the document tells the rest."""
    last: Mapping[str, Any] = {}
    for last in client.follow(job_id, patience, waiting):
        known = known and last["state"] == "indexed"  # else it is read again: there was something to make better
        progress(last)
    if last["state"] != "indexed":
        return Outcome(name, str(last["state"]), error=str(last.get("error") or last["state"]))
    try:
        document = persist(lambda: client.document(document_id), patience, waiting)
    except ServiceError as error:
        if error.status == 404:  # replaced or deleted in the meantime, by another client
            return Outcome(name, "indexed")
        raise
    return Outcome(
        name,
        "known" if known else "indexed",
        pages=document.get("pages") or 0,
        chunks=document.get("chunks") or 0,
        page_failures=page_failures(document),
        held_as=str(document.get("filename") or ""),
    )


def refusal(error: ServiceError, name: str) -> str:
    """Why the service did not take a file, for a line that names the file already."""
    return error.message.removeprefix(f"{name} ").removeprefix(f"{name}: ")
