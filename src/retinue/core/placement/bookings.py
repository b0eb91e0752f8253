"""Room that is booked on a server for a VM that is to come: how long it counts, and how it ends.

    booked       so much memory and so many processors of a server, for a VM by name, until a time
    booked again for the same VM: takes the place of the one before, at whatever server
    the VM comes it is registered, or delivered, at that server: the room is its own now, and the booking ends
    released     by who booked it
    time         passes without the VM: the booking ends

A booking is a promise of room and no more: it lets nobody in, and holds no address. Placement counts it like
a VM that is there.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Booking:
    """Room on `server` for the VM; times in seconds since the epoch."""

    vm: str
    server: str
    memory_mib: int
    cpus: int
    until: float


class BookingEnd(StrEnum):
    """Why a booking ended."""

    ARRIVED = "arrived"
    """Its VM is there."""
    RELEASED = "released"
    REPLACED = "replaced"
    """By another booking for the VM."""
    TIMED_OUT = "timed out"
    """Its time was over, and its VM was not there."""


def ended(
    bookings: Iterable[Booking], at: Mapping[str, Collection[str]], now: float
) -> list[tuple[Booking, BookingEnd]]:
    """Those that have ended by themselves. `at`: by VM, the servers where it is, or is to be."""
    found = []
    for booking in bookings:
        if booking.server in at.get(booking.vm, ()):
            found.append((booking, BookingEnd.ARRIVED))
        elif now >= booking.until:
            found.append((booking, BookingEnd.TIMED_OUT))
    return found


def by_server(bookings: Iterable[Booking]) -> dict[str, tuple[tuple[str, int, int], ...]]:
    """VM, memory and processors of each booking, by the server where it is."""
    found: dict[str, list[tuple[str, int, int]]] = {}
    for one in bookings:
        found.setdefault(one.server, []).append((one.vm, one.memory_mib, one.cpus))
    return {server: tuple(booked) for server, booked in found.items()}


__all__ = ["Booking", "BookingEnd", "by_server", "ended"]
