"""The VM driver's socket for lab tools: a JSON object a line, each answered by one.

    {"do": "vms"}                            -> {"vms": [{"id", "mac", "runs_at", "places", "move"}, ...]}
    {"do": "guest", "vm", "command": "ip r"} -> {"code": 0, "output": "..."}
    {"do": "serial", "vm"}                   -> {"text": "..."}: what the VM wrote on its console
    {"do": "migrate", "vm", "target"}        -> {"stopped_at", "resumed_at"}: moved without the controller
    anything that cannot be done             -> {"error": "..."}

"guest" takes a "timeout" in seconds, after which the command is killed.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from retinue.hypervisor import HypervisorError
from retinue.hypervisor.taps import tap_name
from retinue.lab.guest_shell import GuestShell, GuestShellError
from retinue.lab.vm_keeper import Keeper, Kept, LabMachine

LONGEST_LINE = 1 << 20


class Request(msgspec.Struct, forbid_unknown_fields=True):
    do: str
    vm: str = ""
    target: str = ""
    command: str = ""
    timeout: float = 20.0


class RequestError(Exception):
    """It cannot be done; the message says why."""


@contextlib.asynccontextmanager
async def serving(path: Path, keeper: Keeper) -> AsyncIterator[None]:
    """Listen at `path` inside the context."""
    path.unlink(missing_ok=True)
    shells = Shells()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await _line(reader):
                writer.write(msgspec.json.encode(await answer(keeper, shells, line)) + b"\n")
                await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(connected, path, limit=LONGEST_LINE)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


async def _line(reader: asyncio.StreamReader) -> bytes:
    """The next line; b"" at the end, or when a line is too long to be one of ours."""
    try:
        return await reader.readline()
    except ValueError:
        return b""


class Shells:
    """One shell for each machine, so that commands to the same guest wait for each other."""

    def __init__(self) -> None:
        self._by_path: dict[Path, GuestShell] = {}

    def of(self, machine: LabMachine) -> GuestShell:
        path = machine.files.shell
        return self._by_path.setdefault(path, GuestShell(path))


async def answer(keeper: Keeper, shells: Shells, line: bytes) -> dict[str, Any]:
    try:
        request = msgspec.json.decode(line, type=Request)
        match request.do:
            case "vms":
                return {"vms": [await _shown(kept) for kept in keeper.vms.values()]}
            case "guest":
                kept = _known(keeper, request.vm)
                machine = kept.machine()
                if machine is None:
                    raise RequestError(f"VM {kept.id} does not run")
                code, output = await shells.of(machine).run(request.command, request.timeout)
                return {"code": code, "output": output}
            case "serial":
                return {"text": _console(_known(keeper, request.vm))}
            case "migrate":
                moved = await keeper.migrate(_known(keeper, request.vm), request.target)
                return {"stopped_at": moved.stopped_at, "resumed_at": moved.resumed_at}
            case other:
                raise RequestError(f"cannot do {other!r}: it is migrate, vms, guest or serial")
    except (msgspec.DecodeError, RequestError, GuestShellError, HypervisorError) as error:
        return {"error": str(error)}


def _known(keeper: Keeper, vm: str) -> Kept:
    if vm not in keeper.vms:
        raise RequestError(f"there is no VM {vm!r}; there are: {', '.join(sorted(keeper.vms)) or 'none'}")
    return keeper.vms[vm]


async def _shown(kept: Kept) -> dict[str, Any]:
    places = {
        server: {"port": tap_name(kept.id), "machine": place.machine is not None}
        for server, place in kept.places.items()
    }
    return {
        "id": kept.id,
        "mac": kept.record.mac,
        "runs_at": kept.runs_at,
        "places": places,
        "move": kept.move,
    }


def _console(kept: Kept) -> str:
    """What the guest wrote, over all machines it has lived in."""
    return "".join(path.read_text(errors="replace") for path in kept.consoles if path.exists())
