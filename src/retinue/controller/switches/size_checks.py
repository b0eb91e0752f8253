"""A switch that cannot look at a packet's size (Open vSwitch before 2.12) has all entries but those that do.

What is too large for where it goes is lost there in silence, as it would be without them.
"""

from retinue.core.pipeline.compiler import Entry, Program
from retinue.core.pipeline.entry import Change, CheckLarger, Flow

_UNKNOWN = ("BAD_TYPE", "BAD_EXPERIMENTER", "BAD_EXP_TYPE")
"""Codes of OpenFlow's BAD_ACTION for an action that the switch does not know."""


def is_rejected(change: Change, error: Exception) -> bool:
    """True where a switch may have rejected a change since it does not know the action."""
    looks = any(_looks(flow) for flow in change.add)
    return looks and "BAD_ACTION" in str(error) and any(code in str(error) for code in _UNKNOWN)


def without(program: Program) -> Program:
    return {key: entry for key, entry in program.items() if not _looks(entry)}


def _looks(entry: Entry) -> bool:
    return isinstance(entry, Flow) and any(isinstance(action, CheckLarger) for action in entry.actions)
