"""What waited at a target that is given up: what of it is handed back, and to whom."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from retinue.core.limits import LARGEST_FRAME
from retinue.core.migration.handing_back import addressed, in_batches, not_copied
from retinue.core.model import DEFAULT_VRF, Network
from retinue.core.packets import Ethernet, EtherType, build_udp4, parse
from support.fabric import flooded, tenants
from support.fabric.ipv6 import udp6_frame, vm_ip6
from support.fabric.networks import (
    GATEWAY_MAC,
    OTHER_GATEWAY_MAC,
    add_vm,
    fabric,
    group,
    holding6,
    vm_ip,
    vm_mac,
)
from support.fabric.world import OUTSIDE, tagged, udp_frame

MARK = "02:00:00:00:00:02"
PRIMER = Ethernet(vm_mac(1), GATEWAY_MAC, EtherType.EXPERIMENT, b"nobody needs it").build()


def waiting(number: int, src: str = GATEWAY_MAC) -> bytes:
    return Ethernet(
        vm_mac(1), src, EtherType.IPV4, build_udp4(OUTSIDE, vm_ip(1), 7, 7, bytes([number]))
    ).build()


@pytest.fixture
def net() -> Network:
    net = fabric()
    add_vm(net, 1, at=1)
    return net


def test_what_the_source_has_copies_of_and_what_nobody_needs_stays() -> None:
    """In order: a flow that turned to be copied first does not end another's."""
    frames = [PRIMER, waiting(1), waiting(2, MARK), waiting(3), b"short", waiting(4, MARK)]
    assert not_copied(frames, MARK) == [waiting(1), waiting(3)]


def test_frames_are_handed_back_in_order_and_so_many_at_a_time() -> None:
    frames = [bytes([number]) * 40 for number in range(5)]
    assert list(in_batches(frames, 100)) == [frames[:2], frames[2:4], frames[4:]]
    assert list(in_batches(frames, 10)) == [[frame] for frame in frames]
    assert list(in_batches([], 10)) == []


def test_a_frame_comes_to_the_vm_as_from_its_gateway_there(net: Network) -> None:
    nic, frame = addressed(net, net.vms["vm1"], waiting(1, "52:54:00:00:00:77")) or pytest.fail("for nobody")
    assert (nic.mac, frame) == (vm_mac(1), waiting(1))
    group(net)
    add_vm(net, 2, at=2)
    sent = udp_frame(GATEWAY_MAC, vm_mac(2), OUTSIDE, vm_ip(2))
    _, frame = addressed(net, net.vms["vm2"], sent) or pytest.fail("for nobody")
    assert (parse(frame).src, parse(frame).payload) == (OTHER_GATEWAY_MAC, parse(sent).payload)


def test_the_same_address_in_two_vrfs_is_two_nics(net: Network) -> None:
    """What waited for one of them comes to no other."""
    tenants.add_tenant(net, "red")
    ip = tenants.address(8)
    nics = [tenants.Held(8, "both", DEFAULT_VRF, ip), tenants.Held(9, "both", "red", ip)]
    vm = tenants.add_vm(net, "both", 1, nics)
    for number, nic in zip((8, 9), vm.nics, strict=True):
        frame = udp_frame(GATEWAY_MAC, vm_mac(number), OUTSIDE, ip)
        assert addressed(net, vm, frame) == (nic, frame)


def test_what_is_for_a_prefix_of_the_vms_is_handed_back_as_well(net: Network) -> None:
    vm = net.vms["vm1"]
    net.change_nic(vm.id, vm.nic, replace(vm.nic, prefixes=(IPv4Network("10.9.0.0/28"),)))
    for last, is_its in ((3, True), (16, False)):
        frame = udp_frame(GATEWAY_MAC, vm_mac(1), OUTSIDE, IPv4Address("10.9.0.0") + last)
        assert (addressed(net, net.vms["vm1"], frame) is not None) is is_its


def test_ipv6_is_handed_back_as_well(net: Network) -> None:
    net.assign(holding6(1))
    frame = udp6_frame(GATEWAY_MAC, vm_mac(1), vm_ip6(2), vm_ip6(1))
    assert not_copied([frame], MARK) == [frame]
    assert addressed(net, net.vms["vm1"], frame) == (net.vms["vm1"].nic, frame)


@pytest.mark.parametrize(
    "frame",
    [
        b"short",
        PRIMER,
        tagged(waiting(1), 5),
        udp_frame(GATEWAY_MAC, vm_mac(1), OUTSIDE, vm_ip(2)),
        waiting(1) + bytes(LARGEST_FRAME),
        Ethernet(vm_mac(1), GATEWAY_MAC, EtherType.IPV4, b"").build()[:20],
    ],
    ids=["no frame", "no IP", "a tag", "another's address", "too large", "cut short"],
)
def test_what_an_agent_says_is_for_the_vm_is_not_for_that_alone(net: Network, frame: bytes) -> None:
    assert addressed(net, net.vms["vm1"], frame) is None


def test_what_was_flooded_is_handed_back_as_it_was_sent_and_to_who_is_in_that_vnet() -> None:
    net = fabric()
    flooded.add_vnets(net, ipv6=False)
    one, two = flooded.Member(1, "vm1", "shop"), flooded.Member(2, "vm2", "shop")
    quiet, store = flooded.Member(3, "vm3", "quiet"), flooded.Member(4, "vm4", "store")
    for number, member in enumerate((one, two, quiet, store), 1):
        flooded.add_vm(net, f"vm{number}", 1, [member])
    frame = udp_frame(two.mac, flooded.GROUP_MAC, two.ip, flooded.MDNS)
    assert addressed(net, net.vms["vm1"], frame) == (net.vms["vm1"].nic, frame)
    for vm in ("vm2", "vm3", "vm4"):
        assert addressed(net, net.vms[vm], frame) is None, "its sender, and who is in another vnet"
    for sender in (quiet, store):
        odd = udp_frame(sender.mac, flooded.GROUP_MAC, sender.ip, flooded.MDNS)
        assert addressed(net, net.vms["vm1"], odd) is None
    assert addressed(net, net.vms["vm1"], udp_frame(MARK, flooded.GROUP_MAC, two.ip, flooded.MDNS)) is None
    shut = replace(net.vms["vm1"], nics=(replace(net.vms["vm1"].nic, enabled=False),))
    assert addressed(net, shut, frame) is None
