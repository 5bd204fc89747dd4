"""The pages that a person meets, in a real browser with no way out."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.rag.conftest import RULES, Pair, rag_env, upload, wait
from tests.support.browser import CHROMIUM, visit
from tests.support.pdfs import make_pdf
from tests.support.servers import start_service

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"),
]

ANSWER = " ".join(f"The soft limit of lease {n} is 90 seconds." for n in range(1, 9))
QUESTION = "Tell me about every soft limit of a lease"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    import json

    folder = tmp_path_factory.mktemp("browser")
    script = folder / "rules.json"
    slow = {"match": "every soft limit", "reply": ANSWER, "token_delay_ms": 100}
    script.write_text(json.dumps([slow, *RULES]))
    with start_service("services.model", {"MODEL_ENGINE": "scripted", "MODEL_SCRIPT": str(script)}) as model:
        env = rag_env(model.url, folder / "data", RAG_REFUSAL_THRESHOLD="0")
        with start_service("services.rag", env) as rag:
            with httpx.Client(base_url=rag.url, timeout=30) as client:
                pdf = make_pdf(folder / "manual.pdf", [ANSWER])
                assert wait(client, upload(client, pdf)["job_id"])["state"] == "indexed"
            yield Pair(model, rag, folder / "data", env)


def test_the_playground_streams_an_answer_with_its_page(pair: Pair, tmp_path: Path) -> None:
    with visit(pair.rag.url + "/rag/playground/") as seen:
        page = seen.page
        question = page.locator("textarea[id='#/properties/question-input']")
        question.wait_for()
        for control in ("k", "temperature", "max_tokens", "mode"):
            page.locator(f"[id='#/properties/{control}-input']").wait_for()
        question.fill(QUESTION)
        page.get_by_role("button", name="Start").click()
        # LangServe's page shows the stream as it is: a dictionary a chunk.
        page.wait_for_function("() => document.body.innerText.split('\"answer\"').length > 3")
        early = page.inner_text("body")
        assert "citations" not in early
        page.wait_for_function('() => document.body.innerText.includes(\'"filename": "manual.pdf"\')', timeout=60_000)
        assert page.inner_text("body").count('"answer"') > early.count('"answer"')
        page.screenshot(path=str(tmp_path / "playground.png"), full_page=True)
    assert seen.left == []


def test_the_chat_playground_answers_with_its_source(pair: Pair, tmp_path: Path) -> None:
    with visit(pair.rag.url + "/chat/playground/") as seen:
        page = seen.page
        box = page.locator("textarea, [contenteditable=true]").last
        box.wait_for()
        box.fill(QUESTION)
        box.press("Enter")
        page.wait_for_function("() => document.body.innerText.includes('manual.pdf, p. 1')", timeout=60_000)
        assert "lease 8 is 90 seconds." in page.inner_text("body")
        page.screenshot(path=str(tmp_path / "chat.png"), full_page=True)
    assert seen.left == []


@pytest.mark.parametrize(("service", "holds"), [("model", "/v1/chat/completions"), ("rag", "/documents")])
def test_the_api_page_needs_no_network(pair: Pair, tmp_path: Path, service: str, holds: str) -> None:
    base = pair.model.url if service == "model" else pair.rag.url
    with visit(base + "/docs") as seen:
        seen.page.locator(f"[data-path='{holds}']").first.wait_for()
        seen.page.screenshot(path=str(tmp_path / f"docs-{service}.png"))
    assert seen.left == []
    assert seen.errors == []
