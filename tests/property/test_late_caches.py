"""Switches confirm by their tables and forward by their caches, which follow later, each by itself.

So while a migration goes on a packet may meet, at each switch of the fabric, what was right some steps ago,
whatever order they were told in. None is lost or doubled, and none goes round. The two edges are another
matter: their agents look at the caches before a step is done (record 007).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from property.test_pipeline_properties import Shape, shapes
from retinue.core.model import VM, Role, VMPort
from retinue.core.pipeline.diff import difference
from retinue.core.pipeline.entry import Program
from support.examples import examples
from support.fabric.networks import GATEWAY_MAC, OVER, moved, vm_ip, vm_mac, vm_port
from support.fabric.world import FabricWorld, udp_frame

Programs = Mapping[str, Program]


@dataclass
class Late:
    """A fabric whose switches forward by any of the `steps` so far, the edges by the last."""

    world: FabricWorld
    vm: int
    senders: Mapping[int, int]
    """The other VMs, and the server of each."""
    steps: list[Programs] = field(default_factory=list)

    def step(self, vm: VM) -> None:
        self.world.apply(self.world.net.put_vm(vm))
        self.steps.append(dict(self.world.installed))

    def reaches(self, data: st.DataObject, places: Iterable[int], edges_at: int = 1) -> None:
        """Packets to the VM come to its port on one of these servers, once, whichever steps the switches are
        at: edges at one of the last `edges_at`."""
        net, newest = self.world.net, self.steps[-1]
        for switch in newest:
            known = self.steps[-edges_at:] if net.switches[switch].role is Role.EDGE else self.steps
            if any(one[switch] != newest[switch] for one in known):
                self._set(switch, data.draw(st.sampled_from(known), label=switch)[switch])
        ports = {(f"edge{place}", vm_port(self.vm)) for place in places}
        for delivery in self.world.from_outside(self.vm):
            self.world.comes_once(delivery, ports, vm_mac(self.vm))
        for sender, server in self.senders.items():
            frame = udp_frame(vm_mac(sender), GATEWAY_MAC, vm_ip(sender), vm_ip(self.vm))
            for delivery in self.world.send(sender, server, frame):
                self.world.comes_once(delivery, ports, vm_mac(self.vm))
        for switch in newest:
            self._set(switch, newest[switch])

    def _set(self, switch: str, program: Program) -> None:
        before = self.world.installed[switch]
        self.world.fabric[switch].apply(difference(program, before, {*program, *before}))
        self.world.installed[switch] = program


@settings(deadline=None, max_examples=examples(25), suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("undone", [False, True], ids=["", "undone"])
@given(data=st.data())
def test_no_packet_is_lost_however_late_each_switch_follows(
    over: str, undone: bool, data: st.DataObject
) -> None:
    shape: Shape = replace(data.draw(shapes(vms=3, more_nics=0, over=over)), routed=False, shared=0)
    world = FabricWorld(shape.network())
    vm, source = world.net.vms["vm1"], shape.vms_at[0]
    target = data.draw(st.sampled_from([n for n in range(1, len(shape.servers_on) + 1) if n != source]))
    at_source, at_target = f"server{source}", f"server{target}"
    world.apply(world.net.set_vm_port(vm.nics[0].port_id, f"edge{target}", VMPort(vm_port(1))))
    late = Late(world, 1, {number: at for number, at in enumerate(shape.vms_at, 1) if number != 1})
    admitted = replace(vm, also=frozenset({at_target}))
    late.step(admitted)
    diverted = moved(admitted, at_target)
    late.step(diverted)
    late.reaches(data, [source, target], edges_at=2)
    late.step(replace(diverted, forwarded_from=at_source))
    late.reaches(data, [target])
    if undone:
        late.step(replace(admitted, forwarded_from=at_target))
        late.reaches(data, [source])
        return
    late.step(replace(vm, server=at_target, forwarded_from=at_source))
    late.reaches(data, [target])
