"""A migration's placements, brought onto the switches: in which order, and what counts as confirmed."""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any

import structlog

from retinue.controller.changes import VMPlaced
from retinue.controller.context import BACK_WITHIN, Context
from retinue.controller.migrations import new_addresses
from retinue.controller.migrations.active import ActiveMigration
from retinue.core import migration as fsm
from retinue.core.migration import Migration, MigrationState
from retinue.core.model import ModelError
from retinue.core.model.network import NOTHING, Owner, Touched
from retinue.core.packets import Ethernet, EtherType
from retinue.core.pipeline.underlay import Near, underlay_of
from retinue.host.timing import CACHE_LAG
from retinue.patience import patience

log = structlog.get_logger()

PRIMER, PRIMERS = b"retinue primer", 4
MAY_BE_AWAY = frozenset(
    {fsm.PlacementChange.RETURNED, fsm.PlacementChange.TARGET_CLOSED, fsm.PlacementChange.SETTLED}
)
"""What is not held up by a switch that is away."""
QUIET_LIMIT = 3.0
"""Seconds for which a source may find that something still comes by the old way: its own limit is less."""
LOOKS_LIMIT = 0.5
"""Seconds for which it is waited that a source, where the VM stands still, has begun and ended to look."""
ARRIVED = (MigrationState.SWITCHED, MigrationState.CONFIRMED, MigrationState.FREED)
"""The VM is registered at its target alone."""


class Placing:
    """Places VMs as the steps of their migrations want it, and tells when every switch has confirmed that."""

    def __init__(
        self,
        context: Context,
        active: Mapping[str, ActiveMigration],
        confirmed: Callable[[str, fsm.PlacementChange], None],
        forward: float,
    ) -> None:
        """`confirmed` is called with a migration and a change that all switches have confirmed.

        `forward`: see controller.config.
        """
        self._context = context
        self._migrations: Mapping[str, Migration] = context.state.migrations
        self._active = active
        self._confirmed = confirmed
        self._forward_seconds = forward

    def keep_until_told(self, id: str) -> Coroutine[Any, Any, None]:
        """Leave the VM's entries as they are; awaited, until all switches concerned are back.

        They may hold the migration's last step, the one before, or some this and some that; told one by one,
        as they happen to connect, they would lose packets. And an edge is back when its database has told its
        VMs' ports: before, nothing could be confirmed there. A switch that stays away is not waited for long.
        """
        owner = Owner("vm", self._migrations[id].vm)
        self._context.knowledge.kept.add(owner)
        return self._keep(id, owner)

    async def _keep(self, id: str, owner: Owner) -> None:
        installer = self._context.installer
        try:
            async with asyncio.timeout(BACK_WITHIN):
                await installer.wait_confirmed(lambda: self._away(id))
        except TimeoutError:
            log.warning("migration.switches_away", migration=id, switches=sorted(self._away(id)))
        finally:
            self._context.knowledge.kept.discard(owner)
            installer.look_again()
        now = self._migrations.get(id)
        near: Near = ()
        if now is not None:
            near = self.told_first(now)
            if now.state is MigrationState.ROLLING_BACK:
                near = self.returned_first(now) if now.was_diverted else self.edge_first(now)
        await self._context.install([owner], near)

    def edge_first(self, migration: Migration) -> Near:
        return underlay_of(self._context.net).order_to_withdraw(migration.source)

    def returned_first(self, migration: Migration) -> Near:
        return underlay_of(self._context.net).order_to_return(migration.source, migration.target)

    def told_first(self, migration: Migration) -> Near:
        return underlay_of(self._context.net).order_to_divert(migration.source, migration.target)

    async def divert(self, id: str) -> None:
        """Divert the VM's traffic, when every switch concerned is there to confirm it.

        The VM runs at its source and can wait. With some switches told and others away its traffic would go
        to the target, and be lost if the migration is undone then. When it is paused nothing is waited for.
        """
        await self._context.installer.wait_confirmed(lambda: self._can_wait(id) and self._away(id))
        migration = self._migrations.get(id)
        if migration is not None and migration.state in (MigrationState.DIVERTED, MigrationState.SWITCHING):
            self.place(migration, fsm.PlacementChange.DIVERTED, self.told_first(migration))

    def _can_wait(self, id: str) -> bool:
        """True while the VM runs at its source, and only waits for its traffic to be diverted."""
        migration = self._migrations.get(id)
        return (
            migration is not None
            and migration.state is MigrationState.DIVERTED
            and migration.stopped_at is None
        )

    def _away(self, id: str) -> set[str]:
        """Switches concerned that are not connected and read, or whose ports of the VM are not known yet.

        A VM that is at its target alone needs no port known: what it needs there has been confirmed.
        """
        migration, switches = self._migrations.get(id), self._context.installer.switches
        if migration is None:
            return set()
        owner, told = Owner("vm", migration.vm), self._context.knowledge.has_been_told
        arrived = migration.state in ARRIVED
        back = {s for s in switches if switches[s].is_read and (arrived or told(owner, s))}
        return self._waited_for(id, self.concerned(migration) - back)

    async def forward(self, id: str) -> None:
        """Before flow caches follow their tables packets still come the old way: none may overtake them.

        Where the source looks itself whether any does, or may do so, as far as a controller knows that has
        taken the migration over, it is waited for; not for ever, for those that come after the VM has stopped
        are lost without. A source whose VM has stopped already is to look what is left in its taps, before
        copies come there.
        """
        migration = self._migrations.get(id)
        looks = migration is not None and migration.stopped_at is not None
        await asyncio.sleep(CACHE_LAG)
        active = self._active.get(id)
        if active is not None:
            progress = active.progress
            watched = progress.watched or (progress.recovered and self._can_wait(id))
            if watched or looks:
                with contextlib.suppress(TimeoutError):
                    async with patience(QUIET_LIMIT if watched else LOOKS_LIMIT):
                        await progress.quiet.wait()
        migration = self._migrations.get(id)
        if migration is not None and migration.state is MigrationState.DIVERTED:
            self.place(migration, fsm.PlacementChange.FORWARDED, self.told_first(migration))

    # ---- steps ----

    def place(self, migration: Migration, change: fsm.PlacementChange, near: Near) -> None:
        """Place the VM as this change wants it, and step on when every switch has confirmed it."""
        vm = self._context.net.vms.get(migration.vm)
        touched: Touched = NOTHING
        if vm is not None:
            try:
                placed = fsm.on_known_host(fsm.placement_of(vm, migration, change), self._context.net.servers)
                if change is fsm.PlacementChange.SOURCE_CLOSED and migration.new_addresses:
                    near = new_addresses.order(self._context.net, migration)
                    touched = new_addresses.close_source(self._context, migration, placed)
                else:
                    touched = self._context.apply(VMPlaced(placed))
            except ModelError as error:
                log.error("migration.vm_not_placed", migration=migration.id, error=str(error))
        confirming = self._active[migration.id].progress.confirming
        running = confirming.get(change)
        if running is None or running.done():
            work = self._confirm(migration.id, change, touched, near)
            confirming[change] = self._context.spawn(work, f"{migration.id}: {change}")
        else:
            # What was asked for first is not confirmed yet, and may have been undone meanwhile.
            self._context.spawn(self._context.install(touched, near), f"{migration.id}: {change}, again")

    async def _confirm(self, id: str, change: fsm.PlacementChange, touched: Touched, near: Near) -> None:
        """Install, wait for the switches, and step on.

        What is waited for is everything this migration has changed so far: a step asked for again has
        nothing new to send, and is not confirmed by that. And nothing of the VM may be left on a switch that
        is not wanted there. After a restart what was sent before is not known, so all switches the migration
        concerns must have been read, and the VM's ports be known before it gets anything at its target. An
        undo does not wait for a switch that is away, its server may be why the migration failed (after a
        restart it does, for a while: all were away); nor does the end of forwarding: the server may have been
        shut down, empty as it is. (Between two hosts at one switch there is no other that could confirm.)
        """
        progress, figures = self._active[id].progress, self._active[id].figures
        began = self._context.clock()
        diverts = change is fsm.PlacementChange.DIVERTED
        report = await self._context.install(
            touched,
            near,
            lambda switch: diverts and self._can_wait(id) and bool(self._waited_for(id, {switch})),
        )
        for switch, keys in report.changed.items():
            progress.changed[switch] = progress.changed.get(switch, frozenset()) | keys
        await self._context.installer.wait_confirmed(lambda: self._unconfirmed(id, change))
        now = self._context.clock()
        figures["flow_mods"] = figures.get("flow_mods", 0) + report.flow_mods
        if diverts:
            figures["diverting_ms"] = (now - began) * 1000
        progress.is_confirmed(change).set()
        if id not in self._active:
            return  # It has ended, and is not remembered any longer.
        if change is fsm.PlacementChange.RETURNED:
            await self._close_target(id)
        else:
            self._confirmed(id, change)

    def unconfirmed(self, id: str) -> set[str]:
        """The switches that have yet to confirm what a migration has changed."""
        return self._waited_for(id, self._context.installer.pending(self._active[id].progress.changed))

    def _waited_for(self, id: str, switches: Collection[str]) -> set[str]:
        """Of these switches all but the edges of fenced servers, and what is dead with them; leaves that are
        away, and by which neither end is reached; and those into which nothing comes. They are corrected when
        they are back."""
        if not switches:
            return set()  # As most often: what is asked each time that a switch confirms looks at no other.
        net, migration = self._context.net, self._migrations.get(id)
        fenced = {net.servers[server].edge for server in net.fenced}
        ends = (migration.source, migration.target) if migration is not None else ()
        return set(switches) - fenced - self._context.spared(switches, ends)

    def _unconfirmed(self, id: str, change: fsm.PlacementChange) -> set[str]:
        """The switches that have yet to confirm what this change of a migration waits for."""
        if id not in self._active:
            return set()
        progress, knowledge = self._active[id].progress, self._context.knowledge
        migration = self._migrations[id]
        may_be_away = change in MAY_BE_AWAY and migration.source != migration.target
        recovered = progress.recovered and change is not fsm.PlacementChange.SETTLED
        owner, concerned = Owner("vm", migration.vm), self.concerned(migration)
        waiting = self._context.installer.unconfirmed(
            progress.changed, owner, concerned, read=recovered, connected_only=may_be_away and not recovered
        )
        if recovered and not may_be_away and change is not fsm.PlacementChange.SOURCE_CLOSED:
            waiting |= {switch for switch in concerned if not knowledge.knows(owner, switch)}
        return self._waited_for(id, waiting)

    def concerned(self, migration: Migration) -> frozenset[str]:
        """Switches with entries of this migration's VM."""
        return underlay_of(self._context.net).concerned((migration.source, migration.target))

    # ---- what is done later, or besides ----

    async def _close_target(self, id: str) -> None:
        """Every switch gives the source its traffic. Flow caches may follow later: the target forwards till
        then."""
        await asyncio.sleep(self._forward_seconds)
        migration = self._migrations.get(id)
        if migration is not None and migration.state is MigrationState.ROLLING_BACK:
            near = underlay_of(self._context.net).order_to_withdraw(migration.target)
            self.place(migration, fsm.PlacementChange.TARGET_CLOSED, near)

    async def cease_forwarding(self, migration: Migration) -> None:
        steps = reversed(migration.steps)
        resumed = next((at for state, at in steps if state is MigrationState.SWITCHED), 0.0)
        await asyncio.sleep(resumed + self._forward_seconds - self._context.clock())
        now = self._migrations.get(migration.id)
        if now is not None and now.state is MigrationState.FREED:  # Else it was asked for twice, and is done.
            self.place(now, fsm.PlacementChange.SETTLED, self.edge_first(now))

    def prime(self, migration: Migration) -> None:
        """Send frames that nobody needs to the port that each NIC has at the target.

        A QEMU that waits for its memory takes one frame from its tap all the same, and throws it away when
        the memory is there. With one for that alone, the first frame of those that wait was still lost now
        and then on a busy machine: so there are some more. A guest that gets one passes it over: nobody
        speaks its EtherType.
        """
        net = self._context.net
        edge = net.servers[migration.target].edge
        vm = net.vms.get(migration.vm)
        for nic in vm.nics if vm is not None else ():
            port = net.port_of(nic, edge)
            if port is not None and not nic.trunk:
                frame = Ethernet(nic.mac, net.gateway_mac, EtherType.EXPERIMENT, PRIMER).build()
                for _ in range(PRIMERS):
                    self._context.send_frame(edge, port.number, frame)
