"""The page's files over HTTP: what is served, under which policy, and to whom."""

import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from retinue.controller.api.access import Access
from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.controller.web import page
from retinue.controller.web.page import TYPES
from support.fabric.networks import fabric
from support.pki_files import Certificates
from support.web_page import TOKENS, Served

STATIC = Path(page.__file__).parent / "static"
FILES = sorted(path.name for path in STATIC.iterdir())


async def ask(
    url: str, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, Mapping[str, str], bytes]:
    """The URL as it stands: nothing of it is put right on the way."""
    whole = URL(url, encoded=True)
    async with aiohttp.ClientSession() as http, http.request(method, whole, headers=headers) as answer:
        return answer.status, answer.headers, await answer.read()


@pytest.mark.parametrize("name", FILES)
async def test_a_file_is_served_to_everybody_as_what_it_is(served: Served, name: str) -> None:
    status, headers, content = await ask(f"{served.url}/web/{name}")
    assert (status, content) == (200, (STATIC / name).read_bytes())
    assert headers["Content-Type"] == f"{TYPES[Path(name).suffix]}; charset=utf-8"


async def test_nothing_is_read_as_what_it_is_not_and_nothing_comes_from_elsewhere(served: Served) -> None:
    for path in ("/", "/web/main.js", "/web/icon.svg"):
        _, headers, _ = await ask(served.url + path)
        policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["object-src"] == "'none'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str | None] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.scripts.append(dict(attrs).get("src"))
        self.inline += [name for name, _ in attrs if name == "style" or name.startswith("on")]


def test_no_script_and_no_style_stands_in_the_html() -> None:
    tags = _Tags()
    tags.feed((STATIC / "index.html").read_text())
    assert tags.scripts == ["/web/main.js"]
    assert tags.inline == []


def test_no_module_makes_html_of_text() -> None:
    """The browser would refuse it, too; and all that a module imports is the page's own."""
    for path in STATIC.glob("*.js"):
        text = path.read_text()
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", text
        ), path
        imported = re.findall(r'^import [^;]*? from "([^"]+)"', text, re.MULTILINE)
        assert all(name.removeprefix("./") in FILES for name in imported), path


@pytest.mark.parametrize(
    "path",
    [
        "/web/nothing.js", "/web/../web/main.js", "/web/..%2f..%2fpage.py", "/web/%2e%2e/page.py",
        "/web/page.py", "/web/..%5cpage.py", "/web/main.js/", "/web//etc/passwd", "/web/%00", "/web/",
        "/web/main.js%00.svg",
    ],
)  # fmt: skip
async def test_no_other_path_is_a_file(served: Served, path: str) -> None:
    """Who has logged in is told that it is none; to others it may be anything."""
    status, headers, content = await ask(
        served.url + path, headers={"Authorization": f"Bearer {TOKENS['reader']}"}
    )
    assert status == 404
    assert headers["Content-Type"].startswith("application/json") and b"no_such_path" in content


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_files_are_read_and_nothing_else(served: Served, method: str) -> None:
    status, _, _ = await ask(f"{served.url}/web/main.js", method)
    assert status in (401, 405)


async def test_a_file_that_is_known_is_not_sent_again(served: Served) -> None:
    _, headers, _ = await ask(f"{served.url}/web/main.js")
    status, _, content = await ask(f"{served.url}/web/main.js", headers={"If-None-Match": headers["ETag"]})
    assert (status, content) == (304, b"")


async def test_who_reads_files_is_still_a_stranger(served: Served) -> None:
    """They open no door: the connection is closed, and what else is asked needs a log-in."""
    _, headers, _ = await ask(f"{served.url}/")
    assert headers["Connection"] == "close"
    for path in ("/web/who", "/v1/vms", "/v1/events", "/web2/main.js"):
        assert (await ask(served.url + path))[0] == 401, path


@pytest.mark.parametrize("role", TOKENS)
async def test_the_page_is_told_who_has_logged_in(served: Served, role: str) -> None:
    shown = {"Authorization": f"Bearer {TOKENS[role]}"}
    status, _, content = await ask(f"{served.url}/web/who", headers=shown)
    told = {"name": f"{role} {role}-1", "manages": role == "manager"}
    assert (status, json.loads(content)) == (200, told)


async def test_another_sites_page_changes_nothing_with_its_readers_certificate(served: Served) -> None:
    """A browser shows the certificate for whatever page asks, and says which one does."""
    shown = {"Authorization": f"Bearer {TOKENS['manager']}"}
    drain = f"{served.url}/v1/servers/server1/drain"
    for origin in ("https://elsewhere.example", "null", "http://127.0.0.1:1", "http://[x"):
        assert (await ask(drain, "POST", {**shown, "Origin": origin}))[0] == 403, origin
    assert not served.controller.net.drained
    assert (await ask(drain, "POST", {**shown, "Origin": served.url}))[0] == 200
    assert served.controller.net.drained


@pytest.mark.parametrize(
    ("party", "status", "manages"),
    [(None, 401, None), ("reader/eve", 200, False), ("manager/anna", 200, True)],
)
async def test_over_tls_a_certificate_is_a_log_in_and_files_need_none(
    tmp_path: Path, party: str | None, status: int, manages: bool | None
) -> None:
    certificates = Certificates(tmp_path)
    controller = Controller(fabric(), clock=lambda: 1000.0)
    api = Api(
        controller, dict, Access(controller, open=False), ssl=certificates.server(certificate_needed=False)
    )
    url = f"https://127.0.0.1:{await api.start('127.0.0.1', 0)}"
    shows = aiohttp.TCPConnector(ssl=certificates.client(party))
    async with aiohttp.ClientSession(connector=shows) as http:
        async with http.get(f"{url}/") as answer:
            assert (answer.status, answer.headers["Connection"]) == (200, "close")
        async with http.get(f"{url}/web/who") as answer:
            assert answer.status == status
            assert (await answer.json()).get("manages") is manages
    await api.stop()
    assert api.rejected == ({"not_authenticated": 1} if party is None else {})
