"""Moves that others make: what servers' watchers (agent.watch) report of libvirt becomes steps of a move.

A person types `virsh migrate --live` and knows nothing of us. The target's watcher says that the VM is coming
in, the source's that it stands still, the target's that it runs (hypervisor/libvirt_events.py has the times):

    report, from               becomes                                     once the move is
    incoming, target           a move begins; target_open, copying         matched; prepared
    suspended, source          stopped: traffic is steered to the target   prepared, copying
    resumed, target            resumed: the source is closed               diverted, or the source's port gone
    departed, source           source_gone (and resumed, if nobody said)   confirmed, and its port gone
    failed or stopped, target  failed, rolled_back                         not switched
    resumed, source            the same: it had been suspended             not switched

What comes early waits until its turn. A move that our own agents make hears the same words twice, which does
no harm.

Nobody takes a VM by a claim of its own (row F3). The target's port alone begins nothing. Its "incoming" does
only where the source's watcher has told of the VM: there others make moves. Where the agent runs a QEMU of
its own, it would give the VM away to whoever asked. And a target that says "it runs here" steers nothing
until the source has said that it stopped, or its switch that its port has gone. A watcher that was away tells
what runs on its server when it is back ("started"), and so does it from time to time: so a move nobody told
of is found, by its port and the lack of one at the source.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import structlog

from retinue.controller.booking import Booking, VMState
from retinue.controller.context import Context
from retinue.controller.moving import MoveError, Mover
from retinue.model import ModelError
from retinue.moves import Move, MoveState

log = structlog.get_logger()


class Kind(StrEnum):
    """What a server's hypervisor says of a VM; the same words as the watcher's."""

    STARTED = "started"
    INCOMING = "incoming"
    SUSPENDED = "suspended"
    RESUMED = "resumed"
    DEPARTED = "departed"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class _Word:
    """One event for `Mover.hypervisor_says`."""

    event: str
    at: float
    reason: str = ""


_EARLY = frozenset({MoveState.PREPARED, MoveState.COPYING})
_MAY_FAIL = frozenset(state for state in MoveState if state.may_undo) | {MoveState.ROLLING_BACK}
_TURN: Mapping[str, frozenset[MoveState]] = {
    "target_open": frozenset({MoveState.MATCHED}),
    "copying": frozenset({MoveState.PREPARED}),
    "stopped": _EARLY,
    "resumed": _EARLY | {MoveState.DIVERTED, MoveState.ROLLING_BACK},
    "source_gone": frozenset({MoveState.CONFIRMED}),
    "failed": _MAY_FAIL,
    "rolled_back": frozenset({MoveState.ROLLING_BACK}),
}
"""In which states of a move a word is due."""


@dataclass
class _Story:
    """The words about one move that wait for their turn."""

    waiting: deque[_Word] = field(default_factory=deque)
    said: set[str] = field(default_factory=set)


class ForeignMoves:
    def __init__(self, context: Context, mover: Mover, booking: Booking) -> None:
        self._context = context
        self._net = context.net
        self._mover = mover
        self._booking = booking
        self._stories: dict[str, _Story] = {}
        self._watched: set[tuple[str, str]] = set()
        """Servers and VMs of which a watcher there has told, so that others may move them."""

    def says(self, server: str, vm: str, kind: Kind, at: float) -> Move | None:
        """A server's word about a VM; returns the move it belongs to, if any.

        Raises ModelError for a server that is not there, MoveError where no move can be begun. A VM nobody
        knows is no mistake: a server may run others than ours.
        """
        if server not in self._net.servers:
            raise ModelError(f"there is no server {server}; `retinue server list` shows those there are")
        booked = self._net.vms.get(vm)
        if booked is None:
            return None
        if kind is not Kind.STARTED:  # That is also told from time to time, and is no news then.
            self._context.events.publish("hypervisor.event", vm=vm, server=server, kind=str(kind), at=at)
        if (server, vm) not in self._watched:
            self._watched = {pair for pair in self._watched if pair[1] in self._net.vms} | {(server, vm)}
        move = self._mover.of_vm(vm)
        if move is None:
            move = self._begins(vm, booked.server, server, kind)
        if move is None:
            self._no_move(vm, booked.server, server, kind)
            return None
        for word in _words(move, server, kind, at):
            self._add(move.id, word)
        self._go_on(move.id)
        return self._mover.moves[move.id]

    # ---- without a move ----

    def _begins(self, vm: str, booked: str, server: str, kind: Kind) -> Move | None:
        if server == booked:
            return None
        if kind is Kind.INCOMING:
            if (booked, vm) in self._watched:
                return self._mover.start(vm, target_server=server)
            self._claimed(vm, server, f"is to have VM {vm}, and no libvirt at {booked} has told of it")
        if kind in (Kind.STARTED, Kind.RESUMED) and self._has_port(vm, server):
            if not self._has_port(vm, booked):
                return self._mover.start(vm, target_server=server)
            self._claimed(vm, server, f"runs VM {vm}, which has its port at {booked}")
        return None

    def _claimed(self, vm: str, server: str, what: str) -> None:
        self._context.counters["VMs claimed by another server"] += 1
        reason = f"server {server} says that it {what}"
        self._context.events.publish("vm.mismatch", vm=vm, server=server, reason=reason)

    def _no_move(self, vm: str, booked: str, server: str, kind: Kind) -> None:
        if server != booked:
            return
        running = self._booking.vm_states.get(vm) is VMState.RUNNING
        if kind in (Kind.STARTED, Kind.RESUMED) and not running:
            self._booking.vm_says(vm, "started", server)
        elif kind in (Kind.STOPPED, Kind.FAILED) and running:
            self._booking.vm_says(vm, "stopped", server)

    def _has_port(self, vm: str, server: str) -> bool:
        return self._net.servers[server].edge in self._net.vm_ports.get(vm, {})

    # ---- the words of a move ----

    def _add(self, id: str, word: _Word) -> None:
        story = self._stories.get(id)
        if story is None:
            story = self._stories[id] = _Story()
            self._context.spawn(self._follow(id), f"{id}: words of its hypervisors")
        if word.event not in story.said:
            story.said.add(word.event)
            story.waiting.append(word)

    async def _follow(self, id: str) -> None:
        """Say what waits as soon as it is due, until the move has ended."""
        events = self._context.events.listen()
        try:
            while (move := self._mover.moves.get(id)) is not None and not move.state.ended:
                event = await anext(events)
                if event.type in ("move.step", "port.gone") and id in self._mover.moves:
                    self._go_on(id)
        except StopAsyncIteration:
            pass
        finally:
            events.close()
            self._stories.pop(id, None)

    def _go_on(self, id: str) -> None:
        story = self._stories.get(id)
        while story is not None and story.waiting:
            word = next((w for w in story.waiting if self._due(self._mover.moves[id], w)), None)
            if word is None:
                return
            story.waiting.remove(word)
            try:
                self._mover.hypervisor_says(id, word.event, word.at, word.reason)
            except MoveError as error:
                log.warning("a hypervisor's word does not fit its move", move=id, error=str(error))

    def _due(self, move: Move, word: _Word) -> bool:
        if move.state not in _TURN[word.event]:
            return False
        if (word.event == "resumed" and move.state is not MoveState.DIVERTED) or word.event == "source_gone":
            return not self._has_port(move.vm, move.source)
        return True


def _words(move: Move, server: str, kind: Kind, at: float) -> list[_Word]:
    """What a report says to the move of its VM."""
    match kind:
        case Kind.INCOMING if server == move.target:
            return [_Word("target_open", at), _Word("copying", at)]
        case Kind.RESUMED | Kind.STARTED if server == move.target:
            return [_Word(event, at) for event in ("target_open", "copying", "resumed", "source_gone")]
        case Kind.FAILED | Kind.STOPPED if server == move.target and move.state in _MAY_FAIL:
            undone = _undone(at, f"the hypervisor of {server} did not take the VM in")
            # In a move of ours the agents carry the memory, and the source's says whether the VM runs there.
            return undone[:1] if move.memory_at else undone
        case Kind.SUSPENDED if server == move.source:
            return [_Word("stopped", at)]
        case Kind.DEPARTED if server == move.source:
            return [_Word("resumed", at), _Word("source_gone", at)]
        case Kind.RESUMED if server == move.source and move.state in _MAY_FAIL:
            return _undone(at, f"the VM runs on at {server}: its hypervisor has given up the move")
        case _:
            return []


def _undone(at: float, reason: str) -> list[_Word]:
    return [_Word("failed", at, reason), _Word("rolled_back", at)]
