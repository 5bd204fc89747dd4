"""Documents through the HTTP interface of a real process."""

import json
import shutil
from pathlib import Path

import httpx
import pytest

from tests.rag.conftest import LEASES, Pair, rag_env, upload, wait
from tests.support.pdfs import make_pdf
from tests.support.servers import Service, ServiceDidNotStart, start_service


def error(response: httpx.Response, status: int) -> dict[str, object]:
    assert response.status_code == status, response.text
    body = response.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    return body


def test_a_pdf_becomes_searchable(client: httpx.Client, indexed: str) -> None:
    document = client.get(f"/documents/{indexed}").json()
    assert (document["status"], document["pages"], document["filename"]) == ("indexed", 2, "manual.pdf")
    assert indexed in [d["id"] for d in client.get("/documents").json()["documents"]]
    [best, *_] = client.post("/search", json={"query": "hard limit of a lease", "k": 1}).json()["passages"]
    assert (best["filename"], best["page"]) == ("manual.pdf", 1)
    assert 0 < best["score"] <= 1
    page = client.get(f"/documents/{indexed}/pages/{best['page']}").json()["text"]
    assert page[best["start"] : best["start"] + len(best["text"])] == best["text"]


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_every_mode_finds_it(client: httpx.Client, indexed: str, mode: str) -> None:
    body = {"query": "How many replicas has a block?", "k": 1, "mode": mode}
    assert client.post("/search", json=body).json()["passages"][0]["page"] == 2


def test_the_original_comes_back_unchanged(client: httpx.Client, indexed: str, manual: Path) -> None:
    response = client.get(f"/documents/{indexed}/file")
    assert response.content == manual.read_bytes()
    assert response.headers["content-type"] == "application/pdf"


def test_the_same_content_twice_is_one_document(
    client: httpx.Client, indexed: str, manual: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.pdf"
    copy.write_bytes(manual.read_bytes())
    again = upload(client, copy)
    assert again["document_id"] == indexed
    assert client.get(f"/jobs/{again['job_id']}").json()["state"] == "indexed"


def test_a_deleted_document_is_gone_everywhere(client: httpx.Client, pair: Pair, tmp_path: Path) -> None:
    job = upload(client, make_pdf(tmp_path / "gone.pdf", ["The zeppelin flies over the mountain at noon."]))
    assert wait(client, job["job_id"])["state"] == "indexed"
    query = {"query": "zeppelin", "mode": "lexical"}
    assert client.post("/search", json=query).json()["passages"]
    assert client.delete(f"/documents/{job['document_id']}").status_code == 204
    error(client.get(f"/documents/{job['document_id']}"), 404)
    error(client.get(f"/documents/{job['document_id']}/file"), 404)
    error(client.delete(f"/documents/{job['document_id']}"), 404)
    assert client.post("/search", json=query).json()["passages"] == []
    assert len(list((pair.data_dir / "files").iterdir())) == len(client.get("/documents").json()["documents"])


def test_collections_do_not_see_each_other(client: httpx.Client, indexed: str, tmp_path: Path) -> None:
    path = make_pdf(tmp_path / "other.pdf", ["The submarine dives below the ice."])
    assert wait(client, upload(client, path, collection="sea")["job_id"])["state"] == "indexed"
    assert client.post("/search", json={"query": "submarine", "mode": "lexical"}).json()["passages"] == []
    found = client.post("/search", json={"query": "submarine", "collection": "sea"}).json()["passages"]
    assert [p["filename"] for p in found] == ["other.pdf"]
    assert client.post("/search", json={"query": "submarine", "collection": "empty"}).json()["passages"] == []


def test_a_filter_narrows_the_search(client: httpx.Client, indexed: str) -> None:
    query = {"query": "lease"}
    assert client.post("/search", json={**query, "filter": {"document_id": indexed}}).json()["passages"]
    assert client.post("/search", json={**query, "filter": {"filename": ["x.pdf"]}}).json()["passages"] == []
    assert "filter" in str(error(client.post("/search", json={**query, "filter": {"colour": "red"}}), 400))


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"query": ""}, "query"),
        ({"query": "   "}, "query"),
        ({"query": "a" * 100_000}, "query"),
        ({"query": "a", "k": 0}, "k"),
        ({"query": "a", "k": 10**6}, "k"),
        ({"query": "a", "mode": "magic"}, "mode"),
        ({"query": "a", "collection": "../x"}, "collection"),
        ({"query": "a", "filter": {"filename": 3}}, "filter"),
        ({"query": "a", "surprise": 1}, "surprise"),
        ({}, "query"),
        ([], "valid"),
    ],
)
def test_a_bad_search_is_refused_by_name(client: httpx.Client, body: object, named: str) -> None:
    assert named in str(error(client.post("/search", json=body), 400)["message"])


@pytest.mark.parametrize("query", ["😀😀😀", "\ud800 lease", "\x00", "的 了", '" OR *', "x" * 5000])
def test_odd_queries_are_answered(client: httpx.Client, indexed: str, query: str) -> None:
    response = client.post("/search", content=json.dumps({"query": query}))
    assert response.status_code in (200, 400), response.text


def test_uploads_that_are_no_pdf(client: httpx.Client, pair: Pair) -> None:
    before = sorted(p.name for p in (pair.data_dir / "files").iterdir())
    post = lambda name, content: client.post("/documents", files={"file": (name, content)})  # noqa: E731
    error(post("empty.pdf", b""), 400)
    error(post("word.pdf", b"PK\x03\x04 not a pdf"), 415)
    error(client.post("/documents"), 400)
    error(client.post("/documents", files={"file": ("a.pdf", b"%PDF-")}, data={"collection": "../../x"}), 400)
    for name in ("..", "...", " "):
        assert post(name, b"%PDF-1.4").status_code == 400
    assert sorted(p.name for p in (pair.data_dir / "files").iterdir()) == before
    assert list((pair.data_dir / "incoming").iterdir()) == []


def test_a_path_in_the_name_is_only_a_name(client: httpx.Client, tmp_path: Path) -> None:
    content = make_pdf(tmp_path / "x.pdf", ["The glacier moves slowly."]).read_bytes()
    job = client.post("/documents", files={"file": ("../../etc/passwd\\evil.pdf", content)}).json()
    assert client.get(f"/documents/{job['document_id']}").json()["filename"] == "evil.pdf"
    long = client.post("/documents", files={"file": ("n" * 4096 + ".pdf", content + b"\n")}).json()
    assert len(client.get(f"/documents/{long['document_id']}").json()["filename"]) <= 200


def test_pages_without_text_are_named(client: httpx.Client, tmp_path: Path) -> None:
    path = make_pdf(tmp_path / "half.pdf", ["The comet returns every 76 years.", None, "It was seen in 1986."])
    job = upload(client, path)
    assert wait(client, job["job_id"])["state"] == "indexed"
    document = client.get(f"/documents/{job['document_id']}").json()
    assert (document["status"], document["pages"], document["failed_pages"]) == ("indexed", 3, [2])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: make_pdf(p, [None, None]), "page 1: the page has no text"),
        (lambda p: make_pdf(p, ["secret"], password="secret"), "password"),
        (lambda p: p.write_bytes(b"%PDF-1.4\nnothing more") and p, "not a readable PDF|no pages"),
    ],
    ids=["pictures only", "encrypted", "truncated"],
)
def test_what_cannot_be_read_fails_with_its_reason(client: httpx.Client, tmp_path: Path, make, reason: str) -> None:
    import re

    path = make(tmp_path / "bad.pdf")
    job = upload(client, path)
    end = wait(client, job["job_id"])
    assert end["state"] == "failed"
    assert re.search(reason, end["error"])
    assert client.get(f"/documents/{job['document_id']}").json()["error"] == end["error"]
    # It can be tried again, and the service goes on.
    assert upload(client, path)["job_id"] != job["job_id"]
    assert client.get("/health").status_code == 200


def test_unknown_things_are_404_with_the_error_object(client: httpx.Client) -> None:
    for path in ("/jobs/x", "/jobs/x/events", "/documents/x", "/documents/x/pages/1", "/nothing"):
        error(client.get(path), 404)
    error(client.get("/search"), 405)


def test_the_events_of_a_job_show_its_progress(client: httpx.Client, tmp_path: Path) -> None:
    pages = [f"Chapter {n}. " + "The river flows through the valley to the sea. " * 30 for n in range(12)]
    job = upload(client, make_pdf(tmp_path / "long.pdf", pages))
    states, embedded = [], []
    with client.stream("GET", f"/jobs/{job['job_id']}/events") as response:
        for line in response.iter_lines():
            if line.startswith("event:"):
                states.append(line[6:].strip())
            elif line.startswith("data:"):
                embedded.append(json.loads(line[5:])["chunks_embedded"])
    assert states[-1] == "indexed"
    assert embedded == sorted(embedded)
    assert embedded[-1] > 16


def test_a_kill_loses_nothing_and_duplicates_nothing(model: Service, tmp_path: Path) -> None:
    env = rag_env(model.url, tmp_path / "data")
    pages = [f"Section {n}. " + "The harbour master counts the ships that enter. " * 25 for n in range(60)]
    path = make_pdf(tmp_path / "big.pdf", pages)
    with start_service("services.rag", env) as rag:
        with httpx.Client(base_url=rag.url, timeout=30) as client:
            job = upload(client, path)
            # Kill it in the middle of the work: as soon as some chunks are embedded, or it is done.
            with client.stream("GET", f"/jobs/{job['job_id']}/events") as response:
                for line in response.iter_lines():
                    if line.startswith("data:") and json.loads(line[5:])["chunks_embedded"] > 0:
                        break
        rag.kill()
    with start_service("services.rag", env) as rag, httpx.Client(base_url=rag.url, timeout=60) as client:
        end = wait(client, job["job_id"])
        assert end["state"] == "indexed"
        assert end["chunks_embedded"] == end["chunks_total"]
        assert [d["pages"] for d in client.get("/documents").json()["documents"]] == [60]
        found = client.post("/search", json={"query": "Section 59 harbour", "k": 100, "mode": "dense"}).json()[
            "passages"
        ]
        assert len({(p["page"], p["start"]) for p in found}) == len(found)


@pytest.mark.parametrize("lost", ["chroma", "lexical.sqlite"])
def test_a_lost_index_is_made_again(model: Service, manual: Path, tmp_path: Path, lost: str) -> None:
    env = rag_env(model.url, tmp_path / "data")
    query = {"query": "hard limit of a lease", "k": 1, "mode": "dense" if lost == "chroma" else "lexical"}
    with start_service("services.rag", env) as rag, httpx.Client(base_url=rag.url, timeout=30) as client:
        wait(client, upload(client, manual)["job_id"])
        expected = client.post("/search", json=query).json()
        assert expected["passages"]
    for path in (tmp_path / "data").glob(f"{lost}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with start_service("services.rag", env) as rag, httpx.Client(base_url=rag.url, timeout=30) as client:
        # The same content again: its latest job is the one that mends the index.
        assert wait(client, upload(client, manual)["job_id"])["state"] == "indexed"
        assert client.post("/search", json=query).json() == expected


def test_two_processes_do_not_share_a_data_folder(pair: Pair) -> None:
    with pytest.raises(ServiceDidNotStart, match="another docduet already uses RAG_DATA_DIR"):
        start_service("services.rag", pair.env)


def test_keys_guard_everything_but_health(model: Service, tmp_path: Path) -> None:
    env = rag_env(model.url, tmp_path / "data", RAG_API_KEYS="one, two")
    with start_service("services.rag", env) as rag, httpx.Client(base_url=rag.url) as client:
        for path in ("/documents", "/metrics", "/docs", "/rag/playground/", "/openapi.json"):
            assert error(client.get(path), 401)["code"] == "invalid_api_key"
        error(
            client.post("/rag/invoke", json={"input": {"question": "x"}}, headers={"Authorization": "Bearer no"}), 401
        )
        assert client.get("/health").status_code == 200
        assert client.get("/documents", headers={"Authorization": "Bearer two"}).status_code == 200
        assert client.get("/docs", auth=("me", "one")).status_code == 200


def test_an_upload_over_the_limit_is_413_and_nothing_is_written(model: Service, tmp_path: Path) -> None:
    env = rag_env(model.url, tmp_path / "data", RAG_MAX_UPLOAD_MB="1")
    with start_service("services.rag", env) as rag, httpx.Client(base_url=rag.url, timeout=30) as client:
        for megabytes in (1.5, 5):
            content = b"%PDF-1.4\n" + b"x" * int(megabytes * (1 << 20))
            assert "RAG_MAX_UPLOAD_MB" in str(error(client.post("/documents", files={"file": ("a.pdf", content)}), 413))
        assert client.get("/documents").json() == {"documents": []}
        assert list((tmp_path / "data" / "files").iterdir()) == []


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"RAG_K": "x"}, "RAG_K"),
        ({"RAG_HOST": "0.0.0.0"}, "RAG_API_KEYS"),  # noqa: S104
        ({"RAG_DATA_DIR": "/dev/null/x"}, "RAG_DATA_DIR"),
        ({"RAG_MAX_UPLOAD_MB": "0"}, "RAG_MAX_UPLOAD_MB"),
        ({"RAG_EMBEDDING_MODEL": "/nowhere/at/all"}, "RAG_EMBEDDING_MODEL"),
    ],
)
def test_a_wrong_setting_ends_the_start_with_one_line(
    model: Service, tmp_path: Path, env: dict[str, str], said: str
) -> None:
    with pytest.raises(ServiceDidNotStart) as caught:
        start_service("services.rag", {**rag_env(model.url, tmp_path / "data"), **env})
    assert said in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_the_text_of_the_tests_own_page_is_read_back(client: httpx.Client, indexed: str) -> None:
    text = client.get(f"/documents/{indexed}/pages/1").json()["text"]
    assert "".join(text.split()) == "".join(LEASES.split())
