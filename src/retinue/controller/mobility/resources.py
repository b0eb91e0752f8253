"""The resource manager: what VMs need and what servers have left, as managers say it and agents report it.

What managers say is kept (core.placement.Entity). What agents report, every few seconds, is not: a server's
agent reports it again. Where both say something, the manager counts.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import msgspec

from retinue.controller.context import Context
from retinue.controller.errors import no_server
from retinue.controller.migrations.orchestrator import MigrationOrchestrator
from retinue.core.migration import MigrationState
from retinue.core.model import IP
from retinue.core.model.disks import Disk
from retinue.core.model.ways import router_to
from retinue.core.pipeline.underlay import underlay_of
from retinue.core.placement import (
    Need,
    Policy,
    Presence,
    Profile,
    ServerState,
    Snapshot,
    Wish,
)
from retinue.core.placement.bookings import by_server
from retinue.core.placement.facts import Hosted, ServerFacts
from retinue.core.placement.scores import FARTHEST
from retinue.protocol.mobility import ServerReport, VMSize

REPORT_FRESH = 30.0
"""Seconds for which a report says what is free and in use; the capacity it tells counts until the next."""
SAME_SERVER, SAME_LEAF = 100, 300
"""Hundredths of switches on the way: the edge; two edges and a leaf. Else it is FARTHEST."""
MIB = 1 << 20

_NOTHING = Profile()


@dataclass(frozen=True, slots=True)
class _Heard:
    report: ServerReport
    at: float


class ResourceManager:
    """Keeps reports, and makes of all that is known what a decision goes by."""

    def __init__(
        self,
        context: Context,
        orchestrator: MigrationOrchestrator,
        policy: Policy,
        images_at: Callable[[str], list[str]],
    ) -> None:
        """`images_at`: names of the images that a server has all of."""
        self._context = context
        self._net = context.net
        self._orchestrator = orchestrator
        self.policy = policy
        self._images_at = images_at
        self._reports: dict[str, _Heard] = {}
        self._sizes: dict[str, VMSize] = {}
        """By VM: as the agent of its server reported it last."""

    # ---- what is reported ----

    def on_report(self, server: str, report: ServerReport) -> None:
        """An agent speaks of its own server, and of VMs that are there: of others it is not believed.

        Raises RequestError for a server that is not there.
        """
        if server not in self._net.servers:
            raise no_server(server)
        self._reports[server] = _Heard(report, self._context.clock())
        for size in report.vms:
            vm = self._net.vms.get(size.vm)
            if vm is not None and server in vm.locations:
                # Of one that an agent has found running it says no processors, and others may have known.
                before = self._sizes.get(size.vm, size)
                self._sizes[size.vm] = size if size.cpus else VMSize(size.vm, size.memory_mib, before.cpus)

    def on_size(self, vm: str, memory_mib: int) -> None:
        """How much memory a VM has, by word of the domain from which it comes."""
        self._sizes[vm] = VMSize(vm, memory_mib)

    def vm_gone(self, vm: str) -> None:
        self._sizes.pop(vm, None)

    def reported(self, server: str) -> dict[str, Any] | None:
        """A server's last report as plain values, with its age in seconds; None: there is none."""
        heard = self._reports.get(server)
        if heard is None:
            return None
        plain: dict[str, Any] = {
            name: getattr(heard.report, name) for name in ServerReport.__struct_fields__ if name != "vms"
        }
        vms = [{"vm": one.vm, "memory_mib": one.memory_mib, "cpus": one.cpus} for one in heard.report.vms]
        return {**plain, "vms": vms, "age_seconds": round(self._context.clock() - heard.at, 1)}

    def holders(self, image: str) -> list[str]:
        """The servers that hold an image, as their agents say."""
        return sorted(name for name in self._net.servers if image in self._images_at(name))

    # ---- profiles ----

    def profile_of(self, name: str) -> Profile:
        """What the manager has said of a VM or server."""
        known = self._context.state.entities.get(name)
        return _NOTHING if known is None else known.profile

    def size_of(self, vm: str) -> tuple[int, int]:
        """MiB of memory and processors of a VM; 0 where nobody knows."""
        said, seen, known = self.profile_of(vm), self._sizes.get(vm), self._net.vms.get(vm)
        registered = known.memory_mib if known is not None else 0
        return said.memory_mib or (seen.memory_mib if seen else registered), said.cpus or (
            seen.cpus if seen else 0
        )

    def runs_with(self, vm: str) -> int:
        """MiB of memory that a VM has at its server, whatever managers say of it; 0: not known."""
        known, seen = self._net.vms.get(vm), self._sizes.get(vm)
        registered = 0 if known is None else known.memory_mib
        return registered or (0 if seen is None else seen.memory_mib)

    def profile_shown(self, vm: str) -> dict[str, Any]:
        """A VM's service profile, the whole of it, as messages carry it: with what it is made of, of
        which anybody may have what is named under `shareable`."""
        memory, cpus = self.size_of(vm)
        said: dict[str, Any] = msgspec.to_builtins(self.profile_of(vm))
        disks = self._net.vms[vm].disks if vm in self._net.vms else ()
        shareable = sorted({said["image"], *(disk.image for disk in disks)} - {""})
        private = ["memory", *(f"disk{number}" for number, disk in enumerate(disks, 1) if disk.private)]
        return {**said, "memory_mib": memory, "cpus": cpus, "shareable": shareable, "private": private}

    def services_of(self, vm: str) -> list[str]:
        """Names of the services that the VM serves."""
        every = self._context.state.entities.values()
        return sorted(one.name for one in every if vm in one.profile.served_by)

    def need(self, vm: str, moved_at: Mapping[str, float] | None = None) -> Need:
        said, (memory, cpus) = self.profile_of(vm), self.size_of(vm)
        last = (self._moved_at() if moved_at is None else moved_at).get(vm)
        ago = None if last is None else max(0, int(self._context.clock() - last))
        disks = self._net.vms[vm].disks if vm in self._net.vms else ()
        disk = said.disk_mib or sum(self._most_written(one) for one in disks if one.private)
        image = said.image or next((one.image for one in disks if one.image), "")
        return Need(vm, memory, cpus, disk, said.bandwidth_mbps, said.apart, image, said.pinned, ago)

    def _most_written(self, disk: Disk) -> int:
        """MiB that a private disk's overlay may come to have; 0: as its base, which nobody has measured."""
        image = self._context.state.images.get(disk.image)
        return disk.size_mib or (0 if image is None else -(-image.signed.size // MIB))

    def _moved_at(self) -> dict[str, float]:
        """By VM: when it last was at the end of a migration."""
        done = (m for m in self._orchestrator.migrations.values() if m.state is MigrationState.DONE)
        found: dict[str, float] = {}
        for migration in done:
            found[migration.vm] = max(found.get(migration.vm, 0.0), migration.steps[-1][1])
        return found

    # ---- what a decision goes by ----

    def candidates(self) -> list[str]:
        """Servers that run VMs, by name: no gateways to other domains."""
        net = self._net
        return sorted(name for name, server in net.servers.items() if server.edge and not net.peer_at(name))

    def snapshot(
        self, vm: str, wish: Wish, presences: Mapping[str, Presence], named: str = "", waited_ms: int = 0
    ) -> Snapshot:
        """What there is at this moment; servers beside `presences` are as they seem."""
        source = self._net.vms[vm].server
        return Snapshot(
            self.need(vm), source, self._states(vm, presences), wish, self.policy, named, waited_ms
        )

    def snapshot_for(self, need: Need, presences: Mapping[str, Presence], waited_ms: int) -> Snapshot:
        """The same for a VM that is in another domain, which says what it needs."""
        return Snapshot(need, "", self._states(need.vm, presences), Wish(), self.policy, "", waited_ms)

    def _states(self, vm: str, presences: Mapping[str, Presence]) -> tuple[ServerState, ...]:
        hosted, booked = self._hosted(), self._booked()
        clients = self._places(vm) if vm in self._net.vms else []
        return tuple(
            self._facts(name, hosted[name], booked.get(name, ()), presences.get(name)).state_for(
                vm, self._distance(name, clients)
            )
            for name in self.candidates()
        )

    def domain(self) -> tuple[dict[str, ServerState], dict[str, str], dict[str, Need]]:
        """All servers as they are, where each VM is that runs and does not migrate, and what it needs."""
        hosted, booked, moved_at = self._hosted(), self._booked(), self._moved_at()
        migrating = {m.vm for m in self._orchestrator.migrations.under_way()}
        servers = {
            name: self._facts(name, hosted[name], booked.get(name, ()), None).state_for("")
            for name in self.candidates()
        }
        still = {
            vm: value.server for vm, value in sorted(self._net.vms.items())
            if value.server in servers and vm in hosted[value.server] and vm not in migrating
        }  # fmt: skip
        return servers, still, {vm: self.need(vm, moved_at) for vm in still}

    def presence(self, server: str) -> Presence:
        """Of a server that was not asked."""
        edge = self._net.servers[server].edge
        if self._context.agents.is_away(server) or self._context.is_away(edge):
            return Presence.AWAY
        return Presence.ANSWERED if self._context.agents.listens(server) else Presence.NO_AGENT

    def _hosted(self) -> dict[str, set[str]]:
        """By server: VMs that are there, or on their way there or from there, as soon as it is decided. Not
        clients, to which nothing is promised."""
        clients = {name for name in self._context.state.entities if self._context.state.is_client(name)}
        found = {name: set(self._net.vms_on(name)) - clients for name in self.candidates()}
        for migration in self._orchestrator.migrations.under_way():
            if migration.vm in clients:
                continue
            found.get(migration.source, set()).add(migration.vm)
            found.get(migration.target, set()).add(migration.vm)
        return found

    def facts(self, presences: Mapping[str, Presence]) -> Iterator[ServerFacts]:
        """Of each server, as a resource manager of its own is told; presences as in `snapshot`."""
        hosted, booked = self._hosted(), self._booked()
        for name in self.candidates():
            if name in self._net.servers:  # Whoever looks takes his time.
                yield self._facts(name, hosted.get(name, set()), booked.get(name, ()), presences.get(name))

    def _booked(self) -> dict[str, tuple[tuple[str, int, int], ...]]:
        """By server; of all of them in one look, for there may be thousands."""
        return by_server(self._context.state.bookings.values())

    def _facts(
        self,
        name: str,
        hosted: Collection[str],
        booked: Iterable[tuple[str, int, int]],
        presence: Presence | None,
    ) -> ServerFacts:
        net, said, heard = self._net, self.profile_of(name), self._reports.get(name)
        report = ServerReport() if heard is None else heard.report
        fresh = heard is not None and self._context.clock() - heard.at <= REPORT_FRESH
        return ServerFacts(
            name,
            self.presence(name) if presence is None else presence,
            drained=name in net.drained,
            fenced=name in net.fenced,
            attached=underlay_of(net).is_reachable(name),
            cpus=said.cpus or report.cpus,
            memory_mib=said.memory_mib or report.memory_mib,
            free_mib=report.memory_free_mib if fresh else None,
            disk_free_mib=(report.disk_free_mib if fresh else None) if not said.disk_mib else said.disk_mib,
            bandwidth_mbps=said.bandwidth_mbps or report.bandwidth_mbps,
            bandwidth_used_mbps=report.bandwidth_used_mbps if fresh else 0,
            cpu_used=report.cpu_used if fresh else None,
            cpu_pressure=(report.cpu_pressure or 0) if fresh else 0,
            memory_pressure=(report.memory_pressure or 0) if fresh else 0,
            images=tuple(self._images_at(name)),
            hosted=tuple(self._hosted_at(name, vm) for vm in sorted(hosted)),
            booked=tuple(one for one in booked if one[0] not in hosted),
        )

    def _hosted_at(self, name: str, vm: str) -> Hosted:
        return Hosted(self.need(vm, {}), vm in self._net.vms and self._net.vms[vm].server == name)

    # ---- how far clients are ----

    def _places(self, vm: str) -> list[str]:
        """The servers at which packets of a VM's clients come into the fabric; unknown ones are left out."""
        vrfs = sorted({self._net.vrf_of(nic) for nic in self._net.vms[vm].nics})
        clients = map(_address, self.profile_of(vm).clients)
        found = [self._place(client, vrfs) for client in clients if client is not None]
        return [server for server in found if server]

    def _place(self, client: IP, vrfs: Iterable[str]) -> str:
        """`vrfs`: those in which a VM has NICs, in one of which the address is meant."""
        net = self._net
        held = [a.vm for vrf in vrfs if (a := net.holder(client, vrf)) is not None]
        held += [routed[1] for vrf in vrfs if (routed := net.routed_to(client, vrf)) is not None]
        held = [vm for vm in held if vm]
        if held:
            return net.vms[held[0]].server
        servers = [s.id for vrf in vrfs if (s := net.server_of_address(client, vrf)) is not None]
        servers += [router for vrf in vrfs if (router := router_to(net, client, vrf))]
        return servers[0] if servers else ""

    def distances(self, vm: str) -> dict[str, int]:
        """By server: hundredths of switches to the VM's clients; none where it has none."""
        clients = self._places(vm)
        far = {name: self._distance(name, clients) for name in self.candidates()}
        return {name: distance for name, distance in far.items() if distance is not None}

    def nearer_by(self, vm: str) -> int:
        """How many hundredths of switches fewer are between a VM's clients and the nearest other server."""
        far = self.distances(vm)
        here = far.pop(self._net.vms[vm].server, None)
        return 0 if here is None or not far else here - min(far.values())

    def _distance(self, server: str, clients: Collection[str]) -> int | None:
        if not clients:
            return None
        here = self._net.location(server)
        total = 0
        for client in clients:
            there = self._net.location(client)
            same_leaf = here is not None and there is not None and here.switch == there.switch
            total += SAME_SERVER if client == server else SAME_LEAF if same_leaf else FARTHEST
        return total // len(clients)


def _address(text: str) -> IP | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
