"""What another domain says, judged and taken as the report of our gateway's agent that it is.

A peer may speak of migrations between it and us only, and say of them what its own end can know. What it
wants booked must be what its home may give (`core.model.domains`).
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from retinue.controller.changes import MigrationStepped, VMRegistered
from retinue.controller.context import Context
from retinue.controller.domains.ends import End, end_of, gateway_of
from retinue.controller.domains.guests import OF_GUESTS, held_by, logins_of, vm_of
from retinue.controller.domains.refusals import for_peer
from retinue.controller.domains.removals import Removals
from retinue.controller.domains.saying import Saying
from retinue.controller.lease_changes import AddressAssigned, AddressReleased
from retinue.controller.migrations.orchestrator import MigrationOrchestrator
from retinue.controller.migrations.requests import MigrationError, check_memory_address
from retinue.controller.mobility.manager import MobilityManager
from retinue.controller.nic_changes import static_assignments
from retinue.controller.storage_changes import FcLoggedIn, FcLoggedOut
from retinue.core.limits import MOST_PREPARES
from retinue.core.migration import Migration, MigrationState
from retinue.core.migration.record import Far
from retinue.core.model import VM, ModelError
from retinue.core.model.domains import check_guest, is_same
from retinue.core.model.network import Touched
from retinue.core.packets import FrameError, parse
from retinue.core.placement import EntityKind, Reason, Wish
from retinue.core.text import printable
from retinue.patience import patience
from retinue.protocol.domains import SAID_BY_SOURCE, Guest, Heard, Prepare, Prepared, Removed, Said, Word
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import EventType
from retinue.protocol.migrations import Report

MARK_LIMIT = 4.0
"""Seconds that a mark may be in the tunnel after it was told of."""
MOST_GUESTS = 1000
"""VMs of one other domain that are here at the same time."""

_REPORTED: Mapping[Said, Report] = {
    Said.COPY_STARTED: Report.COPY_STARTED,
    Said.STOPPED: Report.STOPPED,
    Said.SOURCE_FREED: Report.SOURCE_FREED,
    Said.RESUMED: Report.RESUMED,
    Said.TARGET_CLOSED: Report.TARGET_CLOSED,
    Said.FAILED: Report.FAILED,
}
"""Words that are reports of an agent."""


class Hearing:
    """Takes what peers say."""

    def __init__(
        self,
        context: Context,
        orchestrator: MigrationOrchestrator,
        mobility: MobilityManager,
        saying: Saying,
        removals: Removals,
        name_free: Callable[[str, EntityKind], None],
        forget: Callable[[VM], Touched],
        give_back: Callable[[VM], None],
        on_size: Callable[[str, int], None],
    ) -> None:
        """`name_free` raises ModelError where something of another kind has a name; `forget` a VM that is no
        more; `give_back` what our DHCP servers have leased to one; `on_size`: MiB of memory that a VM of ours
        has, where it is."""
        self._context = context
        self._net = context.net
        self._orchestrator = orchestrator
        self._mobility = mobility
        self._saying = saying
        self._removals = removals
        self._name_free = name_free
        self._forget = forget
        self._give_back = give_back
        self._on_size = on_size
        self._marks: dict[str, asyncio.Event] = {}
        """Marks that are waited for."""
        self._preparing: Counter[str] = Counter()
        """By domain: what it has asked for, and is not answered."""
        self._booking: dict[str, asyncio.Event] = {}
        """By VM for which a place is being looked for: set when that has ended."""

    # ---- a place is booked ----

    async def prepare(self, peer: str, wanted: Prepare) -> Prepared:
        """Raises ModelError or MigrationError: it cannot come here, and nothing has changed."""
        # One that is asked for once more has its place, and is not to fail for it when it is copied.
        if self._preparing[peer] >= MOST_PREPARES and self._known(peer, wanted) is None:
            raise MigrationError(
                f"{MOST_PREPARES} places are being looked for here for domain {peer}: ask again",
                ErrorCode.TOO_OFTEN,
            )
        self._preparing[peer] += 1
        try:
            return await self._prepare(peer, wanted)
        finally:
            self._preparing[peer] -= 1

    async def _prepare(self, peer: str, wanted: Prepare) -> Prepared:
        vm = wanted.vm.id
        self._tell(peer, vm, wanted.migration, "prepare")
        # Asked for once more meanwhile, as by a controller that was started anew, it is that one.
        while (other := self._booking.get(vm)) is not None:
            await other.wait()
        ended = self._booking[vm] = asyncio.Event()
        try:
            return await self._book(peer, wanted)
        except (ModelError, MigrationError) as error:
            reason = for_peer(self._context.state, peer, wanted.vm, wanted.server, error)
            raise MigrationError(reason, getattr(error, "code", ErrorCode.CONFLICT)) from error
        finally:
            del self._booking[vm]
            ended.set()

    async def _book(self, peer: str, wanted: Prepare) -> Prepared:
        known = self._known(peer, wanted)
        if known is not None and known.state.ended:
            ended = f"{wanted.migration} has ended here, {known.id} is {known.state}"
            raise MigrationError(f"VM {known.vm}: {ended}")
        if known is not None:
            self._say_what_it_holds(peer, wanted, known)
            return Prepared(known.id, known.target)
        vm = self.may_come(peer, wanted.vm)
        if vm.home:
            self._take_in(vm, wanted.vm)
        elif wanted.vm.is_home and wanted.vm.memory_mib:
            self._on_size(vm.id, wanted.vm.memory_mib)
        far = Far(peer, wanted.source, wanted.migration)
        downtime = wanted.downtime_ms / 1000
        try:
            if wanted.server:
                self._may_take(wanted.server)
            # Also where it names one: whether that has room, and may have this VM, is ours to say.
            migration = await self._mobility.migrate(
                vm.id, Wish(Reason.OPERATOR), f"domain {peer}", named=wanted.server,
                wanted_downtime=downtime, far=far,
            )  # fmt: skip
        finally:
            self.forget_if_gone(vm.id)  # Not where it migrates by now.
        return Prepared(migration.id, migration.target)

    def _known(self, peer: str, wanted: Prepare) -> Migration | None:
        """The migration, when it is asked for once more; also one that has ended and is remembered: whoever
        asks has not heard that, and is to have no second place for it."""
        return next(
            (
                m
                for m in self._orchestrator.migrations.values()
                if m.far is not None
                and (m.far.domain, m.far.migration, m.vm) == (peer, wanted.migration, wanted.vm.id)
            ),
            None,
        )

    def _say_what_it_holds(self, peer: str, wanted: Prepare, under_way: Migration) -> None:
        """It is asked for once more, with what the VM holds by now: a lease was renewed, or came, while it
        was copied. Once it is here its domain says nothing more of that."""
        before = not (under_way.was_diverted or under_way.state.ended)
        if before and not wanted.vm.is_home and wanted.vm.id in self._net.vms:
            self._take_in(self.may_come(peer, wanted.vm), wanted.vm)

    def _may_take(self, server: str) -> None:
        if self._net.peer_at(server) is not None:
            raise MigrationError(f"server {server} is a gateway, and runs no VMs", ErrorCode.NOT_A_TARGET)

    def may_come(self, peer: str, guest: Guest) -> VM:
        """The VM as it would be here; nothing is changed. Raises ModelError: it may not come."""
        return self._coming_home(peer, guest) if guest.is_home else self._guest(peer, guest)

    def _coming_home(self, peer: str, guest: Guest) -> VM:
        known = self._net.vms.get(guest.id)
        gateway = self._net.peers[peer].gateway
        if known is None or known.home or known.server != gateway:
            raise ModelError(f"VM {guest.id} is not away in domain {peer}")
        if not is_same(known, vm_of(guest, gateway, "")):
            raise ModelError(f"VM {guest.id} has another MAC, port or addresses than at home")
        return known

    def _guest(self, peer: str, guest: Guest) -> VM:
        gateway = self._net.peers[peer].gateway
        vm = vm_of(guest, gateway, peer)
        check_guest(self._net, vm, tuple(held_by(guest, self._context.clock())))
        known = self._net.vms.get(vm.id)
        if known is not None and not (known.home == peer and is_same(known, vm)):
            raise ModelError(f"VM {vm.id}: a VM of that name is here already")
        if known is not None and known.server != gateway:
            raise ModelError(f"VM {vm.id} is here, at {known.server}")
        if known is not None:
            return known
        if sum(other.home == peer for other in self._net.vms.values()) >= MOST_GUESTS:
            raise ModelError(f"{MOST_GUESTS} VMs of domain {peer} are here already")
        self._name_free(vm.id, EntityKind.VM)
        return vm

    def _take_in(self, vm: VM, guest: Guest) -> None:
        """A guest is registered, unless it is left over from before, with what it holds by now."""
        held = [AddressAssigned(a) for a in held_by(guest, self._context.clock())]
        logins = list(map(FcLoggedIn, logins_of(guest, vm.server)))
        if vm.id in self._net.vms:
            has = {one.assignment.key for one in held}
            before = (a for a in self._net.held_by(vm.id) if a.kind in OF_GUESTS and a.key not in has)
            over = (one for nic in vm.nics for one in self._net.logins_of(nic.mac))
            ended = (FcLoggedOut(one, "it comes anew") for one in over)
            touched = self._context.apply(*map(AddressReleased, before), *ended, *held, *logins)
        else:
            self._removals.heard(vm.id, vm.home)
            given = [AddressAssigned(a) for nic in vm.nics for a in static_assignments(self._net, vm.id, nic)]
            touched = self._context.apply(VMRegistered(vm), *given, *held, *logins)
        self._context.spawn(self._context.install(touched), f"{vm.id}: guest of domain {vm.home}")

    def forget_if_gone(self, id: str) -> None:
        """A guest that is only at the gateway to its home, and not on its way, is not here any more."""
        vm = self._net.vms.get(id)
        peer = None if vm is None else self._net.peers.get(vm.home)
        if vm is None or peer is None or vm.server != peer.gateway or self._orchestrator.of_vm(id):
            return
        self._context.spawn(self._context.install(self._forget(vm)), f"{id}: no guest any more")

    def forget_the_gone(self) -> None:
        """After a restart: the controller may have died before it forgot a guest, or while it booked a place.

        What is to be forgotten is seen by where it is, and nobody need have remembered it.
        """
        for id in [vm.id for vm in self._net.vms.values() if vm.home]:
            self.forget_if_gone(id)

    def removed(self, peer: str, guest: Removed) -> None:
        """A VM of ours was removed where it was, in the domain that says so; of others that domain cannot.

        Raises MigrationError while it migrates: what becomes of it the migration's end says.
        """
        vm = self._net.vms.get(guest.vm)
        if vm is None or vm.home or self._net.peers[peer].gateway not in vm.locations:
            return  # Nothing of it is there, for all we know.
        if (migration := self._orchestrator.of_vm(vm.id)) is not None:
            raise MigrationError(f"VM {vm.id} is being migrated: {migration.id} is {migration.state}")
        self._tell(peer, vm.id, "", "removed")
        self._give_back(vm)
        self._context.spawn(self._context.install(self._forget(vm)), f"{vm.id}: removed in domain {peer}")

    # ---- words about a migration ----

    async def word(self, peer: str, id: str, word: Word, remote: str | None) -> Heard:
        """Raises MigrationError for what does not fit, or is not for that domain to say.

        Of a migration that has ended here the answer is how: the domain that speaks may not have heard it.
        """
        migration = self._orchestrator.migrations.get(id)
        if migration is None or migration.far is None or migration.far.domain != peer:
            raise MigrationError(
                f"there is no migration {id} between domain {peer} and here", ErrorCode.UNKNOWN_MIGRATION
            )
        self._tell(peer, migration.vm, id, word.said)
        end = end_of(self._net, migration)
        assert end is not None
        if (word.said in SAID_BY_SOURCE) != (end is End.TARGET):
            raise MigrationError(
                f"{word.said} of {id} is not for domain {peer} to say", ErrorCode.NOT_ALLOWED
            )
        if migration.state.ended:
            return Heard(migration.state)
        by = (gateway_of(end, migration),)
        reports = self._orchestrator.reports
        match word.said:
            case Said.OPENED:
                check_memory_address(word.memory_at, remote)
                self._is_at(migration, word.server)
                reports.on_report(id, Report.TARGET_OPENED, 0.0, "", word.memory_at, by=by)
            case Said.CONVERGED:
                reports.on_report(id, Report.CONVERGED, 0.0, by=by)
                self._saying.divert(id)
            case Said.DIVERTED:
                await self._heard_diverted(id, word.mark)
            case Said.ROLL_BACK:
                if migration.state.may_undo:
                    reports.on_report(
                        id, Report.FAILED, 0.0, f"domain {peer}: {printable(word.reason)}", by=by
                    )
            case Said.FAILED if migration.state is MigrationState.ROLLING_BACK:
                pass
            case Said.TARGET_CLOSED if migration.state.may_undo:
                # That it has failed, said before, was lost.
                reports.on_report(id, Report.FAILED, 0.0, f"domain {peer} has given it up", by=by)
                reports.on_report(id, Report.TARGET_CLOSED, 0.0, by=by)
            case said:
                report = _REPORTED[said]
                await reports.until_source_let_go(id, report, by)
                reason = f"domain {peer}: {printable(word.reason)}" if word.reason else ""
                reports.on_report(id, report, word.at, reason, by=by)
        return Heard(self._orchestrator.migrations.get(id, migration).state)

    def _is_at(self, migration: Migration, server: str) -> None:
        if migration.far is not None and server and migration.far.server != server:
            far = replace(migration.far, server=server)
            self._context.apply(MigrationStepped(replace(migration, far=far)))

    async def _heard_diverted(self, id: str, mark: str) -> None:
        try:
            await self._until_marked(mark)
        except MigrationError as error:
            self._saying.heard_diverted(id, unmarked=str(error))
            raise
        self._saying.heard_diverted(id)

    async def _until_marked(self, mark: str) -> None:
        """All that came into the tunnel before the mark has come out of it."""
        if not mark:
            raise MigrationError("`diverted` needs its mark")
        came = self._marks.setdefault(mark, asyncio.Event())
        try:
            async with patience(MARK_LIMIT):
                await came.wait()
        except TimeoutError as error:
            raise MigrationError(
                f"no mark has come through the tunnel within {MARK_LIMIT:g} s", ErrorCode.NOT_CONFIRMED
            ) from error
        finally:
            self._marks.pop(mark, None)

    def mark(self, switch: str, frame: bytes) -> None:
        """A frame from another domain's gateway."""
        try:
            text = parse(frame).payload.rstrip(b"\0").decode("ascii")
        except (FrameError, UnicodeDecodeError) as error:
            self._context.reject_frame("mark", switch, error)
            return
        if text in self._marks:
            self._marks[text].set()

    def _tell(self, peer: str, vm: str, migration: str, said: str) -> None:
        self._context.events.publish(
            EventType.DOMAIN_HEARD, domain=peer, vm=vm, migration_id=migration, said=str(said)
        )
