"""Documents through the HTTP interface of a real process."""

import http.client
import io
import json
import shutil
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.rag.conftest import LEASES, Pair, rag_env, upload, wait, wait_for_index
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


def test_a_deleted_document_is_gone_everywhere_and_can_come_back(
    client: httpx.Client, pair: Pair, tmp_path: Path
) -> None:
    job = upload(client, make_pdf(tmp_path / "gone.pdf", ["The zeppelin flies over the mountain at noon."]))
    assert wait(client, job["job_id"])["state"] == "indexed"
    id_, query = job["document_id"], {"query": "zeppelin", "mode": "lexical"}
    assert client.post("/search", json=query).json()["passages"]
    assert client.delete(f"/documents/{id_}").status_code == 204
    for path in ("", "/file", "/pages/1"):
        error(client.get(f"/documents/{id_}{path}"), 404)
    error(client.delete(f"/documents/{id_}"), 404)
    assert client.post("/search", json=query).json()["passages"] == []
    assert id_ in [d["id"] for d in client.get("/trash").json()["documents"]]
    again = client.post(f"/trash/{id_}/restore")
    assert again.status_code == 202
    assert wait(client, again.json()["job_id"])["state"] == "indexed"
    assert client.post("/search", json=query).json()["passages"]
    client.delete(f"/documents/{id_}")
    assert client.delete("/trash").json()["purged"] >= 1
    error(client.post(f"/trash/{id_}/restore"), 404)
    assert id_ in str(error(client.delete(f"/trash/{id_}"), 404)["message"])
    assert len(list((pair.data_dir / "files").iterdir())) == len(client.get("/documents").json()["documents"])


def test_collections_do_not_see_each_other(client: httpx.Client, indexed: str, tmp_path: Path) -> None:
    path = make_pdf(tmp_path / "other.pdf", ["The submarine dives below the ice."])
    with path.open("rb") as file:
        refused = client.post("/documents", files={"file": ("other.pdf", file)}, data={"collection": "sea"})
    assert error(refused, 404)["param"] == "collection"
    assert client.post("/collections", json={"name": "sea"}).status_code == 201
    error(client.post("/collections", json={"name": "sea"}), 409)
    error(client.post("/collections", json={"name": "../sea"}), 400)
    assert wait(client, upload(client, path, collection="sea")["job_id"])["state"] == "indexed"
    query = {"query": "submarine", "mode": "lexical"}
    assert client.post("/search", json=query).json()["passages"] == []
    found = client.post("/search", json={**query, "collection": "sea"}).json()["passages"]
    assert [p["filename"] for p in found] == ["other.pdf"]
    # Another name, the same documents, at once.
    assert client.patch("/collections/sea", json={"name": "ocean"}).json()["documents"] == 1
    error(client.post("/search", json={**query, "collection": "sea"}), 404)
    assert client.post("/search", json={**query, "collection": "ocean"}).json()["passages"] == found
    assert client.delete("/collections/ocean").status_code == 204
    error(client.post("/search", json={**query, "collection": "ocean"}), 404)
    error(client.delete("/collections/default"), 400)
    assert "default" in [c["name"] for c in client.get("/collections").json()["collections"]]


def test_a_new_version_takes_the_old_ones_place(client: httpx.Client, tmp_path: Path) -> None:
    old = upload(client, make_pdf(tmp_path / "tariff.pdf", ["The tariff of the ferry is 12 crowns."]))
    assert wait(client, old["job_id"])["state"] == "indexed"
    new = upload(client, make_pdf(tmp_path / "tariff.pdf", ["The tariff of the ferry is 15 crowns."]))
    assert new["document_id"] != old["document_id"]
    assert wait(client, new["job_id"])["state"] == "indexed"
    found = client.post("/search", json={"query": "tariff of the ferry", "mode": "lexical"}).json()["passages"]
    assert [p["document_id"] for p in found] == [new["document_id"]]
    replaced = {d["id"]: d["replaced_by"] for d in client.get("/trash").json()["documents"]}
    assert replaced[old["document_id"]] == new["document_id"]


def test_replace_takes_the_place_of_a_document_of_another_name(client: httpx.Client, tmp_path: Path) -> None:
    old = upload(client, make_pdf(tmp_path / "draft.pdf", ["The draft says that the turbine makes 3 megawatts."]))
    assert wait(client, old["job_id"])["state"] == "indexed"
    path = make_pdf(tmp_path / "final.pdf", ["The final text says that the turbine makes 4 megawatts."])
    new = upload(client, path, replace=old["document_id"])
    assert wait(client, new["job_id"])["state"] == "indexed"
    found = client.post("/search", json={"query": "turbine megawatts", "mode": "lexical"}).json()["passages"]
    assert [p["document_id"] for p in found] == [new["document_id"]]
    error(client.get(f"/documents/{old['document_id']}"), 404)
    replaced = {d["id"]: d["replaced_by"] for d in client.get("/trash").json()["documents"]}
    assert replaced[old["document_id"]] == new["document_id"]


def test_a_damaged_file_is_mended_by_the_same_upload(model: Service, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    path = make_pdf(tmp_path / "a.pdf", ["The sundial stands in the garden of the abbey."])
    with start_service("services.rag", rag_env(model.url, data_dir)) as rag, httpx.Client(base_url=rag.url) as client:
        job = upload(client, path)
        assert wait(client, job["job_id"])["state"] == "indexed"
        content = path.read_bytes()
        [stored] = (data_dir / "files").iterdir()
        for damaged in (content[:-1] + b"?", content[:100], b""):
            stored.write_bytes(damaged)
            [found] = client.get("/index/verify", params={"files": True}).json()["differences"]
            assert (found["kind"], found["document_id"]) == ("wrong_file", job["document_id"])
            assert upload(client, path)["document_id"] == job["document_id"]
            assert client.get("/index/verify", params={"files": True}).json()["ok"]
            assert client.get(f"/documents/{job['document_id']}/file").content == content


def test_metadata_can_be_filtered_by(client: httpx.Client, tmp_path: Path) -> None:
    for year, word in ((1999, "granite"), (2004, "marble")):
        path = make_pdf(tmp_path / f"stone-{year}.pdf", [f"The quarry sells {word}."])
        job = upload(client, path, metadata=json.dumps({"year": year, "draft": False, "author": "Kim"}))
        assert wait(client, job["job_id"])["state"] == "indexed"
    query = {"query": "quarry", "mode": "lexical"}
    names = lambda filter: sorted(  # noqa: E731
        p["filename"] for p in client.post("/search", json={**query, "filter": filter}).json()["passages"]
    )
    assert names({"author": "Kim"}) == ["stone-1999.pdf", "stone-2004.pdf"]
    assert names({"year": 1999, "draft": False}) == ["stone-1999.pdf"]
    assert names({"year": [1998, 2004]}) == ["stone-2004.pdf"]
    assert names({"draft": 0}) == []
    document = client.get("/documents").json()["documents"][-1]
    assert document["metadata"] == {"year": 2004, "draft": False, "author": "Kim"}
    changed = client.patch(f"/documents/{document['id']}", json={"filename": "m/stone.pdf", "metadata": {"year": 1}})
    assert (changed.json()["filename"], changed.json()["metadata"]) == ("m/stone.pdf", {"year": 1})
    assert names({"year": 1}) == ["m/stone.pdf"]


def test_a_question_is_answered_from_the_documents_its_filter_selects(client: httpx.Client, tmp_path: Path) -> None:
    assert client.post("/collections", json={"name": "halls"}).status_code == 201
    for hall in ("north", "south"):
        path = make_pdf(tmp_path / f"{hall}.pdf", [f"In the {hall} hall the hard limit of a lease is 2 hours."])
        job = upload(client, path, collection="halls", metadata=json.dumps({"hall": hall}))
        assert wait(client, job["job_id"])["state"] == "indexed"
    asked = {"question": "What is the hard limit of a lease?", "collection": "halls"}
    for hall in ("north", "south"):
        response = client.post("/rag/invoke", json={"input": {**asked, "filter": {"hall": hall}}})
        assert response.status_code == 200, response.text
        [citation] = response.json()["output"]["citations"]
        assert (citation["filename"], citation["also"]) == (f"{hall}.pdf", [])
    wrong = client.post("/rag/invoke", json={"input": {**asked, "filter": {"hull": "north"}}})
    assert "'hull'" in str(error(wrong, 400)["message"])


@pytest.mark.parametrize(
    "metadata",
    ["{", "[]", "3", '"x"', '{"a": {}}', '{"a": [1]}', '{"a": null}', '{"a": NaN}', '{"": 1}', '{"filename": "x"}',
     '{"a": 1e999}', json.dumps({str(n): n for n in range(100)}), '{"a": "\\ud800"}', '{"a": 99999999999999999999}',
     "[" * 100_000],
)  # fmt: skip
def test_metadata_that_is_not_flat_is_refused(client: httpx.Client, pair: Pair, metadata: str) -> None:
    before = len(client.get("/documents").json()["documents"])
    post = client.post("/documents", files={"file": ("a.pdf", b"%PDF-1.4 x")}, data={"metadata": metadata})
    assert error(post, 400)["param"] == "metadata"
    assert len(client.get("/documents").json()["documents"]) == before
    assert list((pair.data_dir / "incoming").iterdir()) == []


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


def test_what_is_no_document_is_refused_and_nothing_written(client: httpx.Client, pair: Pair) -> None:
    before = sorted(p.name for p in (pair.data_dir / "files").iterdir())
    post = lambda name, content, **form: client.post("/documents", files={"file": (name, content)}, data=form)  # noqa: E731
    error(post("empty.pdf", b""), 400)
    error(post("program.pdf", b"\x7fELF\x02\x01\x01" + bytes(100)), 415)
    error(client.post("/documents"), 400)
    error(post("a.pdf", b"%PDF-", collection="../../x"), 400)
    assert error(post("a.pdf", b"%PDF-", collection="unknown"), 404)["param"] == "collection"
    assert error(post("a.pdf", b"%PDF-1.4", replace="unknown"), 404)["param"] == "replace"
    for name in ("..", "...", " ", "../a.pdf", "a/../../b.pdf", "..\\b.pdf", "/etc/passwd", "a//b.pdf",
                 "n" * 4096 + ".pdf"):  # fmt: skip
        assert error(post(name, b"%PDF-1.4"), 400)["param"] == "file", name
    for control in (b"\x00", b"\x07", b"\x7f"):  # as they are: a polite client would escape them
        body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a%sb.pdf"\r\n\r\n%%PDF-\r\n--x--\r\n'
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        error(client.post("/documents", content=body % control, headers=headers), 400)
    assert sorted(p.name for p in (pair.data_dir / "files").iterdir()) == before
    assert list((pair.data_dir / "incoming").iterdir()) == []


def test_too_large_is_told_while_it_streams(model: Service, tmp_path: Path) -> None:
    sent, pieces = 0, 256  # of a MiB: the sockets' buffers take several

    def body() -> Iterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.pdf"\r\n\r\n%PDF-'
        for _ in range(pieces):
            sent += 1
            yield bytes(1 << 20)
        yield b"\r\n--x--\r\n"

    env = rag_env(model.url, tmp_path / "data", RAG_MAX_UPLOAD_MB="2")
    with start_service("services.rag", env) as rag, httpx.Client(base_url=rag.url, timeout=30) as client:
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        assert "RAG_MAX_UPLOAD_MB" in str(error(client.post("/documents", content=body(), headers=headers), 413))
        assert sent < pieces / 4
        assert list((tmp_path / "data" / "incoming").iterdir()) == []
        assert client.get("/documents").json() == {"documents": []}


def test_a_declared_length_over_the_limit_is_told_before_the_body_comes(model: Service, tmp_path: Path) -> None:
    env = rag_env(model.url, tmp_path / "data", RAG_MAX_UPLOAD_MB="1")
    start = b"POST /documents HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 3000000\r\n"
    with start_service("services.rag", env) as rag:
        address = ("127.0.0.1", int(rag.url.rpartition(":")[2]))
        for expect in (b"", b"Expect: 100-continue\r\n"):
            with socket.create_connection(address, timeout=5) as connection:
                connection.sendall(start + expect + b"\r\n")
                answer = b""
                while b"RAG_MAX_UPLOAD_MB" not in answer:
                    more = connection.recv(65536)
                    assert more, answer
                    answer += more
                assert answer.startswith(b"HTTP/1.1 413 ")
                if expect:  # nothing more is waited for
                    connection.settimeout(1)
                    while connection.recv(65536):
                        pass
        # And a client that reads only when it has sent everything gets to see it.
        connection = http.client.HTTPConnection(*address, timeout=30)
        connection.request("POST", "/documents", bytes(3_000_000), {"Content-Type": "multipart/form-data; boundary=x"})
        response = connection.getresponse()
        assert (response.status, response.headers["connection"]) == (413, "close")
        assert b"RAG_MAX_UPLOAD_MB" in response.read()
        connection.close()


def test_a_name_may_be_a_relative_path(client: httpx.Client, tmp_path: Path) -> None:
    content = make_pdf(tmp_path / "x.pdf", ["The glacier moves slowly."]).read_bytes()
    job = client.post("/documents", files={"file": ("ice\\north/glacier 冰.pdf", content)}).json()
    assert client.get(f"/documents/{job['document_id']}").json()["filename"] == "ice/north/glacier 冰.pdf"


def test_a_password_opens_an_encrypted_file(client: httpx.Client, tmp_path: Path) -> None:
    path = make_pdf(tmp_path / "locked.pdf", ["The vault holds seven crowns."], password="secret")
    first = upload(client, path)
    assert "password" in wait(client, first["job_id"])["error"]
    wrong = client.post(f"/jobs/{first['job_id']}/retry", json={"password": "guess"}).json()
    assert "password" in wait(client, wrong["job_id"])["error"]
    right = upload(client, path, password="secret")
    assert right["document_id"] == first["document_id"]
    assert wait(client, right["job_id"])["state"] == "indexed"
    assert "secret" not in json.dumps(client.get("/jobs").json())


def test_a_zip_is_its_members(client: httpx.Client, tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("one.pdf", make_pdf(tmp_path / "1.pdf", ["The viaduct has nine arches."]).read_bytes())
        writer.writestr("deep/two.txt", "The aqueduct has twelve arches.")
        writer.writestr("deep/program", b"\x7fELF\x02\x01\x01" + bytes(100))
        writer.writestr("nothing.txt", b"")
    taken = client.post("/documents", files={"file": ("bridges.zip", archive.getvalue())}).json()["documents"]
    by_name = {item["filename"]: item for item in taken}
    assert set(by_name) == {f"bridges.zip/{n}" for n in ("one.pdf", "deep/two.txt", "deep/program", "nothing.txt")}
    assert "empty" in by_name["bridges.zip/nothing.txt"]["error"]
    assert by_name["bridges.zip/deep/program"]["error"]
    for name, word in (("one.pdf", "viaduct"), ("deep/two.txt", "aqueduct")):
        item = by_name[f"bridges.zip/{name}"]
        assert wait(client, item["job_id"])["state"] == "indexed"
        found = client.post("/search", json={"query": word, "mode": "lexical"}).json()["passages"]
        assert [p["document_id"] for p in found] == [item["document_id"]]
    nothing = io.BytesIO()
    with zipfile.ZipFile(nothing, "w") as writer:
        writer.writestr("program", b"\x7fELF\x02\x01\x01" + bytes(100))
    refused = client.post("/documents", files={"file": ("none.zip", nothing.getvalue())})
    assert "none.zip" in str(error(refused, 415)["message"])


def test_pages_without_text_are_named(client: httpx.Client, tmp_path: Path) -> None:
    path = make_pdf(tmp_path / "half.pdf", ["The comet returns every 76 years.", None, "It was seen in 1986."])
    job = upload(client, path)
    assert wait(client, job["job_id"])["state"] == "indexed"
    document = client.get(f"/documents/{job['document_id']}").json()
    assert (document["status"], document["pages"], document["failed_pages"]) == ("indexed", 3, [2])
    [report] = document["page_reports"]
    assert (report["page"], report["failed"]) == (2, True)
    assert report["message"]


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


@pytest.mark.parametrize("lost", ["chroma", "lexical"])
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
        wait_for_index(client)
        assert client.post("/search", json=query).json() == expected
        assert client.get("/index/verify").json()["ok"]


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
