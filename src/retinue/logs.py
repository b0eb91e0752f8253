"""How the daemons log: a line each on standard error, an event's key and its fields.

A key is SUBJECT.WHAT_HAPPENED, such as "openflow.rejected": it never changes and can be searched for. What
differs from line to line is in the fields, `reason` or `error` among them.

Much of a field may come from strangers. So it is cut, what a terminal would act upon is escaped, and of one
key only so many lines are written in a second, whoever causes them. Python's own reports (asyncio's among
them) take the same way.
"""

import logging
import sys
import time
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog

from retinue.core.limits import LONGEST_LOGGED, MOST_LOG_LINES
from retinue.core.text import cut, printable

Fields = MutableMapping[str, Any]


def to_stderr(clock: Callable[[], float] = time.monotonic) -> None:
    """`clock`: seconds, by which lines are counted (Limit)."""
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        processors=[
            Limit(clock=clock),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            shown,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
    )
    logging.basicConfig(handlers=[_OfPython()], level=logging.WARNING, force=True)


def shown(_: Any, __: str, fields: Fields) -> Fields:
    """Fields fit for a terminal: escaped and cut. A traceback keeps its lines, which are indented."""
    for key, value in fields.items():
        if key == "exception":
            fields[key] = printable(str(value), keep="\n").replace("\n", "\n    ")
        elif isinstance(value, str):
            fields[key] = printable(cut(value, LONGEST_LOGGED))
        elif not isinstance(value, bool | int | float | None):
            fields[key] = printable(cut(str(value), LONGEST_LOGGED))
    return fields


class Limit:
    """Lets so many lines of each key through in a second; the next one says how many were left out."""

    def __init__(self, most: int = MOST_LOG_LINES, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._keys: dict[str, tuple[int, int, int]] = {}
        """By key: the second, the lines written in it, the lines left out since the last one."""

    def __call__(self, _: Any, __: str, fields: Fields) -> Fields:
        key, now = str(fields.get("event", "")), int(self._clock())
        second, written, left_out = self._keys.get(key, (now, 0, 0))
        if second != now:
            second, written = now, 0
        if written >= self._most:
            self._keys[key] = second, written, left_out + 1
            raise structlog.DropEvent
        if left_out:
            fields["left_out"] = left_out
        self._keys[key] = second, written + 1, 0
        return fields


class _OfPython(logging.Handler):
    """What libraries report by Python's own logging."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception as error:
            text = f"{record.msg}: {error}"
        structlog.get_logger().warning(
            "python.reported",
            of=record.name,
            level_name=record.levelname,
            text=text,
            exc_info=record.exc_info,
        )
