"""What can go wrong in a laboratory while VMs migrate: each fault, how it is struck, and how it is healed.

Processes are ended (SIGKILL) and started anew with the command line they had, or stand still for a while
(SIGSTOP); links go down. A fault that takes the way of packets away costs some; the others may cost none.
"""

import asyncio
import re
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from retinue_lab.processes.state import DaemonStatus
from retinue_lab.topology.topology import CONTROLLER, DHCP, SANDBOX
from support.lab.migrating import qemus_of, start_agent
from support.lab.tools import LabBench

STANDSTILL = 3.0
"""Seconds for which a process stands still."""
CABLE_DOWN, MANAGEMENT_DOWN = 5.0, (3.0, 12.0)
"""Seconds."""

Heal = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Ground:
    """Where a fault strikes: a migration of `vm` from `source` to `target`, in `bench`."""

    bench: LabBench
    vm: str
    source: str
    target: str
    chance: float
    """0 to 1: how long, where that varies."""

    def server(self, end: str) -> str:
        return self.source if end == "source" else self.target

    def daemon(self, name: str) -> DaemonStatus | None:
        """A program that the lab started; None: it does not run."""
        found = (one for one in self.bench.lab.daemons() if one.name == name and one.running)
        return next(found, None)


@dataclass(frozen=True)
class Fault:
    """`strike` returns when it has struck, and what heals it; None: there was nothing left to hit."""

    name: str
    strike: Callable[[Ground], Awaitable[Heal | None]]
    may_lose: bool = False
    """It is in the packets' way, or the VM itself dies."""


async def _nothing() -> None:
    """Nothing is left to be healed."""


# ---- processes ----


def _stand_still(name: Callable[[Ground], str]) -> Callable[[Ground], Awaitable[Heal | None]]:
    async def strike(ground: Ground) -> Heal | None:
        daemon = ground.daemon(name(ground))
        if daemon is None:
            return None
        ground.bench.lab.kill(daemon.pid, signal.SIGSTOP)
        await asyncio.sleep(STANDSTILL)
        ground.bench.lab.kill(daemon.pid, signal.SIGCONT)
        return _nothing

    return strike


async def _kill_controller(ground: Ground) -> Heal | None:
    ground.bench.kill("controller")

    async def heal() -> None:
        await ground.bench.restart_controller()

    return heal


def _kill_agent(end: str) -> Callable[[Ground], Awaitable[Heal | None]]:
    async def strike(ground: Ground) -> Heal | None:
        server = ground.server(end)
        ground.bench.kill(f"{server}-agent")

        async def heal() -> None:
            await start_agent(ground.bench, server)

        return heal

    return strike


def _kill_switch_part(part: str, node: Callable[[Ground], str]) -> Callable[[Ground], Awaitable[Heal | None]]:
    """`part`: vswitchd, or ovsdb for its database."""

    async def strike(ground: Ground) -> Heal | None:
        daemon = ground.daemon(f"{node(ground)}-{part}")
        return None if daemon is None else await _kill(ground, daemon)

    return strike


async def _kill(ground: Ground, daemon: DaemonStatus) -> Heal:
    """What heals it starts the program as it was started."""
    words, settings = [
        (await ground.bench.run(SANDBOX, "cat", f"/proc/{daemon.pid}/{what}")).rstrip("\0").split("\0")
        for what in ("cmdline", "environ")
    ]
    argv = [word for word in words if word != "--detach"]
    env = dict(setting.split("=", 1) for setting in settings if "=" in setting)
    ground.bench.kill(daemon.name)

    async def heal() -> None:
        await asyncio.to_thread(ground.bench.lab.spawn, daemon.node, argv, log=daemon.name, env=env)

    return heal


async def _kill_dhcp_server(ground: Ground) -> Heal | None:
    running = (one for one in ground.bench.lab.daemons() if one.node == DHCP and one.running)
    daemon = next(running, None)
    return None if daemon is None else await _kill(ground, daemon)


def _of_database(number: int) -> Callable[[Ground], Awaitable[Heal | None]]:
    """The controller's own database server, a child of the controller."""

    async def strike(ground: Ground) -> Heal | None:
        said = await ground.bench.run(
            SANDBOX, "sh", "-c", "pgrep -f '^[^ ]*ovsdb-server.*controller' || true"
        )
        pids = re.findall(r"\d+", said)
        if not pids:
            return None
        await ground.bench.run(SANDBOX, "kill", f"-{number}", *pids)
        if number == signal.SIGSTOP:
            await asyncio.sleep(STANDSTILL)
            await ground.bench.run(SANDBOX, "kill", "-CONT", *pids)
        return _nothing

    return strike


def _of_qemu(end: str, number: int) -> Callable[[Ground], Awaitable[Heal | None]]:
    """The machine of the VM at one end, where there is one while it migrates."""

    async def strike(ground: Ground) -> Heal | None:
        server = ground.server(end)
        if server not in await ground.bench.machines(ground.vm):
            return None
        pid = str(qemus_of(ground.bench, server)[-1])
        # It may have ended by itself in between.
        await ground.bench.run(SANDBOX, "sh", "-c", f"kill -{number} {pid} || true")
        if number == signal.SIGSTOP:
            await asyncio.sleep(STANDSTILL)
            await ground.bench.run(SANDBOX, "sh", "-c", f"kill -CONT {pid} || true")
        return _nothing

    return strike


# ---- links ----


def _cut_management(node: Callable[[Ground], str]) -> Callable[[Ground], Awaitable[Heal | None]]:
    async def strike(ground: Ground) -> Heal | None:
        link = f"m-{node(ground)}"
        least, most = MANAGEMENT_DOWN
        await ground.bench.run(SANDBOX, "ip", "link", "set", link, "down")
        try:
            await asyncio.sleep(least + ground.chance * (most - least))
        finally:
            await ground.bench.run(SANDBOX, "ip", "link", "set", link, "up")
        return _nothing

    return strike


async def _cut_cable(ground: Ground) -> Heal | None:
    """Between a leaf and a spine."""
    cables = [c for c in ground.bench.topology.cables if c.a.startswith("leaf") and "spine" in c.a]
    cable = cables[int(ground.chance * len(cables)) % len(cables)]
    await ground.bench.run(cable.a_node, "ip", "link", "set", cable.a, "down")
    try:
        await asyncio.sleep(CABLE_DOWN)
    finally:
        await ground.bench.run(cable.a_node, "ip", "link", "set", cable.a, "up")
    return _nothing


# ---- the table ----


def _both(
    name: str, make: Callable[[str], Callable[[Ground], Awaitable[Heal | None]]], *, may_lose: bool = False
) -> list[Fault]:
    return [Fault(f"{name} {end}", make(end), may_lose) for end in ("source", "target")]


def _at(part: str) -> Callable[[str], Callable[[Ground], str]]:
    return lambda end: lambda ground: f"{ground.server(end)}-{part}"


FAULTS: tuple[Fault, ...] = (
    Fault("kill controller", _kill_controller),
    Fault("stop controller", _stand_still(lambda ground: CONTROLLER)),
    Fault("kill controller's database", _of_database(signal.SIGKILL)),
    Fault("stop controller's database", _of_database(signal.SIGSTOP)),
    *_both("kill agent", _kill_agent),
    *_both("stop agent", lambda end: _stand_still(_at("agent")(end))),
    Fault("kill QEMU target", _of_qemu("target", signal.SIGKILL), may_lose=True),
    Fault("kill QEMU source", _of_qemu("source", signal.SIGKILL), may_lose=True),
    *_both("stop QEMU", lambda end: _of_qemu(end, signal.SIGSTOP), may_lose=True),
    *_both(
        "kill vswitchd",
        lambda end: _kill_switch_part("vswitchd", lambda ground: ground.server(end)),
        may_lose=True,
    ),
    *_both("stop vswitchd", lambda end: _stand_still(_at("vswitchd")(end)), may_lose=True),
    *_both("kill ovsdb-server", lambda end: _kill_switch_part("ovsdb", lambda ground: ground.server(end))),
    *_both("stop ovsdb-server", lambda end: _stand_still(_at("ovsdb")(end))),
    Fault("kill DHCP server", _kill_dhcp_server),
    *_both("cut management of", lambda end: _cut_management(lambda ground: ground.server(end))),
    Fault("cut management of fabric", _cut_management(lambda ground: "fabric")),
    Fault("kill vswitchd fabric", _kill_switch_part("vswitchd", lambda ground: "fabric"), may_lose=True),
    Fault("cut cable of leaf and spine", _cut_cable, may_lose=True),
)
