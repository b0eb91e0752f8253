"""NICs put into and taken out of a QEMU that runs (QEMU documentation, "PCI Express hot plug").

A guest must let a NIC go, which takes it as long as it likes; one that does not within a while keeps it.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.interface import NICSpec, VMSpec
from retinue.hypervisor.qemu.argv import MORE_NICS, SWITCHED_OFF

UNPLUG_LIMIT = 10.0
"""Seconds that a guest may take to let a NIC go."""
LOOK = 0.05


class Pluggable(Protocol):
    """A QEMU, as far as its NICs go."""

    @property
    def spec(self) -> VMSpec: ...

    async def command(self, command: str, arguments: dict[str, Any]) -> Any: ...

    def write_down(self, **changes: Any) -> None: ...


async def set_nics(machine: Pluggable, wanted: Sequence[NICSpec]) -> None:
    """Let a machine have these NICs besides its first. Raises HypervisorError.

    Each that has come or gone is written down at once: what is there if a later one cannot be is known.
    """
    for nic in machine.spec.more_nics:
        if nic not in wanted:
            await _take_out(machine, nic)
    for nic in wanted:
        if nic not in machine.spec.more_nics:
            await _put_in(machine, nic)


async def _put_in(machine: Pluggable, nic: NICSpec) -> None:
    backend, device = f"net{nic.slot}", f"nic{nic.slot}"
    tap = {"type": "tap", "id": backend, "ifname": nic.port, "script": "no", "downscript": "no"}
    await machine.command("netdev_add", tap)
    try:
        await machine.command(
            "device_add",
            {
                "driver": "virtio-net-pci",
                "netdev": backend,
                "id": device,
                "mac": nic.mac,
                "host_mtu": nic.mtu,
                "romfile": "",
                "bus": MORE_NICS,
                "addr": f"{nic.slot:#x}",
                **dict.fromkeys(SWITCHED_OFF, False),
            },
        )
    except HypervisorError:
        await machine.command("netdev_del", {"id": backend})
        raise
    _has(machine, (*machine.spec.more_nics, nic))


async def _take_out(machine: Pluggable, nic: NICSpec) -> None:
    backend, device = f"net{nic.slot}", f"nic{nic.slot}"
    if await _is_in(machine, device):
        try:
            await machine.command("device_del", {"id": device})
        except HypervisorError:
            # Asked before, and not let go yet; or let go at this moment.
            if await _is_in(machine, device):
                await _until_let_go(machine, nic, device)
        else:
            await _until_let_go(machine, nic, device)
    await machine.command("netdev_del", {"id": backend})
    _has(machine, tuple(one for one in machine.spec.more_nics if one != nic))


async def _until_let_go(machine: Pluggable, nic: NICSpec, device: str) -> None:
    until = time.monotonic() + UNPLUG_LIMIT
    while await _is_in(machine, device):
        if time.monotonic() > until:
            raise HypervisorError(
                f"VM {machine.spec.id}: its guest has not let go of NIC {nic.id} ({nic.mac}) within "
                f"{UNPLUG_LIMIT:.0f} s"
            )
        await asyncio.sleep(LOOK)


async def _is_in(machine: Pluggable, device: str) -> bool:
    found = await machine.command("qom-list", {"path": "/machine/peripheral"})
    return any(item["name"] == device for item in found)


def _has(machine: Pluggable, nics: tuple[NICSpec, ...]) -> None:
    in_order = tuple(sorted(nics, key=lambda nic: nic.slot))
    machine.write_down(spec=replace(machine.spec, more_nics=in_order))
