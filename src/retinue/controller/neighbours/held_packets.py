"""Packets to a VM whose server has not been found: held while it is asked for, then sent on, in order.

Leaves hand them up for as long as no switch knows the way (`LeafSpine.host_routes`), and each has a meter for
that. Who sends many gets no more than a few held, and costs no more than reading them.
"""

import asyncio
from collections.abc import Callable

from retinue.controller.context import Context
from retinue.controller.counters import Count
from retinue.controller.neighbours.gateway import Routed, read_routed, send_on
from retinue.core.limits import MOST_HELD, MOST_HELD_OF_A_VM
from retinue.core.model.network import Owner
from retinue.core.packets import FrameError
from retinue.core.pipeline.underlay import underlay_of

HELD_LIMIT = 3.0
"""Seconds that a packet is held; who sent it has sent it again by then, or given it up."""


class HeldPackets:
    """Holds them; `ask` asks for the servers that have not been found, as often as that may be done."""

    def __init__(self, context: Context, ask: Callable[[], None]) -> None:
        self._context = context
        self._net = context.net
        self._ask = ask
        self._of: dict[str, list[tuple[str, Routed]]] = {}
        """By VM: leaf and packet, in the order they came."""

    def came(self, switch: str, port: int, frame: bytes) -> None:
        """A leaf does not know where it goes."""
        try:
            packet = read_routed(self._net, frame)
        except FrameError as error:
            self._context.reject_frame("IP", f"{switch} port {port}", error)
            return
        vm = "" if packet is None else self._vm_of(packet)
        if packet is None or not vm:
            self._context.counters[Count.HELD_DROPPED] += 1
            return
        held = self._of.get(vm, [])
        if len(held) >= MOST_HELD_OF_A_VM or sum(map(len, self._of.values())) >= MOST_HELD:
            self._context.counters[Count.HELD_DROPPED] += 1
            return
        if not held:
            self._of[vm] = held
            self._context.spawn(self._until_placed(vm), f"{vm}: packets that are held")
        held.append((switch, packet))

    def _vm_of(self, packet: Routed) -> str:
        holder = self._net.holder(packet.destination, packet.vrf)
        routed = self._net.routed_to(packet.destination, packet.vrf)
        return holder.vm if holder is not None else "" if routed is None else routed[1]

    async def _until_placed(self, vm: str) -> None:
        """Once for all that is held of a VM: ask, wait, and send it on, or drop it."""
        placed = False
        try:
            self._ask()
            async with asyncio.timeout(HELD_LIMIT):
                await self._context.installer.wait_confirmed(lambda: not self._is_placed(vm))
            placed = True
        except TimeoutError:
            pass
        finally:
            held = self._of.pop(vm)
        self._context.counters[Count.HELD_SENT if placed else Count.HELD_DROPPED] += len(held)
        for switch, packet in held if placed else ():
            send_on(self._context, switch, packet.ethernet, [packet.packet])

    def _is_placed(self, vm: str) -> bool:
        """The way stands, and no leaf that has handed up a packet has an entry left that does so: it would do
        it again, and again. One that has gone is not waited for."""
        known = self._net.vms.get(vm)
        if known is None or not underlay_of(self._net).is_reachable(known.server):
            return False
        installer, owner = self._context.installer, Owner("vm", vm)
        leaves = {switch for switch, _ in self._of[vm]} & installer.connected()
        has_port = self._net.has_a_port(known, self._net.servers[known.server].edge)
        if not has_port or not self._context.is_programmed(owner):
            return False
        return not installer.unconfirmed({}, owner, leaves, read=True)
