"""The pages that a person meets, in a real browser with no way out."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Locator, Page

from tests.rag.conftest import RULES, Pair, rag_env, upload, wait
from tests.support.browser import CHROMIUM, visit
from tests.support.pdfs import make_pdf
from tests.support.servers import free_port, spawn_service, start_service

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"),
]

ANSWER = " ".join(f"The soft limit of lease {n} is 90 seconds." for n in range(1, 9))
QUESTION = "Tell me about every soft limit of a lease"
K = "[id='#/properties/k-input']"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
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


def ask(page: Page, question: str) -> None:
    """In the playground of /rag."""
    page.locator("textarea[id='#/properties/question-input']").fill(question)
    page.get_by_role("button", name="Start").click()


def say(page: Page, question: str) -> None:
    """In the chat playground."""
    box = page.locator("textarea, [contenteditable=true]").last
    box.fill(question)
    box.press("Enter")


def output(page: Page) -> str:
    """What the playground shows as the answer."""
    return page.inner_text("body").partition("\nOutput\n")[2].partition("\nIntermediate steps")[0]


def notice(page: Page) -> Locator:
    """Ours; the chat playground has a passing one of its own."""
    return page.get_by_role("alert", name="Click to close")


def set_k(page: Page, k: int) -> None:
    with page.expect_response("**/input_schema"):
        page.locator(K).fill(str(k))


def test_the_playground_streams_an_answer_with_its_page(pair: Pair, tmp_path: Path) -> None:
    with visit(pair.rag.url + "/rag/playground/") as seen:
        page = seen.page
        for control in ("k", "temperature", "max_tokens", "mode"):
            page.locator(f"[id='#/properties/{control}-input']").wait_for()
        ask(page, QUESTION)
        page.wait_for_function("() => document.body.innerText.includes('lease 1 is 90 seconds.[1]')")
        first = output(page)
        page.wait_for_function("() => document.body.innerText.includes('lease 3 is 90 seconds.[3]')")
        second = output(page)
        page.wait_for_function("() => document.body.innerText.includes('[8] manual.pdf, p. 1: “')", timeout=60_000)
        page.screenshot(path=str(tmp_path / "playground.png"), full_page=True)
        # Both were seen while the model still wrote: neither holds the end.
        assert len(first) < len(second) < len(output(page))
        assert "lease 8" not in second
        assert output(page).count("lease 8 is 90 seconds.") == 2  # the answer and the quote, and no JSON
        assert '"answer"' not in output(page)
    assert (seen.left, seen.errors) == ([], [])


def test_the_playground_shows_why_there_is_no_answer(pair: Pair, tmp_path: Path) -> None:
    with visit(pair.rag.url + "/rag/playground/") as seen:
        page, alert = seen.page, notice(seen.page)
        ask(page, "   ")
        alert.filter(has_text="the question is empty").wait_for()
        page.screenshot(path=str(tmp_path / "empty.png"))
        ask(page, "Tell me of the lease that breaks")
        alert.filter(has_text="the engine fails here").wait_for()
        page.wait_for_function("() => document.body.innerText.includes('The soft lim')")  # what came before stays
        ask(page, "What is the soft limit of a lease?")
        page.wait_for_function("() => document.body.innerText.includes('manual.pdf, p. 1')")
        assert alert.count() == 0
    assert seen.left == []


def test_both_playgrounds_name_the_service_that_is_down(pair: Pair, tmp_path: Path) -> None:
    env = {**pair.env, "RAG_MODEL_URL": f"http://127.0.0.1:{free_port()}/v1", "RAG_DATA_DIR": str(tmp_path / "data")}
    with spawn_service("services.rag", env) as rag, httpx.Client(base_url=rag.url, timeout=30) as client:
        rag.wait_listening()
        # Without a passage the model would not be asked.
        pdf = make_pdf(tmp_path / "manual.pdf", [ANSWER])
        assert wait(client, upload(client, pdf)["job_id"])["state"] == "indexed"
        with visit(rag.url + "/rag/playground/") as seen:
            ask(seen.page, QUESTION)
            notice(seen.page).filter(has_text="cannot be reached").wait_for()
            seen.page.get_by_role("button", name="Start").wait_for()
        with visit(rag.url + "/chat/playground/") as seen:
            say(seen.page, QUESTION)
            notice(seen.page).filter(has_text="cannot be reached").wait_for()
            seen.page.screenshot(path=str(tmp_path / "down.png"))
            rag.kill()
            say(seen.page, QUESTION)
            notice(seen.page).filter(has_text="is it still running?").wait_for()


def test_the_playground_takes_earlier_turns_and_shows_what_it_understood(pair: Pair) -> None:
    with visit(pair.rag.url + "/rag/playground/") as seen:
        page = seen.page
        set_k(page, 3)  # the form is drawn again, from a schema that is fetched
        page.locator(".control", has_text="Chat History").get_by_role("button").click()
        turn = page.locator(".control.group textarea")
        turn.nth(0).fill("What is the soft limit of a lease?")
        turn.nth(1).fill("90 seconds.")
        ask(page, "and the hard one?")
        page.wait_for_function("() => document.body.innerText.includes('→ What is the hard limit of a lease?')")
    assert (seen.left, seen.errors) == ([], [])


def test_a_shared_link_keeps_the_controls(pair: Pair) -> None:
    with visit(pair.rag.url + "/rag/playground/") as seen:
        set_k(seen.page, 2)
        seen.page.get_by_role("button", name="Share").click()
        link = seen.page.get_by_text("/rag/c/").inner_text()
    with visit("http://" + link.removeprefix("http://")) as seen:
        page = seen.page
        page.locator(K).wait_for()
        assert page.locator(K).input_value() == "2"
        ask(page, "What is the soft limit of a lease?")
        page.wait_for_function("() => document.body.innerText.includes('manual.pdf, p. 1')")
    assert (seen.left, seen.errors) == ([], [])


def test_enter_that_ends_a_composition_sends_nothing(pair: Pair) -> None:
    with visit(pair.rag.url + "/chat/playground/") as seen:
        page = seen.page
        box = page.locator("textarea, [contenteditable=true]").last
        box.fill("zu yue")
        box.dispatch_event("keydown", {"key": "Enter", "isComposing": True, "bubbles": True})
        page.wait_for_timeout(300)
        assert box.input_value() == "zu yue"
        assert "HUMAN" not in page.inner_text("body").upper()


def test_the_chat_playground_answers_with_its_source(pair: Pair, tmp_path: Path) -> None:
    with visit(pair.rag.url + "/chat/playground/") as seen:
        page = seen.page
        say(page, QUESTION)
        page.wait_for_function("() => document.body.innerText.includes('lease 8 is 90 seconds.[8]')", timeout=60_000)
        links = page.get_by_role("navigation", name="Sources").get_by_role("link")
        links.nth(7).wait_for()
        assert links.count() == 8
        page.screenshot(path=str(tmp_path / "chat.png"), full_page=True)
        # A click shows the page, with the quote marked.
        with page.context.expect_page() as opened:
            links.nth(7).click()
        opened.value.wait_for_load_state()
        shown = httpx.get(opened.value.url)
        assert shown.headers["content-type"] == "image/png"
        assert shown.headers["x-docduet-highlight"] == "exact"
    assert (seen.left, seen.errors) == ([], [])


@pytest.mark.parametrize(("service", "holds"), [("model", "/v1/chat/completions"), ("rag", "/documents")])
def test_the_api_page_needs_no_network(pair: Pair, tmp_path: Path, service: str, holds: str) -> None:
    base = pair.model.url if service == "model" else pair.rag.url
    with visit(base + "/docs") as seen:
        seen.page.locator(f"[data-path='{holds}']").first.wait_for()
        seen.page.screenshot(path=str(tmp_path / f"docs-{service}.png"))
    assert seen.left == []
    assert seen.errors == []


@pytest.mark.parametrize("service", ["model", "rag"])
def test_there_is_no_page_that_asks_another_host(pair: Pair, service: str) -> None:
    assert (pair.model if service == "model" else pair.rag).get("/redoc").status_code == 404
