"""What is wrong with a site that was built: what a browser would fetch from elsewhere when it shows a page,
and Markdown that was not understood.
"""

import re
from html.parser import HTMLParser
from pathlib import Path

REMOTE = re.compile(r"(?:https?:)?//")
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}
"""By element, the attribute whose address is fetched at once."""
LINKS = {
    "stylesheet",
    "preconnect",
    "preload",
    "prefetch",
    "dns-prefetch",
    "icon",
    "modulepreload",
    "manifest",
}
"""Of <link>: what is fetched. Others, such as canonical, only say something."""
IN_STYLES = re.compile(r"(?:url\(|@import\s+)[\"']?((?:https?:)?//[^\"')\s;]+)")
AS_TYPED = re.compile(r"^[*-] .*|\]\(.*|\*\*.*|^\|.*\|$", re.MULTILINE)
"""In running text: a list, a link, emphasis or a table that is none."""


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.typed: list[str] = []
        self._code = 0
        self._text: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in attrs}
        address = said.get(LOADED.get(tag, ""), "")
        if tag == "link" and LINKS & set(said.get("rel", "").split()):
            address = said.get("href", "")
        if REMOTE.match(address):
            self.loaded.append(address)
        if tag == "p":
            self._text = []
        self._code += tag in ("code", "pre")

    def handle_data(self, data: str) -> None:
        if self._text is not None and not self._code:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag in ("code", "pre")
        if tag == "p" and self._text is not None:
            self.typed += AS_TYPED.findall("".join(self._text))
            self._text = None


def faults(site: Path) -> list[str]:
    """Each as FILE: what is wrong."""
    found = []
    for file in sorted(site.rglob("*")):
        name = file.relative_to(site)
        if file.suffix == ".html":
            page = _Page()
            page.feed(file.read_text(encoding="utf-8"))
            found += [f"{name}: fetched from elsewhere: {address}" for address in page.loaded]
            found += [f"{name}: stands there as it was typed: {line}" for line in page.typed]
        elif file.suffix == ".css":
            addresses = IN_STYLES.findall(file.read_text(encoding="utf-8"))
            found += [f"{name}: fetched from elsewhere: {address}" for address in addresses]
    return found
