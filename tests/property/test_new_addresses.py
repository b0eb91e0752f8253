"""A VM that has other addresses from a migration's target on: never are the old and the new both active.

Whatever is said when, the old ones stay until the source is closed, and for ever when the migration is
undone; while a switch forwards by a new row none does by the old.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retinue.controller.migrations import new_addresses as new
from retinue.controller.state import State
from retinue.core.migration import MigrationState, begin
from retinue.core.migration.new_addresses import NewAddresses
from retinue.core.model import NIC, Network, Subnet, VMPort, Vnet
from retinue.core.pipeline.underlay import underlay_of
from support import virtual_time
from support.examples import examples
from support.fabric.networks import GATEWAY_MAC, add_vm, fabric, vm_ip, vm_mac, vm_port
from support.fabric.restart_world import WHOLE, RestartWorld
from support.fabric.world import OUTSIDE, FabricWorld, udp_frame

NEW_MAC, NEW_IP = "52:54:00:aa:00:01", IPv4Address("10.7.0.10")
WANTED = (
    NewAddresses("", mac=NEW_MAC),
    NewAddresses("", vnet="elsewhere", addresses=(str(NEW_IP),)),
    NewAddresses("", NEW_MAC, "elsewhere", (str(NEW_IP),)),
)


def elsewhere(net: Network) -> None:
    net.put_vnet(Vnet("elsewhere", vlan=70))
    prefix = IPv4Network("10.7.0.0/24")
    net.add_subnet(Subnet("seven", prefix, IPv4Address("10.7.0.254"), vnet="elsewhere"))


SOON = 0.4
"""Seconds of virtual time in which a controller does what it can; less than any limit of a migration."""


@dataclass(frozen=True)
class Addresses:
    mac: str
    ip: IPv4Address

    @classmethod
    def wanted(cls, wanted: NewAddresses) -> "Addresses":
        return cls(wanted.mac or vm_mac(1), IPv4Address((wanted.addresses or (str(vm_ip(1)),))[0]))


OLD = Addresses(vm_mac(1), vm_ip(1))


class Ports:
    """Of a world of switches: which of the VM's addresses may send there, and which are reached."""

    def __init__(self, world: FabricWorld) -> None:
        self.world = world

    def may_send(self, addresses: Addresses, at: int) -> bool:
        frame = udp_frame(addresses.mac, GATEWAY_MAC, addresses.ip, OUTSIDE)
        return all(sent.arrivals for sent in self.world.send(1, at, frame))

    def sends_from(self, addresses: Addresses, places: Iterable[int]) -> set[int]:
        return {at for at in places if self.may_send(addresses, at)}


SHAPES = st.sampled_from([(1, 2, 1), (2, 1, 2), (1, 1, 2), (1, 2, 3)])


@settings(deadline=None, max_examples=examples(20), suppress_health_check=[HealthCheck.too_slow])
@given(servers_on=SHAPES, wanted=st.sampled_from(WANTED), data=st.data())
def test_no_switch_has_the_new_ones_while_another_has_the_old(
    servers_on: tuple[int, ...], wanted: NewAddresses, data: st.DataObject
) -> None:
    """The step that closes the source, switch by switch, in any order of those that are told together."""
    net = fabric(max(servers_on), 2, servers_on)
    elsewhere(net)
    vm = add_vm(net, 1, at=1)
    others = {n: add_vm(net, n, at=data.draw(st.integers(1, 3))) for n in (2, 3)}
    if wanted.addresses:  # What the manager gave.
        net.unassign(vm_ip(1))
        net.put_vm(replace(vm, nics=(replace(vm.nic, addresses=(vm_ip(1),)),)))
        net.assign(net.static("vm1", net.vms["vm1"].nic, vm_ip(1)))
        vm = net.vms["vm1"]
    target = data.draw(st.sampled_from([2, 3]))
    net.set_vm_port("vm1", f"edge{target}", VMPort(vm_port(1)))
    diverted = replace(vm, server=f"server{target}", also=frozenset({"server1"}), forwarded_from="server1")
    net.put_vm(diverted)
    world = FabricWorld(net)
    ports, places, now = Ports(world), (1, target), Addresses.wanted(wanted)
    state = State(net)
    migration = begin("migration-1", "vm1", "server1", f"server{target}", 0.0)
    migration = replace(migration, new_addresses=new.checked(state, "vm1", [wanted], far=False))
    assert net.vms["vm1"] == diverted, "judging changes nothing"
    assert ports.sends_from(OLD, places) == set(places)

    def one_of_them() -> None:
        old, fresh = ports.sends_from(OLD, places), ports.sends_from(now, places)
        assert not (old and fresh), f"from {old} under the old ones, from {fresh} under the new ones"
        for number, other in others.items():
            world.reaches_from_outside(number, {int(other.server.removeprefix("server"))})

    closed = replace(diverted, also=frozenset(), forwarded_from="server1")
    touched = set(net.put_vm(closed))
    for change in new.changes(net, closed, migration.new_addresses):
        touched |= change.apply(state) or set()
    order = new.order(net, migration)
    world.apply(touched, order, each=one_of_them, order=lambda s: data.draw(st.permutations(s)))
    assert (ports.sends_from(OLD, places), ports.sends_from(now, places)) == (set(), {target})
    frame = udp_frame(net.servers["router"].mac, GATEWAY_MAC, OUTSIDE, now.ip)
    at_router = net.servers["router"].given_at
    assert at_router is not None
    for came in world.fabric.all_paths(at_router.switch, 91, frame):
        world.comes_once(came, {(f"edge{target}", vm_port(1))}, now.mac)
    settled = net.put_vm(replace(net.vms["vm1"], forwarded_from=""))
    world.apply(settled, underlay_of(net).order_to_withdraw("server1"), each=one_of_them)


@settings(deadline=None, max_examples=examples(12), suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_the_old_ones_stay_until_there_is_no_way_back(data: st.DataObject) -> None:
    """At any state a migration fails, is cancelled, goes on, or its controller is killed and started anew."""
    servers_on = data.draw(SHAPES, label="leaf of each server")
    source = data.draw(st.integers(1, 3), label="source")
    target = data.draw(st.sampled_from([n for n in (1, 2, 3) if n != source]), label="target")
    wanted = data.draw(st.sampled_from(WANTED), label="wanted")
    said = data.draw(st.integers(0, len(WHOLE)), label="reports before the end")
    fails = data.draw(st.booleans(), label="it fails")
    killed = data.draw(st.booleans(), label="its controller is killed")
    now = Addresses.wanted(wanted)

    async def story() -> None:
        world = ReaddressedWorld(servers_on, source, target, new_addresses=(wanted,))
        await world.begin()
        seen = [world.addresses()]
        for report in WHOLE[:said]:
            world.say(report)
            await asyncio.sleep(SOON)
            seen.append(world.addresses())
        resumed = "resumed" in WHOLE[:said]
        if fails and not resumed:
            world.say("failed")
            await asyncio.sleep(SOON)
            seen.append(world.addresses())
        if killed:
            await world.kill()
            for what in data.draw(st.permutations(world.things_to_come()), label="order"):
                world.comes(what)
                await asyncio.sleep(SOON)
        if fails and not resumed:
            for report in ("target_closed", "rolled_back"):
                world.say(report)
        else:
            for report in WHOLE[max(0, said - 1) :]:
                world.say(report)
                await asyncio.sleep(SOON)
                seen.append(world.addresses())
        await asyncio.sleep(5.0)
        undone = fails and not resumed
        assert world.state is (MigrationState.UNDONE if undone else MigrationState.DONE)
        seen.append(world.addresses())
        assert set(seen) <= {OLD, now} and seen == sorted(seen, key=lambda one: one == now)
        assert seen[-1] == (OLD if undone else now)
        assert world.rows() == {(seen[-1].mac, seen[-1].ip, f"edge{source if undone else target}")}
        assert (now in seen[: 1 + WHOLE.index("resumed")]) is (now == OLD)
        await world.fake.stop()

    virtual_time.run(story())


class ReaddressedWorld(RestartWorld):
    """vm1 has other addresses from its target on."""

    def _network(self) -> Network:
        net = super()._network()
        elsewhere(net)
        return net

    def nic(self) -> NIC:
        return self.fake.net.vms["vm1"].nic

    def addresses(self) -> Addresses:
        (held,) = self.fake.net.held_by("vm1")
        assert held.mac == self.nic().mac and isinstance(held.ip, IPv4Address)
        return Addresses(held.mac, held.ip)

    def rows(self) -> set[tuple[str, IPv4Address, str]]:
        rows = self.fake.net.bindings(["vm1"])
        return {(row.mac, row.ip, row.switch) for row in rows if isinstance(row.ip, IPv4Address)}
