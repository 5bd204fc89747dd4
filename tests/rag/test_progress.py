"""What a job tells of its progress while a file of many pages is read and embedded."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.rag.conftest import sse, upload
from tests.support.pdfs import make_pdf

PAGES = 300


@pytest.mark.usefixtures("indexed")  # after a first document, the service knows how fast it embeds
def test_a_job_tells_the_pages_and_the_seconds_to_come(client: httpx.Client, tmp_path: Path) -> None:
    pages = [f"Chapter {n}. " + "The river flows through the valley to the sea. " * 40 for n in range(PAGES)]
    job_id = upload(client, make_pdf(tmp_path / "long.pdf", pages))["job_id"]
    events: list[tuple[str, dict[str, Any]]] = []
    with client.stream("GET", f"/jobs/{job_id}/events") as response:
        for event, told in sse(response):
            asked = client.get(f"/jobs/{job_id}").json()
            # The job as it stands: what was told, or what came since.
            assert asked.keys() == told.keys()
            assert (asked["pages_read"], asked["updated_at"]) >= (told["pages_read"], told["updated_at"])
            events.append((event, told))
    assert [event for event, told in events if event != told["state"]] == []

    read = [told["pages_read"] for _, told in events]
    assert read == sorted(read)
    reading = [told for event, told in events if event == "reading" and told["pages_read"]]
    assert reading, "no page was told of before the last"
    for told in reading:
        assert 0 < told["pages_read"] <= told["pages_total"] == PAGES
        assert (told["chunks_total"], told["chunks_embedded"]) == (None, 0)
        assert told["estimate_seconds"] > 0

    embedding = [told for event, told in events if event == "embedding"]
    assert embedding
    for told in embedding:
        assert (told["pages_read"], told["pages_total"]) == (PAGES, PAGES)
        assert 0 <= told["chunks_embedded"] < told["chunks_total"]
        assert told["estimate_seconds"] >= 0  # in tenths
    assert embedding[0]["estimate_seconds"] > 0
    embedded = [told["chunks_embedded"] for told in embedding]
    assert embedded == sorted(embedded)

    state, last = events[-1]
    assert (state, last["pages_read"], last["pages_total"]) == ("indexed", PAGES, PAGES)
    assert last["chunks_embedded"] == last["chunks_total"] > PAGES
    assert last["estimate_seconds"] == 0
    assert client.get(f"/jobs/{job_id}").json() == last
