"""What somebody who means harm sends from a VM's port reaches nobody (support.fabric.hostile has it)."""

import struct
from dataclasses import replace

import pytest

from retinue.core.pipeline.cookies import Reason, reason_of
from support.fabric.hostile import HONEST, QUIET, REPORTED
from support.fabric.networks import add_ipv6, add_vm, fabric, holding6, nic_numbers
from support.fabric.world import FabricWorld


@pytest.fixture(scope="module")
def world() -> FabricWorld:
    net = fabric(2, 2, (1, 2))
    add_ipv6(net)
    for number, at in ((1, 1), (2, 2), (3, 1)):
        vm = add_vm(net, number, at, nics=2 if number == 1 else 1)
        for nic in nic_numbers(vm):
            net.assign(replace(holding6(nic), vm=vm.id))
    return FabricWorld(net)


@pytest.mark.parametrize(("reason", "frame"), [row[1:] for row in REPORTED], ids=[row[0] for row in REPORTED])
def test_it_reaches_nobody_and_is_reported(world: FabricWorld, reason: Reason, frame: bytes) -> None:
    for delivery in world.send(1, 1, frame):
        assert not delivery.arrivals
        assert [reason_of(cookie) for _, cookie, _, _ in delivery.to_controller] == [reason]


@pytest.mark.parametrize("frame", [row[1] for row in QUIET], ids=[row[0] for row in QUIET])
def test_it_reaches_nobody(world: FabricWorld, frame: bytes) -> None:
    for delivery in world.send(1, 1, frame):
        assert not delivery.arrivals and not delivery.to_controller


def test_a_priority_is_no_vlan_whatever_its_bits(world: FabricWorld) -> None:
    for priority in (0xE000, 0x1000):
        frame = HONEST[:12] + struct.pack("!HH", 0x8100, priority) + HONEST[12:]
        for delivery in world.send(1, 1, frame):
            ((_, port, came),) = delivery.arrivals
            assert port == 91 and came[12:14] == b"\x08\x00"
