"""The gateway's MAC from the leaf: believed from the uplink of an edge that is told so, no other."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from retinue.controller.neighbours.vdp import EVERY_SECONDS, HOLD_SECONDS
from retinue.core.model import GatewayGroup, Mac, ModelError, Role, Switch
from retinue.core.packets import Ethernet, EtherType, arp_request, parse, parse_arp
from retinue.core.packets.lldp import EvbMode, Lldp, Organizational, from_leaf, lldp_frame, parse_lldp
from support.fabric.networks import (
    GATEWAY,
    GATEWAY_MAC,
    OTHER_GATEWAY_MAC,
    UPLINK,
    add_vm,
    fabric,
    leaf_port,
    vm_ip,
    vm_mac,
    vm_port,
)
from support.fabric.world import FabricWorld, udp_frame
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork
from support.recent_events import recent

REFUSED = "gateway MACs refused"


class Bench(FakeNetwork):
    """Edge 1 is told by its leaf; leaf 1 is in the group and says so; edge 2 is told nothing."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.store = MemoryStore()
        net = fabric()
        net.put_gateway_group(GatewayGroup("second", OTHER_GATEWAY_MAC))
        net.switches["edge1"] = replace(net.switches["edge1"], vdp=True)
        net.switches["leaf1"] = replace(net.switches["leaf1"], gateway_group="second")
        for number in (1, 2):
            add_vm(net, number, number)
        super().__init__(net, lambda: self.now, self.store)

    async def hear(self, said: bytes, switch: str = "edge1", port: int = UPLINK) -> None:
        """The frame comes in at this port, and is sent to the controller if an entry says so."""
        self.send(switch, port, said)
        await self.settle()

    def group(self, server: str = "server1") -> str:
        return self.net.servers[server].gateway_group

    def refused(self) -> int:
        return self.controller.context.counters[REFUSED]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    await bench.start()
    await bench.settle()
    yield bench
    await bench.stop()


def said(mac: Mac, src: Mac = "02:00:00:00:aa:01") -> bytes:
    return lldp_frame(from_leaf("tor1", "p7", mac, 121), src)


async def test_what_the_leaf_says_puts_the_server_into_that_group(bench: Bench) -> None:
    await bench.hear(said(OTHER_GATEWAY_MAC))
    assert bench.group() == "second"
    (told,) = recent(bench.controller.events, "gateway.learned", 5)
    assert told.data == {"server": "server1", "group": "second", "mac": OTHER_GATEWAY_MAC}
    assert [one.gateway_group for one in bench.store.load().servers if one.id == "server1"] == ["second"]
    asked = bench.fabric.all_paths("edge1", vm_port(1), arp_request(vm_mac(1), vm_ip(1), GATEWAY))
    assert parse_arp(parse(asked[0].arrivals[0][2]).payload).sha == OTHER_GATEWAY_MAC
    await bench.hear(said(OTHER_GATEWAY_MAC))
    assert len(recent(bench.controller.events, "gateway.learned", 5)) == 1, "said again, it is so already"
    bench.now += HOLD_SECONDS
    await bench.hear(said(GATEWAY_MAC))
    assert bench.group() == ""
    assert bench.refused() == 0


async def test_a_sender_that_keeps_changing_its_mind_changes_a_group_once_in_a_while(bench: Bench) -> None:
    """Each change is stored, and all entries of the server's VMs with it."""
    for turn in range(10):
        await bench.hear(said(GATEWAY_MAC if turn % 2 else OTHER_GATEWAY_MAC))
    assert (bench.group(), bench.refused()) == ("second", 5)
    assert len(recent(bench.controller.events, "gateway.learned", 10)) == 1
    (told,) = recent(bench.controller.events, "gateway.refused", 10)
    assert told.data["reason"] == "server server1 was put into another group less than 25 s before"
    bench.now += HOLD_SECONDS
    await bench.hear(said(GATEWAY_MAC))
    assert bench.group() == ""


@pytest.mark.parametrize(
    ("frame", "switch", "port"),
    [
        (said(OTHER_GATEWAY_MAC, vm_mac(1)), "edge1", vm_port(1)),
        (said("02:00:00:00:99:99"), "edge1", UPLINK),
    ],
    ids=["a VM says so", "no gateway of ours"],
)
async def test_what_is_not_believed_is_counted_and_told(
    bench: Bench, frame: bytes, switch: str, port: int
) -> None:
    await bench.hear(frame, switch, port)
    assert (bench.group(), bench.refused()) == ("", 1)
    (told,) = recent(bench.controller.events, "gateway.refused", 5)
    assert (told.data["switch"], told.data["port"]) == (switch, port)


async def test_a_vm_that_says_so_as_another_is_a_spoofer(bench: Bench) -> None:
    await bench.hear(said(OTHER_GATEWAY_MAC, "02:00:00:00:aa:01"), port=vm_port(1))
    assert (bench.group(), bench.refused()) == ("", 0)
    assert len(recent(bench.controller.events, "spoofing", 5)) == 1


@pytest.mark.parametrize(
    ("switch", "port"), [("edge2", UPLINK), ("edge2", vm_port(2)), ("leaf1", leaf_port(1))]
)
async def test_where_nobody_listens_nothing_comes_of_it(bench: Bench, switch: str, port: int) -> None:
    await bench.hear(said(OTHER_GATEWAY_MAC, vm_mac(2)), switch, port)
    assert (bench.group("server2"), bench.group()) == ("", "")
    assert not recent(bench.controller.events, "gateway.learned", 5)


async def test_a_station_or_a_sender_that_leaves_is_not_believed(bench: Bench) -> None:
    bridge = from_leaf("tor1", "p7", OTHER_GATEWAY_MAC, 121)
    station = Organizational(b"\x00\x80\xc2", 0x0D, bytes([0, 0, 0, EvbMode.STATION << 6, 0]))
    as_station = replace(bridge, organizational=(station, bridge.organizational[1]))
    await bench.hear(lldp_frame(as_station, "02:00:00:00:aa:01"))
    assert (bench.group(), bench.refused()) == ("", 1)
    await bench.hear(lldp_frame(replace(bridge, ttl=0), "02:00:00:00:aa:01"))
    assert (bench.group(), bench.refused()) == ("", 1)


async def test_what_is_damaged_or_for_another_group_is_a_bad_frame_and_no_more(bench: Bench) -> None:
    whole = said(OTHER_GATEWAY_MAC)
    damaged = [
        whole[:29],
        whole[:14],
        *(
            Ethernet(to, "02:00:00:00:aa:01", EtherType.LLDP, parse(whole).payload).build()
            for to in ("02:00:00:00:00:01", "01:80:c2:00:00:00", "01:80:c2:00:00:03")
        ),
    ]
    for frame in damaged:
        await bench.hear(frame)
    assert (bench.group(), bench.refused()) == ("", 0)
    assert bench.controller.context.counters["bad LLDP frames"] == len(damaged)
    await bench.hear(lldp_frame(Lldp(b"\x07a", b"\x07b", 121), "02:00:00:00:aa:01"))
    assert bench.controller.context.counters["bad LLDP frames"] == len(damaged), (
        "it says nothing of a gateway"
    )


async def test_a_leaf_in_a_group_says_its_mac_to_its_servers_and_no_other_does(bench: Bench) -> None:
    """Each server at it once in 30 s: two of the three are there."""
    sent: list[tuple[str, int, bytes]] = []
    send = bench.controller.context.send_frame

    def watch(switch: str, port: int, frame: bytes) -> bool:
        if parse(frame).ethertype == EtherType.LLDP:
            sent.append((switch, port, frame))
        return send(switch, port, frame)

    bench.controller.context.send_frame = watch  # type: ignore[method-assign]
    for _ in range(EVERY_SECONDS):
        bench.now += 1
        bench.controller.vdp.say()
    assert sorted((switch, port) for switch, port, _ in sent) == [
        ("leaf1", leaf_port(1)),
        ("leaf1", leaf_port(3)),
    ]
    for _, _, frame in sent:
        read = parse_lldp(parse(frame).payload)
        assert (read.gateway_mac, read.evb_mode) == (OTHER_GATEWAY_MAC, EvbMode.BRIDGE)
        assert read.chassis_id == b"\x07leaf1"


def test_only_edges_that_are_told_have_more_entries() -> None:
    plain, told = fabric(), fabric()
    told.switches["edge1"] = replace(told.switches["edge1"], vdp=True)
    counts = []
    for net in (plain, told):
        add_vm(net, 1, 1)
        world = FabricWorld(net)
        world.apply(net.everything())
        counts.append({name: len(program) for name, program in world.compiler.programs.items()})
        world.fabric.all_paths(
            "edge1", vm_port(1), udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), IPv4Address("9.9.9.9"))
        )
    more = {name: counts[1][name] - counts[0][name] for name in counts[0]}
    assert {name: n for name, n in more.items() if n} == {"edge1": 3}, (
        "an entry and a meter, and one for the NIC"
    )


@pytest.mark.parametrize(
    "wrong", [{"role": Role.LEAF, "vdp": True}, {"role": Role.SPINE, "gateway_group": "g"}]
)
def test_who_hears_and_who_says(wrong: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="VDP"):
        Switch("s1", dpid=1, **wrong)  # type: ignore[arg-type]
