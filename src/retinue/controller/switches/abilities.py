"""What not every switch can do: one that cannot has all entries but those that ask for it.

A switch says so by rejecting a change that has such an entry. It is told of no other until it connects again:
then it may be another program.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from retinue.core.pipeline.entry import ERICSSON, Change, CheckLarger, Entry, Flow, Program, SetField


@dataclass(frozen=True, slots=True)
class Ability:
    """Something that entries ask of a switch."""

    event: str
    """In the log, where a switch has it not."""
    is_asked: Callable[[Flow], bool]
    errors: tuple[str, ...]
    """Names of OpenFlow's errors by which a switch says that it cannot."""


SIZES = Ability(
    "switch.looks_at_no_sizes",
    lambda flow: any(isinstance(action, CheckLarger) for action in flow.actions),
    ("BAC_BAD_TYPE", "BAC_BAD_EXPERIMENTER", "BAC_BAD_EXP_TYPE"),
)
"""To look at a packet's size (Open vSwitch since 2.12). Without it what is too large for where it goes is
lost in silence."""
ND = Ability(
    "switch.answers_no_nd",
    lambda flow: any(isinstance(action, SetField) and action.field & ERICSSON for action in flow.actions),
    ("BAC_BAD_SET_ARGUMENT", "BAC_BAD_SET_TYPE", "BMC_BAD_FIELD"),
)
"""To make a neighbour advertisement of a solicitation (Open vSwitch since 2.11, with a datapath in user
space). Without it the controller is asked, as of all that a switch does not answer."""
ALL = (SIZES, ND)


def missing(change: Change, error: Exception) -> list[Ability]:
    """What the switch may lack, by the error with which it has rejected a change."""
    return [
        ability
        for ability in ALL
        if any(code in str(error) for code in ability.errors) and any(map(ability.is_asked, change.add))
    ]


def asks_for(entry: Entry | None, lacking: Iterable[Ability]) -> bool:
    """True for an entry that a switch which lacks these is not given."""
    return isinstance(entry, Flow) and any(ability.is_asked(entry) for ability in lacking)


def without(program: Program, lacking: Iterable[Ability]) -> Program:
    """What of these entries a switch is given that lacks this."""
    return (
        {key: entry for key, entry in program.items() if not asks_for(entry, lacking)} if lacking else program
    )
