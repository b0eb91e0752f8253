"""What a switch may say by the cookie of a packet-in follows from the switch's role."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from retinue.core.model import DEFAULT_VNET, Role
from retinue.core.model.network import Network, Owner
from retinue.core.packets import arp_request
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.cookies import SENT_UP_BY, Reason, cookie, reason_of
from retinue.core.pipeline.entry import CONTROLLER, Flow
from retinue.southbound.openflow.codec.messages import PacketIn
from support.fabric.dhcp6 import add_dhcp6
from support.fabric.domains import Domains, server_of
from support.fabric.networks import GATEWAY, UPLINK, add_uplink, add_vm, fabric, server
from support.fabric.storage import add_forwarder
from support.fabric.storage_domains import with_storage
from support.fakes.session import FakeNetwork

SWITCH_OF = {Role.EDGE: "edge2", Role.LEAF: "leaf2", Role.SPINE: "spine1", Role.CORE: "core1"}


@pytest.fixture
async def fake() -> AsyncIterator[FakeNetwork]:
    made = FakeNetwork(fabric(cores=2), clock=lambda: 1000.0)
    await made.start()
    yield made
    await made.stop()


def say(fake: FakeNetwork, switch: str, reason: Reason, port: int, frame: bytes) -> None:
    message = PacketIn(0, 0xFFFFFFFF, 0, 0, cookie(reason, Owner("switch", switch)), port, frame, ())
    fake.controller.packet_in(fake.sessions[switch], message)  # type: ignore[arg-type]


def test_the_table_has_what_the_pipeline_sends_up_and_nothing_else() -> None:
    net = fabric()
    net.put_vnet(replace(DEFAULT_VNET, mtu=1400))
    net.switches["edge1"] = replace(net.switches["edge1"], vdp=True)
    add_dhcp6(net)
    net.put_server(replace(server(9), edge=""))
    for number in (1, 2, 3):
        add_vm(net, number, at=number)
    nic = net.vms["vm1"].nic
    net.change_nic("vm1", nic, replace(nic, trusted=True))
    add_forwarder(net)
    add_uplink(net, 1, 2)
    net.detected.pop("server3")  # Nobody knows where that is.
    joined = with_storage(Domains(1, 1, dual=True))
    joined.add("b", "a", 1, server_of("b", 1))
    found = sent_up(net) | sent_up(joined.nets["b"]) | sent_up(fabric(cores=2))
    assert found == {(reason, role) for reason, roles in SENT_UP_BY.items() for role in roles}


def sent_up(net: Network) -> set[tuple[Reason, Role]]:
    compiler = Compiler(net)
    compiler.update(net.everything())
    return {
        (reason, switch.role)
        for switch in net.switches.values()
        for entry in compiler.program(switch.id).values()
        if isinstance(entry, Flow) and CONTROLLER in entry.actions
        and (reason := reason_of(entry.cookie)) is not None
    }  # fmt: skip


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("reason", list(Reason))
async def test_a_switch_says_only_what_its_role_can_know(
    fake: FakeNetwork, role: Role, reason: Reason
) -> None:
    counters = fake.controller.context.counters
    believed = role in SENT_UP_BY.get(reason, ())
    say(fake, SWITCH_OF[role], reason, 5, b"")
    assert counters["packet-ins not ours"] == (not believed)
    assert counters[f"packet-ins {reason.name.lower()}"] == believed


async def test_an_edge_does_not_become_the_place_of_a_server(fake: FakeNetwork) -> None:
    """Its administrator makes the switch send ARP of another server's as if it were a leaf."""
    net = fake.controller.net
    before = dict(net.detected)
    victim = server(3)
    net.detected.pop(victim.id)
    frame = arp_request(victim.mac, victim.address, GATEWAY)  # type: ignore[arg-type]
    for port in (1, UPLINK):
        say(fake, "edge2", Reason.SERVER_ARP, port, frame)
    await fake.settle()
    assert victim.id not in net.detected
    assert fake.controller.context.counters["packet-ins not ours"] == 2
    assert set(before) - set(net.detected) == {victim.id}
