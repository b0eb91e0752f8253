"""A request for a migration is checked against what there is, before anything is begun."""

from collections.abc import Collection
from dataclasses import dataclass

from retinue.controller.context import Context
from retinue.controller.state import LeftPort, State
from retinue.core.migration.copying import AskedCopy, CopyOptions, Postcopy
from retinue.core.migration.new_addresses import NewAddresses
from retinue.core.migration.record import Far
from retinue.core.model import IP, Mac, ModelError, Network, Power
from retinue.core.model.disks import stays_behind
from retinue.core.model.domains import check_may_leave
from retinue.core.text import quoted
from retinue.protocol.errors import ErrorCode
from retinue.socket_addresses import endpoint, may_be_another_host


class MigrationError(Exception):
    """A message about a migration is rejected; it says why and what to do, and `code` says it to programs."""

    def __init__(self, message: str, code: ErrorCode = ErrorCode.OUT_OF_STEP) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Ends:
    """The servers between which a VM migrates, and the hosts at their switches; "": none that is known."""

    source: str
    target: str
    source_host: str = ""
    target_host: str = ""


def check_request(
    net: Network,
    vm: str,
    target_server: str,
    target_switch: str,
    source_server: str,
    mac: Mac,
    ip: IP | None,
    *,
    after_the_fact: bool = False,
) -> Ends:
    """The ends of a live-migration message.

    The target is named by its server, by that server's edge switch or, after the fact, by a host at that;
    the source by its server, or by the VM's host there. What else is given ("" and None: not) must be so: a
    message about a VM that is elsewhere, or another, is rejected. Raises MigrationError.
    """
    registered = net.vms.get(vm)
    if registered is None:
        raise MigrationError(
            f"there is no VM {vm}; `retinue vm list` shows those there are", ErrorCode.UNKNOWN_VM
        )
    away = net.peer_at(registered.server)
    if away is not None and target_server and target_server not in net.servers:
        raise MigrationError(
            f"VM {vm} is in domain {away.id}; migrate it from there, by that domain's controller (--url)",
            ErrorCode.NOT_A_TARGET,
        )
    target, host = _target(net, target_server, target_switch, after_the_fact=after_the_fact)
    if source_server and source_server not in (registered.server, registered.host):
        raise MigrationError(
            f"VM {vm} is at {registered.host or registered.server}, not at {source_server}",
            ErrorCode.CONTRADICTION,
        )
    if mac and registered.nic_with(mac) is None:
        has = ", ".join(nic.mac for nic in registered.nics)
        raise MigrationError(f"VM {vm} has MAC {has}, not {mac}", ErrorCode.CONTRADICTION)
    if ip is not None and ip not in {assignment.ip for assignment in net.held_by(vm)}:
        raise MigrationError(f"VM {vm} does not hold {ip}", ErrorCode.CONTRADICTION)
    if target in net.fenced:
        raise MigrationError(
            f"server {target} is fenced; `retinue server unfence {target}` when it is well again",
            ErrorCode.NOT_A_TARGET,
        )
    if target == registered.server and host in ("", registered.host):
        at, of_several = host or target, net.servers[target].hosts and not host
        which = (
            "; which host of it has the VM is said by that host's id (target_server)" if of_several else ""
        )
        raise MigrationError(f"VM {vm} is at {at} already{which}", ErrorCode.ALREADY_THERE)
    if registered.server in net.fenced:
        raise MigrationError(
            f"server {registered.server} is fenced: its VMs are dead with it; register VM {vm} at {target} "
            f"(`retinue vm add`) to start it there with what it holds",
            ErrorCode.PARTY_AWAY,
        )
    return Ends(registered.server, target, registered.host, host)


def check_memory_address(address: str, peer: str | None) -> None:
    """Raises MigrationError for a place where no other server's agent takes memory in.

    The source's agent goes where the target's report leads it. To whom it speaks there, it asks by
    certificate; but it is not to knock at doors of its own machine. `peer`: the address from which the
    report came.
    """
    try:
        host, _ = endpoint(address)
    except ValueError as error:
        raise MigrationError(f"memory_at: {quoted(address)} is not HOST:PORT", ErrorCode.CONFLICT) from error
    if not may_be_another_host(host) and may_be_another_host(peer or ""):
        raise MigrationError(
            f"memory_at: {quoted(host)} is no address at which another machine is", ErrorCode.CONFLICT
        )


def check_no_client(state: State, vm: str) -> None:
    """Nobody's word moves a client that roams. Raises MigrationError."""
    if state.is_client(vm):
        raise MigrationError(
            f"{vm} is a client: it is where the attachment point is that reports it", ErrorCode.CONFLICT
        )


def check_wanted(net: Network, vm: str, target: str) -> None:
    """Whether the operator wants the VM to run, and VMs on the target server. Raises MigrationError."""
    if net.vms[vm].power is not Power.RUNNING:
        raise MigrationError(
            f"VM {vm} is {net.vms[vm].power}, and only one that runs is migrated; "
            f"`retinue vm start {vm}` starts it",
            ErrorCode.NOT_RUNNING,
        )
    if target in net.drained:
        raise MigrationError(
            f"server {target} is drained; `retinue server undrain {target}` lets it take VMs again",
            ErrorCode.NOT_A_TARGET,
        )


def copy_options(
    net: Network, vm: str, asked: AskedCopy, configured: CopyOptions, *, far: bool, libvirt: bool
) -> CopyOptions:
    """How the VM's memory goes over; `far`: from or to another domain; `libvirt` runs it.

    What is configured is for VMs that can; what is asked for and cannot be raises MigrationError.
    """
    postcopy = configured.postcopy if asked.postcopy is None else asked.postcopy
    compress = configured.compress if asked.compress is None else asked.compress
    why_not = ""
    if libvirt and stays_behind(net.vms[vm].disks):
        why_not = "has private disks, and libvirt runs it, which ends their copies itself"
    elif far:
        why_not = "goes between domains, which do not agree on post-copy"
    if why_not and asked.postcopy is Postcopy.REQUIRED:
        raise MigrationError(
            f"VM {vm} {why_not}: it is migrated by pre-copy, with --no-postcopy", ErrorCode.CONFLICT
        )
    return CopyOptions(Postcopy.NEVER if why_not else postcopy, compress, configured.step_factor)


def check_nics(left: Collection[LeftPort], vm: str) -> None:
    """Whether every NIC that was taken out of the VM has gone: a target has it no longer, and takes in no VM
    that is built otherwise. Raises MigrationError."""
    nic = next((one.port_id for one in left if one.vm == vm), None)
    if nic is not None:
        raise MigrationError(
            f"NIC {nic} was taken out of VM {vm}, whose guest has not let it go; migrate the VM when it has",
            ErrorCode.CONFLICT,
        )


def _target(net: Network, server: str, switch: str, *, after_the_fact: bool) -> tuple[str, str]:
    """The server that is meant, and the host of it, if one of its hosts is."""
    if bool(server) == bool(switch):
        raise MigrationError(
            "name the target once: a target server, or a target switch", ErrorCode.NOT_A_TARGET
        )
    if switch:
        owner = net.server_of_edge(switch)
        if owner is None:
            raise MigrationError(
                f"{switch} is not the edge switch of a server; see `retinue server list`",
                ErrorCode.NOT_A_TARGET,
            )
        return owner.id, ""
    domain, _, _ = server.partition("/")
    if domain in net.peers and server not in net.servers:
        return net.peers[domain].gateway, ""
    if (at := net.server_of_host(server)) is not None:
        if after_the_fact:
            return at.id, server
        raise MigrationError(
            f"{server} is a host at the switch of server {at.id}, and no agent of ours is there; whoever "
            "migrates the VM says so ahead by PATCH /v1/vms/ID, or afterwards (after_the_fact)",
            ErrorCode.NOT_A_TARGET,
        )
    if server not in net.servers:
        raise MigrationError(
            f"there is no server {server}; `retinue server list` shows those there are",
            ErrorCode.UNKNOWN_SERVER,
        )
    if not net.servers[server].edge:
        raise MigrationError(f"server {server} has no edge switch, it cannot run VMs", ErrorCode.NOT_A_TARGET)
    return server, ""


def check_domains(net: Network, vm: str, source: str, target: str, far: Far | None) -> Far | None:
    """What is behind the gateway, where one is an end of the migration. Raises MigrationError."""
    away, to = net.peer_at(source), net.peer_at(target)
    if away is not None and (far is None or to is not None):
        raise MigrationError(f"VM {vm} is in domain {away.id}; migrate it from there", ErrorCode.NOT_A_TARGET)
    if to is None:
        return far
    try:
        check_may_leave(net, net.vms[vm], to.id)
    except ModelError as error:
        raise MigrationError(str(error), ErrorCode.NOT_A_TARGET) from error
    return far or Far(to.id)


def check_others_migrated(
    context: Context, vm: str, ends: Ends, new_addresses: Collection[NewAddresses]
) -> None:
    """Whether it can be left to a manager to say that the VM runs at the target. Raises MigrationError."""
    source, target = ends.source, ends.target
    if new_addresses and source == target:
        raise MigrationError(
            f"VM {vm} stays at its switch: `retinue vm nic set` gives it other addresses there",
            ErrorCode.CONFLICT,
        )
    if context.net.peer_at(target) is not None:
        raise MigrationError(f"{target} leads to another domain: its controller says what runs there")
    for server in (source, target):
        if context.agents.is_known(server):
            raise MigrationError(
                f"server {server} has an agent of ours, which says where VM {vm} runs; "
                f"`retinue server forget-agent {server}` if it is gone for good",
                ErrorCode.CONFLICT,
            )


def check_parties(context: Context, source: str, target: str) -> None:
    """Whoever has to speak in a migration must be there. Raises MigrationError."""
    for server in (source, target):
        edge = context.net.servers[server].edge
        away = f"the agent of server {server} is away" if context.agents.is_away(server) else ""
        if context.is_away(edge):
            away = f"switch {edge} of server {server} is not connected"
        if away:
            # VMs behind a gateway are not dead with it.
            behind = context.net.peer_at(server) is not None
            dead = "" if behind else f"; if the server is dead: `retinue server fence {server}`"
            raise MigrationError(away + dead, ErrorCode.PARTY_AWAY)
