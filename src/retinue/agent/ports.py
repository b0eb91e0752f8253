"""Ports of VMs on this server's edge switch (kept.Ports)."""

from collections.abc import Collection

from retinue.hypervisor.commands import run
from retinue.hypervisor.taps import add_port, frames_come, remove_port, tap_name


class LocalPorts:
    """Programs find Open vSwitch by themselves (OVS_RUNDIR in the environment, where it is elsewhere)."""

    def __init__(self, bridge: str) -> None:
        self._bridge = bridge

    async def add(self, vm: str, mac: str) -> None:
        await add_port(run, bridge=self._bridge, tap=tap_name(vm), vm=vm, mac=mac)

    async def remove(self, vm: str) -> None:
        await remove_port(run, bridge=self._bridge, tap=tap_name(vm))

    async def come(self, vm: str) -> int:
        return await frames_come(run, tap_name(vm))

    async def clear(self, but: Collection[str]) -> None:
        """Remove ports of VMs that an earlier agent made, except these."""
        for port in (await run(["ovs-vsctl", "list-ports", self._bridge])).split():
            if port.startswith("tap-") and port not in but:
                await remove_port(run, bridge=self._bridge, tap=port)
