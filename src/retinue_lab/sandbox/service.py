"""The lab's own socket: one JSON object a line asks, one answers. Served by the sandbox's first process; a
second domain has one of its own, in its folder.

    {"do": "status"}                                    {"status": {...}}
    {"do": "daemons"}                                   {"daemons": [...]}: of the status, and at once
    {"do": "spawn", "node": "server1", "argv": [...],   {"name": ..., "pid": ..., "host_pid": ..., "log": ...}
     "log": "sender", "env": {}, "ready": false}
    {"do": "kill", "pid": 17, "signal": 15}             {}
    {"do": "wait", "pid": 17}                           {}, once the program has ended, or had
    {"do": "start_controller", "node": ""}              {}, once its REST interface answers
    {"do": "start_database", "node": "database1"}       {}, once it runs
    {"do": "announce"}                                  {"answered": {"server1": true, ...}}
    {"do": "stop"}                                      {}, then everything ends
    anything else, or a failure                         {"error": "one sentence"}

Pids are the sandbox's. Only programs that the lab started can be killed or waited for. A program spawned
with "ready" answers once it has written "ready" to the descriptor named by RETINUE_READY_FD.
"""

import asyncio
import functools
import os
import re
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec

from retinue.protocol import json_lines
from retinue_lab.errors import LabError
from retinue_lab.network.builder import Lab
from retinue_lab.processes.processes import Daemon
from retinue_lab.topology.topology import SANDBOX
from retinue_lab.topology.topology_file import encode_hook


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do"):
    pass


class AskStatus(_Request, frozen=True, tag="status"):
    pass


class AskDaemons(_Request, frozen=True, tag="daemons"):
    pass


class Spawn(_Request, frozen=True, tag="spawn"):
    node: str
    argv: list[str]
    log: str = ""
    """Name of the log file, and of the program in the status; made from node and program when empty."""
    env: dict[str, str] = {}
    ready: bool = False


class Kill(_Request, frozen=True, tag="kill"):
    pid: int
    signal: int = signal.SIGTERM


class Wait(_Request, frozen=True, tag="wait"):
    pid: int


class StartController(_Request, frozen=True, tag="start_controller"):
    node: str = ""
    """Of one of several; "": of the first."""


class StartDatabase(_Request, frozen=True, tag="start_database"):
    node: str


class Announce(_Request, frozen=True, tag="announce"):
    pass


class Stop(_Request, frozen=True, tag="stop"):
    pass


Request = AskStatus | AskDaemons | Spawn | Kill | Wait | StartController | StartDatabase | Announce | Stop


class Service:
    """Answers requests about one lab; `stop` is called when a request asks for the end."""

    def __init__(self, lab: Lab, stop: Callable[[], None]) -> None:
        self.lab = lab
        self.stop = stop

    def serving(self, socket: Path) -> AbstractAsyncContextManager[None]:
        """Listen inside the context."""
        return json_lines.serving(
            socket, self._answer, functools.partial(msgspec.json.encode, enc_hook=encode_hook)
        )

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = msgspec.json.decode(line, type=Request)
            return await self._do(request)
        except (msgspec.MsgspecError, UnicodeDecodeError, LabError, OSError) as error:
            return {"error": str(error)}

    async def _do(self, request: Request) -> dict[str, Any]:
        match request:
            case AskStatus():
                return {"status": await self.lab.status()}
            case AskDaemons():
                return {"daemons": self.lab.daemons}
            case Spawn():
                return await self._spawn(request)
            case Kill():
                self._find(request.pid, running=True)
                os.kill(request.pid, request.signal)
            case Wait():
                await self._find(request.pid).ended.wait()
            case StartController():
                await self.lab.start_controller(request.node)
            case StartDatabase():
                await self.lab.start_database(request.node)
            case Announce():
                return {"answered": await self.lab.announce()}
            case Stop():
                asyncio.get_running_loop().call_soon(self.stop)
        return {}

    async def _spawn(self, request: Spawn) -> dict[str, Any]:
        if not request.argv:
            raise LabError("argv is empty")
        if request.node not in (SANDBOX, *self.lab.topology.nodes):
            raise LabError(f"there is no node {request.node!r}")
        name = request.log.removesuffix(".log") or f"{request.node}-{Path(request.argv[0]).name}"
        wanted = re.sub(r"[^\w.-]", "-", name)
        supervisor = self.lab.supervisor
        daemon = await supervisor.start(
            supervisor.free_name(wanted),
            request.node,
            request.argv,
            env=self.lab.env(request.node) | request.env,
            ready_fd=request.ready,
        )
        return {
            "name": daemon.name,
            "pid": daemon.pid,
            "host_pid": daemon.host_pid,
            "log": str(daemon.log),
        }

    def _find(self, pid: int, running: bool = False) -> Daemon:
        """The latest program with this pid; numbers are used again once a program has ended."""
        found = next((d for d in reversed(self.lab.supervisor.daemons) if d.pid == pid), None)
        if found is None or (running and not found.running):
            raise LabError(f"no program that this lab started runs as pid {pid}")
        return found
