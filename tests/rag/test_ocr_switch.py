"""RAG_OCR, in processes of their own: what is told of a scan where it is off, and that "on" is a promise kept or refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from services.rag.documents import ocr
from tests.rag.conftest import rag_env, upload, wait
from tests.rag.test_formats_service import page_of, picture, search
from tests.support.pdfs import make_pdf, make_scan
from tests.support.servers import Service, spawn_service, start_service

WITH_OCR = pytest.mark.skipif(not ocr.available(), reason="needs the extra ocr")
SCANNED = ["The gatekeeper locks the orchard at nine.", "Apples are weighed on the bridge scale."]
EXTRA = ("rapidocr", "onnxruntime", "cv2")


@contextmanager
def running(model: Service, data_dir: Path, **env: str) -> Iterator[httpx.Client]:
    with (
        start_service("services.rag", rag_env(model.url, data_dir, **env)) as rag,
        httpx.Client(base_url=rag.url, timeout=60, trust_env=False) as client,
    ):
        yield client


def without(folder: Path, *modules: str) -> str:
    """A PYTHONPATH under which these modules are not installed, whatever is installed."""
    folder.mkdir()
    lines = [f"sys.modules[{name!r}] = None" for name in modules]
    (folder / "sitecustomize.py").write_text("\n".join(["import sys", *lines]))
    return str(folder)


def broken(folder: Path, module: str) -> str:
    """A PYTHONPATH under which the module is found and cannot be imported."""
    folder.mkdir()
    (folder / f"{module}.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    return str(folder)


def refused(data_dir: Path, **env: str) -> str:
    """What a service says that ends before it listens."""
    service = spawn_service("services.rag", rag_env("http://127.0.0.1:9", data_dir, **env))
    try:
        assert service.wait(240) == 1
    finally:
        service.stop()
    return service.log()


@WITH_OCR
def test_a_scan_fails_by_its_page_where_ocr_is_off_and_is_read_once_it_is_on(model: Service, tmp_path: Path) -> None:
    scan = make_scan(tmp_path / "scan.pdf", SCANNED)
    mixed = make_pdf(tmp_path / "mixed.pdf", ["The orchard has forty trees.", None])
    picture(tmp_path / "bakery.png")
    with running(model, tmp_path / "data", RAG_OCR="off") as client:
        ends = [wait(client, upload(client, path)["job_id"]) for path in (scan, tmp_path / "bakery.png", mixed)]
        assert [end["state"] for end in ends] == ["failed", "failed", "indexed"]
        assert "page 1" in ends[0]["error"]
        assert "it is a scan or a picture; OCR is off" in ends[0]["error"]
        assert "by OCR only, which is off or not installed: set RAG_OCR to auto" in ends[1]["error"]
        half = client.get(f"/documents/{ends[2]['document_id']}").json()
        assert half["failed_pages"] == [2]
        [report] = half["page_reports"]
        assert report["page"] == 2
        assert report["failed"]
        assert report["message"].endswith("OCR is off")
        assert search(client, "When is the orchard locked?")[0]["filename"] == "mixed.pdf"
    with running(model, tmp_path / "data", RAG_OCR="on") as client:
        again = wait(client, upload(client, scan)["job_id"])
        assert again["state"] == "indexed"
        assert again["document_id"] == ends[0]["document_id"]
        [best, *_] = search(client, "When does the gatekeeper lock the orchard?")
        assert (best["filename"], best["page"]) == ("scan.pdf", 1)
        page = page_of(client, best)
        assert page["method"] == "ocr"
        assert all(line in page["text"] for line in SCANNED)
        # A page with a drawing on it may hold text as well; OCR looked, and says so.
        half = wait(client, upload(client, mixed)["job_id"])
        [report] = client.get(f"/documents/{half['document_id']}").json()["page_reports"]
        assert report["message"].endswith("OCR found no text in its picture")


def test_on_without_the_extra_refuses_to_start(tmp_path: Path) -> None:
    said = refused(tmp_path / "data", RAG_OCR="on", PYTHONPATH=without(tmp_path / "path", "rapidocr"))
    assert (
        "docduet rag: RAG_OCR=on, but OCR is not installed; install it with: pip install 'docduet[ocr]', "
        "or set RAG_OCR=auto" in said
    )
    assert "Traceback" not in said
    assert not (tmp_path / "data").exists()


@WITH_OCR
def test_on_with_a_package_that_does_not_start_refuses_to_start(tmp_path: Path) -> None:
    said = refused(tmp_path / "data", RAG_OCR="on", PYTHONPATH=broken(tmp_path / "path", "cv2"))
    assert "RAG_OCR=on, but OCR cannot start (ImportError: libGL.so.1: cannot open shared object file)" in said
    assert "Traceback" not in said


def test_auto_without_the_extra_starts_and_says_what_to_install(model: Service, tmp_path: Path) -> None:
    picture(tmp_path / "bakery.png")
    scan = make_scan(tmp_path / "scan.pdf", SCANNED)
    path = without(tmp_path / "path", *EXTRA)
    with running(model, tmp_path / "data", RAG_OCR="auto", PYTHONPATH=path) as client:
        drawn, scanned = (wait(client, upload(client, path)["job_id"]) for path in (tmp_path / "bakery.png", scan))
    assert (drawn["state"], scanned["state"]) == ("failed", "failed")
    assert "pip install 'docduet[ocr]'" in drawn["error"]
    assert "page 1" in scanned["error"]
    assert "OCR is not installed: install it with: pip install 'docduet[ocr]'" in scanned["error"]


def test_another_word_is_refused_with_those_that_are_taken(tmp_path: Path) -> None:
    said = refused(tmp_path / "data", RAG_OCR="yes")
    assert "docduet rag: RAG_OCR: Input should be 'auto', 'on' or 'off'" in said
