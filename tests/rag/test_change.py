"""What changes while the service answers: versions, indexes, models, backups, jobs."""

import io
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.rag import retrieval
from services.rag.documents import indexing
from services.rag.documents.jobs import JobRunner
from services.rag.documents.reading import Limits
from services.rag.embeddings import HashEmbedder
from services.rag.library import Library
from services.rag.retrieval import Retriever
from services.rag.store.catalog import Catalog
from services.rag.store.index import Indexes
from services.rag.store.verify import differences
from tests.rag.conftest import Pair, rag_env, wait, wait_for_index
from tests.support.servers import Service, start_service

VERSIONS = 12


def post(client: httpx.Client, name: str, text: str, **form: str) -> dict[str, Any]:
    response = client.post("/documents", files={"file": (name, text.encode())}, data=form)
    assert response.status_code == 202, response.text
    return response.json()


def put(client: httpx.Client, name: str, text: str, **form: str) -> str:
    """The document's id, once it can be searched."""
    job = post(client, name, text, **form)
    assert wait(client, job["job_id"])["state"] == "indexed"
    return str(job["document_id"])


def search(client: httpx.Client, query: str, mode: str = "hybrid", k: int = 20, **more: Any) -> list[dict[str, Any]]:
    response = client.post("/search", json={"query": query, "mode": mode, "k": k, **more})
    assert response.status_code == 200, response.text
    passages: list[dict[str, Any]] = response.json()["passages"]
    return passages


def found(client: httpx.Client, query: str, mode: str, names: dict[str, Any]) -> set[tuple[str, int, str]]:
    passages = search(client, query, mode, 100, filter=names)
    return {(p["document_id"], p["page"], p["text"]) for p in passages}


def essay(word: str, lines: int = 400) -> str:
    """Text of many chunks."""
    return "\n".join(f"Line {n}: the {word} is counted for the {n * 7}th time by the keeper." for n in range(lines))


@contextmanager
def searching(url: str, *questions: tuple[str, str]) -> Iterator[list[tuple[str, list[dict[str, Any]]]]]:
    """Each (query, mode) asked over and over by a thread of its own; all answers are in the list afterwards.

    The block is entered once every thread has its first answer.
    """
    answers: list[tuple[str, list[dict[str, Any]]]] = []
    errors: list[BaseException] = []
    stop = threading.Event()
    asked = threading.Barrier(len(questions) + 1)

    def loop(query: str, mode: str) -> None:
        try:
            with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
                answers.append((mode, search(client, query, mode)))
                asked.wait(30)
                while not stop.is_set():
                    answers.append((mode, search(client, query, mode)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=loop, args=question) for question in questions]
    for thread in threads:
        thread.start()
    try:
        asked.wait(30)
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []


def test_a_search_sees_one_version_and_never_none(client: httpx.Client, pair: Pair) -> None:
    def version(number: int) -> str:
        return "\n\n".join(f"The lighthouse, version{number}, paragraph {n}. " + "It shines. " * 60 for n in range(4))

    ids = [put(client, "lighthouse.txt", version(0))]
    modes = ("lexical", "hybrid", "dense")
    with searching(pair.rag.url, *(("lighthouse version", mode) for mode in modes)) as answers:
        ids += [put(client, "lighthouse.txt", version(number)) for number in range(1, VERSIONS)]
    seen = [{p["document_id"] for p in found if p["filename"] == "lighthouse.txt"} for _, found in answers]
    assert [documents for documents in seen if len(documents) != 1] == []
    # What was uploaded before a search began is what it finds: versions never go back.
    for mode in modes:
        order = [ids.index(p["document_id"]) for m, found in answers if m == mode for p in found[:1]]
        assert order == sorted(order)
        assert order[0] == 0
    assert client.get("/index/verify").json()["ok"]


@contextmanager
def engine(folder: Path) -> Iterator[tuple[Retriever, Callable[[str, str], str]]]:
    """What the service is made of, in this process; the last adds a text under a name and gives the document's id."""
    catalog = Catalog(folder)
    indexes = Indexes(catalog, Indexes.open_chroma(folder, None), HashEmbedder(), None)
    runner = JobRunner(catalog, indexes, Limits(), ocr=False, readers=1)
    library = Library(catalog, Limits(), max_upload_mb=10, reader=runner.reader, jobs=lambda: runner)
    retriever = Retriever(catalog, indexes)

    def add(name: str, text: str) -> str:
        [accepted] = library.add(io.BytesIO(text.encode()), name, collection="default")
        deadline = time.monotonic() + 60
        while catalog.open_jobs():
            assert time.monotonic() < deadline
            time.sleep(0.01)  # between two looks
        assert accepted.document is not None
        return accepted.document.id

    runner.start()
    try:
        yield retriever, add
    finally:
        runner.stop()
        retriever.close()
        library.close()
        indexes.close()
        catalog.close()


def test_a_swap_between_the_hits_and_their_texts_makes_the_search_look_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine(tmp_path) as (retriever, add):
        take_hits = retriever._hits
        looks = 0

        def hits(*args: Any) -> Any:
            nonlocal looks
            looks += 1
            found = take_hits(*args)
            if looks == 1:
                add("a.txt", "The lighthouse, version 2.")
            return found

        add("a.txt", "The lighthouse, version 1.")
        monkeypatch.setattr(retriever, "_hits", hits)
        found = retriever.search("lighthouse", 10, collection="default")
        assert [p.text for p in found] == ["The lighthouse, version 2."]


@pytest.mark.parametrize("mode", ["hybrid", "dense"])
def test_a_filter_finds_the_same_whether_its_chunks_are_compared_or_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: retrieval.Mode
) -> None:
    with engine(tmp_path) as (retriever, add):
        ids = [add(f"{word}.txt", essay(word, 30)) for word in ("lighthouse", "harbour", "ferry", "keeper")]
        for within in ([ids[1]], ids[1:3]):
            compared, searched = [], []
            for few, found in ((retrieval.FEW_CHUNKS, compared), (0, searched)):
                monkeypatch.setattr(retrieval, "FEW_CHUNKS", few)
                filter = {"document_id": within}
                found += retriever.search("lighthouse keeper", 10, collection="default", filter=filter, mode=mode)
            assert {p.document_id for p in compared} == set(within)
            assert compared == searched


def test_the_index_is_made_again_while_it_answers(client: httpx.Client, pair: Pair) -> None:
    id_ = put(client, "windmill.txt", essay("windmill"))
    before = sorted(pair.data_dir.glob("lexical*.sqlite"))
    with searching(
        pair.rag.url, ("windmill", "lexical"), ("windmill keeper", "dense"), ("windmill", "hybrid")
    ) as answers:
        response = client.post("/index/rebuild")
        assert response.status_code == 202
        assert response.json()["state"] == "rebuilding"
        while (index := client.get("/index").json())["state"] != "ready":
            assert index["rebuild"]["error"] is None
        assert index["rebuild"] is None
        # One search with each mode that began after the swap.
        for mode in ("lexical", "dense", "hybrid"):
            answers.append((mode, search(client, "windmill keeper", mode)))
    assert [mode for mode, found in answers if id_ not in {p["document_id"] for p in found}] == []
    after = sorted(pair.data_dir.glob("lexical*.sqlite"))
    assert len(after) == 1
    assert after != before
    assert client.get("/index/verify", params={"files": True}).json() == {
        "ok": True,
        "checked": client.get("/index/verify").json()["checked"],
        "differences": [],
    }


def generations(data_dir: Path) -> set[tuple[str, int]]:
    """(fingerprint, generation) of the Chroma collections in a folder that no service uses."""
    chroma = Indexes.open_chroma(data_dir, None)
    collections = [c.metadata for c in chroma.client.list_collections()]
    return {(metadata["fingerprint"], metadata["generation"]) for metadata in collections}


def test_another_embedding_model_and_a_kill_on_the_way(model: Service, tmp_path: Path) -> None:
    env = rag_env(model.url, tmp_path / "data")
    other = {**env, "RAG_EMBEDDING_MODEL": "hashing:64"}
    with start_service("services.rag", env) as rag, httpx.Client(base_url=rag.url, timeout=30) as client:
        jobs = [post(client, f"canal-{n}.txt", essay(f"canal number{n}", 400)) for n in range(6)]
        for job in jobs:
            assert wait(client, job["job_id"])["state"] == "indexed"
        before = client.get("/index").json()
        assert before["fingerprint"] == "hashing:256:1"
    ids = {job["document_id"] for job in jobs}

    def answers(client: httpx.Client) -> None:
        for mode in ("hybrid", "dense", "lexical"):
            assert {p["document_id"] for p in search(client, "canal number3 keeper", mode)} & ids, mode

    with start_service("services.rag", other) as rag, httpx.Client(base_url=rag.url, timeout=30) as client:
        answers(client)
        while True:  # until it is in the middle of it
            index = client.get("/index").json()
            if index["rebuild"] and 0 < index["rebuild"]["chunks_done"] < index["rebuild"]["chunks_total"]:
                break
            assert index["fingerprint"] == before["fingerprint"], "it was over before it could be killed"
        assert index["rebuild"]["reason"] == "another embedding model"
        rag.kill()
    with start_service("services.rag", other) as rag, httpx.Client(base_url=rag.url, timeout=30) as client:
        answers(client)
        late = post(client, "late.txt", "The ferryman is paid at the landing stage.")
        index = wait_for_index(client)
        assert index["fingerprint"] == "hashing:64:1"
        assert index["chunks"] >= before["chunks"]
        assert wait(client, late["job_id"])["state"] == "indexed"
        answers(client)
        for mode in ("hybrid", "dense", "lexical"):
            assert search(client, "ferryman landing stage", mode)[0]["document_id"] == late["document_id"], mode
        assert client.get("/index/verify", params={"files": True}).json()["differences"] == []
    assert len(list((tmp_path / "data").glob("lexical*.sqlite"))) == 1
    assert {fingerprint for fingerprint, _ in generations(tmp_path / "data")} == {"hashing:64:1"}


# -- backups -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(model: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, bytes]]:
    """A service with documents of every kind, and the backup that was made of it while more came in."""
    env = rag_env(model.url, tmp_path_factory.mktemp("source") / "data")
    with start_service("services.rag", env) as rag, httpx.Client(base_url=rag.url, timeout=60) as client:
        client.post("/collections", json={"name": "harbour"})
        client.post("/collections", json={"name": "gone"})
        for n in range(8):
            put(client, f"log/{n}.txt", essay(f"anchor number{n}", 100), metadata=f'{{"year": {1990 + n}}}')
        put(client, "pilot.txt", "The pilot boards the ship at the outer buoy.", collection="harbour")
        put(client, "wreck.txt", "The wreck lies at forty fathoms.", collection="gone")
        client.delete("/collections/gone")
        assert (
            client.delete(f"/documents/{put(client, 'trash.txt', 'The tide table of last year.')}").status_code == 204
        )
        broken = client.post("/documents", files={"file": ("broken.pdf", b"%PDF-1.4\nnothing more")}).json()
        assert wait(client, broken["job_id"])["state"] == "failed"

        more: list[dict[str, Any]] = []
        stop, began = threading.Event(), threading.Event()

        def upload() -> None:
            with httpx.Client(base_url=rag.url, timeout=60, trust_env=False) as own:
                while not stop.is_set() and len(more) < 30:
                    more.append(post(own, f"late-{len(more)}.txt", essay(f"buoy number{len(more)}", 60)))
                    if len(more) == 2:
                        began.set()

        thread = threading.Thread(target=upload)
        thread.start()
        try:
            assert began.wait(30)
            response = client.get("/backup")
        finally:
            stop.set()
            thread.join()
        assert response.status_code == 200
        for job in more:
            assert wait(client, job["job_id"])["state"] == "indexed"
        yield client, response.content


def documents(client: httpx.Client, path: str = "/documents") -> dict[str, dict[str, Any]]:
    """By id, without what may differ."""
    listed = client.get(path).json()["documents"]
    return {
        d["id"]: {k: d[k] for k in d if k not in ("created_at", "indexed_at", "deleted_at", "replaced_by")}
        for d in listed
    }


def restore(client: httpx.Client, archive: bytes) -> httpx.Response:
    return client.post("/restore", content=archive, headers={"Content-Type": "application/x-tar"})


@pytest.fixture(scope="module")
def target(model: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """An empty service."""
    env = rag_env(model.url, tmp_path_factory.mktemp("target") / "data")
    with start_service("services.rag", env) as rag, httpx.Client(base_url=rag.url, timeout=60) as client:
        yield client


def flipped(archive: bytes, name: str) -> bytes:
    """The archive with a byte changed in the middle of ``name``'s content; its header stays right."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        member = next(m for m in tar if m.name.startswith(name))
    at = member.offset_data + member.size // 2
    return archive[:at] + bytes([archive[at] ^ 1]) + archive[at + 1 :]


def leading_out(archive: bytes) -> bytes:
    """The archive with one more file, outside of the folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar, tarfile.open(fileobj=out, mode="w") as new:
        for member in tar:
            new.addfile(member, tar.extractfile(member))
        info = tarfile.TarInfo("files/../../../escaped.txt")
        info.size = 4
        new.addfile(info, io.BytesIO(b"text"))
    return out.getvalue()


DAMAGED: dict[str, Any] = {
    "cut off in a file": lambda a: a[: len(a) - 3000],
    "cut off in the first block": lambda a: a[:300],
    "cut off in the catalog": lambda a: a[:20_000],
    "a byte of a file": lambda a: flipped(a, "files/"),
    "a byte of the catalog": lambda a: flipped(a, "catalog.sqlite"),
    "a byte of a text in the catalog": lambda a: a.replace(b"outer buoy", b"inner buoy", 1),
    "not a tar": lambda a: b"not a tar at all " * 1000,
    "another tar": lambda a: leading_out(tarred("hello.txt")),
    "names that lead out": leading_out,
    "empty": lambda a: b"",
}


def tarred(name: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    return out.getvalue()


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_backup_is_refused_and_changes_nothing(
    source: tuple[httpx.Client, bytes], target: httpx.Client, kind: str
) -> None:
    before = documents(target), documents(target, "/trash"), target.get("/collections").json()
    response = restore(target, DAMAGED[kind](source[1]))
    assert response.status_code == 400, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert (documents(target), documents(target, "/trash"), target.get("/collections").json()) == before
    assert target.get("/index/verify", params={"files": True}).json()["ok"]


def test_a_restore_brings_back_everything_and_keeps_what_is_there(
    source: tuple[httpx.Client, bytes], target: httpx.Client
) -> None:
    theirs, archive = source
    own = put(target, "own.txt", "The rowing boat belongs to the harbour master.")
    namesake = put(target, "log/0.txt", "Another log: the barometer fell all day.")
    ours = documents(target)
    response = restore(target, archive)
    assert response.status_code == 200, response.text
    body = response.json()
    for job in body["jobs"]:
        end = wait(target, job)
        assert end["state"] in ("indexed", "cancelled"), end  # cancelled: the one whose name is taken
    expected, trash = documents(theirs), documents(theirs, "/trash")
    assert body["documents"] + body["skipped"] >= len([d for d in expected.values() if "late" not in d["filename"]])
    assert body["skipped"] == 0
    after = documents(target)
    assert {id_: after[id_] for id_ in ours} == ours
    came = {id_: document for id_, document in after.items() if id_ not in ours}
    # All that was there when the backup began, but for the one whose name is taken; of what came meanwhile, a part.
    [taken] = [id_ for id_, document in expected.items() if document["filename"] == "log/0.txt"]
    for id_, document in expected.items():
        if id_ in came:
            assert came[id_] == document
        else:
            assert id_ == taken or document["filename"].startswith("late-")
    assert set(came) <= set(expected)
    assert sum(d["filename"].startswith("late-") for d in came.values()) >= 2
    assert set(documents(target, "/trash")) == set(trash) | {taken}
    assert documents(target, "/trash")[taken]["filename"] == "log/0.txt"
    for query, mode in (("anchor number4", "lexical"), ("anchor number4", "dense"), ("anchor number4", "hybrid")):
        names = {"filename": [f"log/{n}.txt" for n in range(1, 8)]}
        # The probabilities also depend on what else the collection holds, which is not the same.
        assert found(target, query, mode, names) == found(theirs, query, mode, names)
    assert search(target, "pilot", collection="harbour") == search(theirs, "pilot", collection="harbour")
    assert search(target, "rowing boat", "lexical")[0]["document_id"] == own
    assert search(target, "barometer", "lexical")[0]["document_id"] == namesake
    some = next(id_ for id_, d in came.items() if d["filename"] == "log/5.txt")
    assert target.get(f"/documents/{some}/file").content == essay("anchor number5", 100).encode()
    assert target.get("/index/verify", params={"files": True}).json()["differences"] == []

    # What failed is failed still, and can be tried again.
    [broken] = [d for d in came.values() if d["filename"] == "broken.pdf"]
    assert (broken["status"], bool(broken["error"])) == ("failed", True)
    [job] = [j for j in target.get("/jobs", params={"state": "failed"}).json()["jobs"] if j["filename"] == "broken.pdf"]
    assert target.post(f"/jobs/{job['id']}/retry").status_code == 202

    # Once more: all is there.
    everything = set(after) | set(documents(target, "/trash"))
    again = restore(target, archive).json()
    assert (again["documents"], again["jobs"]) == (0, [])
    assert again["skipped"] == body["documents"]
    assert set(documents(target)) | set(documents(target, "/trash")) == everything
    # And what was deleted can be restored.
    [tide] = [id_ for id_, d in trash.items() if d["filename"] == "trash.txt"]
    assert wait(target, target.post(f"/trash/{tide}/restore").json()["job_id"])["state"] == "indexed"
    assert search(target, "tide table", "lexical")[0]["document_id"] == tide


# -- jobs ----------------------------------------------------------------------------------------------------------


def test_a_cancelled_job_can_be_tried_again(client: httpx.Client) -> None:
    # Large enough that the answer to the upload is there long before it is indexed.
    job = post(client, "glacier.txt", essay("glacier", 4000))
    assert job["job_id"] in [j["id"] for j in client.get("/jobs", params={"state": "open"}).json()["jobs"]]
    cancelled = client.post(f"/jobs/{job['job_id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert wait(client, job["job_id"])["state"] == "cancelled"
    assert client.get(f"/documents/{job['document_id']}").json()["status"] == "cancelled"
    assert job["job_id"] not in [j["id"] for j in client.get("/jobs", params={"state": "open"}).json()["jobs"]]
    assert job["job_id"] in [j["id"] for j in client.get("/jobs", params={"state": "cancelled"}).json()["jobs"]]
    assert search(client, "glacier", "lexical") == []
    retried = client.post(f"/jobs/{job['job_id']}/retry")
    assert retried.status_code == 202
    assert retried.json()["document_id"] == job["document_id"]
    assert client.post(f"/jobs/{job['job_id']}/retry").status_code == 409
    assert wait(client, retried.json()["job_id"])["state"] == "indexed"
    assert search(client, "glacier", "lexical")[0]["document_id"] == job["document_id"]
    # A job that has ended is not changed by a cancel.
    late = client.post(f"/jobs/{retried.json()['job_id']}/cancel")
    assert (late.status_code, late.json()["state"]) == (200, "indexed")
    assert client.get("/index/verify").json()["differences"] == []


def test_jobs_are_listed_by_state(client: httpx.Client) -> None:
    refused = client.get("/jobs", params={"state": "sleeping"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "state"
    for path in ("/jobs/unknown/cancel", "/jobs/unknown/retry"):
        assert client.post(path).status_code == 404


def test_an_index_with_much_dead_weight_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "COMPACT_DELETED", 30)

    class Counting(HashEmbedder):
        embedded = 0

        def embed_documents(self, texts: Any) -> Any:
            self.embedded += len(texts)
            return super().embed_documents(texts)

    catalog, embedder = Catalog(tmp_path), Counting()
    indexes = Indexes(catalog, Indexes.open_chroma(tmp_path, None), embedder, None)
    runner = JobRunner(catalog, indexes, Limits(), ocr=False, readers=1)
    library = Library(catalog, Limits(), max_upload_mb=10, reader=runner.reader, jobs=lambda: runner)
    retriever = Retriever(catalog, indexes)

    def settle() -> None:
        deadline = time.monotonic() + 60
        while catalog.open_jobs() or catalog.removals() or runner.writer.rebuilding:
            assert time.monotonic() < deadline
            time.sleep(0.01)  # between two looks

    def found(mode: Any) -> list[tuple[str, int, int]]:
        # Without the scores: what a word says follows from how many documents hold it.
        return [
            (p.document_id, p.page, p.start)
            for p in retriever.search("bridge keeper", 50, collection="default", mode=mode)
        ]

    runner.start()
    try:
        kept = [
            library.add(io.BytesIO(essay(f"bridge of {n}", 40).encode()), f"{n}.txt", collection="default")[0]
            for n in range(3)
        ]
        gone = [
            library.add(io.BytesIO(essay(f"tunnel of {n}", 200).encode()), f"t{n}.txt", collection="default")[0]
            for n in range(3)
        ]
        settle()
        embedded = embedder.embedded
        before = {mode: found(mode) for mode in ("lexical", "hybrid", "dense")}
        first = indexes.active.row.generation
        for taken in gone:
            assert taken.document is not None
            library.delete(taken.document.id)
        deadline = time.monotonic() + 60
        while indexes.active.row.generation == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)  # between two looks
        settle()
        row = catalog.index("active")
        assert row is not None
        assert (row.deleted, row.reason) == (0, "compact")
        assert embedder.embedded == embedded, "compaction moves vectors"
        ids = {taken.document.id for taken in kept if taken.document}
        for mode, hits in before.items():
            mine = {hit for hit in hits if hit[0] in ids}
            assert mine
            # BM25 knows how many texts there are, so ties may come in another order; the passages may not differ.
            assert mine <= set(found(mode)), mode
            assert {document_id for document_id, *_ in found(mode)} <= ids
        assert list(differences(catalog, indexes.active, files=True)) == []
    finally:
        runner.stop()
        retriever.close()
        library.close()
        indexes.close()
        catalog.close()
