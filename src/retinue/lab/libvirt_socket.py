"""The libvirt VM driver's socket for lab tools: the words of vmdriver, answered by asking libvirt.

{"do": "vms"}, {"do": "guest", "vm", "command"}, {"do": "serial", "vm"}
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from retinue.hypervisor.interface import HypervisorError
from retinue.hypervisor.libvirt_hypervisor import LibvirtMachine
from retinue.lab.driver_records import VMRecord
from retinue.lab.guest_shell import GuestShell, GuestShellError
from retinue.lab.vmdriver import LONGEST_LINE, Request, RequestError

Find = Callable[[str], Awaitable[tuple[str, LibvirtMachine] | None]]
Known = Callable[[], Sequence[VMRecord]]


@contextlib.asynccontextmanager
async def serving(path: Path, find: Find, known: Known) -> AsyncIterator[None]:
    """Listen at `path` inside the context."""
    path.unlink(missing_ok=True)
    tools = _Tools(find, known)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await _line(reader):
                writer.write(msgspec.json.encode(await tools.answer(line)) + b"\n")
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


class _Tools:
    def __init__(self, find: Find, known: Known) -> None:
        self._find = find
        self._known = known
        self._shells: dict[Path, GuestShell] = {}

    async def answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = msgspec.json.decode(line, type=Request)
            match request.do:
                case "vms":
                    return {"vms": [await self._shown(vm) for vm in self._known()]}
                case "guest":
                    _, machine = await self._found(request.vm)
                    shell = self._shells.setdefault(machine.files.shell, GuestShell(machine.files.shell))
                    code, output = await shell.run(request.command, request.timeout)
                    return {"code": code, "output": output}
                case "serial":
                    _, machine = await self._found(request.vm)
                    return {"text": machine.files.serial_log.read_text(errors="replace")}
                case other:
                    raise RequestError(f"cannot do {other!r}: it is vms, guest or serial")
        except (msgspec.DecodeError, RequestError, GuestShellError, HypervisorError, OSError) as error:
            return {"error": str(error)}

    async def _found(self, vm: str) -> tuple[str, LibvirtMachine]:
        found = await self._find(vm)
        if found is None:
            raise RequestError(f"no server runs a VM {vm!r}")
        return found

    async def _shown(self, vm: VMRecord) -> dict[str, Any]:
        found = await self._find(vm.id)
        server = found[0] if found else ""
        places = {server: {"port": found[1].spec.port, "machine": True}} if found else {}
        return {"id": vm.id, "mac": vm.mac, "runs_at": server, "places": places, "move": ""}
