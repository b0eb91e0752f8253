"""NICs put into and taken out of a QEMU that runs: the dialogue with it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retinue.hypervisor import HypervisorError, NICSpec, VMSpec
from retinue.hypervisor.qemu import nics
from retinue.hypervisor.qemu.nics import set_nics

SECOND = NICSpec("vm1-2", "52:54:00:00:00:02", "tap-vm1-2", 2)
THIRD = NICSpec("vm1-3", "52:54:00:00:00:03", "tap-vm1-3", 3)


class FakeQemu:
    """Takes NICs in at once, and lets one go when it has been asked for so often."""

    def __init__(self, *has: NICSpec) -> None:
        self.spec = VMSpec("vm1", "52:54:00:00:00:01", "tap-vm1", Path("/k"), Path("/i"), more_nics=has)
        self.devices = {f"nic{nic.slot}" for nic in has} | {"nic0", "nics"}
        self.backends = {f"net{nic.slot}" for nic in has}
        self.rejects: set[str] = set()
        self.looks_until_gone = 2
        self.going: dict[str, int] = {}

    async def command(self, command: str, arguments: dict[str, Any]) -> Any:
        if command in self.rejects:
            raise HypervisorError(f"{command} was rejected")
        id = arguments.get("id", "")
        match command:
            case "netdev_add":
                assert arguments["type"] == "tap"
                self.backends.add(id)
            case "netdev_del":
                self.backends.remove(id)
            case "device_add":
                assert arguments["netdev"] in self.backends
                self.devices.add(id)
                self.added = arguments
            case "device_del":
                if id in self.going:
                    raise HypervisorError(f"{id} is already in the process of unplug")
                self.going[id] = self.looks_until_gone
            case "qom-list":
                for name in list(self.going):
                    self.going[name] -= 1
                    if self.going[name] < 0:
                        del self.going[name]
                        self.devices.discard(name)
                return [{"name": name} for name in self.devices]
        return {}

    def write_down(self, **changes: Any) -> None:
        self.spec = changes["spec"]


async def test_a_nic_is_put_in_at_its_slot_as_a_new_qemu_would_have_it() -> None:
    qemu = FakeQemu(THIRD)
    await set_nics(qemu, [SECOND, THIRD])
    assert qemu.spec.more_nics == (SECOND, THIRD), "written down, in order of the slots"
    assert (qemu.added["bus"], qemu.added["addr"], qemu.added["mac"]) == ("nics", "0x2", SECOND.mac)
    assert [qemu.added[name] for name in ("csum", "guest_tso4", "ctrl_vlan")] == [False, False, False]
    assert qemu.backends == {"net2", "net3"}


async def test_a_nic_is_gone_when_the_guest_has_let_it_go() -> None:
    qemu = FakeQemu(SECOND, THIRD)
    await set_nics(qemu, [THIRD])
    assert (qemu.devices, qemu.backends) == ({"nic0", "nics", "nic3"}, {"net3"})
    assert qemu.spec.more_nics == (THIRD,)


async def test_a_slot_that_has_another_nic_gets_it_after_the_first_has_gone() -> None:
    qemu = FakeQemu(SECOND)
    other = replace(SECOND, mac="52:54:00:00:00:09")
    await set_nics(qemu, [other])
    assert qemu.added["mac"] == other.mac and qemu.spec.more_nics == (other,)


async def test_a_guest_that_does_not_let_go_keeps_the_nic_and_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    qemu = FakeQemu(SECOND)
    qemu.looks_until_gone = 1_000_000
    monkeypatch.setattr(nics, "UNPLUG_LIMIT", 0.0)
    with pytest.raises(HypervisorError, match=r"has not let go of NIC vm1-2 \(52:54:00:00:00:02\) within"):
        await set_nics(qemu, [])
    assert qemu.spec.more_nics == (SECOND,) and qemu.backends == {"net2"}
    qemu.going["nic2"] = 3
    monkeypatch.undo()
    await set_nics(qemu, [])
    assert not qemu.spec.more_nics and not qemu.backends


async def test_a_nic_that_cannot_be_put_in_leaves_nothing_behind() -> None:
    qemu = FakeQemu()
    qemu.rejects = {"device_add"}
    with pytest.raises(HypervisorError, match="device_add was rejected"):
        await set_nics(qemu, [SECOND])
    assert not qemu.backends and not qemu.spec.more_nics
