"""The ports of a VM on this server: one for each of its NICs, called by the NIC's id."""

from collections.abc import Collection, Iterable

from retinue.agent.vms.local_vm import Ports
from retinue.protocol.nics import NICRecord
from retinue.protocol.vms import VMRecord


async def add(ports: Ports, vm: VMRecord) -> None:
    """Make them all. Raises HostError."""
    for nic in vm.all_nics:
        await ports.add(nic.id, nic.hardware_mac, vm.id)


async def remove(ports: Ports, vm: VMRecord) -> None:
    """Remove them all. Raises HostError."""
    for nic in vm.all_nics:
        await ports.remove(nic.id)


async def remove_others(ports: Ports, before: Iterable[NICRecord], vm: VMRecord) -> None:
    """Remove those of NICs that the VM has no longer. Raises HostError."""
    for id in dict.fromkeys(nic.id for nic in before):
        if id not in ids(vm):
            await ports.remove(id)


async def add_missing(ports: Ports, vm: VMRecord) -> list[str]:
    """Make those that are not as `add` made them; their ids. Raises HostError."""
    macs = {nic.id: nic.hardware_mac for nic in vm.all_nics}
    missing = await ports.missing(macs)
    for id in missing:
        await ports.add(id, macs[id], vm.id)
    return missing


async def rx_frames(ports: Ports, vm: VMRecord) -> int:
    """How many frames have come to them since they were made; 0 also where nobody knows."""
    return sum([await ports.rx_frames(nic.id) for nic in vm.all_nics])


def have_changed(before: Iterable[NICRecord], vm: VMRecord) -> bool:
    """The VM has other NICs than these."""
    had = {(nic.id, nic.hardware_mac) for nic in before}
    return had != {(nic.id, nic.hardware_mac) for nic in vm.all_nics}


def ids(vm: VMRecord) -> Collection[str]:
    return {nic.id for nic in vm.all_nics}
