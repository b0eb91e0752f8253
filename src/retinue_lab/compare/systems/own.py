"""retinue itself as a compared system: with its own agents, with libvirt, and following a person's virsh."""

import asyncio
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from retinue.core.migration import MigrationState
from retinue.protocol.events import EventType
from retinue.protocol.routes import Route
from retinue_lab.compare.bench import Bench, ManagedBench, Migrated
from retinue_lab.compare.systems.base import System
from retinue_lab.errors import LabError
from retinue_lab.network import agents, libvirtd
from retinue_lab.processes.processes import run
from retinue_lab.topology.parts import LIBVIRT
from retinue_lab.topology.topology import Topology

MIGRATION_SECONDS = 120.0
"""libvirt's take long where the processors are busy."""
GUESTS_YIELD = sum(int(words[-1]) for words in (agents.NICE, agents.NICER))


class Retinue(System):
    name = "retinue"
    how = "The lab's controller, as `retinue lab up` starts it; moves by `POST /v1/migrations`."
    controlled = True
    managed = True
    may_be_dual = True

    async def order(self, bench: ManagedBench) -> None:
        """Begin a migration to `bench.target`; it may be over when this returns. Raises LabError."""
        order = {"vm": bench.vm, "target_server": self.named(bench.target)}
        await bench.manager.post(Route.START_MIGRATION.path(), order)

    def named(self, server: str) -> str:
        """As it is ordered to go there."""
        return server

    async def move(self, bench: Bench) -> Migrated:
        """STOP and RESUME are those of the migration's record."""
        assert isinstance(bench, ManagedBench)
        manager, source, target = bench.manager, bench.at, bench.target
        since = await manager.last_event()
        await self.order(bench)

        async def ended(event: dict[str, Any]) -> dict[str, Any] | None:
            if event["type"] != EventType.MIGRATION_STEP or event["migration"]["vm"] != bench.vm:
                return None
            moved: dict[str, Any] = event["migration"]
            return moved if MigrationState(moved["state"]).ended else None

        what = f"the migration of {bench.vm} to {target} has ended"
        last = await manager.until(since, ended, what, MIGRATION_SECONDS)
        move = await manager.get(Route.GET_MIGRATION.path(last["id"]))
        if move["state"] != MigrationState.DONE:
            raise LabError(f"{move['id']} of {bench.vm} to {target} was undone: {move['reason']}")
        bench.came_to(target)
        bindings = (await bench.manager.get(Route.LIST_BINDINGS.path()))["bindings"]
        own = [row for row in bindings if row["vm"] == bench.vm]
        return migrated_of(move, source, target, own)


def migrated_of(move: dict[str, Any], source: str, target: str, bindings: list[dict[str, Any]]) -> Migrated:
    """From the record of a migration that is done and the VM's bindings after it. Raises LabError."""
    stopped_at, resumed_at = move["stopped_at"], move["resumed_at"]
    if stopped_at is None or resumed_at is None:
        raise LabError(f"the record of {move['id']} does not say when the VM was paused and resumed")
    figures, steps = move["figures"], move["steps"]
    more = {
        "flow_mods": figures.get("flow_mods"),
        "packet_ins": figures.get("packet_ins"),
        "control_ms": figures.get("control_ms"),
        "passes": figures.get("passes"),
        "bindings_before": figures.get("bindings_before", []),
        "bindings_after": bindings,
        "switch": bindings[0]["switch"] if bindings else None,
        "port": bindings[0]["port"] if bindings else None,
    }
    total_ms = (steps[-1]["at"] - steps[0]["at"]) * 1000
    return Migrated(source, target, stopped_at, resumed_at, total_ms, more)


class RetinueLibvirt(Retinue):
    """libvirt marks a port with a UUID, so the VM has one as its id."""

    name = "retinue-libvirt"
    how = (
        "As retinue, on servers with libvirt, which runs the VM and moves it; moves by `POST /v1/migrations`."
    )
    vm: ClassVar[str] = "00000000-0000-4000-8000-000000000001"

    def network(self) -> Topology:
        plan = super().network()
        servers = tuple(msgspec.structs.replace(s, hypervisor=LIBVIRT) for s in plan.server)
        return msgspec.structs.replace(plan, server=servers)

    def missing(self) -> str:
        try:
            libvirtd.check(self.network())
        except LabError as error:
            return str(error)
        return ""

    def versions(self) -> dict[str, str]:
        virsh = shutil.which("virsh")
        if virsh is None:
            return {}
        output = subprocess.run([virsh, "--version"], capture_output=True, text=True, check=False).stdout
        return {"libvirt": output.strip() or "unknown"}

    async def before_boot(self, bench: Bench) -> None:
        """Guests yield to the switches as they do elsewhere. A QEMU has the priority of the thread of
        libvirtd's that starts it.
        """
        status = await asyncio.to_thread(bench.lab.status)
        daemons = [daemon for daemon in status.daemons if daemon.name.endswith("-libvirtd")]
        for daemon in daemons:
            for thread in Path(f"/proc/{daemon.pid}/task").iterdir():
                now = os.getpriority(os.PRIO_PROCESS, int(thread.name))
                os.setpriority(os.PRIO_PROCESS, int(thread.name), now + GUESTS_YIELD)


class LibvirtVirsh(RetinueLibvirt):
    name = "libvirt-virsh"
    how = "As retinue-libvirt, but a person types `virsh migrate --live`, and the network follows by itself."

    async def order(self, bench: ManagedBench) -> None:
        source, to = bench.at, libvirtd.uri_from_outside(bench.topology, bench.target)
        own = libvirtd.env(bench.topology, source)
        await run(["virsh", "migrate", "--live", bench.vm, to], node=source, env=own)
