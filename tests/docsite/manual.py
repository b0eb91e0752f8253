"""Manual pages of the configuration files, section 5: what the site's page of them says; and where they are
written, with those of the services.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from docsite import services
from docsite.configuration import FILES, Table, tables
from retinue.cli.manual import head, text

SECTION = 5
SEE_ALSO = {
    "Controller": "retinue-controller",
    "Agent": "retinue-agent",
    "Mobility": "retinue-mobility",
    "Resource": "retinue-resource",
    "Site": "retinue-setup",
}
"""By file, the manual page of the commands that read it."""
WHOSE = {"Mobility": "mobility manager", "Resource": "resource manager"}
"""By file, in words, where that is not its title."""


def pages() -> dict[str, str]:
    """By the name of the file."""
    found = {}
    for title, where, heading, kind in FILES:
        name = f"retinue-{title.lower()}.toml"
        lines = _lines(name, title, tables(where, heading, kind))
        found[f"{name}.{SECTION}"] = "\n".join(lines) + "\n"
    return found


def _lines(name: str, title: str, found: list[Table]) -> Iterator[str]:
    yield from head(name, SECTION, f"the {WHOSE.get(title, title.lower())}'s configuration file")
    yield from (
        ".SH DESCRIPTION",
        "TOML. A key that is not known, or a value that does not fit, is an error.",
    )
    for one in found:
        yield f'.SH "{text(one.heading or "KEYS ABOVE ALL TABLES")}"'
        yield from (text(one.does),) if one.does else ()
        for key in one.keys:
            default = f" Default: {key.default}." if key.default not in ("", "needed") else ""
            needed = " Needed." if key.default == "needed" else ""
            yield from (".TP", rf"\fB{text(key.name)}\fR", text(_plain(f"{key.takes}.{needed}{default}")))
            yield from (".br", text(_plain(key.meaning))) if key.meaning else ()
    yield from (".SH SEE ALSO", rf".BR {text(SEE_ALSO[title])} (1)")


def _plain(markdown: str) -> str:
    """Without links, and as it reads."""
    words = re.sub(r"\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\([^)\s]+\)", r"\1", markdown)
    return re.sub(r"\\([\\*_\[\]#|`])", r"\1", words).replace("&lt;", "<").replace("&gt;", ">")


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in {**pages(), **services.pages()}.items():
        (folder / name).write_text(page, encoding="utf-8")
