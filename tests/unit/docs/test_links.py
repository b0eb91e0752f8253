"""What the pages point to is there: other pages, headings, files of the repository, tests."""

import re
from functools import cache

import pytest

from support.pages import PAGES, ROOT, anchors, fenced, links, section, text, ticked

FILE = re.compile(r"[\w.-]+(?:/[\w.-]+)*\.(?:py|md|toml|txt|c|in)")
MADE_BY_USERS = re.compile(
    r"(controller|agent|mobility|resource|tokens|site|small|topology|ca|demo|outside|pki/.*|requirements-?\w*)\.(toml|txt)$"
)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target, anchor in links(page):
        assert (ROOT / target).exists(), f"{page} links to {target}, which is not there"
        if anchor:
            assert anchors(target).count(anchor) == 1, (
                f"{page} links to {target}, which has not one #{anchor}"
            )


@cache
def files() -> set[str]:
    """Every file of the repository that a page may name, by each way to shorten its path from the left."""
    found: set[str] = set()
    for top in ("src", "tests", "docs", "deploy"):
        for path in (ROOT / top).rglob("*.*"):
            parts = path.relative_to(ROOT).parts
            found.update("/".join(parts[start:]) for start in range(len(parts)))
    return found | {path.name for path in ROOT.iterdir()}


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page: str) -> None:
    for word in ticked(text(page)):
        if FILE.fullmatch(word) and not MADE_BY_USERS.search(word):
            assert word in files(), f"{page} names {word}, which is nowhere"


def test_every_file_that_a_source_file_names_exists() -> None:
    """In comments and docstrings: a name of before sends its reader nowhere."""
    for path in sorted((ROOT / "src").rglob("*.[pc]*")):
        if path.suffix in (".py", ".c"):
            for word in re.findall(r"(?<![\w./{}*-])[\w-]+(?:/[\w.-]+)*\.(?:py|md)\b", path.read_text()):
                assert word in files(), f"{path.relative_to(ROOT)} names {word}, which is nowhere"


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/requirements.md"])
def test_every_test_that_is_named_exists(page: str) -> None:
    """docs/requirements.md is looked at by `make check`."""
    for path, name in re.findall(r"`(tests/[\w/.]+\.py)::(\w+)`", text(page)):
        assert f"def {name}(" in (ROOT / path).read_text(), f"{page} names {path}::{name}, which is not there"


def folders_shown(page: str, heading: str) -> set[str]:
    """The folders below src/retinue/ that a tree shows, by its indentation."""
    (tree,) = (block for block in fenced(section(page, heading)) if block.startswith("src/retinue/"))
    found, parents = set(), [""]
    for line in tree.splitlines()[1:]:
        if (entry := re.match(r"((?:  )+)([\w-]+)/", line)) is not None:
            parents = [*parents[: len(entry[1]) // 2], entry[2]]
            found.add("/".join(parents[1:]))
    return found


def test_the_trees_show_the_folders_that_there_are() -> None:
    top = ROOT / "src" / "retinue"
    packages = {str(path.parent.relative_to(top)) for path in top.rglob("__init__.py")} - {"."}
    shallow = {name for name in packages if name.count("/") <= 1}
    told_in_words = {
        name for name in shallow if name.partition("/")[0] in ("southbound", "security", "hypervisor")
    }
    guide = folders_shown("docs/development.md", "The tree")
    assert guide == shallow - {name for name in told_in_words if "/" in name}
    readme = folders_shown("README.md", "Where to read on")
    assert readme == {name for name in shallow if "/" not in name or name.startswith("core/")}
