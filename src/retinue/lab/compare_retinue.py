"""retinue itself as a compared system: with its own agents, with libvirt, and following a person's virsh."""

import asyncio
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from retinue.lab import agents, libvirtd
from retinue.lab.compare_bench import Bench, ManagedBench, Moved
from retinue.lab.compare_systems import System
from retinue.lab.errors import LabError
from retinue.lab.processes import run
from retinue.lab.topology import LIBVIRT, Topology

MOVE_SECONDS = 120.0
"""libvirt's take long where the processors are busy."""
GUESTS_YIELD = sum(int(words[-1]) for words in (agents.NICE, agents.NICER))


class Retinue(System):
    name = "retinue"
    how = "The lab's controller, as `retinue lab up` starts it; moves by `POST /v1/moves`."
    managed = True

    async def order(self, bench: ManagedBench) -> None:
        """Begin a move to `bench.target`; it may be over when this returns. Raises LabError."""
        await bench.manager.post("/v1/moves", {"vm": bench.vm, "target_server": bench.target})

    async def move(self, bench: Bench) -> Moved:
        """STOP and RESUME are those of the move's record."""
        assert isinstance(bench, ManagedBench)
        manager, source, target = bench.manager, bench.at, bench.target
        since = await manager.last_event()
        await self.order(bench)

        async def ended(event: dict[str, Any]) -> dict[str, Any] | None:
            if event["type"] != "move.step" or event["move"]["vm"] != bench.vm:
                return None
            moved: dict[str, Any] = event["move"]
            return moved if moved["state"] in ("done", "undone") else None

        what = f"the move of {bench.vm} to {target} has ended"
        last = await manager.until(since, ended, what, MOVE_SECONDS)
        move = await manager.get(f"/v1/moves/{last['id']}")
        if move["state"] != "done":
            raise LabError(f"{move['id']} of {bench.vm} to {target} was undone: {move['reason']}")
        bench.at = target
        bindings = (await manager.get("/v1/bindings"))["bindings"]
        own = [row for row in bindings if row["vm"] == bench.vm]
        return moved_of(move, source, target, own)


def moved_of(move: dict[str, Any], source: str, target: str, bindings: list[dict[str, Any]]) -> Moved:
    """From the record of a move that is done and the VM's bindings after it. Raises LabError."""
    stopped_at, resumed_at = move["stopped_at"], move["resumed_at"]
    if stopped_at is None or resumed_at is None:
        raise LabError(f"the record of {move['id']} does not tell when the VM stopped and ran on")
    figures, steps = move["figures"], move["steps"]
    more = {
        "flow_mods": figures.get("flow_mods"),
        "packet_ins": figures.get("packet_ins"),
        "control_ms": figures.get("control_ms"),
        "bindings_before": figures.get("bindings_before", []),
        "bindings_after": bindings,
        "switch": bindings[0]["switch"] if bindings else None,
        "port": bindings[0]["port"] if bindings else None,
    }
    total_ms = (steps[-1]["at"] - steps[0]["at"]) * 1000
    return Moved(source, target, stopped_at, resumed_at, total_ms, more)


class RetinueLibvirt(Retinue):
    """libvirt marks a port with a UUID, so the VM has one as its id."""

    name = "retinue-libvirt"
    how = "As retinue, on servers with libvirt, which runs the VM and moves it; moves by `POST /v1/moves`."
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
        said = subprocess.run([virsh, "--version"], capture_output=True, text=True, check=False).stdout
        return {"libvirt": said.strip() or "unknown"}

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
