"""One renewal on a VM's behalf, carried out: `bindings.renewal` decides, this sends, waits and listens.

    outcome = await renew(lease, xid, port, answers)

`port` puts frames into the switch as if the VM had sent them; `answers` tells what came back, however that is
learned: from the controller (`orders`), or at the VM's port itself (`tap_port`).
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from retinue.core.lease_renewal import (
    Acked,
    Event,
    Lease,
    Lease6Held,
    NotRenewed,
    Renewal,
    Send,
    Wait,
    Waited,
    begin,
    step,
)
from retinue.core.packets import tagged

log = structlog.get_logger()


class InjectionError(Exception):
    """A frame cannot be put into the switch at the VM's port; the message says where, why, and what to do."""


class Port(Protocol):
    """A VM's port, seen from the VM's side."""

    async def send(self, frame: bytes) -> None:
        """Let the frame enter the switch as if the VM had sent it. Raises InjectionError."""


class Answers(Protocol):
    async def next(self) -> Event:
        """The next thing heard; waits for it. May be cancelled, and called again, without losing anything."""


def fresh_xid() -> int:
    """A transaction id nobody can guess, so that nobody can answer for the server."""
    return secrets.randbits(32)


async def renew(
    lease: Lease | Lease6Held,
    xid: int,
    port: Port,
    answers: Answers,
    clock: Callable[[], float] = time.time,
    vlan: int = 0,
) -> Renewal:
    """Ask until it is answered, or given up; how it ended. `vlan`: the tag that frames have at the port.
    Raises InjectionError."""
    this, effects = begin(lease, xid, clock())
    while True:
        for effect in effects:
            match effect:
                case Send(frame):
                    log.info(
                        "renewal.sent", ip=str(lease.ip), mac=lease.mac, xid=f"{xid:#010x}", time=this.sent
                    )
                    await port.send(tagged(frame, vlan))
                case Acked(seconds):
                    log.info("renewal.acknowledged", ip=str(lease.ip), mac=lease.mac, lease_seconds=seconds)
                case NotRenewed(reason):
                    log.warning("renewal.not_acknowledged", ip=str(lease.ip), mac=lease.mac, reason=reason)
                case Wait():
                    pass
        if this.state.ended:
            return this
        event: Event = Waited()
        try:
            async with asyncio.timeout(max(0.0, this.wait_until - clock())):
                event = await answers.next()
        except TimeoutError:
            pass
        this, effects = step(this, event, clock())


__all__ = ["Answers", "InjectionError", "Port", "fresh_xid", "renew"]
