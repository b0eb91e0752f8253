"""The QEMUs of a server that somebody else runs: whose MACs and taps they have, and when a VM arrives.

Each is found by its QMP socket, and asked for its name, its network interfaces and its state; from then on
its events are listened to. QEMU speaks to one client of a QMP socket at a time, so this one is for the agent
alone.

    a QEMU appears, running                      there("vm1", nics, arrived=False)
    a QEMU appears that waits for its VM         -
    its RESUME after that                        there("vm1", nics, arrived=True)
    it ends, or speaks no more                   gone("vm1", nics)
"""

import asyncio
import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from qemu.qmp import QMPClient, QMPError

from retinue.agent.renewal.standalone.at_tap import GREETING_LIMIT, NOT_HERE_YET
from retinue.core.model import Mac, ModelError
from retinue.core.model import mac as checked_mac
from retinue.hypervisor.monitor import disconnect
from retinue.socket_addresses import short_path

LOOK_SECONDS = 1.0
"""How often new sockets are looked for."""
MOST_QEMUS = 1024
LONGEST_NAME = 128
MOST_NICS = 16

_NIC = re.compile(r"^\S[^:]*: index=\d+,type=nic,.*\bmacaddr=([0-9a-fA-F:]{17})")
_TAP = re.compile(r"^ \\ \S[^:]*: index=\d+,type=tap,(?:.*,)?ifname=([^\s,/]{1,15})(?:,|$)")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ForeignNIC:
    """A VM's network interface, and the tap that it is plugged into."""

    mac: Mac
    tap: str


def nics_of(info_network: str) -> tuple[ForeignNIC, ...]:
    """What `info network` says of interfaces at taps, in its order; others are left out."""
    found: list[ForeignNIC] = []
    mac: Mac | None = None
    for line in info_network.splitlines():
        if nic := _NIC.match(line):
            try:
                mac = checked_mac(nic[1].lower())
            except ModelError:
                mac = None
        elif (tap := _TAP.match(line)) and mac is not None and len(found) < MOST_NICS:
            found.append(ForeignNIC(mac, tap[1]))
            mac = None
    return tuple(found)


There = Callable[[str, Sequence[ForeignNIC], bool], None]
"""The VM of this name runs here, with these NICs; True: it has just arrived."""


class QemuWatch:
    """`patterns` name QMP sockets, such as /run/vms/*.qmp. A socket's name stands in for a VM without one."""

    def __init__(self, patterns: Sequence[str], there: There, gone: Callable[[str], None]) -> None:
        self._patterns, self._there, self._gone = patterns, there, gone
        self._followed: dict[Path, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """For ever."""
        try:
            while True:
                self._look()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            for task in self._followed.values():
                task.cancel()
            await asyncio.gather(*self._followed.values(), return_exceptions=True)

    def _look(self) -> None:
        found = {path for pattern in self._patterns for path in Path("/").glob(pattern[1:])}
        for path in [path for path, task in self._followed.items() if task.done() and path not in found]:
            del self._followed[path]
        for path in sorted(found):
            task = self._followed.get(path)
            if (task is None and len(self._followed) < MOST_QEMUS) or (task is not None and task.done()):
                self._followed[path] = asyncio.create_task(self._follow(path), name=f"QEMU at {path}")

    async def _follow(self, path: Path) -> None:
        """One QEMU until it ends. One that cannot be spoken to is tried again at the next look."""
        client = QMPClient("agent")
        name = ""
        try:
            async with asyncio.timeout(GREETING_LIMIT):
                with short_path(path) as socket:
                    await client.connect(socket)
            with client.listener(("RESUME", "SHUTDOWN")) as heard:
                name = await _name(client, path)
                state: Any = await client.execute("query-status")
                log.info("qemu.found", vm=name, socket=str(path), state=state["status"])
                if state["status"] not in NOT_HERE_YET:
                    self._there(name, await _nics(client), False)
                arriving = state["status"] == "inmigrate"
                while True:
                    event = await heard.get()
                    if event["event"] == "SHUTDOWN":
                        return
                    self._there(name, await _nics(client), arriving)
                    arriving = False
        except (QMPError, OSError, EOFError, TimeoutError, KeyError, TypeError) as error:
            if not name:
                log.warning("qemu.not_followed", socket=str(path), error=str(error) or type(error).__name__)
        finally:
            if name:
                self._gone(name)
            with contextlib.suppress(Exception):
                await disconnect(client)


async def _name(client: QMPClient, path: Path) -> str:
    said: Any = await client.execute("query-name")
    name = said.get("name") if isinstance(said, dict) else None
    return name[:LONGEST_NAME] if isinstance(name, str) and name else path.stem


async def _nics(client: QMPClient) -> tuple[ForeignNIC, ...]:
    said: Any = await client.execute("human-monitor-command", {"command-line": "info network"})
    return nics_of(said if isinstance(said, str) else "")


__all__ = ["ForeignNIC", "QemuWatch", "nics_of"]
