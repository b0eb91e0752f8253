"""The systems that are compared, each a small class: how the network becomes it, what it does at a move.

A further one is a subclass of `System` with a line in compare_all. All have the same lab: guest, QEMU and its
arguments, servers, cables and switches. In the labs of those that are not retinue, none of it runs.
"""

import asyncio
import shutil
from typing import Any, ClassVar

from retinue.lab import control
from retinue.lab.compare_bench import ADDRESS, MAC, SERVERS, VM, Bench, ManagedBench, Moved
from retinue.lab.control import Bound
from retinue.lab.errors import LabError


class System:
    """One way to run the network. `set_up` is called once, the others in this order for each move."""

    name: ClassVar[str]
    how: ClassVar[str]
    """How it is set up, in a sentence or two."""
    programs: ClassVar[dict[str, str]] = {}
    """Programs it needs on this machine, and the Debian package of each."""
    managed: ClassVar[bool] = False
    """The lab has its controller and agents, and they run the VM."""
    closed: ClassVar[str] = ""
    """Why it cannot be measured at all; "" when it can."""

    def missing(self) -> str:
        """Why it is not available here, "" when it is."""
        absent = [program for program in self.programs if shutil.which(program) is None]
        if absent:
            packages = " ".join(sorted({self.programs[program] for program in absent}))
            return f"{', '.join(absent)} not found: install the Debian packages {packages}"
        return self.closed

    def versions(self) -> dict[str, str]:
        """Of programs that no other system has."""
        return {}

    async def set_up(self, bench: Bench) -> None:
        """Make the lab's network this system's, where the VM runs."""

    async def before_move(self, bench: Bench, source: str, target: str) -> None:
        """What a manager tells the network before it lets the hypervisor move the VM."""

    async def at_resume(self, bench: Bench, source: str, target: str) -> None:
        """What it tells as soon as the VM runs at the target."""

    async def after_move(self, bench: Bench, source: str, target: str) -> None:
        """Once all is measured: whatever is needed that the VM is reached where it is."""

    async def move(self, bench: Bench) -> Moved:
        """Move the VM to `bench.target`: by the hypervisor alone, with the calls above around it."""
        source, target = bench.at, bench.target
        await self.before_move(bench, source, target)
        return await bench.migrate(lambda: self.at_resume(bench, source, target))


class Retinue(System):
    name = "retinue"
    how = "The lab's controller, as `retinue lab up` starts it; moves by `POST /v1/moves`."
    managed = True

    async def move(self, bench: Bench) -> Moved:
        assert isinstance(bench, ManagedBench)
        manager, source, target = bench.manager, bench.at, bench.target
        since = await manager.last_event()
        id = (await manager.post("/v1/moves", {"vm": VM, "target_server": target}))["id"]

        async def ended(event: dict[str, Any]) -> str | None:
            if event["type"] != "move.step" or event["move"]["id"] != id:
                return None
            now: str = event["move"]["state"]
            return now if now in ("done", "undone") else None

        state = await manager.until(since, ended, f"{id} has ended")
        move = await manager.get(f"/v1/moves/{id}")
        if state != "done":
            raise LabError(f"{id} of {VM} to {target} was undone: {move['reason']}")
        bench.at = target
        figures, steps = move["figures"], move["steps"]
        bindings = (await manager.get("/v1/bindings"))["bindings"]
        more = {
            "flow_mods": figures["flow_mods"],
            "packet_ins": figures["packet_ins"],
            "control_ms": figures["control_ms"],
            "bindings_before": figures["bindings_before"],
            "bindings_after": [row for row in bindings if row["vm"] == VM],
            "switch": next(s.edge for s in bench.topology.server if s.id == target),
            "port": await control.port_number(target, VM),
        }
        total_ms = (steps[-1]["at"] - steps[0]["at"]) * 1000
        return Moved(source, target, move["stopped_at"], move["resumed_at"], total_ms, more)


class RetinueLibvirt(System):
    name = "retinue-libvirt"
    how = "As retinue, the VM run and moved by libvirt."
    closed = "the laboratory's VM driver runs QEMU itself; VMs of libvirt are not part of the comparison yet"


class LearningSwitch(System):
    name = "learning-switch"
    how = "Switches learn MAC addresses (action NORMAL), nothing filters; QEMU announces the VM by RARP."

    async def set_up(self, bench: Bench) -> None:
        await control.make_plain(bench.lab, ())
        for server in bench.topology.server:
            await bench.ofctl(server.id, "add-flow", "br0", "priority=1,actions=NORMAL")


class StaticPortSecurity(System):
    name = "static-port-security"
    how = (
        "Learning switches, and on each server a static table of port, MAC and IP (IP source guard), written "
        "where the VM started. After each run the VM's row is written at its new place by hand."
    )

    async def set_up(self, bench: Bench) -> None:
        await control.make_plain(bench.lab, [Bound(bench.at, VM, MAC, ADDRESS)])

    async def after_move(self, bench: Bench, source: str, target: str) -> None:
        # Ports get their numbers anew, so a row left behind could let somebody else in.
        for server in SERVERS:
            await bench.ofctl(server, "del-flows", "br0", f"dl_src={MAC}")
        await control.bind(Bound(target, VM, MAC, ADDRESS))
        await reached(bench)


async def reached(bench: Bench, tries: int = 10) -> None:
    """Return when the VM reaches its gateway, by which the network also learns where it is."""
    gateway = bench.subnet.gateway
    for _ in range(tries):
        code, _ = await bench.in_guest(f"ping -c 1 -W 1 {gateway}")
        if code == 0:
            return
        await asyncio.sleep(0.2)
    raise LabError(f"{VM} does not reach its gateway {gateway}")
