"""A headless system Chromium whose every request outside this machine is refused and written down."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from playwright.sync_api import Page, Route, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@dataclass
class Visit:
    page: Page
    left: list[str] = field(default_factory=list)  # requests that would have left this machine
    errors: list[str] = field(default_factory=list)  # the page's console errors and exceptions


@contextmanager
def visit(url: str) -> Iterator[Visit]:
    """Open ``url``."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": 1200, "height": 900})
            seen = Visit(page)

            def gate(route: Route) -> None:
                if urlsplit(route.request.url).hostname in ("127.0.0.1", "localhost", None):
                    route.continue_()
                else:
                    seen.left.append(route.request.url)
                    route.abort()

            page.route("**/*", gate)
            page.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: seen.errors.append(str(error)))
            # The playgrounds fetch their schemas first; what is typed before that is sent without its form.
            page.goto(url, wait_until="networkidle")
            yield seen
        finally:
            browser.close()
