"""What is not believed of a VM's, or a server's, DHCP, of either family: counted, and told."""

from collections.abc import Iterable

from retinue.controller.context import Context
from retinue.controller.counters import Count
from retinue.core.snooping import Rejected, SpoofingKind, Suspicious
from retinue.protocol.events import EventType

Place = tuple[str, int]
"""A switch and its port."""
Claim = tuple[str, str]
"""As whom a message was sent: MAC and IP address."""


def tell(context: Context, effects: Iterable[object], at: Place, claim: Claim) -> None:
    """Count and tell those effects of a message that say that something is wrong with it."""
    for effect in effects:
        match effect:
            case Rejected():
                context.counters[Count.DHCP_REJECTED] += 1
                said = {"switch": at[0], "port": at[1], "vm": effect.vm, "reason": effect.reason}
                context.events.tell(at, EventType.DHCP_REJECTED, **said)
                if effect.spoofed:
                    _spoofing(context, effect.vm, effect.reason, at, claim)
            case Suspicious():
                _spoofing(context, effect.vm, effect.reason, at, claim)


def _spoofing(context: Context, vm: str, reason: str, at: Place, claim: Claim) -> None:
    row = context.spoof_attempts.note(SpoofingKind.DHCP, *at, vm, claim, context.clock())
    context.events.tell(at, EventType.SPOOFING, about=(*claim, reason), spoofing=row, reason=reason)
