"""What a daemon logs is a line on standard error, with its time and level."""

import pytest
import structlog

from retinue import logs


def test_a_word_is_a_line_with_time_level_and_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    before = structlog.get_config()
    logs.to_stderr()
    try:
        structlog.get_logger().warning("a connection is refused", peer="127.0.0.1:40312")
    finally:
        structlog.configure(**before)
    printed = capsys.readouterr()
    assert printed.out == ""
    time, _, line = printed.err.partition(" ")
    assert time[4] == "-" and time.endswith("Z")
    assert line.split() == ["[warning", "]", "a", "connection", "is", "refused", "peer=127.0.0.1:40312"]
