"""External migrations: what the servers' agents report of libvirt becomes the steps of a migration.

A person types `virsh migrate --live` and need not know of the controller. The target's agent reports that the
VM is incoming, the source's that it is paused, the target's that it runs (hypervisor/libvirt/events.py has
the times):

    report, from               becomes                                      once the migration is
    incoming, target           a migration begins; target_opened,           matched; prepared
                               copy_started
    suspended, source          stopped: traffic is diverted to the target   prepared, copying
    resumed, target            resumed: the source is closed                diverted, or source without port
    departed, source           source_freed (and resumed, if not reported)  confirmed, and none there
    failed or stopped, target  failed, rolled_back                          not switched
    resumed, source            the same: the VM had been suspended          not switched

A report that comes early waits until its turn. In a migration that our own agents carry out the same reports
come twice, which does no harm.

No server takes a VM by a claim of its own. The target's port alone begins nothing. The target's "incoming"
begins a migration only where the source's agent has reported the VM: there others make migrations. Where the
source's agent runs a QEMU of its own, it would give the VM away to whichever server asked. And a target that
reports that the VM runs there diverts nothing until the source has reported that the VM stopped, or the
source's switch that the VM's port has gone. An agent that was away reports what runs on its server when it is
back ("started"), and so does it from time to time: so a migration that nobody reported is found, by the port
at the target and the lack of one at the source.

A VM whose server is fenced, and that somebody starts at another one, is taken over there: the operator has
said that nobody else runs it.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from retinue.controller.context import Context
from retinue.controller.counters import Count
from retinue.controller.errors import no_server
from retinue.controller.inventory.vms import Inventory
from retinue.controller.migrations.orchestrator import MigrationError, MigrationOrchestrator
from retinue.controller.migrations.words import LET_GO_ON
from retinue.core.migration import Migration, MigrationState
from retinue.core.model import VM, Ending
from retinue.core.model.trunks import carried_by
from retinue.protocol.events import EventType
from retinue.protocol.hypervisor_events import EventKind
from retinue.protocol.migrations import Report
from retinue.protocol.vms import VMReport

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _PendingReport:
    """A report for `MigrationOrchestrator.reports.on_report`."""

    report: Report
    at: float
    reason: str = ""
    by: str = ""
    """The server that says so; "": it is what the controller concludes, which no server may say for
    another."""


_ENDS = (EventKind.STOPPED, EventKind.FAILED)
_EARLY = frozenset({MigrationState.PREPARED, MigrationState.COPYING})
_MAY_FAIL = frozenset(state for state in MigrationState if state.may_undo) | {MigrationState.ROLLING_BACK}
_TURN: Mapping[Report, frozenset[MigrationState]] = {
    Report.TARGET_OPENED: frozenset({MigrationState.MATCHED}),
    Report.COPY_STARTED: frozenset({MigrationState.PREPARED}),
    Report.STOPPED: _EARLY,
    Report.RESUMED: _EARLY | {MigrationState.DIVERTED, MigrationState.ROLLING_BACK},
    Report.SOURCE_FREED: frozenset({MigrationState.CONFIRMED}),
    Report.FAILED: _MAY_FAIL,
    Report.ROLLED_BACK: frozenset({MigrationState.ROLLING_BACK}),
}
"""In which states of a migration a report is due."""


@dataclass
class _PendingReports:
    """The reports of one migration that are not due yet, and those that have been taken at all."""

    waiting: deque[_PendingReport] = field(default_factory=deque)
    taken: set[Report] = field(default_factory=set)


class ExternalMigrations:
    """Makes migrations of what hypervisors do by themselves (see above)."""

    def __init__(self, context: Context, orchestrator: MigrationOrchestrator, inventory: Inventory) -> None:
        self._context = context
        self._net = context.net
        self._orchestrator = orchestrator
        self._inventory = inventory
        self._pending: dict[str, _PendingReports] = {}
        self._under_libvirt: set[tuple[str, str]] = set()
        """Servers and VMs of which a libvirt reporter there has told: others may migrate them."""
        self._vlan_filters: dict[str, frozenset[str]] = {}
        """By VM, the interfaces whose cards filter VLANs."""
        self._without_checksums: dict[str, frozenset[str]] = {}
        """By VM, those whose guests' packets its server's switch drops, as they have no checksum."""

    def on_report(
        self,
        server: str,
        vm: str,
        kind: EventKind,
        at: float,
        vlan_filters: Sequence[str] = (),
        without_checksums: Sequence[str] = (),
    ) -> Migration | None:
        """What a server's hypervisor did with a VM; returns the migration it belongs to, if any.

        `vlan_filters`: the VM's interfaces whose cards filter VLANs, told when it runs; `without_checksums`:
        those from which the server's switch drops what has none.

        Raises RequestError for a server that is not there, MigrationError where no migration can be begun. A
        VM that is not registered is no mistake: a server may run others than ours.
        """
        if server not in self._net.servers:
            raise no_server(server)
        registered = self._net.vms.get(vm)
        if registered is None:
            return None
        if kind in (EventKind.STARTED, EventKind.RESUMED):
            filtering = {key: ids for key, ids in self._vlan_filters.items() if key in self._net.vms}
            self._vlan_filters = {**filtering, vm: frozenset(vlan_filters)}
            losing = {key: ids for key, ids in self._without_checksums.items() if key in self._net.vms}
            self._without_checksums = {**losing, vm: frozenset(without_checksums)}
        if self._outlives_its_server(registered, server, kind):
            registered = self._inventory.take_over(vm, server)
        if kind is not EventKind.STARTED:  # It is repeated from time to time, and is no news then.
            said = {"vm": vm, "server": server, "kind": str(kind), "at": at}
            self._context.events.tell((server, vm), EventType.HYPERVISOR_EVENT, about=kind, **said)
        if (server, vm) not in self._under_libvirt:
            self._under_libvirt = {pair for pair in self._under_libvirt if pair[1] in self._net.vms} | {
                (server, vm)
            }
        migration = self._orchestrator.of_vm(vm)
        if migration is None:
            migration = self._begins(vm, registered.server, server, kind)
        if migration is None:
            self._no_migration(vm, registered.server, server, kind)
            return None
        if server == migration.source and migration.state.may_undo and kind in _ENDS:
            self._has_ended(vm, server, kind)  # Before anybody else has it: switched off, or crashed.
        for report in _reports_of(migration, server, kind, at):
            self._add(migration.id, report)
        self._go_on(migration.id)
        return self._orchestrator.migrations[migration.id]

    def is_under_libvirt(self, vm: str) -> bool:
        """Whether the agent of its server has told of it as what libvirt does there."""
        return vm in self._net.vms and (self._net.vms[vm].server, vm) in self._under_libvirt

    def doubts(self, vm: VM) -> list[str]:
        """What a VM loses, or may lose as it migrates, for how its hypervisor's manager has made it:
        sentences."""
        filters = self._vlan_filters.get(vm.id, frozenset())
        lost = self._without_checksums.get(vm.id, frozenset())
        return [
            f"what the guest sends by NIC {nic.port_id} with TCP or UDP gets lost: its card leaves checksums "
            "out, and the switch, in user space, drops such packets; switch its offloads off in the VM's "
            "domain (docs/libvirt.md, Offloads)"
            for nic in vm.nics
            if nic.port_id in lost
        ] + [
            f"the card of NIC {nic.port_id}, which carries VLANs, filters them: a QEMU of 7.2 forgets as it "
            "migrates which ones the guest wants; switch it off in the VM's domain (docs/libvirt.md, Trunks)"
            for nic in vm.nics
            if nic.port_id in filters and carried_by(vm, nic)
        ]

    def _outlives_its_server(self, registered: VM, server: str, kind: EventKind) -> bool:
        """The operator says that the VM's server is dead, and here it was started, with its port."""
        dead = registered.server in self._net.fenced and server not in self._net.fenced
        runs = kind in (EventKind.STARTED, EventKind.RESUMED) and self._has_port(registered.id, server)
        return dead and runs and self._orchestrator.of_vm(registered.id) is None

    # ---- without a migration ----

    def _begins(self, vm: str, registered: str, server: str, kind: EventKind) -> Migration | None:
        if server == registered:
            return None
        if kind is EventKind.INCOMING:
            if (registered, vm) in self._under_libvirt:
                return self._orchestrator.start(vm, target_server=server, under_way=True)
            self._claimed(vm, server, f"is to have VM {vm}, and no libvirt at {registered} has reported it")
        if kind in (EventKind.STARTED, EventKind.RESUMED) and self._has_port(vm, server):
            if not self._has_left_port(vm, registered):
                return self._orchestrator.start(vm, target_server=server, under_way=True)
            self._claimed(vm, server, f"runs VM {vm}, which has its port at {registered}")
        return None

    def _claimed(self, vm: str, server: str, what: str) -> None:
        self._context.counters[Count.CLAIMED_VMS] += 1
        reason = f"server {server} reports that it {what}"
        self._context.events.tell((server, vm), EventType.VM_MISMATCH, vm=vm, server=server, reason=reason)

    def _no_migration(self, vm: str, registered: str, server: str, kind: EventKind) -> None:
        if server != registered:
            return
        if kind in (EventKind.STARTED, EventKind.RESUMED):
            self._inventory.power.on_report(vm, VMReport.STARTED, server)
        elif kind in _ENDS:
            self._has_ended(vm, server, kind)

    def _has_ended(self, vm: str, server: str, kind: EventKind) -> None:
        how = Ending.OFF if kind is EventKind.STOPPED else Ending.CRASHED
        self._inventory.power.on_report(vm, VMReport.STOPPED, server, how)

    def _has_port(self, vm: str, server: str) -> bool:
        return self._net.has_ports(vm, self._net.servers[server].edge)

    def _has_left_port(self, vm: str, server: str) -> bool:
        """A port of the VM stands there, of whichever NIC."""
        known = self._net.vms.get(vm)
        return known is not None and self._net.has_a_port(known, self._net.servers[server].edge)

    # ---- the reports of a migration ----

    def _add(self, id: str, report: _PendingReport) -> None:
        pending = self._pending.get(id)
        if pending is None:
            pending = self._pending[id] = _PendingReports()
            self._context.spawn(self._follow(id), f"{id}: reports of its hypervisors")
        if report.report not in pending.taken:
            pending.taken.add(report.report)
            pending.waiting.append(report)

    async def _follow(self, id: str) -> None:
        """Report what waits as soon as it is due, until the migration has ended."""
        events = self._context.events.listen(types=LET_GO_ON)
        try:
            while (
                migration := self._orchestrator.migrations.get(id)
            ) is not None and not migration.state.ended:
                await anext(events)
                if id in self._orchestrator.migrations:
                    self._go_on(id)
        except StopAsyncIteration:
            pass
        finally:
            events.close()
            self._pending.pop(id, None)

    def _go_on(self, id: str) -> None:
        pending = self._pending.get(id)
        while pending is not None and pending.waiting:
            report = next(
                (r for r in pending.waiting if self._due(self._orchestrator.migrations[id], r)), None
            )
            if report is None:
                return
            pending.waiting.remove(report)
            try:
                by = (report.by,) if report.by else None
                self._orchestrator.reports.on_report(id, report.report, report.at, report.reason, by=by)
            except MigrationError as error:
                log.warning("migration.report_rejected", migration=id, error=str(error))

    def _due(self, migration: Migration, report: _PendingReport) -> bool:
        if migration.state not in _TURN[report.report]:
            return False
        stopped = migration.state is MigrationState.DIVERTED and migration.stopped_at is not None
        if report.report is Report.SOURCE_FREED or (report.report is Report.RESUMED and not stopped):
            return not self._has_left_port(migration.vm, migration.source)
        return True


def _reports_of(migration: Migration, server: str, kind: EventKind, at: float) -> list[_PendingReport]:
    """What a hypervisor's event means to the migration of its VM: what the server says of itself, and what
    the controller concludes from that of the other end."""

    def said(report: Report, reason: str = "") -> _PendingReport:
        return _PendingReport(report, at, reason, server)

    def concluded(report: Report) -> _PendingReport:
        return _PendingReport(report, at)

    match kind:
        case EventKind.INCOMING if server == migration.target:
            return [said(Report.TARGET_OPENED), concluded(Report.COPY_STARTED)]
        case EventKind.RESUMED | EventKind.STARTED if server == migration.target:
            return [
                said(Report.TARGET_OPENED),
                concluded(Report.COPY_STARTED),
                said(Report.RESUMED),
                concluded(Report.SOURCE_FREED),  # Due when the source's switch says that the port has gone.
            ]
        case EventKind.FAILED | EventKind.STOPPED if (
            server == migration.target and migration.state in _MAY_FAIL
        ):
            failed = said(Report.FAILED, f"the hypervisor of {server} did not accept the incoming VM")
            # In a migration of ours the agents carry the memory, and the source's agent reports whether the
            # VM runs there. In one of libvirt's own the source resumes when the target has failed.
            return [failed] if migration.memory_at else [failed, concluded(Report.ROLLED_BACK)]
        case EventKind.SUSPENDED if server == migration.source:
            return [said(Report.STOPPED)]
        case EventKind.DEPARTED if server == migration.source:
            return [concluded(Report.RESUMED), said(Report.SOURCE_FREED)]
        case EventKind.RESUMED if server == migration.source and migration.state in _MAY_FAIL:
            reason = f"the VM has resumed at {server}: its hypervisor has given up the migration"
            return [said(Report.FAILED, reason), said(Report.ROLLED_BACK)]
        case _:
            return []
