"""What lab tools ask about VMs, answered by asking the agents of all servers.

    python -m retinue.lab.vmdriver [--directory LAB]

It listens on `vmdriver.sock` in the lab's directory (see agent.lines).

    {"do": "vms"}                            -> {"vms": [{"id", "mac", "runs_at", "places", "move"}, ...]}
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

from retinue.agent import lines, local
from retinue.agent.lines import Json, RequestError
from retinue.lab import agents, state
from retinue.lab.builder import STATE_VARIABLE
from retinue.lab.guest_shell import GuestShell, GuestShellError
from retinue.lab.processes import READY_FD
from retinue.lab.state import Directory
from retinue.lab.topology import Topology

SOCKET = "vmdriver.sock"


class Request(msgspec.Struct, forbid_unknown_fields=True):
    do: str
    vm: str = ""
    target: str = ""
    command: str = ""
    timeout: float = 20.0


class Agents:
    """The agents' own sockets (retinue.agent.local), by server."""

    def __init__(self, sockets: dict[str, Path]) -> None:
        self.sockets = sockets

    async def ask(self, server: str, **request: Any) -> Json:
        """Raises RequestError."""
        return await lines.ask(self.sockets[server], f"the agent of {server}", **request)

    async def all(self, **request: Any) -> dict[str, Json]:
        """The answers of those that answer."""
        answers = await asyncio.gather(
            *(self.ask(server, **request) for server in self.sockets), return_exceptions=True
        )
        return {s: a for s, a in zip(self.sockets, answers, strict=True) if isinstance(a, dict)}


class Tools:
    def __init__(self, agents: Agents) -> None:
        self._agents = agents
        self._shells: dict[str, GuestShell] = {}
        """One for each machine, so that commands to the same guest wait for each other."""
        self._moves = 0

    async def answer(self, line: bytes) -> Json:
        try:
            request = msgspec.json.decode(line, type=Request)
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
        """When it ran on after its last move: a source may not have heard yet that its VM has left."""
        for server, answer in (await self._agents.all(do="vms")).items():
            for row in answer["vms"]:
                vm = found.setdefault(
                    row["id"], {"id": row["id"], "mac": row["mac"], "runs_at": "", "places": {}, "move": ""}
                )
                vm["places"][server] = {"port": row["port"], "machine": row["machine"]}
                vm["move"] = row["move"] or vm["move"]
                if row["runs"] and row["since"] >= since.get(row["id"], 0.0):
                    since[row["id"]] = row["since"]
                    vm["runs_at"], vm["shell"] = server, row["shell"]
        return found

    async def _known(self, vm: str) -> Json:
        vms = await self._vms()
        if vm not in vms:
            raise RequestError(f"there is no VM {vm!r}; there are: {', '.join(sorted(vms)) or 'none'}")
        return vms[vm]

    async def _in_guest(self, request: Request) -> Json:
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
        """As a hypervisor does by itself: no controller is asked before, and none is told."""
        shown = await self._known(vm)
        source = shown["runs_at"]
        if not source or target in shown["places"] or target not in self._agents.sockets:
            raise RequestError(f"VM {vm} does not run, or cannot go to {target!r}")
        self._moves += 1
        move = f"by-hand-{self._moves}"
        record = {"id": vm, "mac": shown["mac"], "server": source}
        taken = await self._agents.ask(target, do="take", vm=record, move=move, source=source)
        try:
            return await self._agents.ask(
                source, do="give", vm=vm, move=move, memory_at=taken["memory_at"], target=target
            )
        except RequestError:
            # Unless it runs there, and only the source has not heard of it.
            if (await self._vms()).get(vm, shown)["runs_at"] != target:
                with contextlib.suppress(RequestError):
                    await self._agents.ask(target, do="drop", vm=vm)
            raise


async def serve(where: Path, topology: Topology) -> None:
    sockets = {s.id: agents.folder(where, s.id) / local.SOCKET for s in topology.server}
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with lines.serving(where / SOCKET, Tools(Agents(sockets)).answer):
        if READY_FD in os.environ:
            os.write(int(os.environ[READY_FD]), b"ready\n")
        await ended.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m retinue.lab.vmdriver", description="Answer lab tools about VMs."
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
