"""What an agent reads from the controller: the few fields it acts on, checked."""

from typing import Any, TypeVar

import msgspec


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
    memory_at: str = ""
    """Where the target's agent takes the memory in: host:port."""
    target_gone: bool = False
    """Rolling back: the target has given the VM back."""


class Happening(msgspec.Struct, frozen=True):
    """An event of the controller's stream; a field that does not belong to its type is None."""

    type: str
    id: int = 0
    """Number of the event; a "hello" has that of the last one before it."""
    vm: VMRecord | None = None
    move: MoveRecord | None = None
    reason: str = ""
    renewal: dict[str, Any] | None = None
    """An order to renew a lease (orders.OrderRecord)."""


class RecordError(ValueError):
    """The controller sent something else than agreed; the message says what."""


T = TypeVar("T")

ACTED_ON = frozenset(
    {
        *("hello", "vm.booked", "vm.ready", "vm.removed"),
        *(
            "move.prepare",
            "move.begin",
            "move.copy",
            "move.cleanup",
            "move.rollback",
            "move.return",
            "vm.renew",
        ),
    }
)


def record(kind: type[T], value: Any) -> T:
    """`value`, decoded JSON, as a record. Raises RecordError."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise RecordError(f"the controller sent no proper {kind.__name__}: {error}") from error
