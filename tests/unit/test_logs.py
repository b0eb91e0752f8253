"""What a daemon logs is a line on standard error, with its time and level."""

import ast
import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from retinue import logs
from retinue.core.limits import LONGEST_LOGGED, MOST_LOG_LINES


def test_an_event_is_a_line_with_time_level_and_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    before = structlog.get_config()
    logs.to_stderr(lambda: 0.0)
    try:
        structlog.get_logger().warning("peer.rejected", peer="127.0.0.1:40312")
    finally:
        structlog.configure(**before)
    printed = capsys.readouterr()
    assert printed.out == ""
    time, _, line = printed.err.partition(" ")
    assert time[4] == "-" and time.endswith("Z")
    assert line.split() == ["[warning", "]", "peer.rejected", "peer=127.0.0.1:40312"]


KEY = re.compile(r"[a-z_]+(\.[a-z_]+)+")
LEVELS = ("debug", "info", "warning", "error", "exception")
SRC = Path(__file__).parents[2] / "src"


def logged(source: str) -> Iterator[tuple[int, str]]:
    """Line and event of each call of a module's `log`; "" for an event that is not a plain string."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=level)) if level in LEVELS:
                match node.args:
                    case [ast.Constant(value=str(event))]:
                        yield node.lineno, event
                    case _:
                        yield node.lineno, ""


def test_events_are_logged_by_keys_that_can_be_searched_for() -> None:
    calls = [
        (f"{path.relative_to(SRC)}:{line}", event)
        for path in sorted(SRC.rglob("*.py"))
        for line, event in logged(path.read_text())
    ]
    assert len(calls) > 50
    assert [call for call in calls if not KEY.fullmatch(call[1])] == []


@contextlib.contextmanager
def logging_begun() -> Iterator[None]:
    """All within one second, however long it takes."""
    before = structlog.get_config(), logging.getLogger().handlers[:]
    logs.to_stderr(clock=lambda: 0.0)
    try:
        yield
    finally:
        structlog.configure(**before[0])
        logging.getLogger().handlers[:] = before[1]


def test_what_a_stranger_wrote_is_one_line_of_visible_text(capsys: pytest.CaptureFixture[str]) -> None:
    bad = {"reason": "x" * 100_000, "peer": b"\x1b[2K", "where": {"\x1b": "\u202e"}}
    with logging_begun():
        path = "/v1/\x1b[31mred\n2026-01-01 [info] forged"
        structlog.get_logger().warning("rest.rejected", path=path, **bad)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    assert len(line) < 3 * LONGEST_LOGGED


def test_a_traceback_forges_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("\x1b[31mred\n2026-01-01T00:00:00Z [info     ] forged")
    except ValueError:
        with logging_begun():
            structlog.get_logger().exception("controller.error")
    first, *more = capsys.readouterr().err.splitlines()
    assert "controller.error" in first
    assert "forged" in "".join(more)
    assert all(line.startswith("    ") and line.isprintable() for line in more if "Traceback" not in line)


def test_of_one_key_so_many_lines_a_second() -> None:
    now = 0.0
    limit = logs.Limit(5, clock=lambda: now)
    kept: list[int] = []
    for second in range(3):
        now = float(second)
        for number in range(1000):
            with contextlib.suppress(structlog.DropEvent):
                kept.append(limit(None, "", {"event": "ovsdb.rejected"}).get("left_out", 0))
                assert number < 5
            if number == 500:
                assert "left_out" not in limit(None, "", {"event": f"other.{second}"})
    assert kept == [0] * 5 + [995, 0, 0, 0, 0] * 2


def test_what_python_itself_reports_takes_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_begun():
        for _ in range(10_000):
            logging.getLogger("asyncio").error("socket.accept() out of system resource \x1b[1A")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == MOST_LOG_LINES
    assert all(line.isprintable() and "python.reported" in line for line in lines)
