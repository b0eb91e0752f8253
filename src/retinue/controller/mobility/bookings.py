"""Bookings: room on a server for a VM that is to come (core.placement.bookings)."""

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass

from retinue.controller.changes import Change
from retinue.controller.context import Context
from retinue.controller.errors import RequestError, no_server
from retinue.controller.state import State, Storable
from retinue.core.limits import MOST_BOOKINGS, MOST_BOOKINGS_OF_A_SERVER
from retinue.core.migration import Migration
from retinue.core.model import ModelError, entity_id
from retinue.core.model.network import NOTHING, Touched
from retinue.core.placement.bookings import Booking, BookingEnd, ended
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import EventType

MIGRATION_SECONDS = 60.0
"""For which a migration books: by then its VM has its place at the target, or it is undone."""


@dataclass(frozen=True, slots=True)
class BookingMade(Change):
    """Room is booked for a VM."""

    booking: Booking

    def apply(self, state: State) -> Touched:
        state.bookings[self.booking.vm] = self.booking
        return NOTHING

    def kept(self) -> tuple[Storable, ...]:
        return (self.booking,)


@dataclass(frozen=True, slots=True)
class BookingEnded(Change):
    """It counts no longer."""

    booking: Booking

    def apply(self, state: State) -> Touched:
        state.bookings.pop(self.booking.vm, None)
        return NOTHING

    def dropped(self) -> tuple[Storable, ...]:
        return (self.booking,)


class Bookings:
    """Makes and ends them."""

    def __init__(
        self, context: Context, size_of: Callable[[str], tuple[int, int]] = lambda vm: (0, 0)
    ) -> None:
        """`size_of`: MiB of memory and processors of a VM."""
        self._context = context
        self._size_of = size_of
        self._of_migrations: dict[str, Booking] = {}
        """By VM: what a migration has booked; after a restart it ends by itself."""
        self._net = context.net
        self._of = context.state.bookings

    def book(
        self,
        vm: str,
        server: str,
        memory_mib: int,
        cpus: int,
        seconds: float,
        by: Collection[str] | None = None,
    ) -> Booking:
        """`by`: the servers for which an agent speaks that asks for it; None: a manager does.

        Raises RequestError, ModelError.
        """
        entity_id(vm, "a VM")
        if server not in self._net.servers:
            raise no_server(server)
        if not self._net.servers[server].edge or server in self._net.fenced | self._net.drained:
            raise RequestError(f"server {server} takes no VM", ErrorCode.NOT_A_TARGET)
        if vm in self._net.vms and server in self._net.vms[vm].locations:
            raise RequestError(f"VM {vm} is at {server} already")
        before = self._of.get(vm)
        if before is not None and by is not None and before.server not in by:
            raise RequestError(
                f"room for VM {vm} is booked on {before.server}, which is not for agent {', '.join(by)} to "
                "end; a manager may"
            )
        if before is None and len(self._of) >= MOST_BOOKINGS:
            raise RequestError(f"more than {MOST_BOOKINGS} bookings cannot be kept")
        there = sum(one.server == server and one.vm != vm for one in self._of.values())
        if there >= MOST_BOOKINGS_OF_A_SERVER:
            raise RequestError(f"more than {MOST_BOOKINGS_OF_A_SERVER} bookings of {server} cannot be kept")
        if before is not None:
            self._end(before, BookingEnd.REPLACED)
        booking = Booking(vm, server, memory_mib, cpus, self._context.clock() + seconds)
        self._context.apply(BookingMade(booking))
        self._context.events.publish(
            EventType.BOOKED, vm=vm, server=server, memory_mib=memory_mib, cpus=cpus, until=booking.until
        )
        return booking

    def migration_begun(self, migration: Migration) -> None:
        """It books at its target as anybody would; the booking ends when the VM has its place there, or with
        the migration. Whether there is room was looked at, or is for whoever named the target to know. What
        somebody has booked for the VM already stays his, who may want it when the migration is undone; a
        client that roams needs no room."""
        vm, target = migration.vm, migration.target
        if vm in self._of or self._context.state.is_client(vm):
            return
        memory, cpus = self._size_of(vm)
        with contextlib.suppress(RequestError, ModelError):  # A gateway to another domain, which books there.
            self._of_migrations[vm] = self.book(vm, target, memory, cpus, MIGRATION_SECONDS)

    def migration_ended(self, vm: str) -> None:
        booking = self._of_migrations.pop(vm, None)
        if booking is not None and self._of.get(vm) == booking:
            known = self._net.vms.get(vm)
            has_come = known is not None and known.server == booking.server
            self._end(booking, BookingEnd.ARRIVED if has_come else BookingEnd.RELEASED)

    def release(self, vm: str, server: str) -> Booking:
        """Raises RequestError where nothing is booked there for this VM."""
        booking = self._of.get(vm)
        if booking is None or booking.server != server:
            raise RequestError(f"nothing is booked on {server} for VM {vm}", ErrorCode.UNKNOWN_BOOKING)
        self._end(booking, BookingEnd.RELEASED)
        return booking

    def look(self) -> None:
        """Now and then, and before a decision: what has ended by itself."""
        at = {vm: self._net.vms[vm].locations for vm in self._of if vm in self._net.vms}
        for booking, why in ended(list(self._of.values()), at, self._context.clock()):
            self._end(booking, why)

    def _end(self, booking: Booking, why: BookingEnd) -> None:
        self._context.apply(BookingEnded(booking))
        self._context.events.publish(
            EventType.BOOKING_ENDED, vm=booking.vm, server=booking.server, reason=str(why)
        )


__all__ = ["BookingEnded", "BookingMade", "Bookings"]
