"""Storage in every state, also after each single switch of a change: right and once, or not at all."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.core.model import Network
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.underlay import Near, underlay_of
from support.examples import examples
from support.fabric.networks import add_vm, fabric, vm_port
from support.fabric.storage import (
    FORWARDER_PORT,
    add_forwarder,
    forgeries,
    from_forwarder,
    granted_mac,
    login,
    to_forwarder,
)
from support.fabric.world import FabricWorld

SERVERS = (1, 2, 1, 2)
EVERYWHERE = (1, 2, 3, 4)


def network(vms_at: list[int], cores: int, over: str) -> Network:
    net = fabric(2, 2, SERVERS, cores, over_ip=over == "tunnels", by_mac=over == "macs")
    add_forwarder(net)
    for number, at in enumerate(vms_at, 1):
        add_vm(net, number, at, ports_on=EVERYWHERE)
    return net


class Storage:
    """Asks, of each VM: does what the forwarder sends come to one place at the most, and to the right one?"""

    def __init__(self, world: FabricWorld) -> None:
        self.world, self.net = world, world.net

    def holds(self, *, changing: bool) -> None:
        for id, vm in self.net.vms.items():
            number = int(id[2:])
            logged_in = granted_mac(number) in self.net.fc_logins
            places = [int(name[6:]) for name in vm.locations]
            for delivery in self.world.fabric.all_paths("leaf2", FORWARDER_PORT, from_forwarder(number)):
                came = [(switch, port) for switch, port, _ in delivery.arrivals]
                assert len(came) <= 1, f"copied: {delivery}"
                assert set(came) <= {(f"edge{at}", vm_port(number)) for at in EVERYWHERE}, delivery
                if not changing:
                    right = [(f"edge{vm.server[6:]}", vm_port(number))] if logged_in else []
                    assert came == right, delivery
            for at in EVERYWHERE:
                self.sends(number, at, may=logged_in and at in places, changing=changing)

    def sends(self, number: int, at: int, *, may: bool, changing: bool) -> None:
        frame = to_forwarder(number)
        for delivery in self.world.send(number, at, frame):
            came = [(switch, port, same == frame) for switch, port, same in delivery.arrivals]
            assert came in ([], [("leaf2", FORWARDER_PORT, True)]), delivery
            if not changing:
                assert bool(came) is may, delivery
        victim = 1 + number % len(self.net.vms)
        for forged in forgeries(number, victim):
            for delivery in self.world.send(number, at, forged):
                assert not delivery.arrivals, f"{forged.hex()}: {delivery}"


@pytest.mark.parametrize(
    ("cores", "over"), [(0, "spines"), (2, "spines"), (0, "macs"), (2, "macs"), (0, "tunnels")]
)
@given(data=st.data(), vms_at=st.lists(st.sampled_from(EVERYWHERE), min_size=2, max_size=3))
@settings(max_examples=examples(20), deadline=None)
def test_storage_comes_once_and_to_where_the_vm_is(
    cores: int,
    over: str,
    data: st.DataObject,
    vms_at: list[int],
) -> None:
    net = network(vms_at, cores, over)
    world = FabricWorld(net)
    storage = Storage(world)
    for _ in range(data.draw(st.integers(1, 5), label="steps")):
        number = data.draw(st.integers(1, len(vms_at)), label="vm")
        vm = net.vms[f"vm{number}"]
        near: Near = ()
        match data.draw(st.sampled_from(["in", "out", "admit", "divert", "end"]), label="what"):
            case "in":
                touched = net.log_in(login(number))
            case "out":
                touched = net.log_out(granted_mac(number))
            case "admit" if not vm.also:
                others = [one for one in EVERYWHERE if f"server{one}" != vm.server]
                target = data.draw(st.sampled_from(others), label="to")
                touched = net.put_vm(replace(vm, also=frozenset({f"server{target}"})))
            case "divert" if vm.also and not vm.copied_to:
                (target_id,) = vm.also
                near = underlay_of(net).order_to_divert(vm.server, target_id)
                diverted = replace(vm, server=target_id, also=frozenset({vm.server}))
                touched = net.put_vm(replace(diverted, copied_to=vm.server, forwarded_from=vm.server))
            case "end" if vm.copied_to:
                touched = net.put_vm(replace(vm, also=frozenset(), copied_to="", forwarded_from=""))
            case _:
                continue
        order = data.draw(st.permutations(sorted(net.switches)), label="order")
        world.apply(
            touched,
            near,
            each=lambda: storage.holds(changing=True),
            order=lambda stage, order=order: sorted(stage, key=order.index),  # type: ignore[misc]
        )
        storage.holds(changing=False)
    fresh = Compiler(net)
    fresh.update(net.everything())
    assert fresh.programs == world.compiler.programs, "computed step by step as from nothing"
