"""What is known of mistakes from earlier runs, in build/mutation/verdicts.jsonl.

A verdict holds while the test files it rests on, and all they import, are the same: of a mistake that was
noticed the file of the test that did, of another all that were run. So a run that was broken off goes on
where it was, and after a change only what it concerns is tried again. Of a verdict that does not hold any
more, the test that had noticed is tried first.
"""

import json
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mutation.operators import Mutant
from mutation.recording import Stages, file_of

TOO_LONG = " (takes too long)"


class Verdicts:
    """`digests` of test files, by name."""

    def __init__(self, file: Path, digests: Mapping[str, str]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._digests = file, digests
        self._known: dict[tuple[str, ...], dict[str, Any]] = {}
        self._lock = threading.Lock()
        for line in file.read_text().splitlines() if file.exists() else ():
            row = json.loads(line)
            self._known[tuple(row["key"])] = row
        self._write(self._known.values())

    def last(self, mutant: Mutant) -> str | None:
        """The test that noticed it the last time, "" if none did; None if it was not tried."""
        row = self._known.get(mutant.key)
        return None if row is None else str(row["by"])

    def holds(self, mutant: Mutant, stages: Stages) -> bool:
        row = self._known.get(mutant.key)
        return row is not None and row["rests_on"] == self._rests_on(str(row["by"]), stages)

    def add(self, mutant: Mutant, by: str, stages: Stages) -> None:
        row = {"key": mutant.key, "line": mutant.line, "by": by, "rests_on": self._rests_on(by, stages)}
        with self._lock:
            self._known[mutant.key] = row
            with self._file.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def _rests_on(self, by: str, stages: Stages) -> list[str]:
        names = [by.removesuffix(TOO_LONG)] if by else [name for stage in stages for name in stage]
        return sorted({self._digests.get(file_of(name), "") for name in names})

    def _write(self, rows: Iterable[dict[str, Any]]) -> None:
        """A line for each, where there were several."""
        self._file.write_text("".join(json.dumps(row) + "\n" for row in rows))
