"""What property tests of the pipeline share: incremental = recomputed, and the states of a move by hand."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from hypothesis import strategies as st

from retinue.core.model import VM, ModelError, Network, VMPort
from retinue.core.model.network import NOTHING, Owner, Touched
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.entry import Program
from retinue.core.pipeline.underlay import Near, underlay_of
from support.fabric.networks import moved, vm_port
from support.fabric.world import FabricWorld

Step = TypeVar("Step")


def fresh(net: Network) -> dict[str, Program]:
    """The entries of every switch, made of the network as it is."""
    compiler = Compiler(net)
    compiler.update(net.everything())
    return compiler.programs


def equals_recomputed(net: Network, steps: Iterable[Step], change: Callable[[Step], Touched]) -> None:
    """After every step of a history; a step that the network refuses changes nothing."""
    compiler = Compiler(net, recent=1)
    compiler.update(net.everything())
    for step in steps:
        try:
            touched = change(step)
        except ModelError:
            touched = NOTHING
        compiler.update(touched)
        got = {switch: program for switch, program in compiler.programs.items() if program}
        assert got == fresh(net), f"after {step}"


class Move:
    """Of one VM, from where it runs to any other server, state by state.

    Within a stage switches confirm in any order, and after every single one `each` must hold.
    """

    def __init__(
        self, world: FabricWorld, data: st.DataObject, vm: str, source: int, each: Callable[[], None]
    ) -> None:
        net = world.net
        servers = [int(id.removeprefix("server")) for id, one in net.servers.items() if one.edge]
        self._world, self._data, self._each = world, data, each
        self._underlay = underlay_of(net)
        self.source = source
        self.target = data.draw(st.sampled_from([n for n in servers if n != source]), label="target")
        self.vm = net.vms[vm]
        self.admitted = replace(self.vm, also=frozenset({self._to}))
        self.diverted = moved(self.admitted, self._to)
        self.closed = replace(self.vm, server=self._to, forwarded_from=self._from)

    @property
    def _from(self) -> str:
        return f"server{self.source}"

    @property
    def _to(self) -> str:
        return f"server{self.target}"

    def plug(self, ports: Iterable[tuple[str, int]]) -> None:
        """Ports come at the target: the id of each, and the number of the NIC of which it is."""
        for id, number in ports:
            self.run(self._world.net.set_vm_port(id, f"edge{self.target}", VMPort(vm_port(number))))

    def admit(self) -> None:
        self.put(self.admitted, [self._underlay.near(self._to)])

    def divert(self, each: Callable[[], None] | None = None, *, stands_still: bool = False) -> None:
        """`stands_still`: what is late at the source is sent on at once."""
        if stands_still:
            self.diverted = replace(self.diverted, forwarded_from=self._from)
        self.put(self.diverted, self._underlay.order_to_divert(self._from, self._to), each)

    def copy(self) -> None:
        """What comes to the target meanwhile, the source gets as well."""
        self.put(replace(self.diverted, forwarded_from=self._from, copied_to=self._from))

    def undo(self) -> None:
        back = replace(self.admitted, forwarded_from=self._to, copied_to=self._from)
        self.put(back, self._underlay.order_to_return(self._from, self._to))
        self.put(self.vm, self._underlay.order_to_withdraw(self._to))

    def close(self) -> None:
        """It runs at its target, and what is late is still sent on from the source."""
        self.put(self.closed)

    def end(self) -> None:
        self.put(replace(self.closed, forwarded_from=""), self._underlay.order_to_withdraw(self._from))
        assert self._world.compiler.programs == fresh(self._world.net)

    def put(self, vm: VM, near: Near = (), each: Callable[[], None] | None = None) -> None:
        self.run(self._world.net.put_vm(vm), near, each)

    def run(self, touched: Iterable[Owner], near: Near = (), each: Callable[[], None] | None = None) -> None:
        def order(stage: list[str]) -> list[str]:
            return self._data.draw(st.permutations(stage), label="order")

        self._world.apply(touched, near, each=each or self._each, order=order)
