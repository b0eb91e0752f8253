"""How sessions are read from pages, and held against what was printed, as tests/lab/test_sessions.py does."""

import pytest

from support.pages import section, text
from support.sessions import Step, missing, steps


def test_a_session_is_what_is_typed_and_what_is_printed() -> None:
    page = "```\n$ a 'b\nc' \\\n  d\nx\n\n y\n$ e\n```\n```\nf() { g; }\n```\n```\nno session\n```\n"
    assert steps(page) == [Step("a 'b\nc' \\\n  d", ("x", " y")), Step("e", ()), Step("f() { g; }", ())]


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
