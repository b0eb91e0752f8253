"""A VM that is a DHCP server: what its trusted NIC says is believed; all else of snooping is as it was."""

from collections.abc import AsyncIterator
from ipaddress import IPv4Address

import pytest

from retinue.core.model import DEFAULT_VNET, Trust, VMPort, Vnet
from retinue.core.packets import BROADCAST, DHCP, ack, dhcp_frame, discover, offer, parse_dhcp_frame, request
from support.fabric.networks import add_vm, assignment, fabric, moved, vm_ip, vm_mac, vm_port
from support.fabric.world import EVERYWHERE, NOWHERE
from support.fakes.session import FakeNetwork

SERVES, ASKS, BAD = 2, 3, 4


@pytest.fixture
async def fake() -> AsyncIterator[FakeNetwork]:
    """vm2 on server2 is a DHCP server, vm3 on server3 asks; vm4 beside it would be one."""
    net = fabric()
    net.remove_server("dhcp")
    made = FakeNetwork(net, clock=lambda: 1000.0)
    for number, at in ((SERVES, 2), (BAD, 3)):
        add_vm(net, number, at)
    add_vm(net, ASKS, 3, bound=False)
    await made.start()
    await made.controller.nics.change(f"vm{SERVES}", trusted=True)
    yield made
    await made.stop()


async def asks(fake: FakeNetwork, asked: DHCP) -> list[tuple[str, int]]:
    """Who hears what vm3 asks."""
    fake.heard.clear()
    fake.send("edge3", vm_port(ASKS), dhcp_frame(asked, vm_mac(ASKS), BROADCAST, NOWHERE, EVERYWHERE, 68, 67))
    await fake.settle()
    return [(switch, port) for switch, port, _ in fake.heard]


async def says(fake: FakeNetwork, vm: int, at: int, said: DHCP, src: IPv4Address | None = None) -> list[DHCP]:
    """What vm3 hears of a DHCP server's message that a VM sends."""
    fake.heard.clear()
    frame = dhcp_frame(said, vm_mac(vm), BROADCAST, src or vm_ip(vm), EVERYWHERE, 67, 68)
    fake.send(f"edge{at}", vm_port(vm), frame)
    await fake.settle()
    here = ("edge3", vm_port(ASKS))
    return [parse_dhcp_frame(came)[-1] for switch, port, came in fake.heard if (switch, port) == here]


async def test_a_vm_serves_others_and_what_it_grants_is_bound(fake: FakeNetwork) -> None:
    asked = discover(vm_mac(ASKS), 7)
    assert await asks(fake, asked) == [("edge2", vm_port(SERVES))]
    offered = await says(fake, SERVES, 2, offer(asked, vm_ip(ASKS), vm_ip(SERVES), 60))
    assert [found.yiaddr for found in offered] == [vm_ip(ASKS)]
    wanted = request(vm_mac(ASKS), 8, vm_ip(ASKS), vm_ip(SERVES))
    assert await asks(fake, wanted) == [("edge2", vm_port(SERVES))]
    assert await says(fake, SERVES, 2, ack(wanted, vm_ip(ASKS), vm_ip(SERVES), 60))
    lease = fake.net.assignments[vm_ip(ASKS)]
    assert (lease.vm, lease.server, lease.lease_end) == (f"vm{ASKS}", vm_ip(SERVES), 1060.0)
    assert [row.trust for row in fake.net.bindings([f"vm{SERVES}"])] == [Trust.TRUST]


async def test_it_is_believed_wherever_it_is(fake: FakeNetwork) -> None:
    net = fake.net
    net.set_vm_port(f"vm{SERVES}", "edge1", VMPort(vm_port(SERVES)))
    await fake.controller.context.install(net.put_vm(moved(net.vms[f"vm{SERVES}"], "server1")))
    asked = discover(vm_mac(ASKS), 7)
    assert await asks(fake, asked) == [("edge1", vm_port(SERVES))]
    assert await says(fake, SERVES, 1, offer(asked, vm_ip(ASKS), vm_ip(SERVES), 60))


async def test_nobody_else_is_believed(fake: FakeNetwork) -> None:
    """Not another VM, nor the server under another's address, nor once it is not trusted any more."""
    asked = discover(vm_mac(ASKS), 7)
    await asks(fake, asked)
    reply = offer(asked, vm_ip(ASKS), vm_ip(BAD), 60)
    assert not await says(fake, BAD, 3, reply)
    assert not await says(fake, SERVES, 2, reply, src=vm_ip(BAD))
    assert fake.controller.context.spoof_attempts.total == 2
    await fake.controller.nics.change(f"vm{SERVES}", trusted=False)
    assert not await says(fake, SERVES, 2, offer(asked, vm_ip(ASKS), vm_ip(SERVES), 60))
    assert await asks(fake, discover(vm_mac(ASKS), 9)) == []


async def test_it_serves_its_vnet(fake: FakeNetwork) -> None:
    """A NIC that says of which vnet it is, asks the servers of that."""
    for vnet, heard in ((DEFAULT_VNET.id, [("edge2", vm_port(SERVES))]), ("shop", [])):
        fake.net.put_vnet(Vnet("shop"))
        vm = fake.net.vms[f"vm{ASKS}"]
        nic = vm.nic
        fake.net.change_nic(vm.id, nic, type(nic)(nic.mac, nic.port_id, vnet=vnet))
        assert await asks(fake, discover(vm_mac(ASKS), 7)) == heard


async def test_a_server_without_an_address_is_none_yet(fake: FakeNetwork) -> None:
    await fake.controller.context.install(fake.net.unassign(vm_ip(SERVES)))
    assert await asks(fake, discover(vm_mac(ASKS), 7)) == []
    await fake.controller.context.install(fake.net.assign(assignment(SERVES)))
    assert await asks(fake, discover(vm_mac(ASKS), 8)) == [("edge2", vm_port(SERVES))]
