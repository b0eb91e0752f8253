"""A request for a migration is checked against what there is, before anything is begun."""

from collections.abc import Collection

from retinue.controller.state import LeftPort
from retinue.core.model import IP, Mac, Network, Power
from retinue.core.text import quoted
from retinue.protocol.errors import ErrorCode
from retinue.socket_addresses import endpoint, may_be_another_host


class MigrationError(Exception):
    """A message about a migration is rejected; it says why and what to do, and `code` says it to programs."""

    def __init__(self, message: str, code: ErrorCode = ErrorCode.OUT_OF_STEP) -> None:
        super().__init__(message)
        self.code = code


def check_request(
    net: Network,
    vm: str,
    target_server: str,
    target_switch: str,
    source_server: str,
    mac: Mac,
    ip: IP | None,
) -> tuple[str, str]:
    """The source and the target server of a live-migration message.

    The target is named by its server or by that server's edge switch. What else is given ("" and None: not)
    must be so: a message about a VM that is elsewhere, or another, is rejected. Raises MigrationError.
    """
    registered = net.vms.get(vm)
    if registered is None:
        raise MigrationError(
            f"there is no VM {vm}; `retinue vm list` shows those there are", ErrorCode.UNKNOWN_VM
        )
    target = _target(net, target_server, target_switch)
    if source_server and source_server != registered.server:
        raise MigrationError(
            f"VM {vm} is at {registered.server}, not at {source_server}", ErrorCode.CONTRADICTION
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
    if target == registered.server:
        raise MigrationError(f"VM {vm} is at {target} already", ErrorCode.ALREADY_THERE)
    if registered.server in net.fenced:
        raise MigrationError(
            f"server {registered.server} is fenced: its VMs are dead with it; register VM {vm} at {target} "
            f"(`retinue vm add`) to start it there with what it holds",
            ErrorCode.PARTY_AWAY,
        )
    return registered.server, target


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


def check_nics(left: Collection[LeftPort], vm: str) -> None:
    """Whether every NIC that was taken out of the VM has gone: a target has it no longer, and takes in no VM
    that is built otherwise. Raises MigrationError."""
    nic = next((one.port_id for one in left if one.vm == vm), None)
    if nic is not None:
        raise MigrationError(
            f"NIC {nic} was taken out of VM {vm}, whose guest has not let it go; migrate the VM when it has",
            ErrorCode.CONFLICT,
        )


def _target(net: Network, server: str, switch: str) -> str:
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
        return owner.id
    if server not in net.servers:
        raise MigrationError(
            f"there is no server {server}; `retinue server list` shows those there are",
            ErrorCode.UNKNOWN_SERVER,
        )
    if not net.servers[server].edge:
        raise MigrationError(f"server {server} has no edge switch, it cannot run VMs", ErrorCode.NOT_A_TARGET)
    return server
