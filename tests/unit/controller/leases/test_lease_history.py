"""What is remembered of leases beyond those that are held: what to renew, and what a NIC had last."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from retinue.controller.context import Context
from retinue.controller.leases import lease_history
from retinue.controller.leases.lease_history import LeaseMemory, key_of, nic_of
from retinue.core.model import Assignment, BindingKind, Origin
from support.fabric.networks import add_vm, fabric, vm_ip, vm_mac
from support.fakes.memory_store import MemoryStore


def lease(number: int) -> Assignment:
    return Assignment(
        vm_ip(number), vm_mac(number), f"vm{number}", BindingKind.DYNAMIC, Origin.CONTROLLER, 900.0
    )


@pytest.fixture
def context() -> Context:
    net = fabric()
    for number in (1, 2, 3):
        add_vm(net, number, 1)
        net.unassign(vm_ip(number))
    return Context(net, lambda: 1000.0, MemoryStore())


@pytest.fixture
def memory(context: Context) -> LeaseMemory:
    return LeaseMemory(context)


def test_a_key_names_the_nic_and_of_ipv6_the_address(context: Context) -> None:
    nic = context.net.vms["vm1"].nic
    by_mac = bytes.fromhex("01" + nic.mac.replace(":", ""))
    for client in (b"", by_mac):
        assert key_of(nic, IPv4Address("10.1.0.7"), client) == nic.port_id
    assert key_of(nic, IPv4Address("10.1.0.7"), b"\x00two") == f"{nic.port_id}/0074776f"
    assert key_of(nic, IPv6Address("fd00:1::7"), by_mac) == f"{nic.port_id}/fd00:1::7"
    assert nic_of(nic.port_id) == nic_of(f"{nic.port_id}/fd00:1::7") == nic.port_id


def test_a_pending_renewal_is_pending_until_it_is_settled(memory: LeaseMemory) -> None:
    memory.pend("vm1")
    memory.settle("vm2")
    assert set(memory.pending) == {"vm1"}
    memory.settle("vm1")
    memory.settle("vm1")
    assert not memory.pending


def test_the_last_lease_is_the_nics_until_it_has_another_or_another_has_the_address(
    context: Context, memory: LeaseMemory
) -> None:
    assert memory.last_of(vm_mac(1)) is None
    memory.ran_out(lease(1))
    assert memory.last_of(vm_mac(1)) == lease(1)
    assert memory.last_of(vm_mac(2)) is None
    context.net.assign(replace(lease(2), ip=vm_ip(1)))
    assert memory.last_of(vm_mac(1)) is None
    context.net.unassign(vm_ip(1))
    assert memory.last_of(vm_mac(1)) == lease(1)
    memory.bound(vm_mac(2))
    memory.bound(vm_mac(1))
    assert memory.last_of(vm_mac(1)) is None


def test_so_many_are_remembered_and_the_oldest_goes_first(
    memory: LeaseMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lease_history.KEPT == 1000
    monkeypatch.setattr(lease_history, "KEPT", 2)
    for number in (1, 2):
        memory.ran_out(lease(number))
    assert memory.last_of(vm_mac(1)) == lease(1)
    memory.ran_out(lease(3))
    assert [memory.last_of(vm_mac(number)) for number in (1, 2, 3)] == [None, lease(2), lease(3)]


def test_of_a_vm_that_is_gone_nothing_is_kept_and_all_of_the_others(
    context: Context, memory: LeaseMemory
) -> None:
    for number in (1, 2):
        memory.pend(context.net.vms[f"vm{number}"].nic.port_id)
        memory.ran_out(lease(number))
    kept = context.net.vms["vm2"].nic.port_id
    context.net.remove_vm("vm1")
    memory.vm_gone("vm1")
    assert set(memory.pending) == {kept}
    assert [memory.last_of(vm_mac(number)) for number in (1, 2)] == [None, lease(2)]


def test_what_was_stored_of_nics_that_are_gone_is_forgotten_at_the_start(
    context: Context, memory: LeaseMemory
) -> None:
    for number in (1, 2):
        memory.pend(context.net.vms[f"vm{number}"].nic.port_id)
        memory.ran_out(lease(number))
    kept = context.net.vms["vm2"].nic.port_id
    context.net.remove_vm("vm1")
    memory.restored()
    assert set(memory.pending) == {kept}
    assert list(context.state.ended_leases) == [vm_mac(2)]
