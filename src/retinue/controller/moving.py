"""Moves, carried out: the effects of `moves.machine` become flows on switches and words to the hypervisor.

The hypervisor side (H1) follows the event stream: move.prepare, move.begin, move.copy, move.cleanup,
move.rollback, move.return; and answers with events of its own (see `hypervisor_says`). The manager's message
that starts a move is row B1's.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import structlog

from retinue import moves
from retinue.controller.context import Context
from retinue.controller.history import History, number_of
from retinue.flows.compiler import Keys
from retinue.flows.plan import CACHE_LAG, Near, near_server
from retinue.model import IP, Mac, ModelError, Role
from retinue.model.network import NOTHING, Touched
from retinue.moves import Move, MoveState
from retinue.packets import Ethernet, EtherType

log = structlog.get_logger()

STEERING_LIMIT, STOPPED_LIMIT = 5.0, 0.5
"""Seconds a VM is kept from moving on until the switches have confirmed: while it runs at the source, and
while it stands still; past that, running late is worse than running."""
PRIMER, PRIMERS = b"retinue primer", 1


class MoveError(Exception):
    """The message is refused; it says why and what to do."""


class Mover:
    def __init__(
        self,
        context: Context,
        arrived: Callable[[str], None] = lambda vm: None,
        history: History | None = None,
        warm_up: float = 0.0,
        forward: float = 0.0,
    ) -> None:
        """`arrived` is called with each VM that has moved, when nothing of it is bound at the source.

        The word to free the source waits for `warm_up` seconds, and the source forwards for `forward`
        seconds from RESUME on: see controller.config.
        """
        self._context = context
        self._arrived = arrived
        self._warm_up, self._forward_seconds = warm_up, forward
        self._history = history or History()
        self.moves: dict[str, Move] = {}
        self.figures: dict[str, dict[str, Any]] = {}
        """By move, as far as known: flow_mods, packet_ins, steering_ms (from the word to steer to the last
        switch's confirmation) and control_ms (from the word of RESUME to the last confirmation of all). Of
        one that came to nothing, in packets: diverted, kept and lost_about, see docs/api.md."""
        self._open: dict[str, str] = {}
        """Moves whose hypervisor says the target is open, and where it takes the memory in."""
        self._packet_ins_before: dict[str, int] = {}
        self._confirmed: dict[tuple[str, moves.Booked], asyncio.Event] = {}
        self._awaited: dict[str, Keys] = {}
        """By move: the entries it changed, by switch."""
        self._confirming: dict[tuple[str, moves.Booked], asyncio.Task[None]] = {}
        self._taken_up: set[str] = set()
        """Moves that were under way when the controller started."""
        self._resumed_here: dict[str, float] = {}
        """When the word of RESUME came in, by our own clock."""

    # ---- the manager's word ----

    def start(
        self,
        vm: str,
        *,
        target_server: str = "",
        target_switch: str = "",
        source_server: str = "",
        mac: Mac = "",
        ip: IP | None = None,
    ) -> Move:
        """A live-migration message (row B1), with the target server or the target's edge switch."""
        net = self._context.net
        booked = net.vms.get(vm)
        if booked is None:
            raise MoveError(f"there is no VM {vm}; `retinue vm list` shows those there are")
        target = self._target(target_server, target_switch)
        if source_server and source_server != booked.server:
            raise MoveError(f"VM {vm} is at {booked.server}, not at {source_server}")
        if mac and mac != booked.mac:
            raise MoveError(f"VM {vm} has MAC {booked.mac}, not {mac}")
        if ip is not None and ip not in {h.ip for h in net.held_by(vm)}:
            raise MoveError(f"VM {vm} does not hold {ip}")
        if target == booked.server:
            raise MoveError(f"VM {vm} is at {target} already")
        under_way = self.of_vm(vm)
        if under_way is not None:
            raise MoveError(f"VM {vm} is being moved already: move {under_way.id} is {under_way.state}")
        number = 1 + max(map(number_of, self.moves), default=0)
        move = moves.begin(f"move-{number}", vm, booked.server, target, self._context.clock())
        self.figures[move.id] = {"bindings_before": net.bindings([vm])}
        self._packet_ins_before[move.id] = self._packet_ins()
        self._keep(move)
        self.look_again(move.id)
        return self.moves[move.id]

    def cancel(self, id: str, by: str = "the operator") -> Move:
        return self._step(id, moves.Cancelled(by))

    def of_vm(self, vm: str) -> Move | None:
        """The move this VM is in, if any."""
        return next((m for m in self.moves.values() if m.vm == vm and not m.state.ended), None)

    # ---- the hypervisor's word ----

    def hypervisor_says(
        self, id: str, event: str, at: float, reason: str, memory_at: str = "", frames: int = 0
    ) -> Move:
        """target_open (with memory_at, where the target has an agent of its own), copying, converged,
        stopped, resumed, source_gone, failed, rolled_back, target_gone.
        """
        if id not in self.moves:
            raise MoveError(f"there is no move {id}; `retinue move list` shows those there are")
        if event in ("stopped", "resumed") and at <= 0:
            raise MoveError(f"{event} needs its time: at, in seconds since the epoch")
        if frames:
            self._count(id, event, frames)
        match event:
            case "target_open":
                self._open[id] = memory_at or self._open.get(id, "")
                self.look_again(id)
                return self._let_source_open(id)
            case "copying":
                return self._step(id, moves.CopyStarted())
            case "converged":
                return self._step(id, moves.Converged())
            case "stopped":
                return self._step(id, moves.SourceStopped(at))
            case "resumed":
                self._resumed_here.setdefault(id, self._context.clock())
                return self._step(id, moves.Resumed(at))
            case "source_gone":
                return self._step(id, moves.SourceFreed())
            case "target_gone":
                return self._step(id, moves.TargetGone())
            case "rolled_back":
                return self._step(id, moves.RolledBack())
            case "failed":
                return self._step(id, moves.Failed(reason or "the hypervisor gave no reason"))
            case _:
                raise MoveError(f"a move knows no event {event!r}")

    def _count(self, id: str, event: str, frames: int) -> None:
        """Of a move that came to nothing: what was diverted to the target, and what the source had of it."""
        figures = self.figures.setdefault(id, {})
        if event == "target_gone":
            figures["diverted"] = frames - PRIMERS
        elif event == "rolled_back":
            figures["kept"] = frames
        if "diverted" in figures:
            figures["lost_about"] = max(0, figures["diverted"] - figures.get("kept", 0))

    async def until_confirmed(self, id: str, change: moves.Booked, limit: float) -> bool:
        """True as soon as every switch concerned has confirmed this change of the move; False after `limit`.

        Open vSwitch's flow cache follows its tables, and with them the confirmation, a little later.
        """
        try:
            async with asyncio.timeout(limit):
                await self._confirmed.setdefault((id, change), asyncio.Event()).wait()
        except TimeoutError:
            return False
        return True

    def _let_source_open(self, id: str) -> Move:
        """The target waits, and has no port yet: where libvirt runs VMs, the source's word makes it."""
        move = self.moves[id]
        if move.state is MoveState.MATCHED and self._open[id]:
            move = self.moves[id] = replace(move, memory_at=self._open[id])
            self._context.events.publish("move.begin", move=move, vm=self._context.net.vms.get(move.vm))
        return move

    # ---- what else drives a move ----

    def take_up(self, id: str) -> None:
        """Go on with a move that was under way when the controller ended: ask again for what it waits for."""
        self._taken_up.add(id)
        self._packet_ins_before[id] = self._packet_ins()
        move, effects = moves.again(self.moves[id], self._context.clock())
        self._keep(move)
        for effect in effects:
            self._carry_out(move, effect)

    def look_again(self, id: str) -> None:
        """Something about servers or ports changed: a move may have what it waits for."""
        net, move = self._context.net, self.moves[id]
        if move.state is MoveState.PLANNED and net.place(move.target) is not None:
            move = self._step(id, moves.Matched())
        edge = net.servers[move.target].edge
        if move.state is MoveState.MATCHED and id in self._open and edge in net.vm_ports.get(move.vm, {}):
            self._step(id, moves.TargetOpen(self._open[id]))

    def look_again_for(self, vm: str) -> None:
        move = self.of_vm(vm)
        if move is not None:
            self.look_again(move.id)

    def tick(self) -> None:
        now = self._context.clock()
        for move in list(self.moves.values()):
            deadline = move.deadline()
            if deadline is not None and now >= deadline:
                self._step(move.id, moves.TimedOut())
            elif move.state is MoveState.PLANNED:
                self.look_again(move.id)

    # ---- steps and effects ----

    def _step(self, id: str, event: moves.Event) -> Move:
        if id not in self.moves:
            raise MoveError(f"there is no move {id}; `retinue move list` shows those there are")
        now = self._context.clock()
        try:
            move, effects = moves.step(self.moves[id], event, now)
        except moves.IllegalEventError as error:
            raise MoveError(str(error)) from error
        changed = move != self.moves[id]
        self.moves[id] = move
        # Effects first: after RESUME every packet counts, the story of it can wait.
        for effect in effects:
            self._carry_out(move, effect)
        if changed:
            self._keep(move)
        return self.moves[id]

    def _keep(self, move: Move) -> None:
        self.moves[move.id] = move
        self._context.store.put(move)
        self._context.events.publish("move.step", move=move)
        if move.state.ended:
            self._open.pop(move.id, None)
            self._awaited.pop(move.id, None)
            self._taken_up.discard(move.id)
            for told in (self._confirming, self._confirmed):
                for key in [key for key in told if key[0] == move.id]:
                    del told[key]
            self._forget(self._history.ended(move))

    def vm_gone(self, vm: str) -> None:
        """The VM was removed, and with it the reason to remember its last move."""
        self._forget(self._history.vm_gone(vm))

    def restored(self, kept: Collection[Move]) -> None:
        """Moves that the database has kept; after the VMs."""
        self.moves.update((move.id, move) for move in kept)
        for move in sorted(kept, key=lambda move: number_of(move.id)):
            if move.state.ended:
                self._forget(self._history.ended(move))
        for vm in {move.vm for move in kept} - self._context.net.vms.keys():
            self.vm_gone(vm)

    def _forget(self, ids: Collection[str]) -> None:
        for id in ids:
            self._context.store.remove(self.moves.pop(id))
            for told in (self.figures, self._packet_ins_before, self._resumed_here):
                told.pop(id, None)

    def _carry_out(self, move: Move, effect: moves.Effect) -> None:
        net, publish = self._context.net, self._context.events.publish
        match effect:
            case moves.OpenTarget():
                publish("move.prepare", move=move, vm=net.vms.get(move.vm))
            case moves.StartCopy():
                self._prime(move)
                publish("move.copy", move=move)
            case moves.FreeSource():
                self._context.spawn(self._free_source(move), f"{move.id}: free the source")
            case moves.CeaseForwarding():
                self._context.spawn(self._cease_forwarding(move), f"{move.id}: cease forwarding")
            case moves.ReturnToSource():
                publish("move.return", move=move)
            case moves.UndoAtHypervisor():
                publish("move.rollback", move=move, reason=move.reason)
            case moves.AdmitAtTarget():
                self._rebook(move, moves.Booked.ADMITTED, [near_server(net, move.target)])
            case moves.SteerToTarget():
                self._rebook(move, moves.Booked.STEERED, self._told_first(move))
            case moves.ForwardFromSource():
                self._context.spawn(self._forward(move.id), f"{move.id}: forward")
            case moves.CopyToSource():
                self._rebook(move, moves.Booked.COPIED, self._told_first(move))
            case moves.CloseSource():
                self._rebook(move, moves.Booked.SOURCE_CLOSED, ())
            case moves.CloseTarget():
                self._rebook(move, moves.Booked.TARGET_CLOSED, self._edge_first(move))

    async def _free_source(self, move: Move) -> None:
        """Nothing of the VM is bound at the source any more: what else is left there can wait."""
        await asyncio.sleep(self._warm_up)
        self._context.events.publish("move.cleanup", move=move)

    async def _cease_forwarding(self, move: Move) -> None:
        resumed = next(at for state, at in reversed(move.steps) if state is MoveState.SWITCHED)
        await asyncio.sleep(resumed + self._forward_seconds - self._context.clock())
        now = self.moves.get(move.id)
        if now is not None and now.state is MoveState.FREED:  # Else it was asked for twice, and is done.
            self._rebook(move, moves.Booked.SETTLED, self._edge_first(move))

    def _edge_first(self, move: Move) -> Near:
        """The source's edge must cease to forward before its leaf no longer takes what it forwards."""
        net = self._context.net
        edge = {net.servers[move.source].edge}
        return [edge, near_server(net, move.source) - edge]

    def _told_first(self, move: Move) -> Near:
        """Of those that steer: around the target; and the source's edge, which gives up or sends on."""
        net = self._context.net
        return [near_server(net, move.target) | {net.servers[move.source].edge}]

    async def _forward(self, id: str) -> None:
        """Before flow caches follow their tables packets still come the old way: none may overtake them."""
        await asyncio.sleep(CACHE_LAG)
        move = self.moves[id]
        if move.state is MoveState.DIVERTED:
            self._rebook(move, moves.Booked.FORWARDED, self._told_first(move))

    def _prime(self, move: Move) -> None:
        """Send a frame to the target's port that nobody needs.

        A QEMU that waits for its memory takes one frame from its tap all the same, and throws it away when
        the memory is there: so the first frame of those that wait would be lost.
        """
        net = self._context.net
        edge = net.servers[move.target].edge
        port = net.vm_ports.get(move.vm, {}).get(edge)
        if port is not None and move.vm in net.vms:
            frame = Ethernet(net.vms[move.vm].mac, net.gateway_mac, EtherType.EXPERIMENT, PRIMER).build()
            self._context.send_frame(edge, port.number, frame)

    def _rebook(self, move: Move, change: moves.Booked, near: Near) -> None:
        """Set the VM's place as this change wants it, and step on when every switch has confirmed it."""
        net = self._context.net
        vm = net.vms.get(move.vm)
        touched: Touched = NOTHING
        if vm is not None:
            try:
                touched = net.put_vm(moves.placed(vm, move, change))
            except ModelError as error:
                log.error("the VM cannot be booked as its move wants it", move=move.id, error=str(error))
            self._context.store.put(net.vms[move.vm])
        running = self._confirming.get((move.id, change))
        if running is None or running.done():
            work = self._confirm(move.id, change, touched, near)
            self._confirming[move.id, change] = self._context.spawn(work, f"{move.id}: {change}")
        else:
            # What was asked for first is not confirmed yet, and may have been undone meanwhile.
            self._context.spawn(self._install(touched, near), f"{move.id}: {change}, again")

    async def _install(self, touched: Touched, near: Near) -> None:
        await self._context.install(touched, near)

    async def _confirm(self, id: str, change: moves.Booked, touched: Touched, near: Near) -> None:
        """Install, wait for the switches, and step on.

        What is waited for is everything this move has changed so far: a step asked for again has nothing new
        to send, and is not confirmed by that. After a restart what was sent before is not known, so the
        switches the move concerns must all have been read. An undo does not wait for a switch that is away,
        its server may be why the move failed; nor does the end of forwarding: the server may have been shut
        down, empty as it is.
        """
        installer = self._context.installer
        began = self._context.clock()
        report = await self._context.install(touched, near)
        awaited = self._awaited.setdefault(id, {})
        for switch, keys in report.changed.items():
            awaited[switch] = awaited.get(switch, frozenset()) | keys
        may_be_away = change in (moves.Booked.TARGET_CLOSED, moves.Booked.SETTLED)
        unread = self.concerned(id) if id in self._taken_up and not may_be_away else ()
        await installer.settled(awaited, attached=unread, present=may_be_away)
        now = self._context.clock()
        figures = self.figures.setdefault(id, {})
        figures["flow_mods"] = figures.get("flow_mods", 0) + report.flow_mods
        if change is moves.Booked.STEERED:
            figures["steering_ms"] = (now - began) * 1000
        self._confirmed.setdefault((id, change), asyncio.Event()).set()
        try:
            done = self._step(id, moves.Confirmed(change))
        except MoveError:
            return  # Failed or cancelled while the switches were confirming.
        if change is moves.Booked.SOURCE_CLOSED:
            figures["control_ms"] = (now - self._resumed_here.pop(id, now)) * 1000
            figures["bindings_after"] = self._context.net.bindings([done.vm])
            self._arrived(done.vm)
            figures["packet_ins"] = self._packet_ins() - self._packet_ins_before.pop(id, 0)

    def concerned(self, id: str) -> set[str]:
        """Switches with entries of this move's VM: edges and leaves of both servers, and the spines."""
        net, move = self._context.net, self.moves[id]
        spines = {spine.id for spine in net.with_role(Role.SPINE)}
        return spines.union(*(near_server(net, s) for s in (move.source, move.target) if s in net.servers))

    def _packet_ins(self) -> int:
        return sum(n for name, n in self._context.counters.items() if name.startswith("packet-ins"))

    def _target(self, server: str, switch: str) -> str:
        net = self._context.net
        if bool(server) == bool(switch):
            raise MoveError("name the target once: a target server, or a target switch")
        if switch:
            runs = net.server_of_edge(switch)
            if runs is None:
                raise MoveError(f"{switch} is not the edge switch of a server; see `retinue server list`")
            return runs.id
        if server not in net.servers:
            raise MoveError(f"there is no server {server}; `retinue server list` shows those there are")
        if not net.servers[server].edge:
            raise MoveError(f"server {server} has no edge switch, it cannot run VMs")
        return server


__all__ = ["MoveError", "Mover"]
