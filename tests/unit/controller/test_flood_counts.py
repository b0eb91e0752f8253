"""What is flooded, by the switches' counters: by vnet, never less; nothing is asked where none floods."""

from dataclasses import replace

from retinue.controller.counters import Count
from retinue.controller.flood_counts import Flooded
from retinue.core.model import Flood
from retinue.core.pipeline.meters import flood_meter
from retinue.southbound.openflow.codec.messages import MeterStats
from support.fabric.flooded import VNETS, Member, add_vm, add_vnets
from support.fabric.networks import fabric, vm_port
from support.fakes.session import FakeNetwork


def network() -> FakeNetwork:
    net = fabric()
    add_vnets(net, ipv6=False)
    add_vm(net, "vm1", 1, [Member(1, "vm1", "shop")])
    add_vm(net, "vm2", 2, [Member(2, "vm2", "store")])
    return FakeNetwork(net, lambda: 1000.0)


def stats(vm: int, frames: int, dropped: int) -> MeterStats:
    return MeterStats(flood_meter(vm_port(vm)).id, frames, dropped)


async def test_counts_add_up_by_vnet_and_in_all() -> None:
    fake = network()
    counts, counters = fake.controller.flood_counts, fake.controller.context.counters
    counts.add("edge1", [stats(1, 10, 0), MeterStats(3, 500, 500)])
    counts.add("edge1", [stats(1, 310, 40)])
    counts.add("edge2", [stats(2, 7, 0)])
    assert counts.of("shop") == Flooded(310, 40)
    assert counts.of("store") == Flooded(7, 0)
    assert counts.of("quiet") == Flooded()
    assert (counters[Count.FLOODED], counters[Count.FLOOD_TOO_MUCH]) == (277, 40)


async def test_a_meter_that_was_made_anew_counts_from_nothing() -> None:
    counts = network().controller.flood_counts
    counts.add("edge1", [stats(1, 100, 10)])
    counts.add("edge1", [stats(1, 5, 1)])
    assert counts.of("shop") == Flooded(105, 11)
    counts.add("edge1", [])
    counts.add("edge1", [stats(1, 5, 1)])
    assert counts.of("shop") == Flooded(110, 12)


async def test_a_meter_of_nobodys_port_is_left_out() -> None:
    counts = network().controller.flood_counts
    counts.add("edge3", [stats(1, 100, 10)])
    assert counts.of("shop") == Flooded()


async def test_edges_are_asked_while_a_vnet_floods() -> None:
    fake = network()
    await fake.start()
    asked: list[str] = []

    class Session:
        def __init__(self, switch: str) -> None:
            self.switch = switch

        async def read_meter_stats(self) -> list[MeterStats]:
            asked.append(self.switch)
            return [stats(1, 3, 1)]

    for switch in ("edge1", "leaf1", "spine1"):
        await fake.controller.flood_counts.read(switch, Session(switch))  # type: ignore[arg-type]
    assert asked == ["edge1"]
    assert fake.controller.flood_counts.of("shop") == Flooded(3, 1)
    for vnet in VNETS.values():
        if vnet.floods:
            await fake.controller.vnets.set_vnet(replace(vnet, flood=Flood.DROPPED))
    await fake.controller.flood_counts.read("edge1", Session("edge1"))  # type: ignore[arg-type]
    assert asked == ["edge1"]
    await fake.stop()
