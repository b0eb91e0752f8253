"""A switch that cannot look at a packet's size (Open vSwitch before 2.12) has all entries but those that do.

What is too large for where it goes is lost there in silence, as it would be without them.
"""

from retinue.core.pipeline.entry import Change, CheckLarger, Entry, Flow, Program

_UNKNOWN = ("BAD_TYPE", "BAD_EXPERIMENTER", "BAD_EXP_TYPE")
"""Codes of OpenFlow's BAD_ACTION for an action that the switch does not know."""


def is_rejected(change: Change, error: Exception) -> bool:
    """True where a switch may have rejected a change since it does not know the action."""
    is_asked = any(looks(flow) for flow in change.add)
    return is_asked and "BAD_ACTION" in str(error) and any(code in str(error) for code in _UNKNOWN)


def without(program: Program) -> Program:
    return {key: entry for key, entry in program.items() if not looks(entry)}


def looks(entry: Entry) -> bool:
    """True for an entry with that action."""
    return isinstance(entry, Flow) and any(isinstance(action, CheckLarger) for action in entry.actions)
