"""Where a VM is booked at each step of its move: delivered at one server, open at others."""

from dataclasses import replace

from retinue.model import VM
from retinue.moves.machine import Move
from retinue.moves.words import Booked


def placed(vm: VM, move: Move, change: Booked) -> VM:
    """The VM where this change of its move wants it: delivered at one server, open at others."""
    match change:
        case Booked.ADMITTED:
            return replace(vm, server=move.source, also=vm.also | {move.target})
        case Booked.STEERED | Booked.FORWARDED | Booked.COPIED:
            still = move.stopped_at is not None and move.resumed_at is None
            return replace(
                vm,
                server=move.target,
                also=frozenset({move.source}),
                forwarded_from=move.source if move.steered or still else "",
                copied_to=move.source if still else "",
            )
        case Booked.SOURCE_CLOSED:
            return replace(at_one_place(vm, move.target), forwarded_from=move.source)
        case Booked.SETTLED:
            return at_one_place(vm, move.target)
        case Booked.TARGET_CLOSED:
            return at_one_place(vm, move.source)


def at_one_place(vm: VM, server: str) -> VM:
    return replace(vm, server=server, also=frozenset(), forwarded_from="", copied_to="")
