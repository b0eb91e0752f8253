"""Domains with several interfaces: one VM by the first one's id, plugged in and out while it runs."""

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from retinue.hypervisor import HypervisorError, NICSpec, VMSpec
from retinue.hypervisor.libvirt import nics
from retinue.hypervisor.libvirt.connection import LibvirtHost
from retinue.hypervisor.libvirt.directory import Folder
from retinue.hypervisor.libvirt.domain_xml import Consoles, domain_xml, interface_ids, taps, vm_ids
from retinue.hypervisor.libvirt.hypervisor import LibvirtHypervisor
from retinue.hypervisor.libvirt.machine import LibvirtMachine
from support.fakes.libvirt import FakeConnection, FakeLibrary

VM = "00000000-0000-4000-8000-000000000001"
SECOND = NICSpec("00000000-0000-4000-8000-0000000000a2", "52:54:00:00:00:02", "tap-2", 2)
THIRD = NICSpec("00000000-0000-4000-8000-0000000000a3", "52:54:00:00:00:03", "tap-3", 3)
SPEC = VMSpec(VM, "52:54:00:00:00:01", "tap-1", Path("/k"), Path("/i"), more_nics=(SECOND,))
FOLDER = Folder(Path("/run/libvirt/vms"), Path("/run/libvirt/vms"))
CONSOLES = Consoles(Path("/a"), Path("/b"))


@pytest.fixture
def library() -> FakeLibrary:
    return FakeLibrary()


@pytest.fixture
async def machine(library: FakeLibrary) -> AsyncIterator[LibvirtMachine]:
    host = LibvirtHost("server1", "test:///", library)
    yield await LibvirtHypervisor(host, FOLDER, bridge="br7").start(SPEC)
    await host.close()


async def shown(machine: LibvirtMachine) -> str:
    return str((await machine.domain()).XMLDesc(0))


def test_a_domain_has_an_interface_for_each_nic_and_is_one_vm() -> None:
    xml = domain_xml(SPEC, CONSOLES)
    assert interface_ids(xml) == (VM, SECOND.id) and taps(xml) == ("tap-1", "tap-2")
    assert vm_ids(xml) == (VM,)
    ports = re.findall(r'model="pcie-root-port" index="(\d)"', xml)
    assert ports == ["1", "2", "3", "4", "5"], "three more can be put in while it runs"


def test_a_domain_that_others_have_made_is_a_vm_for_each_of_its_interfaces() -> None:
    xml = domain_xml(SPEC, CONSOLES).replace(f"<uuid>{VM}</uuid>", "<uuid>something-else</uuid>")
    assert vm_ids(xml) == (VM, SECOND.id)
    assert vm_ids("no xml") == ()


def test_a_nic_whose_id_is_no_uuid_is_refused() -> None:
    with pytest.raises(HypervisorError, match="libvirt marks a port with a UUID"):
        domain_xml(replace(SPEC, more_nics=(replace(SECOND, id="web-2"),)), CONSOLES)


async def test_interfaces_are_attached_in_the_domains_bridge_and_detached(machine: LibvirtMachine) -> None:
    await machine.set_nics([SECOND, THIRD], set())
    xml = await shown(machine)
    assert interface_ids(xml) == (VM, SECOND.id, THIRD.id)
    assert xml.count('bridge="br7"') == 3
    await machine.set_nics([SECOND, THIRD], set())
    assert await shown(machine) == xml, "it is so already"
    await machine.set_nics([THIRD], {SECOND.id})
    assert interface_ids(await shown(machine)) == (VM, THIRD.id)


async def test_what_others_have_attached_stays_and_so_does_the_first(machine: LibvirtMachine) -> None:
    await machine.set_nics([SECOND, THIRD], set())
    await machine.set_nics([SECOND], {VM})
    assert interface_ids(await shown(machine)) == (VM, SECOND.id, THIRD.id)


async def test_a_guest_that_does_not_let_go_is_told(
    library: FakeLibrary, machine: LibvirtMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(library.server, FakeConnection)
    (await machine.domain()).deaf = True
    monkeypatch.setattr(nics, "UNPLUG_LIMIT", 0.0)
    with pytest.raises(HypervisorError, match=f"has not let go of NIC {SECOND.id} within"):
        await machine.set_nics([], {SECOND.id})
