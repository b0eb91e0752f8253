"""The docs' site, as `make docs` gives it to MkDocs: every page is in the navigation, every link leads
somewhere, and the pages that are made of the code have all of it.
"""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from posixpath import dirname, normpath

import pytest
from typer.main import get_command

from docsite import manual, services
from docsite.configuration import FILES
from docsite.look import faults
from docsite.markdown import cell, prose
from docsite.stage import OPENAPI, indented, rewritten, site
from retinue.cli.main import app
from retinue.cli.reference import nouns
from retinue.protocol.openapi import description
from support.pages import ROOT, anchors_in, row_by_key, table, targets_in, text

PARTS = ["Tutorial", "How to", "Reference", "Explanation"]

pages = cache(site)


def navigation() -> dict[str, list[str]]:
    """By part of the navigation, its pages; "" is above all of them."""
    found: dict[str, list[str]] = {"": []}
    part = ""
    for line in (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2].splitlines():
        if (heading := re.fullmatch(r"  - (.*):", line)) is not None:
            part = heading[1]
            found[part] = []
        elif (page := re.search(r"([\w./-]+\.md)$", line)) is not None:
            found["" if line.startswith("  - ") else part].append(page[1])
    return found


def test_every_page_is_in_the_navigation_once() -> None:
    parts = navigation()
    assert list(parts) == ["", *PARTS] and parts[""] == ["index.md"]
    assert sorted(page for listed in parts.values() for page in listed) == sorted(pages())


def test_records_are_listed_in_their_order() -> None:
    records = sorted(path.name for path in (ROOT / "docs/design").glob("[0-9]*.md"))
    listed = re.findall(r"^\| \[\d+\]\(([\w.-]+)\)", text("docs/design/README.md"), re.MULTILINE)
    in_navigation = [page.removeprefix("design/") for listed in navigation().values() for page in listed]
    assert listed == records == [page for page in in_navigation if page in records]


def test_every_link_of_the_site_leads_somewhere() -> None:
    anchors = {name: anchors_in(page) for name, page in pages().items()}
    for name, page in pages().items():
        for target in targets_in(page):
            path, _, anchor = target.partition("#")
            to = normpath(f"{dirname(name)}/{path}".lstrip("/")) if path else name
            assert to in anchors or to == OPENAPI, f"{name} links to {target}: there is no such page"
            if anchor:
                assert anchors[to].count(anchor) == 1, (
                    f"{name} links to {target}: not one heading is called so"
                )


def test_links_are_those_of_the_site() -> None:
    page = "[a](../README.md#x) [b](api.md) [c](../Makefile) [d](#e) [f](https://g.example/)"
    assert rewritten("docs/lab.md", page) == "[a](readme.md#x) [b](api.md) c [d](#e) [f](https://g.example/)"
    assert rewritten("README.md", "[a](docs/lab.md) [b][c]") == "[a](lab.md) [b][c]"
    assert rewritten("docs/design/README.md", "[the [x]](../lab.md#nodes)") == "[the [x]](../lab.md#nodes)"
    with pytest.raises(AssertionError, match="nope"):
        rewritten("docs/lab.md", "[a](nope.md)")


def test_what_belongs_to_an_item_stands_behind_four_spaces() -> None:
    assert indented("* a\n  b\n\n      c\n* d\n10. e\n    f\n") == (
        "* a\n    b\n\n        c\n\n* d\n10. e\n    f\n"
    )
    assert indented("* a\n\n    b\n\nc\n\n    d\n") == "* a\n\n      b\n\nc\n\n    d\n"


def test_a_border_inside_code_is_none() -> None:
    assert rewritten("README.md", "| `a\\|b` \\| c |\n\n`d\\|e`") == "| `a|b` \\| c |\n\n`d\\|e`"
    assert cell("`a|b` | c") == "`a|b` \\| c"


def test_text_is_shown_as_it_stands() -> None:
    assert prose("a_b <c> `d_e <f>` [g]") == r"a\_b &lt;c&gt; `d_e <f>` \[g\]"
    assert prose("it`s *") == r"it\`s \*"


def test_every_command_and_option_is_on_its_page() -> None:
    page = pages()["commands.md"]
    for noun in nouns(get_command(app)):
        for command in noun.verbs or (noun.alone,):
            assert command is not None
            section = page.partition(f"\n{'###' if noun.verbs else '##'} {' '.join(command.words)}\n")[2]
            section = section.partition("\n## ")[0].partition("\n### ")[0]
            assert section, command.call
            for names, _ in command.options:
                assert f"| `{names}` |" in section, f"{command.call}: {names}"


def test_every_path_and_type_is_on_its_page() -> None:
    api = description()
    headings = set(re.findall(r"^### (.*)$", pages()["rest.md"], re.MULTILINE))
    assert {f"{verb.upper()} {path}" for path, verbs in api["paths"].items() for verb in verbs} <= headings
    types = re.findall(r"^## (.*)$", pages()["rest-types.md"], re.MULTILINE)
    assert len(types) == len(set(types)) == len(api["components"]["schemas"])


def test_every_key_of_a_configuration_file_is_on_its_page() -> None:
    page = pages()["configuration.md"]
    for title, where, heading, _ in FILES:
        for key, row in row_by_key(table(where, heading)).items():
            group, _, name = key.rpartition(".")
            start = rf"### {title}: \[+(?:\w+\.)?{group}\]+\n" if group else rf"## {title}\n"
            (section,) = re.findall(rf"^{start}(.*?)(?=^#|\Z)", page, re.DOTALL | re.MULTILINE)[:1] or [""]
            if key != "vm":
                assert f"| `{name}` |" in section, f"{title}: {key}"
                assert row["meaning"][:9] in section, f"{title}: {key}"


FILE_NAMES = ("controller", "agent", "mobility", "resource", "site")


def test_configuration_files_have_manual_pages() -> None:
    made = manual.pages()
    assert set(made) == {f"retinue-{name}.toml.5" for name in FILE_NAMES}, "and docs/operators.md names them"
    controller = made["retinue-controller.toml.5"]
    assert r"\fBmandate_seconds\fR" in controller
    assert "](" not in controller and r"\_" not in controller


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff")
def test_groff_has_nothing_to_say_against_them(tmp_path: Path) -> None:
    manual.write(tmp_path)
    files = sorted(map(str, tmp_path.iterdir()))
    read = subprocess.run(["groff", "-man", "-Tutf8", "-ww", *files], capture_output=True, text=True)
    assert (read.returncode, read.stderr) == (0, "")
    assert "a router that has been asked and has not answered" in " ".join(read.stdout.split())


@pytest.mark.parametrize("service", services.SERVICES)
def test_a_service_has_a_manual_page_and_it_says_what_its_unit_does(service: str) -> None:
    page = services.pages()[f"{service}.8"].replace(r"\-", "-")
    assert f"man:{service}(8)" in services.unit(service)
    *_, config = re.findall(r"--config (\S+)", services.setting(service, "ExecStart"))
    says = (
        config,
        f"/var/lib/{state}" if (state := services.setting(service, "StateDirectory")) else "nothing",
        f"hangs for {services.setting(service, 'WatchdogSec')} seconds",
        f"after {services.setting(service, 'RestartSec')} second",
        f"(Type={services.setting(service, 'Type')})",
        f"user {services.setting(service, 'User')}," if services.setting(service, "User") else "root,",
        f"(KillMode={mode})" if (mode := services.setting(service, "KillMode")) else "",
    )
    assert [words for words in says if words not in page] == []
    assert ("systemctl reload" in page) is bool(services.setting(service, "ExecReload"))


def test_what_is_wrong_with_a_site_is_found(tmp_path: Path) -> None:
    good = (
        '<link rel="canonical" href="https://x.example/"><script src="a.js"></script><p>a <code>**</code></p>'
    )
    (tmp_path / "good.html").write_text(good)
    (tmp_path / "good.css").write_text("a { background: url(b.png) } /* https://x.example/ */")
    assert faults(tmp_path) == []
    (tmp_path / "bad.html").write_text('<script src="//cdn.example/a.js"></script><p>Of\n* one</p>')
    (tmp_path / "bad.css").write_text("@import 'https://fonts.example/f.css';")
    assert faults(tmp_path) == [
        "bad.css: fetched from elsewhere: https://fonts.example/f.css",
        "bad.html: fetched from elsewhere: //cdn.example/a.js",
        "bad.html: stands there as it was typed: * one",
    ]
