"""A VM's NIC: the port is found by the NIC's port id, the addresses by its MAC, whatever the VM is called."""

from dataclasses import replace
from uuid import UUID, uuid5

import pytest

from retinue.core.model import NIC, VM, ModelError, VMPort, port_id_of
from retinue.core.model.network import Owner
from retinue.core.pipeline.compiler import contribution
from support.fabric.networks import assignment, fabric, server, vm_ip, vm_mac, vm_port

NAMED_APART = VM("vm1", (NIC(vm_mac(1), "port-of-vm1"),), "server1")
"""A VM whose port has another name than the VM."""


def test_a_port_belongs_to_the_vm_whose_nic_has_its_id() -> None:
    net = fabric()
    net.put_vm(NAMED_APART)
    port = VMPort(vm_port(1), "tap1")
    assert net.set_vm_port("port-of-vm1", "edge1", port) == {Owner("vm", "vm1")}
    assert net.vm_at("edge1", vm_port(1)) == NAMED_APART
    assert net.port_of(NAMED_APART.nic, "edge1") == port
    assert net.port_of(NAMED_APART.nic, "edge2") is None


def test_a_port_that_was_there_first_is_the_vms_once_it_is_registered() -> None:
    net = fabric()
    net.set_vm_port("port-of-vm1", "edge1", VMPort(vm_port(1)))
    assert net.vm_at("edge1", vm_port(1)) is None
    net.put_vm(NAMED_APART)
    net.assign(assignment(1))
    assert [(row.vm, row.ip, row.port) for row in net.bindings()] == [("vm1", vm_ip(1), vm_port(1))]
    assert "edge1" in contribution(net, Owner("vm", "vm1"))
    net.remove_vm("vm1")
    assert net.vm_of_port_id("port-of-vm1") is None
    assert net.vm_at("edge1", vm_port(1)) is None


def test_addresses_are_assigned_to_the_nic_that_has_the_mac() -> None:
    net = fabric()
    net.put_vm(NAMED_APART)
    net.assign(assignment(1))
    assert net.assignments_of(NAMED_APART, NAMED_APART.nic) == (assignment(1),)
    assert net.assignments_of(NAMED_APART, NIC(vm_mac(2), "another")) == ()


FIRST, SECOND = NIC(vm_mac(1), "vm1", (vm_ip(1),)), NIC(vm_mac(11), "vm1-2")
WITH_TWO = VM("vm1", (FIRST, SECOND), "server1")


@pytest.mark.parametrize("many", [0, 9])
def test_a_vm_has_between_one_and_eight_nics(many: int) -> None:
    nics = tuple(NIC(vm_mac(n), f"nic{n}") for n in range(1, many + 1))
    with pytest.raises(ModelError, match=f"has {many} network interfaces; give it between 1 and 8"):
        VM("vm1", nics, "server1")


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (replace(SECOND, mac=FIRST.mac), f"MAC {vm_mac(1)} is given twice"),
        (replace(SECOND, port_id="vm1"), "NIC id vm1 is given twice"),
        (replace(SECOND, addresses=(vm_ip(1),)), f"address {vm_ip(1)} is given twice"),
    ],
)
def test_what_is_one_nics_is_no_other_nics_of_the_vm(second: NIC, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        VM("vm1", (FIRST, second), "server1")


@pytest.mark.parametrize(
    ("nic", "reason"),
    [
        (NIC(vm_mac(11), "vm2"), f"MAC {vm_mac(11)} already belongs to VM vm1"),
        (NIC(vm_mac(2), "vm1-2"), "the port with iface-id vm1-2 already belongs to VM vm1"),
        (NIC(server(1).mac, "vm2"), "belongs to server server1"),
        (NIC("00:00:00:00:00:00", "vm2"), "MAC 00:00:00:00:00:00 is nobody's"),
    ],
)
def test_what_is_a_second_nics_is_no_other_vms(nic: NIC, reason: str) -> None:
    net = fabric()
    net.put_vm(WITH_TWO)
    with pytest.raises(ModelError, match=reason):
        net.put_vm(VM("vm2", (nic,), "server1"))


def test_each_nic_has_its_port_and_its_addresses() -> None:
    net = fabric()
    net.put_vm(WITH_TWO)
    net.set_vm_port("vm1", "edge1", VMPort(10))
    assert not net.has_ports("vm1", "edge1") and net.has_a_port(WITH_TWO, "edge1")
    net.set_vm_port("vm1-2", "edge1", VMPort(20))
    assert net.has_ports("vm1", "edge1") and not net.has_ports("vm1", "edge2")
    assert (net.nic_at("edge1", 10), net.nic_at("edge1", 20)) == (FIRST, SECOND)
    assert net.vm_at("edge1", 20) == WITH_TWO
    net.assign(assignment(1))
    net.assign(replace(assignment(2), mac=SECOND.mac, vm="vm1"))
    assert {(row.ip, row.mac, row.port) for row in net.bindings()} == {
        (vm_ip(1), FIRST.mac, 10),
        (vm_ip(2), SECOND.mac, 20),
    }


def test_an_address_of_one_nic_is_not_anothers_of_the_same_vm() -> None:
    net = fabric()
    net.put_vm(WITH_TWO)
    net.assign(assignment(1))
    with pytest.raises(ModelError, match=f"is held by VM vm1's NIC {FIRST.mac}"):
        net.assign(replace(assignment(1), mac=SECOND.mac))


def test_a_nic_that_holds_an_address_stays() -> None:
    net = fabric()
    net.put_vm(WITH_TWO)
    net.assign(replace(assignment(2), mac=SECOND.mac, vm="vm1"))
    with pytest.raises(ModelError, match=f"holds {vm_ip(2)} with MAC {SECOND.mac}; it needs a NIC with that"):
        net.put_vm(replace(WITH_TWO, nics=(FIRST,)))


def test_a_nic_of_a_vm_called_by_a_uuid_is_called_by_one() -> None:
    uuid = "0b3f4a52-4c1e-4f6e-9d38-0f6f52a1a9d1"
    assert (port_id_of("vm1", 1), port_id_of("vm1", 2)) == ("vm1", "vm1-2")
    assert port_id_of(uuid, 1) == uuid
    second, third = port_id_of(uuid, 2), port_id_of(uuid, 3)
    assert (second, third) == tuple(str(uuid5(UUID(uuid), number)) for number in "23")
