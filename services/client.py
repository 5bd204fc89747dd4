"""A small client of the RAG service's HTTP interface, for the command line and the demo. Imports neither service.

Every method raises :class:`ServiceError`; nothing else of httpx gets out of this file.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote

import httpx

PATIENCE = 60.0  # seconds a restart of the service may take before what was going on is given up
DONE = frozenset({"indexed", "failed", "cancelled"})  # the states in which a job ends

_PASSING = frozenset({429, 502, 503, 504, 507})  # what waiting may cure
_DISK_FULL = 507
_PING = 15.0  # the service's, on its event streams
_BLOCK = 1 << 16

T = TypeVar("T")
Waiting = Callable[["ServiceError", float], None]


class ServiceError(Exception):
    """The service refused or could not be reached; the message is fit for a person.

    ``status`` is the HTTP status, None where no answer came; ``passing`` tells whether the same request may do later.
    """

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(f"{message} (HTTP {status})" if status else message)
        self.message, self.status, self.retry_after = message, status, retry_after
        self.passing = status in _PASSING


class Unreachable(ServiceError):
    """Nobody answers, or the connection broke."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.passing = True


def _sleep(problem: ServiceError, seconds: float) -> None:
    time.sleep(seconds)


def persist(call: Callable[[], T], patience: float = PATIENCE, waiting: Waiting = _sleep) -> T:
    """``call()``, again and again while the service is away or full, for at most ``patience`` seconds (inf: for ever).

    ``Retry-After`` is honoured; ``waiting(problem, seconds)`` does the waiting.
    """
    deadline: float | None = None
    delay = 0.25
    while True:
        try:
            return call()
        except ServiceError as problem:
            if not problem.passing:
                raise
            delay = min(delay * 2, 5.0)
            pause = delay if problem.retry_after is None else problem.retry_after
            if problem.status == _DISK_FULL:
                pause = max(pause, min(5.0, patience / 4))  # room is made by people, not in a moment
            deadline = deadline or time.monotonic() + patience
            if time.monotonic() + pause > deadline:
                raise
            waiting(problem, pause)


class _Counted:
    """A file as long as it was when it was opened; it tells how many bytes of it were read. httpx streams it."""

    def __init__(self, file: IO[bytes], name: object, read: Callable[[int], None]) -> None:
        self._file, self._name, self._read = file, name, read
        self._size = os.fstat(file.fileno()).st_size

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(size)
        at = self._file.tell()
        # The length went ahead: another one would break the request in a way that tells nobody anything.
        if at > self._size or (not block and at < self._size):
            raise ServiceError(f"{self._name} changed while it was sent: send it again")
        self._read(at)
        return block

    def __iter__(self) -> Iterator[bytes]:
        while block := self.read(_BLOCK):
            yield block

    def fileno(self) -> int:
        return self._file.fileno()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


class RagClient:
    def __init__(self, url: str, key: str = "") -> None:
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        # No read timeout: an answer takes as long as its model; a dead service closes the connection.
        try:
            self._http = httpx.Client(
                base_url=self.url,
                timeout=httpx.Timeout(None, connect=5.0),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=8),
                headers={"Authorization": f"Bearer {key}"} if key else {},
                trust_env=False,
            )
        except (httpx.InvalidURL, UnicodeError, ValueError) as error:
            raise ServiceError(f"--url {url!r} or the key cannot be used: {error}") from error

    def close(self) -> None:
        self._http.close()

    def ready(self) -> tuple[bool, str]:
        """Whether questions can be answered, and the reason if not."""
        try:
            response = self._http.get("/ready", timeout=5.0)
            return response.status_code == 200, str(response.json().get("reason", ""))
        except (httpx.HTTPError, ValueError) as error:
            return False, f"{self.url} cannot be reached: {error}"

    def about(self) -> dict[str, str]:
        """``{"service", "model", "embedder"}``: its version, the model's name ("" while it is not ready), the embedder's
        fingerprint."""
        try:
            version = str(self._json("GET", "/openapi.json")["info"]["version"])
            embedder = str(self.index()["fingerprint"])
        except (KeyError, TypeError) as error:
            raise self._stranger(f"{error} is missing from its description") from error
        with self._answered():
            ready = self._http.get("/ready")
        with contextlib.suppress(ValueError, AttributeError):
            return {"service": version, "model": str(ready.json().get("model") or ""), "embedder": embedder}
        return {"service": version, "model": "", "embedder": embedder}

    # documents

    def upload(
        self,
        path: Path,
        collection: str,
        *,
        name: str | None = None,
        metadata: Mapping[str, object] | None = None,
        password: str | None = None,
        replace: str | None = None,
        sent: Callable[[int], None] = lambda count: None,
    ) -> dict[str, Any]:
        """Returns ``{"job_id", "document_id"}``, with ``"documents"`` (one each member) for a ZIP.

        ``name`` is what the document is called, a relative path with "/"; ``sent`` is told the bytes read so far.

        Raises:
            OSError: the file cannot be read.
        """
        fields = {"collection": collection}
        if metadata:
            fields["metadata"] = json.dumps(metadata, ensure_ascii=False)
        if password is not None:
            fields["password"] = password
        if replace is not None:
            fields["replace"] = replace
        with path.open("rb") as file:
            upload = (name or path.name, _Counted(file, path, sent))
            return self._json("POST", "/documents", files={"file": upload}, data=fields)

    def documents(self, collection: str | None = None, status: str | None = None) -> list[dict[str, Any]]:
        return self._list("documents", "GET", "/documents", params=_given(collection=collection, status=status))

    def document(self, document_id: str) -> dict[str, Any]:
        return self._json("GET", f"/documents/{_segment(document_id)}")

    def change(
        self, document_id: str, *, filename: str | None = None, metadata: Mapping[str, object] | None = None
    ) -> dict[str, Any]:
        """Give a document another name, or other metadata."""
        body = _given(filename=filename, metadata=metadata)
        return self._json("PATCH", f"/documents/{_segment(document_id)}", json=body)

    def delete(self, document_id: str) -> None:
        """To the trash."""
        self._request("DELETE", f"/documents/{_segment(document_id)}")

    def page(self, document_id: str, number: int) -> dict[str, Any]:
        """``{"document_id", "page", "label", "method", "text"}``; pages count from 1."""
        return self._json("GET", f"/documents/{_segment(document_id)}/pages/{number}")

    def file(self, document_id: str) -> Iterator[bytes]:
        """The original file, in blocks."""
        return self._blocks(f"/documents/{_segment(document_id)}/file")

    # the trash

    def trash(self) -> list[dict[str, Any]]:
        return self._list("documents", "GET", "/trash")

    def undelete(self, document_id: str) -> dict[str, Any]:
        """Returns ``{"job_id", "document_id"}``."""
        return self._json("POST", f"/trash/{_segment(document_id)}/restore")

    def purge(self, document_id: str | None = None) -> int:
        """Remove what is in the trash (or one document of it) for good; returns how many."""
        if document_id is not None:
            self._request("DELETE", f"/trash/{_segment(document_id)}")
            return 1
        return int(self._json("DELETE", "/trash").get("purged", 0))

    # collections

    def collections(self) -> list[dict[str, Any]]:
        return self._list("collections", "GET", "/collections")

    def create_collection(self, name: str) -> dict[str, Any]:
        return self._json("POST", "/collections", json={"name": name})

    def rename_collection(self, name: str, new: str) -> dict[str, Any]:
        return self._json("PATCH", f"/collections/{_segment(name)}", json={"name": new})

    def delete_collection(self, name: str) -> None:
        """Its documents go to the trash."""
        self._request("DELETE", f"/collections/{_segment(name)}")

    # jobs

    def jobs(self, state: str | None = None) -> list[dict[str, Any]]:
        return self._list("jobs", "GET", "/jobs", params=_given(state=state))

    def job(self, job_id: str) -> dict[str, Any]:
        return self._json("GET", f"/jobs/{_segment(job_id)}")

    def follow(self, job_id: str, patience: float = PATIENCE, waiting: Waiting = _sleep) -> Iterator[dict[str, Any]]:
        """The job's states until it ends. Jobs outlive their service, so a broken connection is made again."""
        path = f"/jobs/{_segment(job_id)}/events"
        deadline: float | None = None
        while True:
            problem: ServiceError = Unreachable(f"the RAG service at {self.url} closed the connection")
            try:
                # Pings are missing: the other side is gone without a word.
                for _, job in self._events("GET", path, timeout=httpx.Timeout(4 * _PING, connect=5.0)):
                    if "state" not in job:
                        continue
                    deadline = None
                    yield job
                    if job["state"] in DONE:
                        return
            except ServiceError as error:
                if not error.passing:
                    raise
                problem = error
            deadline = deadline or time.monotonic() + patience
            pause = min(problem.retry_after or 0.5, 5.0)
            if time.monotonic() + pause > deadline:
                raise problem
            waiting(problem, pause)

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self._json("POST", f"/jobs/{_segment(job_id)}/cancel")

    def retry(self, job_id: str, password: str | None = None) -> dict[str, Any]:
        """Returns ``{"job_id", "document_id"}``."""
        return self._json("POST", f"/jobs/{_segment(job_id)}/retry", json=_given(password=password))

    # the index, backups

    def index(self) -> dict[str, Any]:
        return self._json("GET", "/index")

    def rebuild(self) -> dict[str, Any]:
        return self._json("POST", "/index/rebuild")

    def verify(self, files: bool = False) -> dict[str, Any]:
        """``files`` reads every original again and compares its SHA-256."""
        return self._json("GET", "/index/verify", params={"files": "true"} if files else {})

    def backup(self) -> Iterator[bytes]:
        """A tar of the catalog and the files, in blocks."""
        return self._blocks("/backup")

    def restore(self, path: Path, sent: Callable[[int], None] = lambda count: None) -> dict[str, Any]:
        """Returns ``{"documents", "skipped", "jobs"}``.

        Raises:
            OSError: the file cannot be read.
        """
        with path.open("rb") as file:
            headers = {"Content-Type": "application/x-tar"}
            return self._json("POST", "/restore", content=_Counted(file, path, sent), headers=headers)

    # the calibration

    def calibration(self, *, reset: bool = False) -> dict[str, Any]:
        """``{"source", "fingerprint", "threshold", "weights"}``; with ``reset`` back to the shipped one."""
        return self._json("DELETE" if reset else "GET", "/calibration")

    def calibrate(
        self, sets: Sequence[Mapping[str, Any]], false_refusals: float, *, keep: bool = True
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """(``progress``, ``{"done", "total"}``) after each question, and at the end (``result``, what was fitted)."""
        body = {"sets": list(sets), "false_refusals": false_refusals, "keep": keep}
        for event, data in self._events(
            "POST", "/calibration", json=body, timeout=httpx.Timeout(4 * _PING, connect=5.0)
        ):
            if event == "error":
                raise ServiceError(str(data.get("error", {}).get("message") or "the service failed"))
            yield event, data

    # questions

    def ask(self, question: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """The chunks of ``/rag/stream`` as they come."""
        for event, data in self._events("POST", "/rag/stream", json={"input": {"question": question, **fields}}):
            if event == "error":
                raise ServiceError(data.get("message", "the service failed"))
            if event == "data":
                yield data

    def search(self, query: str, **fields: Any) -> list[dict[str, Any]]:
        return self._list("passages", "POST", "/search", json={"query": query, **fields})

    # HTTP, and its errors

    def _list(self, key: str, method: str, path: str, **kwargs: Any) -> list[dict[str, Any]]:
        found = self._json(method, path, **kwargs).get(key)
        if not isinstance(found, list):
            raise self._stranger(f"{method} {path} has no {key!r}")
        return found

    def _json(self, method: str, path: str, **kwargs: Any) -> dict[str, Any]:
        response = self._request(method, path, **kwargs)
        try:
            body = response.json()
        except ValueError as error:
            raise self._stranger(f"{method} {path} is no JSON") from error
        if not isinstance(body, dict):
            raise self._stranger(f"{method} {path} is no JSON object")
        return body

    def _request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        with self._answered():
            response = self._http.request(method, path, **kwargs)
            self._check(response)
            return response

    def _blocks(self, path: str) -> Iterator[bytes]:
        with self._answered(), self._http.stream("GET", path) as response:
            self._check(response)
            yield from response.iter_bytes(_BLOCK)

    def _events(self, method: str, path: str, **kwargs: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        with self._answered(), self._http.stream(method, path, **kwargs) as response:
            self._check(response)
            event = "message"
            for line in response.iter_lines():
                if line.startswith("event:"):
                    event = line[6:].strip()
                elif line.startswith("data:"):
                    try:
                        data = json.loads(line[5:])
                    except ValueError as error:
                        raise self._stranger(f"{method} {path} sends no JSON") from error
                    yield event, data
                elif not line:
                    event = "message"

    @contextlib.contextmanager
    def _answered(self) -> Iterator[None]:
        try:
            yield
        except httpx.LocalProtocolError as error:  # fewer or more bytes than announced, as a rule
            raise ServiceError(
                f"it could not be sent ({error}): if the file changed meanwhile, send it again"
            ) from error
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise ServiceError(f"--url {self.url!r} is no address of a service: {error}") from error
        except (httpx.TransportError, httpx.StreamError) as error:
            reason = str(error) or type(error).__name__
            raise Unreachable(
                f"the RAG service at {self.url} cannot be reached ({reason}): start it with 'docduet up'"
            ) from error

    def _check(self, response: httpx.Response) -> None:
        if response.status_code < 400:
            return
        response.read()
        try:
            message = str(response.json()["error"]["message"])
        except (ValueError, KeyError, TypeError):
            message = response.text[:300].strip() or response.reason_phrase
        if response.status_code in (401, 403):
            message += ": pass one of the service's RAG_API_KEYS as --key or in DOCDUET_API_KEY"
        given = response.headers.get("retry-after", "")
        raise ServiceError(
            message,
            status=response.status_code,
            retry_after=float(given) if given.isdecimal() else None,
        )

    def _stranger(self, what: str) -> ServiceError:
        return ServiceError(f"what answers at {self.url} is no docduet RAG service ({what}): check --url")


def _segment(text: str) -> str:
    """One part of a path, whatever a person typed: an id with a slash must not become another route."""
    part = quote(text, safe="")
    return part.replace(".", "%2E") if part in ("", ".", "..") else part


def _given(**fields: object) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
