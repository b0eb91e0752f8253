"""How far the copy of a VM's memory is, drawn for people: a line when a pass begins, and as it goes on."""

from typing import Any

from retinue.cli import output

MIB = 1 << 20
SOON = 10.0
"""Seconds, of which tenths are told."""


class CopyProgress:
    """Of one migration. Called with it and with each event that tells of its copy."""

    def __init__(self) -> None:
        self._last: dict[str, Any] = {}

    def __call__(self, migration: dict[str, Any], event: dict[str, Any]) -> None:
        """ "     0.312 s  pass 2        9.1 MiB to go; the VM writes 20.4 MiB/s; ends in about 2 s"."""
        passed = event["at"] - migration["steps"][0]["at"]
        told = f"{event['remaining'] / MIB:.1f} MiB to go"
        if event.get("postcopy"):
            what, told = "post-copy", f"{told}; the VM runs at the target"
        else:
            what = f"pass {event['copy_pass']}" if event["copy_pass"] else "disks"
            if event["written_a_second"]:
                told = f"{told}; the VM writes {event['written_a_second'] / MIB:.1f} MiB/s"
        left = self._seconds_left(event)
        if left is not None:
            ends = f"{left:.1f} s" if left < SOON else output.span(left)
            told = f"{told}; ends in about {ends}"
        output.say(f"  {passed:>9.3f} s  {what:<13} {told}")

    def _seconds_left(self, event: dict[str, Any]) -> float | None:
        """Until the pass ends, if it goes on as since the last word; None where that is not known."""
        before, self._last = self._last, event
        same = [before.get(key) == event.get(key) for key in ("copy_pass", "postcopy")]
        if not all(same) or event["remaining"] >= before["remaining"] or event["at"] <= before["at"]:
            return None
        rate = (before["remaining"] - event["remaining"]) / (event["at"] - before["at"])
        return float(event["remaining"] / rate)


def unseen(migration: dict[str, Any], event: dict[str, Any]) -> None:
    """Where steps are not drawn."""
