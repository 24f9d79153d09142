"""The page in headless Chromium, where that is installed: on wide and narrow screens, by day and by night, in several scripts."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aloftrag import report
from tests.steps import finished_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
# Else the browser asks its maker for updates, which is not the page's doing.
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-quic"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *QUIET])
        yield found
        found.close()


@pytest.mark.parametrize("language", ["en", "ar", "ja"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_whole_in_a_browser(browser: Any, tmp_path: Path, language: str, width: int, scheme: str) -> None:
    run = finished_run.write(tmp_path, language)
    report.write(run)
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    address = (run.folder / report.PAGE).as_uri()
    page.goto(address)
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert said == []
    assert asked == [address]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.querySelectorAll('svg')].every(figure => figure.getBoundingClientRect().width > 250)")
    back, text = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    assert (brightness(back) > brightness(text)) == (scheme == "light")
    question = page.locator("summary bdi").first
    assert question.evaluate("part => getComputedStyle(part).direction") == ("rtl" if language == "ar" else "ltr")
    assert question.text_content() == finished_run.WORDS[language][0][1]
    page.close()


def brightness(colour: str) -> int:
    """Of ``rgb(255, 255, 255)``."""
    return sum(int(part) for part in colour.strip("rgba()").split(",")[:3])
