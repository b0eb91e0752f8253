"""The mobility manager of the domain: from a wish that a VM should go to the migration that brings it there.

The messages, each of which is an event, in this order (protocol/mobility.py):

    message     somebody wishes that a VM should go: its hypervisor, or the manager
    request     the wish, with the VM's profile, comes to us
    match       to the agents of all servers: say what you have left; and to other domains' managers
    answer      of each of them; `silent` for one that has not answered in MATCH_LIMIT
    offer       of each other domain: its best server (controller/domains/matching.py)
    decision    core.placement: the best server, the runner-up, what decided; or `unmatched`
    initiation  to the target's agent; then the migration begins, and its steps follow

An agent that was silent is asked the next time, too, but not waited for until it has answered once, be it too
late: it costs the limit once. Between the decision and the migration's begin nothing is awaited, so that two
VMs cannot be given the same room.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from retinue.controller.context import Context
from retinue.controller.errors import RequestError, no_vm
from retinue.controller.migrations.orchestrator import MigrationOrchestrator
from retinue.controller.migrations.requests import (
    MigrationError,
    check_no_client,
    check_request,
    check_wanted,
)
from retinue.controller.mobility.changes import PlacementForgotten, PlacementKept
from retinue.controller.mobility.deciding import CONTROLLER, Deciding, Elsewhere, Matched, NowhereElse
from retinue.controller.mobility.resources import ResourceManager
from retinue.controller.state import match_number
from retinue.core.migration import Migration
from retinue.core.migration.copying import UNASKED, AskedCopy
from retinue.core.migration.new_addresses import NewAddresses
from retinue.core.migration.precopy import WANTED_DOWNTIME
from retinue.core.migration.record import Far
from retinue.core.model import IP, Mac
from retinue.core.placement import (
    Decision,
    Metric,
    Need,
    Outcome,
    Placement,
    Plan,
    Presence,
    ServerState,
    Wish,
    decide,
    plan,
)
from retinue.patience import patience
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import EventType
from retinue.protocol.mobility import ServerReport

MATCH_LIMIT = 2.0
"""Seconds for agents to answer a match message; those in which we are late to read do not count."""
PLACEMENTS_KEPT = 100
"""Decisions that can be explained: the last ones."""
MANAGER, DOMAIN = "manager", "domain"
"""Who asks, where it is no agent: somebody by REST, or the controller itself."""


@dataclass
class _Match:
    """One match message, and who has answered it."""

    vm: str
    asked: frozenset[str]
    profile: dict[str, Any]
    """Of the VM, as the message says it."""
    answered: set[str] = field(default_factory=set)
    awaited: set[str] = field(default_factory=set)
    complete: asyncio.Event = field(default_factory=asyncio.Event)


class MobilityManager:
    """Finds the best server for a VM, and has it migrated there."""

    def __init__(
        self, context: Context, orchestrator: MigrationOrchestrator, resources: ResourceManager
    ) -> None:
        self._context = context
        self._net = context.net
        self._orchestrator = orchestrator
        self._resources = resources
        self._placements = context.state.placements
        self._matches: dict[str, _Match] = {}
        """By id: those that are not decided."""
        self._silent: set[str] = set()
        """Servers whose agents have not answered in time, nor since."""
        self._last = 0
        self.before_deciding: Callable[[], None] = lambda: None
        """Ends what does not count any more."""
        self.deciding = Deciding(context, resources, lambda: self.before_deciding())
        """By what is decided, and who does."""

    # ---- what agents say ----

    def profile_query(self, vm: str, by: str) -> dict[str, Any]:
        """An agent asks for the profile of a VM. Raises RequestError."""
        if vm not in self._net.vms:
            raise no_vm(vm)
        profile = self._resources.profile_shown(vm)
        self._context.events.publish(EventType.PROFILE_QUERY, vm=vm, by=by, profile=profile)
        return profile

    def on_report(self, server: str, report: ServerReport) -> None:
        """What a server has left. Raises RequestError."""
        self._resources.on_report(server, report)

    def asked(self, match: str) -> frozenset[str]:
        """The servers whose agents may answer a match; none for one that is not under way."""
        found = self._matches.get(match)
        return frozenset() if found is None else found.asked

    def on_answer(self, match: str, server: str, report: ServerReport) -> None:
        """Raises RequestError for a match that is over, a server that was not asked, or a second answer."""
        found = self._matches.get(match)
        if found is None:
            self._silent.discard(server)  # It is slow, but there.
            raise RequestError(
                f"there is no {match} under way: it is decided, or never was", ErrorCode.UNKNOWN_MATCH
            )
        if server not in found.asked:
            raise RequestError(f"server {server} was not asked in {match}")
        if server in found.answered:
            raise RequestError(f"server {server} has answered {match} already", ErrorCode.OUT_OF_STEP)
        self.on_report(server, report)
        self._silent.discard(server)
        found.answered.add(server)
        self._context.events.publish(EventType.MATCH_ANSWER, match=match, server=server, report=report)
        found.awaited.discard(server)
        if not found.awaited:
            found.complete.set()

    # ---- from a wish to a migration ----

    async def migrate(
        self,
        vm: str,
        wish: Wish,
        by: str = MANAGER,
        *,
        named: str = "",
        source_server: str = "",
        mac: Mac = "",
        ip: IP | None = None,
        wanted_downtime: float = WANTED_DOWNTIME,
        asked: AskedCopy = UNASKED,
        far: Far | None = None,
        new_addresses: Sequence[NewAddresses] = (),
    ) -> Migration:
        """Find the best server for a VM and begin its migration; `named`: that one or none; `far`: see
        MigrationOrchestrator.start.

        Raises MigrationError: the VM cannot be migrated at all, or the decision is that it stays.
        """
        self._check(vm, source_server, mac, ip)
        id = self._next()
        match = self._matches[id] = _Match(vm, self._listening(), self._resources.profile_shown(vm))
        # One that comes from another domain, or is to be changed on the way, is for this domain alone.
        elsewhere = NowhereElse() if named or far or new_addresses else self.deciding.elsewhere
        try:
            placement = await self._decide(id, match, wish, by, named, elsewhere)
            target = placement.decision.target
            profile = self._resources.profile_shown(vm)
            domain, _, server = target.partition("/")
            if server:  # No server of ours has a name with a stroke in it.
                far = Far(domain, server)
            self._context.events.publish(
                EventType.INITIATION, match=id, vm=vm, server=target, profile=profile
            )
            migration = self._orchestrator.start(
                vm, target_server=target, source_server=source_server, mac=mac, ip=ip,
                wanted_downtime=wanted_downtime, asked=asked, far=far,
                new_addresses=new_addresses,
            )  # fmt: skip
        except MigrationError as error:
            self._context.events.publish(EventType.UNMATCHED, match=id, vm=vm, reason=str(error))
            raise
        finally:
            self._matches.pop(id, None)
        self._keep(placement, migration.id)
        return migration

    async def choose(self, vm: str, by: str = MANAGER, named: str = "") -> Placement:
        """The best server for a VM as it is now, for whoever brings it there himself: nothing is begun,
        booked or kept. Raises MigrationError: it is looked for already, or the VM is not one to be moved."""
        if vm not in self._net.vms:
            raise MigrationError(str(no_vm(vm)), ErrorCode.UNKNOWN_VM)
        check_no_client(self._context.state, vm)
        self._check_no_other(vm)
        id, elsewhere = self._next(), NowhereElse() if named else self.deciding.elsewhere
        match = self._matches[id] = _Match(vm, self._listening(), self._resources.profile_shown(vm))
        try:
            waited = await self._ask(id, match)
            found = Matched(id, vm, Wish(), named, waited, lambda: self._presences(match))
            snapshot, decided_by = await self.deciding.snapshot(found, elsewhere)
        finally:
            self._matches.pop(id, None)
        decision = decide(snapshot)
        self._publish(id, vm, decision, decided_by)
        return Placement("", id, by, snapshot, decision)

    async def memory_of(self, vm: str) -> int:
        """MiB of memory that a VM runs with: as it was registered, or as the agent of its server says, which
        is asked if it has not reported it; else as a manager has said. 0: nobody has.

        Agents report what their VMs have every few seconds, which may be too late for one that was just
        started, and for all of them after a restart of ours.
        """
        server = self._net.vms[vm].server
        if not self._resources.runs_with(vm) and self._context.agents.listens(server):
            id = self._next()
            profile = self._resources.profile_shown(vm)
            match = self._matches[id] = _Match(vm, frozenset({server}), profile)
            try:
                await self._ask(id, match)
            finally:
                self._matches.pop(id, None)
        return self._resources.runs_with(vm) or self._resources.size_of(vm)[0]

    def _check(self, vm: str, source_server: str, mac: Mac, ip: IP | None) -> None:
        """What is wrong with a request wherever the VM goes is told before anybody is asked."""
        net = self._net
        if vm not in net.vms:
            raise MigrationError(str(no_vm(vm)), ErrorCode.UNKNOWN_VM)
        check_no_client(self._context.state, vm)
        unfit = {net.vms[vm].server, *net.fenced, *net.drained}
        # Any server stands for the one that will be found; where there is none, the decision says so.
        other = next((one for one in self._resources.candidates() if one not in unfit), "")
        if other:
            check_request(net, vm, other, "", source_server, mac, ip)
            check_wanted(net, vm, other)
        self._check_no_other(vm)

    def _check_no_other(self, vm: str) -> None:
        migration = self._orchestrator.of_vm(vm)
        if migration is not None:
            raise MigrationError(
                f"VM {vm} is being migrated already: {migration.id} is {migration.state}",
                ErrorCode.MIGRATION_UNDER_WAY,
            )
        matching = next((id for id, match in self._matches.items() if match.vm == vm), "")
        if matching:
            raise MigrationError(
                f"a server is being looked for already for VM {vm}: {matching}", ErrorCode.MIGRATION_UNDER_WAY
            )

    def _listening(self) -> frozenset[str]:
        fenced, listens = self._net.fenced, self._context.agents.listens
        return frozenset(one for one in self._resources.candidates() if listens(one) and one not in fenced)

    async def offer(self, need: Need) -> ServerState | None:
        """The best server for a VM of another domain as it is now; None: none can take it, and the event of
        the decision says why."""
        id = self._next()
        profile = self._resources.profile_shown(need.vm) | {
            "memory_mib": need.memory_mib, "cpus": need.cpus, "bandwidth_mbps": need.bandwidth_mbps,
        }  # fmt: skip
        match = self._matches[id] = _Match(need.vm, self._listening(), profile)
        try:
            waited = await self._ask(id, match)
        finally:
            self._matches.pop(id, None)
        self.before_deciding()
        snapshot = self._resources.snapshot_for(need, self._presences(match), waited)
        decision = decide(snapshot)
        self._publish(id, need.vm, decision, CONTROLLER)
        return next((one for one in snapshot.servers if one.server == decision.target), None)

    async def _decide(
        self,
        id: str,
        match: _Match,
        wish: Wish,
        by: str,
        named: str,
        elsewhere: Elsewhere,
    ) -> Placement:
        """Raises MigrationError with the reason why the VM stays where it is."""
        vm, publish, profile = match.vm, self._context.events.publish, match.profile
        services = self._resources.services_of(vm)
        publish(EventType.MOBILITY_MESSAGE, vm=vm, by=by, wish=wish)
        publish(
            EventType.MIGRATION_REQUEST, match=id, vm=vm, by=by, wish=wish, profile=profile, services=services
        )
        waited = await self._ask(id, match)
        # What it needs is known now: its agent has answered, too.
        match_now = Matched(id, vm, wish, named, waited, lambda: self._presences(match))
        snapshot, decided_by = await self.deciding.snapshot(match_now, elsewhere)
        decision = decide(snapshot)
        self._publish(id, vm, decision, decided_by)
        if decision.outcome is not Outcome.CHOSEN:
            raise MigrationError(decision.text, ErrorCode.NO_MATCH)
        return Placement("", id, by, snapshot, decision)

    def _presences(self, match: _Match) -> dict[str, Presence]:
        return {one: self._presence(one, match) for one in self._resources.candidates()}

    async def _ask(self, id: str, match: _Match) -> int:
        """The match message, and the answers to it; the milliseconds that they took."""
        publish = self._context.events.publish
        match.awaited = set(match.asked - self._silent)
        if match.asked:
            servers = sorted(match.asked)
            publish(EventType.MATCH, match=id, vm=match.vm, profile=match.profile, servers=servers)
        waited = await self._answers(match)
        self._silent &= self._net.servers.keys()
        for server in sorted(match.asked - match.answered):
            self._silent.add(server)
            publish(EventType.MATCH_SILENT, match=id, server=server, waited_ms=waited)
        return waited

    async def _answers(self, match: _Match) -> int:
        """Until all have answered, or for MATCH_LIMIT; the milliseconds that it took.

        Of thousands of agents the answers come faster than they are read: that is not an agent's silence.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        if match.awaited:
            try:
                async with patience(MATCH_LIMIT):
                    await match.complete.wait()
            except TimeoutError:
                pass
        return round((loop.time() - began) * 1000)

    def _presence(self, server: str, match: _Match) -> Presence:
        seems = self._resources.presence(server)
        if seems is Presence.AWAY or server not in match.asked:
            return seems
        return Presence.ANSWERED if server in match.answered else Presence.SILENT

    def _publish(self, id: str, vm: str, decision: Decision, by: str) -> None:
        self._context.events.publish(
            EventType.PLACEMENT_DECISION, match=id, vm=vm, outcome=decision.outcome, server=decision.target,
            runner_up=decision.runner_up, decided_by=decision.decided_by, reason=decision.text, by=by,
        )  # fmt: skip

    def _next(self) -> str:
        kept = (match_number(one.match) for one in self._placements.values())
        self._last = 1 + max(self._last, *kept, 0)
        return f"match-{self._last}"

    # ---- why a VM went where it went ----

    def _keep(self, placement: Placement, migration: str) -> None:
        self._context.apply(PlacementKept(replace(placement, migration=migration)))
        gone = [
            one for one in self._placements.values() if one.migration not in self._orchestrator.migrations
        ]
        old = list(self._placements.values())[: max(0, len(self._placements) - PLACEMENTS_KEPT)]
        for one in {one.migration: one for one in (*gone, *old)}.values():
            self._context.apply(PlacementForgotten(one))

    def explain(self, migration: str) -> tuple[Placement, Decision]:
        """What is kept of a decision, and the decision made once more of it. Raises RequestError."""
        kept = self._placements.get(migration)
        if kept is None:
            raise RequestError(
                f"nothing is kept of how the target of {migration} was chosen: whoever started it named the "
                f"target, or more than {PLACEMENTS_KEPT} have been chosen since",
                ErrorCode.UNKNOWN_MATCH,
            )
        return kept, decide(kept.snapshot)

    async def plan(self, metric: Metric, threshold: int) -> Plan:
        """The moves that would spread the domain's VMs; none of them is made.

        For a large domain that takes a second or two, which others need not wait for: in a thread, of what
        there is now.
        """
        servers, at, needs = self._resources.domain()
        return await asyncio.to_thread(plan, servers, at, needs, self._resources.policy, metric, threshold)
