"""A guest with several DHCP clients on one NIC: each has a lease, and what one does is not the other's.

RFC 2131, 4.2: a server identifies a client by its client identifier, where it gives one.
"""

from collections.abc import AsyncIterator
from ipaddress import IPv4Address

import pytest

from retinue.controller.leases.lease_history import key_of
from retinue.core.lease_renewal import Lease, request_frame
from retinue.core.model import NIC
from retinue.core.packets import DHCP, MessageType, ack, discover, nak, offer, release, renewal, request
from retinue.protocol.renewals import OrderState, RenewalOrder
from support.fabric.dhcp_lab import LEASE, SERVER, DhcpLab, dhcp_lab
from support.fabric.networks import vm_ip, vm_mac

CLIENTS = {b"\0first": vm_ip(1), b"\0second": vm_ip(51), b"\0third": vm_ip(52)}
FIRST, SECOND, THIRD = CLIENTS
MAC = vm_mac(1)


@pytest.fixture
async def lab() -> AsyncIterator[DhcpLab]:
    made = await dhcp_lab()

    def serves(asked: DHCP) -> DHCP | None:
        ip = CLIENTS[asked.client_id or b""]
        if asked.message_type is MessageType.DISCOVER:
            return offer(asked, ip, SERVER, LEASE)
        return ack(asked, ip, SERVER, LEASE) if asked.message_type is MessageType.REQUEST else None

    made.says = serves
    await made.add(1)
    yield made
    await made.fake.stop()


async def boot(lab: DhcpLab, client: bytes) -> None:
    for asked in (discover(MAC, 7, client_id=client), request(MAC, 8, CLIENTS[client], SERVER, client)):
        await lab.say(1, asked)


def held(lab: DhcpLab) -> dict[IPv4Address, bytes]:
    return {a.ip: a.client_id for a in lab.fake.net.held_by("vm1") if isinstance(a.ip, IPv4Address)}


async def test_each_client_has_its_lease_and_may_send_from_it(lab: DhcpLab) -> None:
    for client in (FIRST, SECOND):
        await boot(lab, client)
    assert held(lab) == {vm_ip(1): FIRST, vm_ip(51): SECOND}
    sources = {value for flow in lab.fake.fabric["edge1"].flows.values() for field, value, _ in flow.match
               if field.name == "IPV4_SRC"}  # fmt: skip
    assert {int(vm_ip(1)), int(vm_ip(51))} <= sources
    assert [row["ip"] for row in lab.events("binding.removed")] == []


async def test_a_client_that_gets_another_address_gives_its_own_up_alone(
    lab: DhcpLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    for client in (FIRST, SECOND):
        await boot(lab, client)
    monkeypatch.setitem(CLIENTS, SECOND, vm_ip(60))
    await boot(lab, SECOND)
    assert held(lab) == {vm_ip(1): FIRST, vm_ip(60): SECOND}
    assert [row["ip"] for row in lab.events("binding.removed")] == [vm_ip(51)]


async def test_one_that_is_given_back_or_refused_leaves_the_other(lab: DhcpLab) -> None:
    for client in (FIRST, SECOND):
        await boot(lab, client)
    lab.says = lambda asked: nak(asked, SERVER)
    await lab.say(1, request(MAC, 9, vm_ip(51), None, FIRST))
    assert held(lab) == {vm_ip(1): FIRST, vm_ip(51): SECOND}, "it is not the second client that asked"
    await lab.say(1, renewal(vm_ip(51), MAC, 10, SECOND), src=vm_ip(51), dst=SERVER)
    assert held(lab) == {vm_ip(1): FIRST}
    lab.says = None
    await lab.say(1, release(vm_ip(1), MAC, 11, SERVER, FIRST), src=vm_ip(1), dst=SERVER)
    assert held(lab) == {}


async def test_one_more_than_may_be_takes_the_place_of_the_one_that_ends_first(lab: DhcpLab) -> None:
    for client in (FIRST, SECOND):
        lab.now += 10
        await boot(lab, client)
    lab.now += 10
    await lab.say(1, renewal(vm_ip(1), MAC, 12, FIRST), src=vm_ip(1), dst=SERVER)
    await boot(lab, THIRD)
    assert held(lab) == {vm_ip(1): FIRST, vm_ip(52): THIRD}
    await lab.say(1, renewal(vm_ip(1), MAC, 13, FIRST), src=vm_ip(1), dst=SERVER)
    assert held(lab) == {vm_ip(1): FIRST, vm_ip(52): THIRD}, "a renewal is none more"


async def test_after_a_migration_each_is_renewed_on_the_vms_behalf(lab: DhcpLab) -> None:
    for client in (FIRST, SECOND):
        await boot(lab, client)
    lab.now += 100
    lab.controller.renewals.vm_migrated("vm1")
    assert lab.controller.context.state.pending_renewals == {f"vm1/{FIRST.hex()}", f"vm1/{SECOND.hex()}"}
    await lab.fake.settle()
    orders = lab.controller.renewals.under_way("vm1")
    assert {(order.ip, order.client_id) for order in orders} == {
        (vm_ip(1), FIRST.hex()),
        (vm_ip(51), SECOND.hex()),
    }
    for order in orders:
        assert isinstance(order, RenewalOrder)
        lease = Lease(order.ip, MAC, SERVER, bytes.fromhex(order.client_id), order.next_hop)
        await lab.send(1, request_frame(lease, order.xid))
        assert lab.controller.renewals.get(order.id).state is OrderState.ACKED
    assert held(lab) == {vm_ip(1): FIRST, vm_ip(51): SECOND}
    assert {a.lease_end for a in lab.fake.net.held_by("vm1")} == {lab.now + LEASE}
    assert not lab.controller.context.state.pending_renewals


async def test_what_a_removed_vm_held_is_given_back_for_each_client(lab: DhcpLab) -> None:
    for client in (FIRST, SECOND):
        await boot(lab, client)
    lab.served.clear()
    await lab.controller.inventory.remove_vm("vm1")
    await lab.fake.settle()
    said = {
        (dhcp.ciaddr, dhcp.client_id) for _, _, dhcp in lab.served if dhcp.message_type is MessageType.RELEASE
    }
    assert said == {(vm_ip(1), FIRST), (vm_ip(51), SECOND)}


def test_a_pending_renewal_is_known_by_the_nic_where_the_client_goes_by_its_mac() -> None:
    nic = NIC("52:54:00:00:00:01", "web")
    by_mac = bytes.fromhex("01525400000001")
    assert key_of(nic, vm_ip(1), b"") == key_of(nic, vm_ip(2), by_mac) == "web"
    assert key_of(nic, vm_ip(1), b"\0x") == "web/0078"
