"""Ports of VMs on this server's edge switch (kept.Ports)."""

import asyncio
from collections.abc import Collection, Sequence

from retinue.hypervisor import HypervisorError
from retinue.hypervisor.taps import add_port, remove_port, tap_name

COMMAND_LIMIT = 20.0


class LocalPorts:
    """Programs find Open vSwitch by themselves (OVS_RUNDIR in the environment, where it is elsewhere)."""

    def __init__(self, bridge: str) -> None:
        self._bridge = bridge

    async def add(self, vm: str, mac: str) -> None:
        await add_port(_run, bridge=self._bridge, tap=tap_name(vm), vm=vm, mac=mac)

    async def remove(self, vm: str) -> None:
        await remove_port(_run, bridge=self._bridge, tap=tap_name(vm))

    async def clear(self, but: Collection[str]) -> None:
        """Remove ports of VMs that an earlier agent made, except these."""
        for port in (await _run(["ovs-vsctl", "list-ports", self._bridge])).split():
            if port.startswith("tap-") and port not in but:
                await remove_port(_run, bridge=self._bridge, tap=port)


async def _run(argv: Sequence[str]) -> str:
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
    except OSError as error:
        raise HypervisorError(f"{argv[0]} cannot be run: {error}") from error
    try:
        async with asyncio.timeout(COMMAND_LIMIT):
            out, said = await process.communicate()
    except TimeoutError:
        process.kill()
        raise HypervisorError(f"`{' '.join(argv)}` did not end within {COMMAND_LIMIT:.0f} s") from None
    if process.returncode != 0:
        raise HypervisorError(f"`{' '.join(argv)}` failed: {said.decode(errors='replace').strip()}")
    return out.decode()
