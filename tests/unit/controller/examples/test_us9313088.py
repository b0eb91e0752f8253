"""The examples of US 9,313,088: VM information beside server information (figure 2), steps S101 to S107."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from retinue.controller.counters import all_packet_ins
from retinue.core.model import VM, PortRef, PortStatus
from retinue.core.packets import arp_request, parse, parse_arp
from retinue.core.pipeline.entry import CONTROLLER, Field
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import (
    GATEWAY_MAC,
    INFRA_GATEWAY,
    add_vm,
    fabric,
    leaf_port,
    vm_ip,
    vm_mac,
    vm_port,
)
from support.fakes.session import FakeNetwork
from support.recent_events import recent

SV1_MAC, SV1_IP = "02:00:00:00:00:01", IPv4Address("10.0.0.11")
VM1_MAC, VM1_IP = vm_mac(1), vm_ip(1)


@pytest.fixture
async def fake() -> AsyncIterator[FakeNetwork]:
    """SV1 is known by its physical MAC, and nobody has seen it yet; vm9 runs elsewhere."""
    net = fabric()
    del net.detected["server1"]
    made = FakeNetwork(net, clock=lambda: 1000.0)
    made.fabric.cable(("edge1", 1), ("leaf1", leaf_port(1)))
    await made.start()
    add_vm(net, 9, 2)
    await made.controller.context.install(net.everything())
    yield made
    await made.stop()


def vm_information() -> VM:
    """What the management system sets: virtual MAC and IP, and the server on which the VM operates."""
    return VM.with_one_nic("vm1", VM1_MAC, "server1", addresses=(VM1_IP,))


def flows_for_vm1(fake: FakeNetwork) -> set[str]:
    """The switches that have an entry which leads packets to the VM: those that ask the controller do not."""
    to_vm1 = (Field.IPV4_DST, int(VM1_IP), None)
    return {
        name
        for name, switch in fake.fabric.switches.items()
        if any(to_vm1 in flow.match and CONTROLLER not in flow.actions for flow in switch.flows.values())
    }


def state(fake: FakeNetwork) -> str:
    return str(fake.controller.inventory.state_of("vm1"))


async def server_speaks(fake: FakeNetwork, mac: str) -> None:
    fake.send("leaf1", leaf_port(1), arp_request(mac, SV1_IP, INFRA_GATEWAY))
    await fake.settle()


async def generated(fake: FakeNetwork) -> None:
    """S105: the server makes the VM, whose port is then there."""
    port = BridgePort(
        dpid=0x31, bridge="br0", name="tap1", number=vm_port(1), status=PortStatus.UP, iface_id="vm1",
        attached_mac=VM1_MAC,
    )  # fmt: skip
    fake.controller.inventory.ports.changed([], [port])
    await fake.settle()


def packet_ins(fake: FakeNetwork) -> int:
    return all_packet_ins(fake.controller.context.counters)


async def test_figure_2_where_the_macs_match_the_flow_entry_is_set(fake: FakeNetwork) -> None:
    """ "SV1 MAC" of the VM information is "SV1 MAC" of the server information: VM1's flows are set."""
    fake.controller.inventory.register_vms([vm_information()])
    await fake.settle()
    assert flows_for_vm1(fake) == set(), "of the server nothing is known yet"
    await server_speaks(fake, SV1_MAC)
    assert fake.net.location("server1") == PortRef("leaf1", "p1")
    assert flows_for_vm1(fake) >= {"leaf1", "spine1", "spine2"}
    assert "leaf2" not in flows_for_vm1(fake)


async def test_figure_2_where_they_do_not_match_nothing_is_set_and_that_is_shown(fake: FakeNetwork) -> None:
    fake.controller.inventory.register_vms([vm_information()])
    await server_speaks(fake, "02:00:00:00:00:77")
    assert fake.net.location("server1") is None
    assert flows_for_vm1(fake) == set()
    assert fake.controller.arp.unknown == {"02:00:00:00:00:77": PortRef("leaf1", "p1")}
    missing = fake.controller.inventory.missing_for(fake.net.vms["vm1"])
    assert any("server1" in reason for reason in missing), missing


async def test_figure_3_s101_to_s107(fake: FakeNetwork) -> None:
    """S101, S102 set and kept; S103 detected; S104 related, flows set and confirmed; only then S105."""
    fake.controller.inventory.register_vms([vm_information()])  # S101
    await fake.settle()
    assert fake.net.vms["vm1"].nic.addresses == (VM1_IP,)  # S102
    assert (state(fake), flows_for_vm1(fake)) == ("registered", set())

    await server_speaks(fake, SV1_MAC)  # S103, and S104
    assert {"leaf1", "spine1", "spine2"} <= flows_for_vm1(fake)
    for name in ("leaf1", "spine1", "spine2"):
        pending = fake.controller.context.installer.pending()
        assert not pending.get(name), f"{name} has confirmed before the VM may start"
    before_start = packet_ins(fake)

    await generated(fake)  # S105
    assert state(fake) == "ready"
    assert packet_ins(fake) == before_start, "starting a VM costs the controller no packet"

    sent = fake.send("edge1", vm_port(1), arp_request(VM1_MAC, VM1_IP, vm_ip(9)))  # S106
    assert not sent.arrivals
    await fake.settle()
    answers = [f for s, p, f in fake.heard if (s, p) == ("edge1", vm_port(1))]
    (answer,) = (parse_arp(parse(frame).payload) for frame in answers)  # S107
    assert (answer.op, answer.spa, answer.sha, answer.tha) == (2, vm_ip(9), GATEWAY_MAC, VM1_MAC)
    assert packet_ins(fake) == before_start + 1, "of the ARP request alone"
    events = sorted(recent(fake.controller.events, "", 1000), key=lambda event: event.id)
    of_vm1 = [event for event in events if getattr(event.data.get("vm"), "id", "") == "vm1"]
    told = [str(event.type) for event in of_vm1]
    assert told == ["vm.registered", "vm.ready"]


async def test_s103_a_server_that_moves_to_another_switch_takes_its_vms_flows_along(
    fake: FakeNetwork,
) -> None:
    """ "When [...] notified from any of the switches": the entries of the former route are deleted."""
    fake.controller.inventory.register_vms([vm_information()])
    await server_speaks(fake, SV1_MAC)
    await generated(fake)
    assert "leaf2" not in flows_for_vm1(fake)
    touched = fake.net.put_server(replace(fake.net.servers["server1"], given_at=PortRef("leaf2", "p2")))
    await fake.controller.context.install(touched)
    assert "leaf2" in flows_for_vm1(fake)
    assert "leaf1" not in flows_for_vm1(fake)
