"""Part of a change that a switch has made, though it rejected the rest, is taken back.

A switch with bundles makes a change as a whole or not at all. One without (OpenFlow 1.3) may be left with
half of it, and what the pipeline promises holds before a change and after it. So what was there before is put
back; and where the switch does not take that either, it is at least known what it holds.
"""

from collections.abc import Callable

import structlog

from retinue.controller.switches.mirror import Mirror
from retinue.controller.switches.readback import SwitchSession
from retinue.core.pipeline.diff import difference
from retinue.core.pipeline.entry import Change
from retinue.southbound.openflow.requests import Rejected

log = structlog.get_logger()


async def take_back(
    session: SwitchSession, mirror: Mirror, switch: str, rejected: Rejected, clock: Callable[[], float]
) -> None:
    """Put back what was there before; the mirror knows it, and knows then what the switch has.

    Raises ConnectionError or TimeoutError where the switch has not said what became of it.
    """
    keys = {key for part in rejected.taken for key in part.entries}
    before = mirror.taken(keys)
    _note(mirror, rejected.taken)
    back = difference(before, mirror.taken(keys), keys)
    if back.empty:
        return
    try:
        await session.apply(back, clock())
    except Rejected as error:
        _note(mirror, error.taken)
        log.error("switch.change_is_half_made", switch=switch, error=str(error))
        return
    mirror.sent(back)


def _note(mirror: Mirror, taken: tuple[Change, ...]) -> None:
    for part in taken:
        mirror.sent(part)
