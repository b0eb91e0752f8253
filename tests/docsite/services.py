"""Manual pages of the services, section 8: what docs/operators.md says of each, and its unit."""

import re
from collections.abc import Iterator

from retinue.cli.manual import head, text
from support.pages import ROOT, table

SECTION = 8
PAGE, HEADING = "docs/operators.md", "As services of systemd"
SERVICES = ("retinue-controller", "retinue-agent", "retinue-mobility", "retinue-resource")


def pages() -> dict[str, str]:
    """By the name of the file."""
    return {f"{name}.{SECTION}": "\n".join(_lines(name)) + "\n" for name in SERVICES}


def unit(service: str) -> str:
    return (ROOT / f"deploy/systemd/{service}.service").read_text()


def setting(service: str, key: str) -> str:
    """Of its unit; "" where it has none."""
    found = re.search(rf"^{key}=(.*)$", unit(service), re.MULTILINE)
    return found[1] if found else ""


def _lines(name: str) -> Iterator[str]:
    what = setting(name, "Description").removeprefix("retinue, ")
    yield from head(name, SECTION, f"{what}, as a service of systemd")
    yield from (
        ".SH SYNOPSIS",
        rf"\fBsystemctl enable \-\-now {text(name)}\fR",
        ".br",
        r"\fB" + _command(name) + r"\fR",
    )
    for row in table(PAGE, HEADING):
        said = _plain(row[f"`{name}`"])
        yield f'.SH "{text("DESCRIPTION" if row[""] == "does" else row[""].upper())}"'
        yield text(f"{said[0].upper()}{said[1:]}.")
    noun = name.removeprefix("retinue-")
    also = [(name, 1), (f"{name}.toml", 5), ("retinue-doctor", 1), ("systemctl", 1), ("journalctl", 1)]
    also += [(f"retinue-{'agent' if noun == 'controller' else 'controller'}", SECTION)]
    yield ".SH SEE ALSO"
    yield from (
        rf".BR {text(page)} ({section}){',' * (number < len(also))}"
        for number, (page, section) in enumerate(also, 1)
    )


def _command(name: str) -> str:
    return text(setting(name, "ExecStart").removeprefix("/usr/bin/"))


def _plain(markdown: str) -> str:
    """Without links and code's marks."""
    words = re.sub(r"\[([^\]]*)\]\([^)\s]+\)", r"\1", markdown)
    return words.replace("`", "")
