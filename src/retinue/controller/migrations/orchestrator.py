"""Migrations, carried out: the effects of `core.migration` become flows on switches and orders to agents.

Agents follow the event stream: migration.open_target, migration.prepare_source, migration.start_copy,
migration.free_source, migration.roll_back, migration.return_to_source; and report what they have done
(controller/migrations/reports.py). A message of the manager's starts a migration (`start`).
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import replace
from secrets import token_bytes
from typing import Any

import structlog

from retinue.controller.changes import MigrationForgotten, MigrationStepped
from retinue.controller.context import Context
from retinue.controller.counters import all_packet_ins
from retinue.controller.known_migrations import number_of
from retinue.controller.migrations import attachment
from retinue.controller.migrations import new_addresses as new
from retinue.controller.migrations.active import ActiveMigration, Figures
from retinue.controller.migrations.far_ends import FarEnds, NoFarEnds
from retinue.controller.migrations.history import History
from retinue.controller.migrations.old_ways import OldWays
from retinue.controller.migrations.placing import Placing
from retinue.controller.migrations.reports import MigrationReports, checked
from retinue.controller.migrations.requests import (
    MigrationError,
    check_domains,
    check_nics,
    check_no_client,
    check_others_migrated,
    check_parties,
    check_request,
    check_wanted,
    copy_options,
)
from retinue.core import migration as fsm
from retinue.core.migration import Migration, MigrationState
from retinue.core.migration.copying import PLAIN, UNASKED, AskedCopy, CopyOptions
from retinue.core.migration.new_addresses import NewAddresses
from retinue.core.migration.precopy import WANTED_DOWNTIME
from retinue.core.migration.record import Far
from retinue.core.model import IP, Mac
from retinue.core.pipeline.underlay import underlay_of
from retinue.protocol.errors import ErrorCode
from retinue.protocol.migrations import Order

log = structlog.get_logger()


class MigrationOrchestrator:
    """Carries migrations out: turns requests, reports and confirmations into events of the state machine
    (core.migration.states), and its effects into placements on switches and orders to agents."""

    def __init__(
        self,
        context: Context,
        migrated: Callable[[str], None] = lambda vm: None,
        history: History | None = None,
        warm_up: float = 0.0,
        forward: float = 0.0,
        copy_options: CopyOptions = PLAIN,
    ) -> None:
        """`migrated` is called with each VM that has migrated, when nothing of it is bound at the source.

        The order to free the source waits for `warm_up` seconds, and the source forwards for `forward`
        seconds from RESUME on: see controller.config. `copy_options` hold where a request says nothing.
        """
        self.copy_options = copy_options
        self._context = context
        self._migrated = migrated
        self._warm_up = warm_up
        self._history = history or History()
        self.migrations = context.state.migrations
        """By id: those under way and those that are remembered."""
        self._active: dict[str, ActiveMigration] = {}
        """By id, of the same: what is known of them beside their state."""
        self._placing = Placing(context, self._active, self._confirmed, forward)
        self.old_ways = OldWays(context, token_bytes(16))
        self.reports = MigrationReports(context, self, self.old_ways)
        self.far_ends: FarEnds = NoFarEnds()
        self.begun: Callable[[Migration], None] = lambda migration: None
        """Called with each that somebody has asked for, from one server to another."""
        self.ended: Callable[[str], None] = lambda vm: None
        """Called with the VM of each migration that has ended."""
        self.is_under_libvirt: Callable[[str], bool] = lambda vm: False
        """Whether libvirt runs that VM, where it is now, as far as is known."""
        self.look_for_ports: Callable[[str], None] = lambda vm: None
        """Called with a VM that may be on another host: which ports are its is judged anew."""

    # ---- requests of managers ----

    def start(
        self,
        vm: str,
        *,
        target_server: str = "",
        target_switch: str = "",
        source_server: str = "",
        mac: Mac = "",
        ip: IP | None = None,
        wanted_downtime: float = WANTED_DOWNTIME,
        asked: AskedCopy = UNASKED,
        under_way: bool = False,
        far: Far | None = None,
        new_addresses: Sequence[NewAddresses] = (),
        after_the_fact: bool = False,
    ) -> Migration:
        """A live-migration message, with the target server or the target's edge switch.

        `new_addresses`: what NICs are to have from the target on. `under_way`: somebody else carries it out
        already, whoever is away. `after_the_fact`: somebody else has done so, and no agent of ours was there.
        `far`: what is behind the gateway that is its source or its target, in a migration between domains.
        """
        net = self._context.net
        said = (target_server, target_switch, source_server, mac, ip)
        ends = check_request(net, vm, *said, after_the_fact=after_the_fact)
        source, target = ends.source, ends.target
        far = check_domains(net, vm, source, target, far)
        options = copy_options(
            net, vm, asked, self.copy_options, far=far is not None, libvirt=self.is_under_libvirt(vm)
        )
        if after_the_fact:
            check_others_migrated(self._context, vm, ends, new_addresses)
        elif not under_way:
            check_no_client(self._context.state, vm)
            check_wanted(net, vm, target)
            check_nics(self._context.state.left_ports.values(), vm)
            check_parties(self._context, source, target)
        other = self.of_vm(vm)
        if other is not None:
            raise MigrationError(
                f"VM {vm} is being migrated already: {other.id} is {other.state}",
                ErrorCode.MIGRATION_UNDER_WAY,
            )
        wanted = new.checked(self._context.state, vm, new_addresses, far=far is not None)
        id, now = self.migrations.next_id, self._context.clock()
        begun = fsm.begin(id, vm, source, target, now, wanted_downtime, options)
        migration = replace(begun, far=far, new_addresses=wanted, source_host=ends.source_host)
        if after_the_fact:
            migration = fsm.told_afterwards(migration, ends.target_host)
        active = self._active[migration.id] = ActiveMigration(migration.id)
        active.figures["bindings_before"] = net.bindings([vm])
        active.progress.packet_ins_before = self._packet_ins()
        self._context.apply(MigrationStepped(migration))
        if not after_the_fact and source != target:
            self.begun(migration)
        if source == target:
            self._placing.place(migration, fsm.PlacementChange.SETTLED, ())
        if after_the_fact:
            self.look_for_ports(vm)
        self.look_again(migration.id)
        self._speak_for_others(migration.id)
        return self.migrations[migration.id]

    def cancel(self, id: str, by: str = "the operator") -> Migration:
        return self.step(id, fsm.Cancelled(by))

    def of_vm(self, vm: str) -> Migration | None:
        """The migration this VM is in, if any."""
        return self.migrations.of_vm(vm)

    def figures_of(self, id: str) -> Figures:
        """What has been measured of a migration so far; nothing for one that is not known."""
        active = self._active.get(id)
        return {} if active is None else active.figures

    # ---- what else drives a migration ----

    def restored(self) -> None:
        """The database has been read: which migrations are remembered, and which no longer."""
        for id in sorted(self.migrations, key=number_of):
            self._active[id] = ActiveMigration(id)
            if self.migrations[id].state.ended:
                self._forget(self._history.ended(self.migrations[id]))
        for vm in {migration.vm for migration in self.migrations.values()} - self._context.net.vms.keys():
            self.vm_gone(vm)

    def resume_all(self) -> None:
        """After a restart: go on with every migration that was under way when the controller ended."""
        for migration in self.migrations.under_way():
            self._resume(migration.id)

    def _resume(self, id: str) -> None:
        """Ask again for what the migration waits for: at once, and when the switches are back."""
        progress = self._active[id].progress
        progress.recovered = True
        progress.packet_ins_before = self._packet_ins()
        told = self._placing.keep_until_told(id)
        self._context.spawn(self._when_told(id, told), f"{id}: switches come back")
        self._ask_again(id)

    async def _when_told(self, id: str, told: Coroutine[Any, Any, None]) -> None:
        await told
        if id in self.migrations and not self.migrations[id].state.ended:
            self._ask_again(id)

    def _ask_again(self, id: str) -> None:
        migration, effects = fsm.again(self.migrations[id], self._context.clock())
        self._context.apply(MigrationStepped(migration))
        for effect in effects:
            self._carry_out(migration, effect)
        self._speak_for_others(id)
        self._speak_for_the_dead(id)

    def look_again(self, id: str) -> None:
        """Something about servers or ports changed: a migration may have what it waits for."""
        net, migration = self._context.net, self.migrations[id]
        if migration.state is MigrationState.PLANNED and underlay_of(net).is_reachable(migration.target):
            migration = self.step(id, fsm.Matched())
        edge = net.servers[migration.target].edge
        opened_at = self._active[id].progress.target_opened_at
        if (
            migration.state is MigrationState.MATCHED
            and opened_at is not None
            and net.has_ports(migration.vm, edge)
        ):
            self.step(id, fsm.TargetOpened(opened_at))

    def look_again_for(self, vm: str) -> None:
        migration = self.of_vm(vm)
        if migration is not None:
            self.look_again(migration.id)
            self.reports.take_early(migration.id)

    def tick(self) -> None:
        now = self._context.clock()
        for migration in self.migrations.under_way():
            # Disks take as long as they are large: the source, which knows how large, has a limit of its own.
            deadline = migration.deadline(self._active[migration.id].progress.copied_at)
            if (
                deadline is not None
                and now >= deadline
                and not self._context.knowledge.is_held_back(migration.vm)
            ):
                if migration.state is MigrationState.ROLLING_BACK:
                    # Whoever is not back since the start was given the time to be: an undo goes on without.
                    self._active[migration.id].progress.recovered = False
                    self._context.installer.look_again()
                self.step(migration.id, fsm.TimedOut(self.waits_for(migration.id)))
            elif migration.state is MigrationState.PLANNED:
                self.look_again(migration.id)

    def end_those_of(self, server: str) -> None:
        """The server was fenced: its migrations end, without it."""
        for migration in self.migrations.under_way():
            if server in (migration.source, migration.target):
                self._speak_for_the_dead(migration.id)

    def _speak_for_others(self, id: str) -> None:
        """Of a migration after the fact: what no agent is there to report is so, by the manager's word.

        That its port is at the target is looked for as ever (`look_again`).
        """
        migration = self.migrations.get(id)
        if migration is None or not migration.after_the_fact:
            return
        match migration.state:
            case MigrationState.MATCHED if self._active[id].progress.target_opened_at is None:
                self._active[id].progress.target_opened_at = ""
                self.look_again(id)
            case MigrationState.PREPARED:
                self.step(id, fsm.Resumed(migration.steps[0][1]))
            case MigrationState.CONFIRMED:
                self.step(id, fsm.SourceFreed())
            case MigrationState.ROLLING_BACK if not migration.restored:
                self.step(id, fsm.RolledBack())

    def _speak_for_the_dead(self, id: str) -> None:
        """What only a fenced server could report is taken as reported: that is the operator's word.

        Whether the VM runs at the target is still the target's to say, if that is alive.
        """
        migration, net = self.migrations.get(id), self._context.net
        if migration is None or migration.state.ended:
            return
        ends = (migration.source, migration.target)
        dead = [one for one in ends if one in net.fenced and net.peer_at(one) is None]
        if not dead:
            return
        if migration.state.may_undo:
            self.step(id, fsm.Failed(f"server {dead[0]} is fenced: the operator says that it is dead"))
        elif migration.state is MigrationState.CONFIRMED and migration.source in dead:
            self.step(id, fsm.SourceFreed())
        elif migration.state is MigrationState.ROLLING_BACK:
            if migration.target in dead and not migration.target_closed:
                self.step(id, fsm.TargetClosed())
            elif migration.source in dead and migration.target_closed and not migration.restored:
                self.step(id, fsm.RolledBack())

    def waits_for(self, id: str) -> str:
        """What a migration waits for, in words; "" for one that has ended."""
        left = self._active[id].figures.get("postcopy_remaining", 0)
        migration, agents = self.migrations[id], self._context.agents
        away = [one for one in (migration.source, migration.target) if agents.is_away(one)]
        return fsm.waits_for(migration, self._placing.unconfirmed(id), left, away)

    # ---- steps and effects ----

    def get(self, id: str) -> tuple[ActiveMigration, Migration]:
        """A migration and what is known of it beside its state. Raises MigrationError for an unknown one."""
        if id not in self._active:
            raise MigrationError(
                f"there is no migration {id}; `retinue move list` shows those there are",
                ErrorCode.UNKNOWN_MIGRATION,
            )
        return self._active[id], self.migrations[id]

    def step(self, id: str, event: fsm.Event) -> Migration:
        """Take one step and carry its effects out. Raises MigrationError for an event that does not fit."""
        _, before = self.get(id)
        migration, effects = checked(before, event, self._context.clock())
        if isinstance(event, fsm.SourceStopped) and before.state is MigrationState.DIVERTED:
            self._active[id].progress.quiet.set()

        def carry_out() -> None:
            for effect in effects:
                self._carry_out(migration, effect)

        if migration == before:
            carry_out()
            return migration
        # Effects first: after RESUME every packet counts, the record of the step can wait.
        self._context.apply(MigrationStepped(migration), first=carry_out)
        attachment.tell(self._context, before, migration)
        if migration.state.ended:
            self._context.durations.migration_ended(migration, self._active[id].figures)
            self._active[id].ended()
            self._forget(self._history.ended(migration))
            self.ended(migration.vm)
        self._speak_for_others(id)
        self._speak_for_the_dead(id)
        self.far_ends.stepped(event, migration)
        self._context.installer.look_again()
        return self.migrations.get(id, migration)

    def vm_gone(self, vm: str) -> None:
        """The VM was removed, and with it the reason to remember its last migration."""
        self._forget(self._history.vm_gone(vm))

    def _forget(self, ids: Collection[str]) -> None:
        for id in ids:
            del self._active[id]
            self._context.apply(MigrationForgotten(self.migrations[id]))

    def _carry_out(self, migration: Migration, effect: fsm.Effect) -> None:
        net, publish = self._context.net, self._context.events.publish
        self.far_ends.ordered(migration, effect)
        if migration.after_the_fact and isinstance(effect, fsm.ORDERS):
            return  # Nobody is there to be told, and the VM is where it is.
        match effect:
            case fsm.OpenTarget():
                publish(Order.OPEN_TARGET, migration=migration, vm=net.vms.get(migration.vm))
            case fsm.StartCopy():
                self._placing.prime(migration)
                publish(Order.START_COPY, migration=migration)
            case fsm.FreeSource():
                self._context.spawn(self._free_source(migration), f"{migration.id}: free the source")
            case fsm.CeaseForwarding():
                self._context.spawn(
                    self._placing.cease_forwarding(migration), f"{migration.id}: cease forwarding"
                )
            case fsm.ReturnToSource():
                publish(Order.RETURN_TO_SOURCE, migration=migration)
            case fsm.RollBackAtHypervisor():
                publish(Order.ROLL_BACK, migration=migration, reason=migration.reason)
            case fsm.AdmitAtTarget():
                near = [underlay_of(net).near(migration.target)]
                self._placing.place(migration, fsm.PlacementChange.ADMITTED, near)
            case fsm.DivertToTarget():
                self._context.spawn(self._placing.divert(migration.id), f"{migration.id}: divert")
            case fsm.ForwardFromSource():
                self._context.spawn(self._placing.forward(migration.id), f"{migration.id}: forward")
            case fsm.CopyToSource():
                self._placing.place(
                    migration, fsm.PlacementChange.COPIED, self._placing.told_first(migration)
                )
            case fsm.CloseSource():
                self._placing.place(migration, fsm.PlacementChange.SOURCE_CLOSED, ())
            case fsm.CloseTarget() if migration.was_diverted and not migration.closed:
                self._placing.place(
                    migration, fsm.PlacementChange.RETURNED, self._placing.returned_first(migration)
                )
            case fsm.CloseTarget():
                self._placing.place(
                    migration, fsm.PlacementChange.TARGET_CLOSED, self._placing.edge_first(migration)
                )

    async def _free_source(self, migration: Migration) -> None:
        """Nothing of the VM is bound at the source any more: what else is left there can wait."""
        await asyncio.sleep(self._warm_up)
        self._context.events.publish(Order.FREE_SOURCE, migration=migration)

    def _confirmed(self, id: str, change: fsm.PlacementChange) -> None:
        """Every switch concerned has confirmed a change of the VM's placement."""
        active, now = self._active[id], self._context.clock()
        try:
            done = self.step(id, fsm.Confirmed(change))
        except MigrationError:
            return  # Failed or cancelled while the switches were confirming.
        if change is fsm.PlacementChange.SOURCE_CLOSED:
            progress, figures = active.progress, active.figures
            resumed = now if progress.resumed_here is None else progress.resumed_here
            figures["control_ms"] = (now - resumed) * 1000
            figures["bindings_after"] = self._context.net.bindings([done.vm])
            self._migrated(done.vm)
            figures["packet_ins"] = self._packet_ins() - progress.packet_ins_before

    def concerned(self, id: str) -> frozenset[str]:
        """Switches with entries of this migration's VM."""
        return self._placing.concerned(self.migrations[id])

    def _packet_ins(self) -> int:
        return all_packet_ins(self._context.counters)


__all__ = ["MigrationError", "MigrationOrchestrator"]
