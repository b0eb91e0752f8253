"""Pre-copy: after each pass over a VM's memory, whether another one is worth it.

In the first pass all memory goes over, in each later one what the VM has written meanwhile. Written during a
pass is about as much as the one before left behind in as much time; what is written during the last pass, and
while the traffic is diverted, goes over while the VM stands still: the downtime.

    pass     1           2         3       ...  last
    goes     all         D1        D2           Dn        then, the VM paused, what was written since
    written  D1          D2        D3           W         W / bandwidth = downtime

Another pass is made while the downtime to expect is more than what is wanted, and passes become shorter. A
VM that writes faster than the network carries away never gets there: its passes are all as long as the memory
it writes in. Such a VM is migrated with the downtime that it takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

WANTED_DOWNTIME = 0.1
"""Seconds of pause that a migration may take when nobody has asked for less or more."""
MOST_PASSES = 30
SHRINKING = 0.9
"""A pass that is longer than this part of the shortest before it has not shrunk."""
PATIENCE = 3
"""So many passes in a row that do not shrink are the last: the VM's processor is slowed down meanwhile, where
the hypervisor can do that, and it takes a pass or two until that shows."""
LEAST_SECONDS = 0.01
"""A pass in which less is written than goes over in so long is the last: a shorter pause is hardly to be had,
and QEMU would end the migration by itself (`hypervisor.passes`)."""
DIVERSION_SECONDS = 0.02
"""About how long the VM still writes when its copy is done: its traffic is diverted, its tap drained."""


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass that has begun. `nbytes`: of memory to go over in it, all written in the `seconds` before."""

    nbytes: int
    seconds: float


def expected_downtime(last: Pass, bandwidth: float, held_back: int) -> float:
    """Seconds of pause if the pass that has begun is the last.

    `bandwidth` is of memory, in bytes a second; `held_back` are the bytes left to the pause in any case.
    """
    return (_written(last, last.nbytes / bandwidth + DIVERSION_SECONDS) + held_back) / bandwidth


def another_pass(passes: Sequence[Pass], bandwidth: float, held_back: int, wanted: float) -> bool:
    """Whether the pass that has begun, the last of `passes`, shall be followed by another.

    `passes` begin with the second: nothing is known of what the VM writes before it. `wanted` is the downtime
    in seconds.
    """
    last = passes[-1]
    if len(passes) + 1 >= MOST_PASSES or expected_downtime(last, bandwidth, held_back) <= wanted:
        return False
    if _written(last, last.nbytes / bandwidth) < LEAST_SECONDS * bandwidth:
        return False
    sizes = [each.nbytes for each in passes]
    stuck = 0
    for n, size in enumerate(sizes[1:], 1):
        stuck = 0 if size < SHRINKING * min(sizes[:n]) else stuck + 1
    return stuck < PATIENCE


def _written(last: Pass, seconds: float) -> float:
    """Bytes that the VM writes in so long, as it wrote before: hardly more pages than before."""
    return min(float(last.nbytes), last.nbytes / max(last.seconds, 1e-3) * seconds)


def may_look_again(accelerator: str, version: Sequence[int], memory: int) -> bool:
    """Whether a QEMU (major, minor, micro) can look more than once at what a running VM of so many bytes of
    memory has written.

    Before 9.0 an emulated VM's writes are lost on the quick way through a bitmap of a block of memory, which
    is taken where the block is a multiple of 64 pages (its commit 03bfc2188f06 tells). Others take the slow
    way.
    """
    return accelerator != "tcg" or version[0] >= 9 or memory % QUICK_WAY != 0


QUICK_WAY = 64 * 4096
"""A multiple of so many bytes of memory has a bitmap of whole words."""
