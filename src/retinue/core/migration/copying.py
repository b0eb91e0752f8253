"""How a VM's memory goes over, as whoever starts a migration wants it: compressed, and whether by post-copy.

In post-copy the VM is stopped before all of its memory has gone over: it runs at the target at once, and what
it touches there that has not come yet is fetched from the source. So any VM can be migrated, however much it
writes, with a short pause. The price: while the rest goes over the VM is at both servers, and ends when one
of them, or the way between them, fails. Before the switch nothing of this is so.

    never      pre-copy alone: the pause takes as long as the VM's writing makes it
    if needed  post-copy when pre-copy would pause the VM for longer than is wanted, however many passes;
               where one of the two servers cannot, pre-copy alone
    required   post-copy after the first pass, unless the pause is short enough without; where one of the two
               servers cannot, the migration is rejected
"""

from dataclasses import dataclass
from enum import StrEnum


class Postcopy(StrEnum):
    NEVER = "never"
    IF_NEEDED = "if_needed"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class CopyOptions:
    postcopy: Postcopy = Postcopy.NEVER
    compress: bool = False
    """What the agents send each other of the memory is compressed."""
    step_factor: float = 1.0
    """So many times as long as elsewhere each step may take, and the copy: where switches or servers are
    far."""


PLAIN = CopyOptions()


@dataclass(frozen=True, slots=True)
class AskedCopy:
    """What whoever starts a migration says of it; None: as it is configured."""

    postcopy: Postcopy | None = None
    compress: bool | None = None


UNASKED = AskedCopy()

LEAST_PAUSE = 0.05
"""Seconds: about how long post-copy itself pauses a VM, for its devices' state and the list of what is
missing. Where pre-copy is as quick there is no reason to take the risk, unless a person asks for it."""


def is_postcopy(how: Postcopy, expected: float, wanted: float, *, another_pass: bool) -> bool:
    """Whether the memory that is left goes over when the VM runs at the target.

    Asked when a pass has begun. `expected`: seconds of pause if it is the last, `another_pass`: it need not
    be, for each is shorter than the one before (see `precopy.another_pass`).
    """
    long_enough = wanted if how is Postcopy.REQUIRED else max(wanted, LEAST_PAUSE)
    if how is Postcopy.NEVER or expected <= long_enough:
        return False
    return how is Postcopy.REQUIRED or not another_pass


LEAST_LIMIT, MOST_LIMIT = 60.0, 540.0
"""Seconds from the order to copy until the VM runs at the target, for a small VM and for the largest."""
SLOWEST_COPY = 10e6
"""Bytes a second: a VM may take as long as four passes over its memory at this rate."""


def limit_for(memory: int, step_factor: float = 1.0) -> float:
    """Seconds that the migration of a VM with so many bytes of memory may take, once its disks are copied."""
    return step_factor * min(MOST_LIMIT, LEAST_LIMIT + 4 * memory / SLOWEST_COPY)


def limit_for_disks(nbytes: int, step_factor: float = 1.0) -> float:
    """Seconds that the copy of so many bytes of its disks may take, before."""
    return step_factor * (LEAST_LIMIT + nbytes / SLOWEST_COPY)
