"""The docs' site as `make docs` builds it, page by page in Debian's Chromium: what only a browser shows."""

import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.browser import Browser, chromium
from support.pages import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.long]

WIDTHS = (1280, 600)
"""Pixels: a desk's window, and a narrow one, in which the navigation folds away."""
WIDE = """
const most = document.documentElement.clientWidth;
const scrolls = (node) => {
  for (; node && node !== document.body; node = node.parentElement)
    if (["auto", "scroll", "hidden"].includes(getComputedStyle(node).overflowX)) return true;
  return false;
};
return [...document.querySelectorAll("article *")]
  .filter((node) => node.checkVisibility() && node.getBoundingClientRect().right > most + 1 && !scrolls(node))
  .map((node) => `${node.tagName} ${node.textContent.slice(0, 40)}`);
"""
"""What sticks out of the window and cannot be scrolled to."""
ELSEWHERE = """
return performance.getEntriesByType("resource").map((one) => one.name)
  .filter((name) => !name.startsWith(location.origin + "/") && !name.startsWith("data:"));
"""
EMPTY = """
return [...document.querySelectorAll("article table, article pre, article h1")]
  .filter((node) => !node.textContent.trim()).map((node) => node.outerHTML.slice(0, 80));
"""
FOUND = 'return document.querySelectorAll(".md-search-result__link").length'


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *words: object) -> None:
        pass


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, in a folder of its own."""
    pytest.importorskip("material", reason="make install-docs")
    folder = tmp_path_factory.mktemp("site")
    source, site = folder / "source", folder / "site"
    config = (ROOT / "mkdocs.yml").read_text()
    for old, new in (("build/docs-source", source), ("site_dir: build/docs", f"site_dir: {site}")):
        assert old in config
        config = config.replace(old, str(new))
    (folder / "mkdocs.yml").write_text(config)
    subprocess.run([sys.executable, "-m", "docsite", source], cwd=ROOT, check=True)
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", f"{folder}/mkdocs.yml"]
    subprocess.run(words, check=True, env=quiet)
    return site


@pytest.fixture(scope="module")
def url(built: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(built))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


async def test_each_page_is_whole_at_any_width_and_complains_of_nothing(
    built: Path, url: str, browser: Browser
) -> None:
    pages = sorted(str(path.relative_to(built)) for path in built.rglob("*.html"))
    assert len(pages) > 80
    faults = []
    for page in pages:
        await browser.open(f"{url}/{page}")
        for width in WIDTHS:
            browser.driver.set_window_size(width, 900)
            faults += [f"{page}, {width} wide: {what} sticks out" for what in await browser.run(WIDE)]
        faults += [f"{page} fetches {what}" for what in await browser.run(ELSEWHERE)]
        faults += [f"{page} is empty at {what}" for what in await browser.run(EMPTY)]
        faults += [f"{page}: {said}" for said in browser.said()]
    assert not faults, "\n".join(faults)


async def test_a_word_is_found_and_leads_to_its_page(url: str, browser: Browser) -> None:
    browser.driver.set_window_size(WIDTHS[0], 900)
    await browser.open(f"{url}/index.html")
    await browser.click(".md-search__input")
    await browser.type(".md-search__input", "subinterface")
    await browser.until(lambda driver: driver.execute_script(FOUND), "a result of the search")
    await browser.click(".md-search-result__link")
    await browser.sees("article", "subinterface")
    assert browser.said() == []


async def test_light_and_dark_are_one_click_apart(url: str, browser: Browser) -> None:
    await browser.open(f"{url}/index.html")
    background = "return getComputedStyle(document.body).backgroundColor"
    before = await browser.run(background)
    await browser.click("label[title=Dark]:not([hidden])")
    await browser.until(lambda driver: driver.execute_script(background) != before, "another background")
