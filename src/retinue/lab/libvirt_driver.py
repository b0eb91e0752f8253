"""The VM driver of a laboratory whose servers run libvirt: makes booked VMs, starts them, carries out moves.

    python -m retinue.lab.libvirt_driver [--directory LAB] [--controller URL]

A booked VM is made at once, paused, since libvirt makes its port with it; when the controller says that the
VM's flows stand it runs. What it knows of VMs it asks libvirt for each time: VMs may be moved by anybody's
`virsh`. The servers' own watchers (retinue.agent.libvirt_watch) tell the controller what happens. Lab tools
reach it over the same socket as the other VM driver.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from retinue.agent.libvirt_watch import READY_FD
from retinue.hypervisor.interface import Event, HypervisorError, Stopped, VMSpec
from retinue.hypervisor.libvirt_host import LibvirtHost
from retinue.hypervisor.libvirt_hypervisor import LibvirtHypervisor, LibvirtMachine
from retinue.hypervisor.libvirt_move import LibvirtMove, until_quiet
from retinue.hypervisor.taps import tap_name
from retinue.lab import libvirtd, state
from retinue.lab.builder import STATE_VARIABLE
from retinue.lab.driver_records import Happening, MoveRecord, RecordError, VMRecord, guest_command_line
from retinue.lab.driver_rest import ControllerAwayError, HttpRest, RefusedError, Reports, Rest, quoted
from retinue.lab.errors import LabError
from retinue.lab.guest import Guest, GuestError, ensure_guest
from retinue.lab.libvirt_socket import serving
from retinue.lab.state import Directory
from retinue.lab.topology import Topology

SOCKET = "vmdriver.sock"
AGAIN_SECONDS = 0.2
DIVERT_SECONDS = 10.0
"""How long a copy that is all but done waits for its traffic to be diverted; the VM runs meanwhile."""

log = structlog.get_logger()

Step = Callable[[], Awaitable[None]]


class LibvirtKeeper:
    """The lab's VMs. Steps about one VM are done one after the other."""

    def __init__(
        self, rest: Rest, servers: Mapping[str, LibvirtHypervisor], guest: Guest, topology: Topology
    ) -> None:
        self.servers = servers
        self._topology = topology
        self.records: dict[str, VMRecord] = {}
        self._rest = rest
        self._guest = guest
        self.reports = Reports(rest)
        self._turns: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._moves: dict[str, LibvirtMove] = {}
        """By their ids, those that are ours; libvirt may be moving other VMs for others."""
        self._copies: dict[str, asyncio.Task[None]] = {}

    # ---- what comes in ----

    def take(self, happening: Happening) -> None:
        """Act on an event, in the background."""
        vm, move = happening.vm, happening.move
        match happening.type:
            case "vm.booked" if vm and not vm.reported:
                self.records[vm.id] = vm
                self._later(vm.id, lambda: self._plug(vm))
            case "vm.ready" if vm and not vm.reported:
                self.records[vm.id] = vm
                self._later(vm.id, lambda: self._start(vm))
            case "vm.removed" if vm and vm.id in self.records:
                self._later(vm.id, lambda: self._remove(vm))
            case "move.prepare" if move:
                self._later(move.vm, lambda: self._prepare(move))
            case "move.copy" if move:
                self._later(move.vm, lambda: self._copy(move))
            case "move.rollback" if move:
                self._later(move.vm, lambda: self._roll_back(move))

    async def catch_up(self) -> None:
        """Do what the controller's present state asks for; its events may have been missed."""
        for vm in await self._rest.vms():
            self.take(Happening("vm.booked" if vm.state == "booked" else "vm.ready", vm=vm))
        asked = {"matched": "move.prepare", "prepared": "move.copy", "rolling back": "move.rollback"}
        for move in await self._rest.moves():
            if move.state in asked:
                self.take(Happening(asked[move.state], move=move))

    async def find(self, vm: str) -> tuple[str, LibvirtMachine] | None:
        """Where a VM runs, asked of every server; during a move, where it is running rather than waiting."""
        record = self.records.get(vm) or VMRecord(vm, "", "")
        spec = self.spec(record)
        found: list[tuple[bool, str, LibvirtMachine]] = []
        for server, hypervisor in self.servers.items():
            machine = await hypervisor.find(spec)
            if machine is not None:
                state_, _ = await hypervisor.host.call(machine.domain.state)
                found.append((state_ != 1, server, machine))
        found.sort(key=lambda row: row[:2])
        return (found[0][1], found[0][2]) if found else None

    async def close(self) -> None:
        """End every VM that was booked."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for vm in list(self.records):
            with contextlib.suppress(HypervisorError):
                await self._end(vm)
        await self.reports.close()

    def _later(self, vm: str, step: Step) -> None:
        task = asyncio.create_task(self._in_turn(vm, step), name=f"VM {vm}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _in_turn(self, vm: str, step: Step) -> None:
        async with self._turns.setdefault(vm, asyncio.Lock()):
            try:
                await step()
            except HypervisorError as error:
                log.error("a step failed", vm=vm, error=str(error))
            except Exception:
                log.exception("a step failed", vm=vm)

    # ---- a VM's life ----

    async def _plug(self, vm: VMRecord) -> None:
        if await self.find(vm.id) is None:
            await self._at(vm.server).plug(self.spec(vm))

    async def _start(self, vm: VMRecord) -> None:
        found = await self.find(vm.id)
        if found is not None:
            await found[1].resume()
        else:
            try:
                await self._at(vm.server).start(self.spec(vm))
            except HypervisorError as error:
                self._tell(vm, "stopped", vm.server, reason=str(error))
                raise
        self._tell(vm, "started", found[0] if found else vm.server)

    async def _remove(self, vm: VMRecord) -> None:
        await self._end(vm.id)
        self.records.pop(vm.id, None)

    async def _end(self, vm: str) -> None:
        while (found := await self.find(vm)) is not None:
            await found[1].quit()

    # ---- moves the controller asks for ----

    async def _prepare(self, move: MoveRecord) -> None:
        if move.id in self._moves:
            self._tell_move(move, "target_open")
            return
        spec = self.spec(self.records.get(move.vm) or VMRecord(move.vm, "", move.source))
        if await self._at(move.target).find(spec) is not None:
            return  # Somebody else is bringing it there; the watchers tell how that goes.
        machine = await self._at(move.source).find(spec)
        if machine is None:
            self._tell_move(move, "failed", reason=f"server {move.source} does not run VM {move.vm}")
            self._tell_move(move, "rolled_back")
            return
        going = self._at(move.source).move(machine, libvirtd.uri_from_outside(self._topology, move.target))
        try:
            await going.begin()
        except HypervisorError as error:
            self._tell_move(move, "failed", reason=str(error))
            return
        self._moves[move.id] = going
        self._tell_move(move, "target_open")

    async def _copy(self, move: MoveRecord) -> None:
        going = self._moves.get(move.id)
        if going is None or move.id in self._copies:
            return
        self._tell_move(move, "copying")
        self._copies[move.id] = asyncio.create_task(self._go(move, going), name=f"{move.id}: copy")

    async def _go(self, move: MoveRecord, going: LibvirtMove) -> None:
        async def divert() -> None:
            path = f"/v1/moves/{quoted(move.id)}/events"
            try:
                await self.reports.ask(move.vm, path, {"event": "converged"}, DIVERT_SECONDS)
            except (ControllerAwayError, RefusedError) as error:
                raise HypervisorError(f"its traffic is not diverted: {error}") from error

        def hear(event: Event) -> None:
            if isinstance(event, Stopped):
                self._tell_move(move, "stopped", at=event.at)

        async def drain() -> None:
            await until_quiet(libvirtd.pid(move.source), tap_name(move.vm))

        try:
            result = await going.run(self._at(move.target).way(move.vm), divert, hear, drain)
            log.info("moved", vm=move.vm, target=move.target, total_ms=round(result.total_ms, 1))
        except HypervisorError as error:
            self._tell_move(move, "failed", reason=str(error))

    async def _roll_back(self, move: MoveRecord) -> None:
        """Call it off, whoever began it; the watchers tell that the VM runs on at its source."""
        copy, going = self._copies.get(move.id), self._moves.get(move.id)
        if copy is not None and not copy.done():
            copy.cancel()
            await asyncio.wait({copy})
        if going is None:
            machine = await self._at(move.source).find(self.spec(VMRecord(move.vm, "", move.source)))
            if machine is not None:
                with contextlib.suppress(HypervisorError):  # there is no job
                    await machine.abort()
        elif await going.call_off():
            self._tell_move(move, "rolled_back")

    def _at(self, server: str) -> LibvirtHypervisor:
        if server not in self.servers:
            raise HypervisorError(f"the laboratory has no server {server}")
        return self.servers[server]

    def spec(self, vm: VMRecord) -> VMSpec:
        return VMSpec(
            id=vm.id,
            mac=vm.mac,
            port=tap_name(vm.id),
            kernel=self._guest.kernel,
            initrd=self._guest.initrd,
            append=guest_command_line(vm),
        )

    def _tell(self, vm: VMRecord, event: str, server: str, **more: Any) -> None:
        body = {"event": event, "server": server, **more}
        self.reports.tell(vm.id, f"/v1/vms/{quoted(vm.id)}/events", body)

    def _tell_move(self, move: MoveRecord, event: str, **more: Any) -> asyncio.Task[None]:
        return self.reports.tell(move.vm, f"/v1/moves/{quoted(move.id)}/events", {"event": event, **more})


async def follow(rest: Rest, keeper: LibvirtKeeper, ready: asyncio.Event) -> None:
    """Act on the controller's events for ever; after each (new) connection catch up first."""
    last: int | None = None
    while True:
        try:
            async with contextlib.aclosing(rest.events(last)) as events:
                async for happening in events:
                    if happening.type == "hello":
                        await keeper.catch_up()
                        ready.set()
                        # A controller that has started again numbers its events from the start.
                        last = happening.id if last is None else min(last, happening.id)
                    else:
                        last = happening.id
                        keeper.take(happening)
            log.warning("the controller has ended the event stream")
        except (ControllerAwayError, RefusedError, RecordError) as error:
            log.warning("no events", error=str(error))
        await asyncio.sleep(AGAIN_SECONDS)


def hypervisors(topology: Topology) -> dict[str, LibvirtHypervisor]:
    """One for each server; consoles are where libvirtd and we both reach them, by different paths."""
    inside = libvirtd.FOLDERS["run"] / libvirtd.VMS
    return {
        server.id: LibvirtHypervisor(
            LibvirtHost(server.id, libvirtd.uri(server.id)),
            inside,
            libvirtd.folder(server.id) / "run" / libvirtd.VMS,
        )
        for server in libvirtd.servers(topology)
    }


async def drive(where: Path, topology: Topology, controller: str) -> None:
    guest = await asyncio.to_thread(ensure_guest, lambda step: log.info(step))
    rest = HttpRest(controller)
    servers = hypervisors(topology)
    keeper = LibvirtKeeper(rest, servers, guest, topology)
    ready = asyncio.Event()
    async with serving(where / SOCKET, keeper.find, lambda: list(keeper.records.values())):
        following = asyncio.create_task(follow(rest, keeper, ready))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, following.cancel)
        telling = asyncio.create_task(_tell_ready(ready))
        try:
            await following
        except asyncio.CancelledError:
            log.info("stopping")
        finally:
            telling.cancel()
            await keeper.close()
            for hypervisor in servers.values():
                await hypervisor.host.close()
            await rest.close()


async def _tell_ready(ready: asyncio.Event) -> None:
    await ready.wait()
    log.info("ready")
    if READY_FD in os.environ:
        fd = int(os.environ[READY_FD])
        os.write(fd, b"ready\n")
        os.close(fd)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m retinue.lab.libvirt_driver", description="Run the lab's VMs through libvirt."
    )
    given = os.environ.get(STATE_VARIABLE)
    parser.add_argument(
        "--directory", type=Path, default=given, required=given is None, help="the lab's directory"
    )
    parser.add_argument("--controller", help="its REST interface; by default the lab's own")
    wanted = parser.parse_args(arguments)
    where = Directory(Path(wanted.directory))
    try:
        topology = state.decode_settings(where.settings.read_bytes()).topology
        asyncio.run(drive(where.path, topology, wanted.controller or topology.controller_url))
    except (GuestError, LabError, HypervisorError, OSError) as error:
        print(f"VM driver: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    # The events' thread of libvirt is never done; nothing waits for it.
    code = main()
    sys.stderr.flush()
    os._exit(code)
