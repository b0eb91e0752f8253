"""What not every switch can do: one that cannot has all entries but those that ask for it.

A switch says so by rejecting a change that has such an entry. It is told of no other until it connects again:
then it may be another program.
"""

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from retinue.core.pipeline.entry import ERICSSON, Change, CheckLarger, Entry, Flow, Program, SetField

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ability:
    """Something that entries ask of a switch."""

    name: str
    """In the log, where a switch has it not."""
    is_asked: Callable[[Flow], bool]
    errors: tuple[str, ...]
    """Names of OpenFlow's errors by which a switch says that it cannot."""


SIZES = Ability(
    "looks at packet sizes",
    lambda flow: any(isinstance(action, CheckLarger) for action in flow.actions),
    ("BAC_BAD_TYPE", "BAC_BAD_EXPERIMENTER", "BAC_BAD_EXP_TYPE"),
)
"""To look at a packet's size (Open vSwitch since 2.12). Without it what is too large for where it goes is
lost in silence."""
ND = Ability(
    "answers neighbour discovery",
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


class Lacking:
    """What one switch has been found to be unable to do."""

    def __init__(self, switch: str) -> None:
        self._switch = switch
        self._lacks: list[Ability] = []

    def __bool__(self) -> bool:
        return bool(self._lacks)

    def learn(self, change: Change, error: Exception) -> bool:
        """The switch has rejected a change. True where it would take what is left without what it lacks."""
        found = missing(change, error)
        for ability in found:
            log.warning("switch.lacks_ability", switch=self._switch, ability=ability.name, error=str(error))
        self._lacks += found
        return bool(found)

    def is_given(self, entry: Entry | None) -> bool:
        """False for an entry that asks for what the switch cannot do."""
        asked = isinstance(entry, Flow) and any(ability.is_asked(entry) for ability in self._lacks)
        return entry is not None and not asked

    def given(self, program: Program) -> Program:
        """What of these entries the switch is given."""
        return {k: e for k, e in program.items() if self.is_given(e)} if self._lacks else program
