"""NICs changed on a running fabric: disabled, limited, with allowed addresses, with another MAC."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest

from retinue.controller.kinds import restore
from retinue.controller.neighbours import taking
from retinue.controller.state import State
from retinue.core.model import (
    NIC,
    VM,
    Allowed,
    Assignment,
    BindingKind,
    ModelError,
    Origin,
    Power,
    VMPort,
)
from retinue.core.model.anycast import members_of
from retinue.core.packets import arp_request, parse, parse_arp
from retinue.core.pipeline.entry import Meter
from retinue.protocol.vms import VMState
from support.fabric.networks import GATEWAY_MAC, add_vm, fabric, moved, vm_ip, vm_mac, vm_port
from support.fabric.world import OUTSIDE, udp_frame
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork
from support.recent_events import recent

SHARED = IPv4Address("10.1.0.200")
VIRTUAL = "00:00:5e:00:01:07"


@pytest.fixture
async def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def fake(store: MemoryStore) -> AsyncIterator[FakeNetwork]:
    """vm1 on server1, vm2 on server2, vm3 on server3, vm4 beside vm1."""
    made = FakeNetwork(fabric(), clock=lambda: 1000.0, store=store)
    for number, at in ((1, 1), (2, 2), (3, 3), (4, 1)):
        add_vm(made.net, number, at)
    await made.start()
    made.heard.clear()
    yield made
    await made.stop()


def heard(fake: FakeNetwork, vm: int, at: int, to: IPv4Address, dst_mac: str = GATEWAY_MAC) -> list[str]:
    """Where a packet of a VM comes out: switch and port."""
    fake.heard.clear()
    fake.send(f"edge{at}", vm_port(vm), udp_frame(vm_mac(vm), dst_mac, vm_ip(vm), to))
    return [f"{switch} {port}" for switch, port, _ in fake.heard]


async def announce(fake: FakeNetwork, vm: int, at: int, mac: str = "", ip: IPv4Address = SHARED) -> None:
    src = mac or vm_mac(vm)
    fake.send(f"edge{at}", vm_port(vm), arp_request(src, ip, ip))
    await fake.settle()


async def test_a_disabled_nic_is_silent_and_hears_nothing_wherever_it_is(fake: FakeNetwork) -> None:
    nics, net = fake.controller.nics, fake.net
    await nics.change("vm1", enabled=False)
    assert heard(fake, 1, 1, vm_ip(2)) == heard(fake, 2, 2, vm_ip(1)) == []
    assert heard(fake, 4, 1, vm_ip(1), vm_mac(1)) == []
    assert heard(fake, 4, 1, vm_ip(2)) == ["edge2 11"], "nobody else is"
    assert [row.port_status for row in net.bindings(["vm1"])] == ["disabled"]
    # It migrates, and stays so.
    net.set_vm_port("vm1", "edge2", VMPort(vm_port(1)))
    await fake.controller.context.install(net.put_vm(moved(net.vms["vm1"], "server2")))
    assert heard(fake, 2, 2, vm_ip(1)) == heard(fake, 1, 2, vm_ip(2)) == []
    await nics.change("vm1", enabled=True)
    assert heard(fake, 2, 2, vm_ip(1), vm_mac(1)) == ["edge2 10"]
    assert [event.type for event in recent(fake.controller.events, "vm.changed")] == ["vm.changed"] * 2


async def test_a_rate_is_metered_in_each_direction_and_gone_with_it(fake: FakeNetwork) -> None:
    nics, program = fake.controller.nics, fake.controller.context.compiler.program("edge1")
    before = set(program)
    await nics.change("vm1", rate=100_000)
    meters = [entry for key, entry in program.items() if isinstance(entry, Meter) and entry.kilobits]
    assert [(meter.rate, meter.burst) for meter in meters] == [(100_000, 20_000)] * 2
    assert len({meter.id for meter in meters}) == 2
    assert heard(fake, 1, 1, vm_ip(4), vm_mac(4)) == ["edge1 13"]
    await nics.change("vm1", rate=0)
    assert set(program) == before


async def test_an_allowed_address_goes_to_whoever_announces_it(fake: FakeNetwork, store: MemoryStore) -> None:
    """Nobody else gets it; all that leads to it goes with it; the event tells it, and a standby knows."""
    for vm in ("vm1", "vm2"):
        await fake.controller.nics.change(vm, allowed=(Allowed(SHARED),))
    assert heard(fake, 3, 3, SHARED) == [], "nobody has it yet"
    await announce(fake, 3, 3)
    assert SHARED not in fake.net.assignments, "who is not allowed it speaks for another"
    await announce(fake, 1, 1)
    for sender, at in ((3, 3), (4, 1)):
        assert heard(fake, sender, at, SHARED) == ["edge1 10"]
    fake.controller.arp._taking._waits.clear()
    await announce(fake, 2, 2)
    for sender, at in ((3, 3), (4, 1)):
        assert heard(fake, sender, at, SHARED) == ["edge2 11"]
    told = [(event.data["vm"], event.data["before"]) for event in recent(fake.controller.events, "address")]
    assert told == [("vm1", ""), ("vm2", "vm1")]
    again = State(fabric())
    restore(again, store.load())
    assert again.net.assignments[SHARED].vm == "vm2"
    assert sorted(again.net.allowed_to(SHARED)) == ["vm1", "vm2"]


async def test_one_that_another_has_is_not_taken_by_a_question(fake: FakeNetwork) -> None:
    for vm in ("vm1", "vm2"):
        await fake.controller.nics.change(vm, allowed=(Allowed(SHARED),))
    question = arp_request(vm_mac(1), SHARED, vm_ip(2))
    fake.send("edge1", vm_port(1), question)
    await fake.settle()
    assert fake.net.assignments[SHARED].vm == "vm1", "which nobody had, it takes"
    fake.controller.arp._taking._waits.clear()
    fake.heard.clear()
    fake.send("edge2", vm_port(2), arp_request(vm_mac(2), SHARED, vm_ip(1)))
    await fake.settle()
    assert fake.net.assignments[SHARED].vm == "vm1"
    assert not fake.heard, "and who has it not is not answered"


async def test_a_virtual_router_speaks_under_its_own_mac(fake: FakeNetwork) -> None:
    for vm in ("vm1", "vm2"):
        await fake.controller.nics.change(vm, allowed=(Allowed(SHARED, VIRTUAL),))
    await announce(fake, 1, 1)
    assert SHARED not in fake.net.assignments, "under its NIC's MAC it is not allowed it"
    await announce(fake, 1, 1, VIRTUAL)
    assert heard(fake, 3, 3, SHARED) == ["edge1 10"]
    ((_, _, frame),) = fake.heard
    assert parse(frame).dst == VIRTUAL
    fake.heard.clear()
    fake.send("edge1", vm_port(1), udp_frame(VIRTUAL, GATEWAY_MAC, SHARED, OUTSIDE))
    assert [(switch, port) for switch, port, _ in fake.heard] == [("leaf2", 91)]
    fake.heard.clear()
    fake.send("edge2", vm_port(2), udp_frame(VIRTUAL, GATEWAY_MAC, SHARED, OUTSIDE))
    assert not fake.heard, "nor may the other send under it"


async def test_a_prefix_is_routed_to_a_nic_wherever_its_vm_is(fake: FakeNetwork, store: MemoryStore) -> None:
    """It may send from all of it, and takes it along; a standby knows."""
    inside = IPv4Address("10.9.0.5")
    await fake.controller.nics.change("vm1", prefixes=(IPv4Network("10.9.0.0/28"),))
    assert [heard(fake, sender, at, inside) for sender, at in ((3, 3), (4, 1))] == [["edge1 10"]] * 2
    net = fake.net
    net.set_vm_port("vm1", "edge2", VMPort(vm_port(1)))
    await fake.controller.context.install(net.put_vm(moved(net.vms["vm1"], "server2")))
    assert [heard(fake, sender, at, inside) for sender, at in ((3, 3), (4, 1))] == [["edge2 10"]] * 2
    fake.heard.clear()
    fake.send("edge2", vm_port(1), udp_frame(vm_mac(1), GATEWAY_MAC, inside, vm_ip(3)))
    assert [(switch, port) for switch, port, _ in fake.heard] == [("edge3", vm_port(3))]
    again = State(fabric())
    restore(again, store.load())
    assert again.net.routed_to(inside) == (IPv4Network("10.9.0.0/28"), "vm1")
    await fake.controller.nics.change("vm1", prefixes=())
    assert heard(fake, 3, 3, inside) == ["leaf2 91"], "as all that is nobody's here"


async def test_a_service_is_found_at_the_nearest_of_those_that_have_its_address(
    fake: FakeNetwork, store: MemoryStore
) -> None:
    """They join and leave, without a packet lost at any moment; a standby knows."""
    nics, service = fake.controller.nics, IPv4Address("10.9.9.9")
    await nics.change("vm1", anycast=(service,), load=4)
    at_vm1, at_vm2 = ["edge1 10"], ["edge2 11"]
    assert [heard(fake, sender, at, service) for sender, at in ((2, 2), (3, 3), (4, 1))] == [at_vm1] * 3
    seen: list[list[str]] = []
    fake.confirms = lambda: seen.append(heard(fake, 2, 2, service))
    await nics.change("vm2", anycast=(service,), load=3)
    assert (heard(fake, 2, 2, service), heard(fake, 4, 1, service)) == (at_vm2, at_vm1), "each to its leaf's"
    await nics.change("vm2", anycast=())
    assert heard(fake, 2, 2, service) == at_vm1
    assert all(came in (at_vm1, at_vm2) for came in seen), "whichever switch has been told"
    fake.confirms = lambda: None
    fake.heard.clear()
    fake.send("edge1", vm_port(1), udp_frame(vm_mac(1), GATEWAY_MAC, service, vm_ip(3)))
    assert [(switch, port) for switch, port, _ in fake.heard] == [("edge3", vm_port(3))]
    again = State(fabric())
    restore(again, store.load())
    assert [(vm.id, nic.load) for vm, nic in members_of(again.net, service)] == [("vm1", 4)]


async def test_of_two_that_are_equally_near_the_less_loaded_is_sent_to(fake: FakeNetwork) -> None:
    """The load is told, and told anew."""
    nics, service = fake.controller.nics, IPv4Address("10.9.9.9")
    await nics.change("vm1", anycast=(service,), load=4)
    await nics.change("vm4", anycast=(service,), load=3)
    assert heard(fake, 2, 2, service) == [f"edge1 {vm_port(4)}"]
    await nics.change("vm4", load=5)
    assert heard(fake, 2, 2, service) == ["edge1 10"]
    fake.net.set_vm_port("vm1", "edge1", None)
    await fake.controller.context.install(fake.net.server_and_vms("server1"))
    assert heard(fake, 2, 2, service) == [f"edge1 {vm_port(4)}"], "the other is not there any more"


async def test_one_on_a_server_that_is_not_found_takes_nothing_from_the_others(fake: FakeNetwork) -> None:
    """From no leaf: whoever is found serves; what comes for the service is held where nobody is."""
    nics, service = fake.controller.nics, IPv4Address("10.9.9.9")
    await nics.change("vm1", anycast=(service,), load=4)
    await nics.change("vm2", anycast=(service,), load=3)
    for server, found in (("server1", [f"edge2 {vm_port(2)}"]), ("server2", [])):
        del fake.net.detected[server]
        await fake.controller.context.install(fake.net.server_and_vms(server))
        assert [heard(fake, sender, at, service) for sender, at in ((4, 1), (3, 3))] == [found] * 2


async def test_neighbours_find_it_by_the_gateway_so_no_cache_is_stale(fake: FakeNetwork) -> None:
    await fake.controller.nics.change("vm1", allowed=(Allowed(SHARED),))
    await announce(fake, 1, 1)
    fake.heard.clear()
    fake.send("edge1", vm_port(4), arp_request(vm_mac(4), vm_ip(4), SHARED))
    ((switch, port, reply),) = fake.heard
    assert (switch, port, parse_arp(parse(reply).payload).sha) == ("edge1", vm_port(4), GATEWAY_MAC)


async def test_two_who_both_announce_it_do_not_make_it_go_to_and_fro(
    fake: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking, "CALM_SECONDS", 0.01)
    for vm in ("vm1", "vm2", "vm3"):
        await fake.controller.nics.change(vm, allowed=(Allowed(SHARED),))
    for number in (1, 2, 3, 1, 2):
        fake.send(f"edge{number}", vm_port(number), arp_request(vm_mac(number), SHARED, SHARED))
    async for event in fake.controller.events.listen(0):
        if (event.type, event.data.get("vm"), event.data.get("before")) == ("address.taken", "vm2", "vm1"):
            break
    told = [event.data["vm"] for event in recent(fake.controller.events, "address.taken")]
    assert told == ["vm1", "vm2"], "the first, and the last that was announced meanwhile"


async def test_what_was_just_taken_stays_for_a_time_however_much_happens(fake: FakeNetwork) -> None:
    for vm in ("vm1", "vm2"):
        await fake.controller.nics.change(vm, allowed=(Allowed(SHARED),))
    await announce(fake, 1, 1)
    for _ in range(3):
        await announce(fake, 2, 2)
        assert fake.net.assignments[SHARED].vm == "vm1"


async def test_an_address_is_taken_by_the_nic_that_announced_it_meanwhile_whatever_its_id(
    fake: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The id of a NIC's port need not be the VM's."""
    monkeypatch.setattr(taking, "CALM_SECONDS", 0.01)
    nic = NIC(vm_mac(9), "port-of-vm9", allowed=(Allowed(SHARED),))
    await fake.controller.context.install(fake.net.put_vm(VM("vm9", (nic,), "server2")))
    await fake.controller.context.install(fake.net.set_vm_port("port-of-vm9", "edge2", VMPort(vm_port(9))))
    await fake.controller.nics.change("vm1", allowed=(Allowed(SHARED),))
    for number, at in ((1, 1), (9, 2)):
        fake.send(f"edge{at}", vm_port(number), arp_request(vm_mac(number), SHARED, SHARED))
    async with asyncio.timeout(60):
        async for event in fake.controller.events.listen(0):
            if event.type == "address.taken" and event.data["before"] == "vm1":
                assert (event.data["vm"], event.data["nic"]) == ("vm9", "port-of-vm9")
                break


async def test_another_mac_is_for_a_vm_that_is_off_whose_agent_hears_of_it(fake: FakeNetwork) -> None:
    nics, state = fake.controller.nics, fake.controller.context.state
    fake.net.put_vm(replace(fake.net.vms["vm1"], power=Power.OFF))
    state.vm_states["vm1"] = VMState.RUNNING  # It has been told to stop, and has not yet.
    with pytest.raises(ModelError, match="VM vm1 is not off"):
        await nics.change("vm1", mac=vm_mac(9))
    state.vm_states["vm1"] = VMState.READY
    made = Assignment(IPv6Address("fe80::1234"), vm_mac(1), "vm1", BindingKind.SLAAC, Origin.CONTROLLER)
    fake.net.assign(made)
    changed = await nics.change("vm1", mac=vm_mac(9))
    assert (changed.nic.mac, changed.nic.initial_mac) == (vm_mac(9), "")
    assert not fake.net.assignments_of(changed, changed.nic), "it asks a DHCP server as another client"
    (told,) = recent(fake.controller.events, "vm.nics")
    assert (told.data["vm"].nic.mac, told.data["server"]) == (vm_mac(9), "server1")
    fake.heard.clear()
    fake.send("edge1", vm_port(1), udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), vm_ip(4)))
    assert not fake.heard, "the old one is nobody's"


async def test_another_mac_is_for_a_nic_without_a_port(fake: FakeNetwork) -> None:
    nics, net = fake.controller.nics, fake.net
    with pytest.raises(
        ModelError,
        match=r"VM vm1 is not off, .*`retinue vm stop vm1`.*`retinue move start vm1 --mac MAC`",
    ):
        await nics.change("vm1", mac=vm_mac(9))
    await fake.controller.context.install(net.set_vm_port("vm1", "edge1", None))
    changed = await nics.change("vm1", mac=vm_mac(9))
    assert (changed.nic.mac, changed.id) == (vm_mac(9), "vm1")
    await fake.controller.context.install(net.set_vm_port("vm1", "edge1", VMPort(vm_port(1))))
    assert heard(fake, 4, 1, vm_ip(1), vm_mac(9)) == ["edge1 10"]
    fake.heard.clear()
    fake.send("edge1", vm_port(1), udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), vm_ip(4)))
    assert not fake.heard, "the old one is nobody's"


async def test_a_vm_of_a_dead_server_keeps_what_was_said_of_its_nic(fake: FakeNetwork) -> None:
    routed = (IPv4Network("10.9.0.0/28"),)
    shared = (Allowed(SHARED),)
    await fake.controller.nics.change("vm1", rate=7, trusted=True, allowed=shared, prefixes=routed)
    await announce(fake, 1, 1)
    await fake.controller.fencing.fence("server1")
    again = VM.with_one_nic("vm1", vm_mac(1), "server2", addresses=(IPv4Address("10.1.0.77"),))
    (registered,) = fake.controller.inventory.register_vms([again])
    nic = registered.nic
    assert (nic.rate, nic.trusted, nic.allowed, nic.prefixes) == (7, True, shared, routed)
    assert fake.net.assignments[SHARED].vm == "vm1"


@pytest.mark.parametrize(
    ("vm", "nic", "said"), [("vm9", "", "there is no VM vm9"), ("vm1", "x", "VM vm1 has no NIC x")]
)
async def test_what_is_not_there_cannot_be_changed(fake: FakeNetwork, vm: str, nic: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        await fake.controller.nics.change(vm, nic, enabled=False)
    assert (await fake.controller.nics.change("vm1", enabled=True)).nic.enabled
    assert not recent(fake.controller.events, "vm.changed"), "what is so already is no change"
