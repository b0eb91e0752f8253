"""How sessions are read from pages, and held against what was printed, as tests/lab/test_sessions.py does."""

import re

import pytest

from support.page_sessions import SESSIONS
from support.pages import PAGES, ROOT, section, text
from support.sessions import Block, Step, blocks, missing, steps

OF_OURS = (
    "CHANGELOG.md",
    "docs/design/",
    "docs/measurements/",
    "docs/development.md",
    "docs/requirements.md",
)
"""Pages of whoever works on this tree, and of what was measured: nobody types from them to use it."""
FOR_USERS = [page for page in PAGES if not page.startswith(OF_OURS)]
PROGRAMS = (
    *("retinue", "make", "sudo", "pip", "ssh", "scp", "systemctl", "apt-get", "virsh", "ansible-playbook"),
    *("ovs-vsctl", "ovs-appctl", "ovs-ofctl", "ovsdb-tool", "ovsdb-server", "dig", "curl", "python3"),
    *("until", "for", "cd", "export", "fc-node", "diskscribble"),
)
TYPED = re.compile(rf"^(?:\$ |(?:{'|'.join(PROGRAMS)})(?: |$))", re.MULTILINE)
"""How a line of a block begins that somebody types."""


def to_type(page: str) -> list[Block]:
    return [block for block in blocks(text(page)) if TYPED.search(block.body)]


def test_a_session_is_what_is_typed_and_what_is_printed() -> None:
    page = "```\n$ a 'b\nc' \\\n  d\nx\n\n y\n$ e\n```\n```\nf() { g; }\n```\n```\nno session\n```\n"
    assert steps(page) == [Step("a 'b\nc' \\\n  d", ("x", " y")), Step("e", ()), Step("f() { g; }", ())]


def test_indented_blocks_are_sessions_and_those_with_a_reason_are_none() -> None:
    page = (
        "a\n\n    $ b\n    x\n\n- c\n\n      $ d\n\n<!-- not run: why -->\n\n    $ e\n\n"
        "<!-- as in: f -->\n```\n$ g\n```\n<!-- run by: h -->\ntext\n\n    $ i\n\na\n    $ no block\n"
    )
    assert steps(page) == [Step("b", ("x",)), Step("d", ()), Step("i", ())]
    assert [block.mark for block in blocks(page)] == ["", "", "not run: why", "as in: f", ""]


@pytest.mark.parametrize("page", FOR_USERS)
def test_every_command_on_a_page_is_typed_by_a_test_or_says_why_not(page: str) -> None:
    typed = {step.typed for session in SESSIONS.values() for step in steps(session.typed)}
    missed = [
        block.body
        for block in to_type(page)
        if not block.mark
        and not (
            steps(f"```\n{block.body}```") and {s.typed for s in steps(f"```\n{block.body}```")} <= typed
        )
    ]
    assert not missed, "\n".join(missed)


def test_what_no_session_types() -> None:
    """What cannot be run here; all other commands are run, on their page's words or on a test's own."""
    marks = {(page, block.mark) for page in FOR_USERS for block in to_type(page) if block.mark}
    assert {(page, mark) for page, mark in marks if mark.startswith("not run: ")} == {
        (
            "docs/compare.md",
            "not run: measurements, of minutes to hours; tests/lab/test_compare.py runs the same in small",
        ),
        ("docs/lab.md", "not run: a synopsis; the tutorial types them"),
        ("docs/proof.md", "not run: some minutes each; tests/property/test_proof.py has a part of it"),
        ("docs/tutorial.md", "not run: it makes what the tests run in"),
        ("docs/web.md", "not run: two machines; the door itself is tried above"),
    }


@pytest.mark.parametrize("page", FOR_USERS)
def test_where_commands_are_run_there_is_a_test_that_knows_them(page: str) -> None:
    """The words of each, or for those that are typed as they stand the page's name."""
    for block in to_type(page):
        how, _, file = block.mark.partition(": ")
        if how in ("as in", "run by"):
            told = (ROOT / file).read_text()
            told += "".join(path.read_text() for path in (ROOT / "tests/support/lab").glob("*.py"))
            for line in block.body.splitlines():
                if (found := re.match(r"(?:\$ )?retinue ([a-z-]+) ([a-z-]+)", line)) is not None:
                    assert all(word in told for word in found.groups()), f"{file} does not know {line}"


def test_the_pages_that_are_typed_in_a_laboratory_have_sessions() -> None:
    assert len(steps(text("docs/tutorial.md"))) > 20
    assert len(steps(section("README.md", "A first session"))) > 6


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        (
            "VM  MAC  IP\nvm1  52:54:00:7b:11:e3  10.1.0.9",
            "VM   MAC   IP\n\nvm1  52:54:00:00:00:01  10.1.0.100\n",
        ),
        ("a\n...\nc", "a\nb\nc"),
        ("x ... y ...", "x 1 y 2 z"),
        ("0.620 s  switched", "1.1 s  planned\n12.5 s switched"),
        ("COUNT 3  just now  372a6aaa", "COUNT 5  2 s ago  4711aaaf"),
        ("in_port=3,dpid 0x51", "in_port=14,dpid 0x1f"),
        ("400 received, 0% packet loss, time 1912ms", "399 received, 0% packet loss, time 7ms"),
    ],
)
def test_what_differs_from_run_to_run_may_differ(shown: str, printed: str) -> None:
    assert missing(tuple(shown.splitlines()), printed) is None


@pytest.mark.parametrize(
    ("shown", "printed", "line"),
    [
        ("a\nb", "b\na", "b"),
        ("0% packet loss", "25% packet loss", "0% packet loss"),
        ("100% packet loss", "0% packet loss", "100% packet loss"),
        ("VM  SWITCH  PORT", "VM  PORT  SWITCH", "VM  SWITCH  PORT"),
        ("vm1  10.1.0.100  running", "vm1  -  running", "vm1  10.1.0.100  running"),
        ("lab default is down", "", "lab default is down"),
    ],
)
def test_what_is_not_printed_is_found(shown: str, printed: str, line: str) -> None:
    assert missing(tuple(shown.splitlines()), printed) == line
