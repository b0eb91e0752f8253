"""After a start: what the database holds becomes the network again."""

from collections.abc import Callable, Collection
from typing import TypeVar

import structlog

from retinue.controller.controller import Controller, VMState
from retinue.model import ModelError, Network, Server
from retinue.model.network import Touched
from retinue.store import EndedLease, Stored

log = structlog.get_logger()

T = TypeVar("T")


def restore(controller: Controller, stored: Stored) -> None:
    """Bring back servers, places, VMs and the addresses they hold; leases that ended meanwhile stay ended.

    What no longer fits the configuration is left out, and said.
    """
    net = controller.net
    now = controller.context.clock()
    for fault in stored.faults:
        log.warning("a row of the database cannot be used", fault=fault)
    _servers(net, stored.servers)
    for place in stored.places:
        if place.server in net.servers and place.at.switch in net.switches:
            net.detect(place.server, place.at)
    for vm in stored.vms:
        if _fits(net.put_vm, vm):
            controller.vm_states[vm.id] = VMState.BOOKED
    ended = list(stored.ended_leases)
    for holding in stored.holdings:
        if holding.lease_end is not None and holding.lease_end <= now:
            controller.context.store.remove(holding)
            ended.append(EndedLease(holding))
            controller.context.store.put(ended[-1])
        else:
            _fits(net.hold, holding)
    controller.renewals.restored(stored.owed, ended)
    controller.mover.restored(stored.moves)


def _servers(net: Network, stored: Collection[Server]) -> None:
    """Servers of the database in place of the configured ones of the same id.

    Those go first, all of them: a MAC or address may have gone from one server to another.
    """
    configured = [net.servers[server.id] for server in stored if server.id in net.servers]
    for server in configured:
        net.remove_server(server.id)
    for server in stored:
        _fits(net.put_server, server)
    for server in configured:
        if server.id not in net.servers:
            _fits(net.put_server, server)


def take_up_moves(controller: Controller) -> None:
    """Once the controller runs: go on with the moves it was in."""
    for move in list(controller.mover.moves.values()):
        if not move.state.ended:
            controller.mover.take_up(move.id)


def _fits(change: Callable[[T], Touched], value: T) -> bool:
    try:
        change(value)
    except ModelError as error:
        log.warning("what the database holds does not fit the configuration", error=str(error))
        return False
    return True
