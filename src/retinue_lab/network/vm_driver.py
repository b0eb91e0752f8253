"""What lab tools ask about VMs, answered by asking the agents of all servers.

    python -m retinue_lab.network.vm_driver [--directory LAB]

It listens on `vmdriver.sock` in the lab's directory (see retinue.protocol.json_lines).

    {"do": "vms"}          -> {"vms": [{"id", "mac", "nics", "runs_at", "locations", "migration"}]}
    {"do": "guest", "vm", "command": "ip r"} -> {"code": 0, "output": "..."}
    {"do": "serial", "vm"}                   -> {"text": "..."}: what the VM wrote on its console
    {"do": "migrate", "vm", "target"}        -> {"stopped_at", "resumed_at"}: moved without the controller
    anything that cannot be done             -> {"error": "..."}

"guest" takes a "timeout" in seconds, after which the command is killed.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from retinue.agent import admin_socket
from retinue.protocol import json_lines
from retinue.protocol.json_lines import Json, RequestError
from retinue_lab.guest.shell import GuestShell, GuestShellError
from retinue_lab.network import agents
from retinue_lab.network.builder import STATE_VARIABLE
from retinue_lab.processes import state
from retinue_lab.processes.processes import READY_FD
from retinue_lab.processes.state import Directory
from retinue_lab.topology.topology import Topology

SOCKET = "vmdriver.sock"


class DriverRequest(msgspec.Struct, forbid_unknown_fields=True):
    do: str
    vm: str = ""
    target: str = ""
    command: str = ""
    timeout: float = 20.0


class Agents:
    """The agents' own sockets (retinue.agent.admin_socket), by server."""

    def __init__(self, sockets: dict[str, Path]) -> None:
        self.sockets = sockets

    async def ask(self, server: str, **request: Any) -> Json:
        """Raises RequestError."""
        return await json_lines.ask(self.sockets[server], f"the agent of {server}", **request)

    async def all(self, **request: Any) -> dict[str, Json]:
        """The answers of those that answer."""
        answers = await asyncio.gather(
            *(self.ask(server, **request) for server in self.sockets), return_exceptions=True
        )
        return {s: a for s, a in zip(self.sockets, answers, strict=True) if isinstance(a, dict)}


class Tools:
    """Answers the requests above, one JSON object a line."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents
        self._shells: dict[str, GuestShell] = {}
        """One for each machine, so that commands to the same guest wait for each other."""
        self._migrations = 0

    async def answer(self, line: bytes) -> Json:
        try:
            request = msgspec.json.decode(line, type=DriverRequest)
            match request.do:
                case "vms":
                    return {"vms": list((await self._vms()).values())}
                case "guest":
                    return await self._in_guest(request)
                case "serial":
                    return {"text": await self._console(request.vm)}
                case "migrate":
                    return await self._migrate(request.vm, request.target)
                case other:
                    raise RequestError(f"cannot do {other!r}: it is migrate, vms, guest or serial")
        except (msgspec.DecodeError, RequestError, GuestShellError) as error:
            return {"error": str(error)}

    async def _vms(self) -> dict[str, Json]:
        found: dict[str, Json] = {}
        since: dict[str, float] = {}
        """When it was resumed after its last migration: a source may not know yet that its VM has left."""
        for server, answer in (await self._agents.all(do="vms")).items():
            for row in answer["vms"]:
                vm = found.setdefault(
                    row["id"],
                    {
                        **{key: row[key] for key in ("id", "mac", "nics")},
                        "runs_at": "",
                        "locations": {},
                        "migration": "",
                    },
                )
                vm["locations"][server] = {"port": row["port"], "machine": row["machine"]}
                vm["migration"] = row["migration"] or vm["migration"]
                if row["runs"] and row["since"] >= since.get(row["id"], 0.0):
                    since[row["id"]] = row["since"]
                    vm["runs_at"], vm["shell"] = server, row["shell"]
        return found

    async def _known(self, vm: str) -> Json:
        vms = await self._vms()
        if vm not in vms:
            raise RequestError(f"there is no VM {vm!r}; there are: {', '.join(sorted(vms)) or 'none'}")
        return vms[vm]

    async def _in_guest(self, request: DriverRequest) -> Json:
        shown = await self._known(request.vm)
        if not shown["runs_at"]:
            raise RequestError(f"VM {request.vm} does not run")
        shell = self._shells.setdefault(shown["shell"], GuestShell(Path(shown["shell"])))
        code, output = await shell.run(request.command, request.timeout)
        return {"code": code, "output": output}

    async def _console(self, vm: str) -> str:
        """What the guest wrote, over all machines it has lived in: those were written to last come last."""
        await self._known(vm)
        answers = await self._agents.all(do="consoles", vm=vm)
        paths = [Path(path) for answer in answers.values() for path in answer["consoles"]]
        files = [path for path in paths if path.exists()]
        files.sort(key=lambda path: path.stat().st_mtime_ns)
        return "".join(path.read_text(errors="replace") for path in files)

    async def _migrate(self, vm: str, target: str) -> Json:
        """As a hypervisor does by itself: without the controller's knowledge."""
        shown = await self._known(vm)
        source = shown["runs_at"]
        if not source or target in shown["locations"] or target not in self._agents.sockets:
            raise RequestError(f"VM {vm} does not run, or cannot go to {target!r}")
        self._migrations += 1
        migration = f"by-hand-{self._migrations}"
        record = {"id": vm, "mac": shown["mac"], "server": source, "nics": shown["nics"]}
        taken = await self._agents.ask(target, do="take", vm=record, migration=migration, source=source)
        try:
            return await self._agents.ask(
                source, do="give", vm=vm, migration=migration, memory_at=taken["memory_at"], target=target
            )
        except RequestError:
            # Unless the VM runs there, and only the source does not know it yet.
            if (await self._vms()).get(vm, shown)["runs_at"] != target:
                with contextlib.suppress(RequestError):
                    await self._agents.ask(target, do="drop", vm=vm)
            raise


async def serve(where: Path, topology: Topology) -> None:
    sockets = {s.id: agents.folder(where, s.id) / admin_socket.SOCKET for s in topology.server}
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with json_lines.serving(where / SOCKET, Tools(Agents(sockets)).answer):
        if READY_FD in os.environ:
            os.write(int(os.environ[READY_FD]), b"ready\n")
        await ended.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m retinue_lab.network.vm_driver", description="Answer lab tools about VMs."
    )
    given = os.environ.get(STATE_VARIABLE)
    parser.add_argument(
        "--directory", type=Path, default=given, required=given is None, help="the lab's directory"
    )
    wanted = parser.parse_args(arguments)
    where = Directory(Path(wanted.directory))
    topology = state.decode_settings(where.settings.read_bytes()).topology
    asyncio.run(serve(where.path, topology))
    return 0


if __name__ == "__main__":
    sys.exit(main())
