"""What the VM driver reads from the controller: the few fields it acts on, checked."""

from ipaddress import IPv4Address, ip_address
from typing import Any, TypeVar

import msgspec

from retinue.lab.guest import command_line


class SubnetRecord(msgspec.Struct, frozen=True):
    prefixlen: int | None = None
    gateway: str = ""


class VMRecord(msgspec.Struct, frozen=True):
    """A VM as GET /v1/vms and the events show it."""

    id: str
    mac: str
    server: str
    state: str = "booked"
    """booked, ready or running."""
    reported: bool = False
    """Nobody booked it; a switch's port told of it."""
    addresses: list[str] = []
    subnets: dict[str, SubnetRecord] = {}
    """By address: what the guest must know of the network it is in."""


class MoveRecord(msgspec.Struct, frozen=True):
    id: str
    vm: str
    source: str
    target: str
    state: str = ""


class Happening(msgspec.Struct, frozen=True):
    """An event of the controller's stream; a field that does not belong to its type is None."""

    type: str
    id: int = 0
    """Number of the event; a "hello" has that of the last one before it."""
    vm: VMRecord | None = None
    move: MoveRecord | None = None
    reason: str = ""


class RecordError(ValueError):
    """The controller sent something else than agreed; the message says what."""


T = TypeVar("T")

ACTED_ON = frozenset(
    {
        *("hello", "vm.booked", "vm.ready", "vm.removed"),
        *("move.prepare", "move.copy", "move.cleanup", "move.rollback"),
    }
)


def record(kind: type[T], value: Any) -> T:
    """`value`, decoded JSON, as a record. Raises RecordError."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise RecordError(f"the controller sent no proper {kind.__name__}: {error}") from error


def guest_command_line(vm: VMRecord) -> str:
    """A VM with addresses from the manager sets them itself; any other asks a DHCP server."""
    hostname = "".join(c if c.isascii() and (c.isalnum() or c == "-") else "-" for c in vm.id)
    fixed = {4: "", 6: ""}
    for address in vm.addresses:
        parsed = ip_address(address)
        subnet = vm.subnets.get(address, SubnetRecord())
        length = subnet.prefixlen
        if length is None:
            length = 24 if isinstance(parsed, IPv4Address) else 64
        router = f",{subnet.gateway}" if subnet.gateway else ""
        fixed[parsed.version] = fixed[parsed.version] or f"{address}/{length}{router}"
    ipv4 = fixed[4] or ("none" if fixed[6] else "dhcp")
    return command_line(ipv4, hostname=hostname, address6=fixed[6])
