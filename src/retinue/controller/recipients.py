"""Which agents an event is for: an order, or what is told of a VM, matters at a server or two of a thousand.

Agents follow the stream as their servers' (`?server=`), and get only what they may act on
(agent/dispatcher.py). What is not known here goes to all; other listeners get everything they ask for.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from retinue.core.migration import Migration
from retinue.core.model import VM, Network
from retinue.protocol.events import IMAGE_ORDERS, EventType
from retinue.protocol.migrations import Order

OF_ITS_SERVER = frozenset(
    {
        EventType.VM_READY,
        EventType.VM_START,
        EventType.VM_STOP,
        EventType.VM_REBOOT,
        EventType.VM_RESET,
        EventType.VM_NICS,
        EventType.VM_RENEW,
        *IMAGE_ORDERS,
    }
)
"""Those with a field `server`, for whose agent they are; without one they are for all."""
ORDERS = frozenset(Order)


class Recipients(NamedTuple):
    """Who may act on an event."""

    servers: Collection[str] | None
    """Those whose agents are told at once; None: all."""
    others_soon: bool = False
    """Whether all other agents are told, too: within a second, with what else there is by then."""


Everybody = Recipients(None)


def recipients(net: Network, type: str, data: Mapping[str, Any]) -> Recipients:
    """The servers whose agents may act on an event. A VM's removal is for all, since any may have some of it;
    where the VM is not known to be there is no hurry, and a thousand agents are not woken for each."""
    if type in OF_ITS_SERVER:
        server = data.get("server")
        return Everybody if server is None else Recipients((str(server),))
    if type == EventType.MATCH:
        return Recipients(tuple(data["servers"]))
    if type in ORDERS:
        migration: Migration = data["migration"]
        return Recipients((migration.source, migration.target))
    if type == EventType.VM_REGISTERED:
        vm: VM = data["vm"]  # A server that was called dead lets go of VMs that are elsewhere.
        return Recipients({vm.server, *net.fenced})
    if type == EventType.VM_REMOVED:
        gone: VM = data["vm"]
        return Recipients({*gone.locations, *net.fenced}, others_soon=True)
    if type == EventType.PORT_REMOVED:
        here = net.server_of_edge(data["switch"])
        return Everybody if here is None else Recipients((here.id,))
    return Everybody
