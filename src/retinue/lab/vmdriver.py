"""The laboratory's VM driver: runs QEMUs on all servers, and moves them, on the controller's word.

    python -m retinue.lab.vmdriver [--directory LAB] [--controller URL]

It follows the controller's event stream. A booked VM gets a port; when the controller says that the VM's
flows stand, its QEMU is started. For a move it opens the target, copies, cleans up or rolls back, each when
asked, and reports what it did and when the VM stopped and ran on. Lab tools reach it over the socket
`vmdriver.sock` in the lab's directory (see driver_socket).

It runs in the sandbox, where each server is a network namespace. When it ends, its QEMUs end.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import structlog

from retinue.hypervisor import HypervisorError, QemuHypervisor
from retinue.hypervisor.taps import Run, add_port, remove_port, tap_name
from retinue.lab import state
from retinue.lab.builder import STATE_VARIABLE
from retinue.lab.driver_records import RecordError
from retinue.lab.driver_rest import ControllerAwayError, HttpRest, RefusedError, Rest
from retinue.lab.driver_socket import serving
from retinue.lab.errors import LabError
from retinue.lab.guest import GuestError, ensure_guest
from retinue.lab.processes import READY_FD, run
from retinue.lab.state import Directory
from retinue.lab.switches import env
from retinue.lab.topology import EDGE_BRIDGE, Topology
from retinue.lab.vm_keeper import Keeper

SOCKET = "vmdriver.sock"
AGAIN_SECONDS = 0.2
"""Between two attempts to reach the controller."""

log = structlog.get_logger()

NICE = ("nice", "-n", "15")
"""Guests yield to switches and controller: on real servers these have processors of their own."""


class ServerPorts:
    """Ports of VMs on the lab's servers (vm_keeper.Ports)."""

    async def add(self, server: str, vm: str, mac: str) -> None:
        try:
            await add_port(_on(server), bridge=EDGE_BRIDGE, tap=tap_name(vm), vm=vm, mac=mac)
        except LabError as error:
            raise HypervisorError(f"VM {vm}: no port on {server}: {error}") from error

    async def remove(self, server: str, vm: str) -> None:
        await self._remove(server, tap_name(vm))

    async def clear(self, server: str) -> None:
        """Remove what an earlier driver left: its QEMUs ended with it."""
        for port in (await _on(server)(["ovs-vsctl", "list-ports", EDGE_BRIDGE])).split():
            if port.startswith("tap-"):
                await self._remove(server, port)

    async def _remove(self, server: str, tap: str) -> None:
        try:
            await remove_port(_on(server), bridge=EDGE_BRIDGE, tap=tap)
        except LabError as error:
            raise HypervisorError(f"port {tap} of {server} cannot be removed: {error}") from error


def _on(server: str) -> Run:
    return partial(run, node=server, env=env(server))


async def follow(rest: Rest, keeper: Keeper, ready: asyncio.Event) -> None:
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


async def drive(where: Path, topology: Topology, controller: str) -> None:
    guest = await asyncio.to_thread(ensure_guest, lambda step: log.info(step))
    folder = where / "vms"
    servers = [server.id for server in topology.server]
    ports = ServerPorts()
    await asyncio.gather(*(ports.clear(server) for server in servers))
    hypervisors = {
        # What the driver starts ends with it, however it ends.
        server: QemuHypervisor(
            folder / server, ("ip", "netns", "exec", server, *NICE, "setpriv", "--pdeathsig", "KILL")
        )
        for server in servers
    }
    folder.mkdir(exist_ok=True)
    rest = HttpRest(controller)
    keeper = Keeper(rest, hypervisors, ports, guest)
    ready = asyncio.Event()
    async with serving(where / SOCKET, keeper):
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
            await rest.close()


async def _tell_ready(ready: asyncio.Event) -> None:
    await ready.wait()
    log.info("ready")
    if READY_FD in os.environ:
        fd = int(os.environ[READY_FD])
        os.write(fd, b"ready\n")
        os.close(fd)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m retinue.lab.vmdriver", description="Run the lab's VMs.")
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
    sys.exit(main())
