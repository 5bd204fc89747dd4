"""A small RAG service for tests of its clients: documents in memory, jobs whose states are played, faults on demand.

What a file holds says what becomes of it: ``FAIL:reason``, ``SCAN`` (page 2 has no text), ``UNSUPPORTED`` (415), nothing (400);
everything else is indexed with one page. It is a real HTTP server on a port; ``stop`` and ``start`` keep port and documents.
"""

import hashlib
import io
import json
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, Response, StreamingResponse

from tests.support.servers import free_port

Json = dict[str, Any]


@dataclass
class Fault:
    """The next ``times`` requests whose "METHOD /path" starts with ``on``, ``after`` so many, are answered so. Status 0 drops
    the connection."""

    on: str
    status: int
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "out of order"
    after: int = 0


class RagStandIn:
    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.documents: dict[str, Json] = {}
        self.trash: dict[str, Json] = {}
        self.jobs: dict[str, Json] = {}
        self.collections = {"default"}
        self.faults: list[Fault] = []
        self.requests: list[str] = []  # "POST /documents"
        self.uploads: list[Json] = []  # the form fields
        self.key = ""
        self.hold = threading.Event()  # jobs end once it is set
        self.hold.set()
        self.rebuild_looks = 0  # how many more times the index is "rebuilding"
        self.rebuild_error: str | None = None
        self.differences: list[Json] = []
        self.archive = _archive({"catalog.sqlite": b"rows", "files/a": b"bytes"})
        self.restored: list[int] = []
        self.peak = self._uploading = 0
        self._lock = threading.Lock()
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        config = uvicorn.Config(_app(self), port=self.port, log_level="error", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError(f"the stand-in could not listen on {self.port}")
            time.sleep(0.005)

    def stop(self) -> None:
        if self._server and self._thread:
            self._server.should_exit = True
            self._thread.join(10)
            self._server = self._thread = None

    def __enter__(self) -> "RagStandIn":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.hold.set()
        self.stop()

    def fault(self, request: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if request.startswith(fault.on):
                    if fault.after:
                        fault.after -= 1
                        return None
                    fault.times -= 1
                    if fault.times == 0:
                        self.faults.remove(fault)
                    return fault
        return None

    def add(
        self, name: str, content: bytes, collection: str = "default", metadata: Json | None = None
    ) -> tuple[Json, Json]:
        """Accept a document as the service does: by content, and a known name is a new version."""
        with self._lock:
            digest = hashlib.sha256(content).hexdigest()
            identity = hashlib.sha256(f"{collection}\0{digest}".encode()).hexdigest()[:24]
            document = self.documents.get(identity)
            if document is None:
                for old in [
                    d for d in self.documents.values() if (d["collection"], d["filename"]) == (collection, name)
                ]:
                    self.trash[old["id"]] = self.documents.pop(old["id"]) | {"replaced_by": identity}
                document = {"id": identity, "collection": collection, "filename": name, "sha256": digest}
                document |= {"size": len(content), "status": "accepted", "error": None, "pages": None, "chunks": None}
                document |= {"failed_pages": [], "page_reports": [], "metadata": metadata or {}, "created_at": 0.0}
                document |= {"indexed_at": None, "deleted_at": None, "replaced_by": None, "_content": content}
                self.documents[identity] = document
            return document, self.job_of(document)

    def job_of(self, document: Json) -> Json:
        """A new job."""
        at = float(len(self.jobs))
        job: Json = {"id": f"job{len(self.jobs) + 1}", "document_id": document["id"], "filename": document["filename"]}
        job |= {"state": "indexed" if document["status"] == "indexed" else "accepted", "error": None, "page": None}
        job |= {"pages_total": None, "pages_read": 0, "chunks_total": None, "chunks_embedded": 0}
        job |= {"estimate_seconds": None, "created_at": at, "updated_at": at}
        self.jobs[job["id"]] = job
        return job

    def names(self, collection: str = "default") -> dict[str, bytes]:
        return {d["filename"]: d["_content"] for d in self.documents.values() if d["collection"] == collection}

    def play(self, job: Json) -> Iterator[Json]:
        """The job's states from where it is to its end."""
        document = self.documents.get(job["document_id"], {})
        content: bytes = document.get("_content", b"")
        if job["state"] not in ("indexed", "failed", "cancelled"):
            yield job
            yield self._now(job, state="reading", pages_read=1, pages_total=2)
            while not self.hold.wait(0.05):
                yield dict(job)
            if job["state"] == "cancelled":
                document["status"] = "cancelled"
            elif content.startswith(b"FAIL:"):
                reason = content[5:].decode()
                document |= {"status": "failed", "error": reason}
                self._now(job, state="failed", error=reason)
            else:
                yield self._now(job, state="embedding", chunks_embedded=1, chunks_total=3)
                document |= {"status": "indexed", "pages": 1, "chunks": 3}
                if content.startswith(b"SCAN"):
                    report = {"page": 2, "failed": True, "message": "a scan, OCR is off"}
                    document |= {"pages": 2, "failed_pages": [2], "page_reports": [report]}
                self._now(job, state="indexed", chunks_embedded=3)
        yield job

    def _now(self, job: Json, **changes: Any) -> Json:
        job |= changes
        return dict(job)

    def uploading(self, by: int) -> None:
        with self._lock:
            self._uploading += by
            self.peak = max(self.peak, self._uploading)


def _archive(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _shown(document: Json) -> Json:
    return {key: value for key, value in document.items() if not key.startswith("_")}


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    return JSONResponse(body, status, headers)


class _Broken(Exception):
    """Raised in the middle of an answer: uvicorn closes the connection."""


def _app(service: RagStandIn) -> FastAPI:
    app = FastAPI()

    @app.middleware("http")
    async def faults(request: Request, call_next: Any) -> Response:
        line = f"{request.method} {request.url.path}"
        service.requests.append(line)
        if service.key and request.headers.get("authorization") != f"Bearer {service.key}":
            return _error(401, "this service wants a key")
        if fault := service.fault(line):
            await request.body()
            if fault.status:
                return _error(fault.status, fault.message, fault.headers)

            def broken() -> Iterator[bytes]:
                yield b"event: reading\n"
                raise _Broken

            return StreamingResponse(broken(), headers={"content-length": "1000"})
        answer: Response = await call_next(request)
        return answer

    @app.get("/ready")
    def ready() -> Json:
        return {"status": "ready"}

    @app.post("/documents", status_code=202)
    def upload(
        file: Annotated[UploadFile, File()],
        collection: Annotated[str, Form()] = "default",
        metadata: Annotated[str, Form()] = "{}",
        password: Annotated[str | None, Form()] = None,
        replace: Annotated[str | None, Form()] = None,
    ) -> Any:
        service.uploading(1)
        try:
            content, name = file.file.read(), file.filename or ""
            fields = {"filename": name, "collection": collection, "metadata": json.loads(metadata)}
            service.uploads.append(fields | {"password": password, "replace": replace})
            if collection not in service.collections:
                return _error(404, f"there is no collection {collection}")
            if not content:
                return _error(400, f"{name} is empty (0 bytes)")
            if content.startswith(b"UNSUPPORTED"):
                return _error(415, f"{name} is nothing that can be read")
            if content.startswith(b"PK") and name.endswith(".zip"):
                members: list[Json] = [{"filename": f"{name}/bad.exe", "error": "is nothing that can be read"}]
                document, job = service.add(f"{name}/a.txt", content, collection, json.loads(metadata))
                members.append({"filename": document["filename"], "document_id": document["id"], "job_id": job["id"]})
                return {"job_id": job["id"], "document_id": document["id"], "documents": members}
            document, job = service.add(name, content, collection, json.loads(metadata))
            return {"job_id": job["id"], "document_id": document["id"]}
        finally:
            service.uploading(-1)

    @app.get("/documents")
    def documents(collection: str | None = None, status: str | None = None) -> Json:
        found = [_shown(d) for d in service.documents.values() if collection in (None, d["collection"])]
        return {"documents": [d for d in found if status in (None, d["status"])]}

    @app.get("/documents/{document_id}")
    def document(document_id: str) -> Any:
        found = service.documents.get(document_id)
        return _shown(found) if found else _error(404, f"there is no document {document_id}")

    @app.patch("/documents/{document_id}")
    def change(document_id: str, body: Json) -> Any:
        found = service.documents.get(document_id)
        if not found:
            return _error(404, f"there is no document {document_id}")
        if any(d is not found and d["filename"] == body.get("filename") for d in service.documents.values()):
            return _error(409, "another document has this name")
        found |= body
        return _shown(found)

    @app.delete("/documents/{document_id}", status_code=204, response_model=None)
    def delete(document_id: str) -> Response:
        found = service.documents.pop(document_id, None)
        if not found:
            return _error(404, f"there is no document {document_id}")
        service.trash[document_id] = found
        return Response(status_code=204)

    @app.get("/trash")
    def trash() -> Json:
        return {"documents": [_shown(d) for d in service.trash.values()]}

    @app.post("/trash/{document_id}/restore", status_code=202)
    def undelete(document_id: str) -> Any:
        found = service.trash.pop(document_id, None)
        if not found:
            return _error(404, f"{document_id} is not in the trash")
        service.documents[document_id] = found
        return {"job_id": "job0", "document_id": document_id}

    @app.delete("/trash")
    def purge() -> Json:
        number = len(service.trash)
        service.trash.clear()
        return {"purged": number}

    @app.get("/collections")
    def collections() -> Json:
        names = sorted(service.collections)
        return {"collections": [{"name": n, "documents": len(service.names(n)), "created_at": 0.0} for n in names]}

    @app.post("/collections", status_code=201)
    def create(body: Json) -> Json:
        service.collections.add(body["name"])
        return body

    @app.patch("/collections/{name}")
    def rename(name: str, body: Json) -> Any:
        if name == "default" or name not in service.collections:
            return _error(400, f"{name} cannot be renamed")
        service.collections.remove(name)
        service.collections.add(body["name"])
        return body

    @app.delete("/collections/{name}", status_code=204)
    def drop(name: str) -> Response:
        service.collections.discard(name)
        return Response(status_code=204)

    @app.get("/jobs")
    def jobs(state: str | None = None) -> Json:
        def wanted(job: Json) -> bool:
            ended = job["state"] in ("indexed", "failed", "cancelled")
            return state is None or (not ended if state == "open" else job["state"] == state)

        return {"jobs": [job for job in service.jobs.values() if wanted(job)]}

    @app.get("/jobs/{job_id}/events")
    def events(job_id: str) -> Any:
        if job_id not in service.jobs:
            return _error(404, f"there is no job {job_id}")

        def stream() -> Iterator[str]:
            for job in service.play(service.jobs[job_id]):
                yield f"event: {job['state']}\ndata: {json.dumps(job)}\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    @app.post("/jobs/{job_id}/cancel")
    def cancel(job_id: str) -> Any:
        if job_id not in service.jobs:
            return _error(404, f"there is no job {job_id}")
        service.jobs[job_id]["state"] = "cancelled"
        return service.jobs[job_id]

    @app.post("/jobs/{job_id}/retry", status_code=202)
    def retry(job_id: str, body: Json) -> Any:
        if job_id not in service.jobs:
            return _error(404, f"there is no job {job_id}")
        job = service.jobs[job_id]
        found = service.documents[job["document_id"]]
        if body.get("password") == "open sesame":
            found["_content"] = b"text"
        again = service.job_of(found)
        return {"job_id": again["id"], "document_id": found["id"]}

    @app.get("/index")
    def index() -> Json:
        if service.rebuild_looks:
            service.rebuild_looks -= 1
            rebuild = {"reason": "asked for", "chunks_total": 30, "chunks_done": 10, "error": service.rebuild_error}
            return {"fingerprint": "f", "state": "rebuilding", "rebuild": rebuild, "chunks": 30, "deleted": 0}
        return {"fingerprint": "f", "state": "ready", "rebuild": None, "chunks": 30, "deleted": 0}

    @app.post("/index/rebuild", status_code=202)
    def rebuild() -> Json:
        service.rebuild_looks = 4
        return index()

    @app.get("/index/verify")
    def verify(files: bool = False) -> Json:
        checked = {"documents": len(service.documents)} | ({"files": 1} if files else {})
        return {"ok": not service.differences, "checked": checked, "differences": service.differences}

    @app.get("/backup")
    def backup() -> Response:
        return StreamingResponse(iter([service.archive]), media_type="application/x-tar")

    @app.post("/restore")
    async def restore(request: Request) -> Json:
        service.restored.append(len(await request.body()))
        _, job = service.add("restored.txt", b"restored")
        return {"documents": 2, "skipped": 1, "jobs": [job["id"]]}

    return app
