"""What another domain is told of a refusal: the reason, unless that names something that is ours alone.

Reasons are written for our own operator, and name the VM that has an address, or each server with what it has
left. Another domain's controller knows the names that it has said itself, and is to learn no other: by
preparing VMs that it makes up it could ask for all of them. What is written in whichever part of the program,
now or later, passes here.
"""

import re
from collections.abc import Collection, Iterator

import structlog

from retinue.controller.state import State
from retinue.core.migration import Migration
from retinue.core.text import cut
from retinue.protocol.domains import Guest
from retinue.protocol.errors import ErrorCode

log = structlog.get_logger()

_WORDS = re.compile(r"[A-Za-z0-9._@-]+")
"""As the grammar of ids has it, and no more: "leaf1:3" has a name in it."""
_SERVERS = re.compile(r"[(]|; (?=[A-Za-z0-9._@-]+: )")
"""Before what a decision says of a server."""
_AROUND = "."
"""What may stand beside a name in a sentence, and be in one."""


def for_peer(state: State, peer: str, guest: Guest, wanted: str, error: Exception) -> str:
    """The reason as domain `peer` may read it; ours, where that is another, goes to the log.

    `wanted`: the server that it has named.
    """
    reason = str(error)
    theirs = {peer, guest.id, wanted, *(nic.port_id for nic in guest.nics)}
    ours = set(_of_ours(state)) - theirs
    if _names_none(reason, ours):
        return reason
    log.warning("domain.refused", domain=peer, vm=guest.id, reason=cut(reason))
    if getattr(error, "code", None) is ErrorCode.NO_MATCH:
        of_wanted = (part.strip("() ") for part in _SERVERS.split(reason) if wanted)
        why = next((one for one in of_wanted if one.startswith(f"{wanted}:") and _names_none(one, ours)), "")
        return f"no server can take {guest.id}" + (f" ({why})" if why else "")
    return f"VM {guest.id} cannot come: something here has its name, or a MAC, port or address of it"


def why_undone(state: State, migration: Migration, reason: str) -> str:
    """Why a migration has failed here, or is undone, as the domain at its other end may read it."""
    far, vm = migration.far, state.net.vms.get(migration.vm)
    if far is None:
        return reason
    ports = () if vm is None else (nic.port_id for nic in vm.nics)
    theirs = {far.domain, far.server, migration.vm, migration.source, migration.target, *ports}
    if _names_none(reason, set(_of_ours(state)) - theirs):
        return reason
    log.warning("domain.refused", domain=far.domain, vm=migration.vm, reason=cut(reason))
    return "something there is in the way: its own log says what"


def _names_none(text: str, names: Collection[str]) -> bool:
    ours = {name.strip(_AROUND) for name in names}
    return not any(word.strip(_AROUND) in ours for word in _WORDS.findall(text))


def _of_ours(state: State) -> Iterator[str]:
    """Names that a reason may have."""
    net = state.net
    yield from net.vms
    yield from net.servers
    yield from state.entities
    yield from state.images
    yield from net.switches
    yield from net.subnets
    yield from net.peers
    yield from (nic.port_id for vm in net.vms.values() for nic in vm.nics)
    yield from (host.id for server in net.servers.values() for host in server.hosts)
