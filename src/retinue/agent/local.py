"""What the agent answers those on its own server, at a socket (see `lines`).

    {"do": "vms"}                               -> {"vms": [{"id", "mac", "runs", "since", "port", ...}, ...]}
    {"do": "consoles", "vm"}                    -> {"consoles": [...]}: files of what it wrote on its consoles
    {"do": "take", "vm": {"id", "mac", "server"}, "move", "source"}
                                                -> {"memory_at"}: wait for a VM that is brought here
    {"do": "give", "vm", "move", "memory_at", "target"}
                                                -> {"stopped_at", "resumed_at"}: bring it there
    {"do": "drop", "vm"}                        -> {}: end what is here of a VM, and remove its port
    anything that cannot be done                -> {"error": "..."}

"take", "give" and "drop" are a move in which the controller has no part: nobody is asked, nobody is told.
"""

import functools
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec

from retinue.agent import lines
from retinue.agent.keeper import Keeper
from retinue.agent.kept import Kept
from retinue.agent.lines import RequestError
from retinue.agent.records import VMRecord
from retinue.hypervisor import HypervisorError
from retinue.hypervisor.taps import tap_name

SOCKET = "agent.sock"


class Request(msgspec.Struct, forbid_unknown_fields=True):
    do: str
    vm: str | VMRecord = ""
    move: str = ""
    source: str = ""
    target: str = ""
    memory_at: str = ""


def serving(path: Path, keeper: Keeper) -> AbstractAsyncContextManager[None]:
    """Listen at `path` inside the context."""
    return lines.serving(path, functools.partial(answer, keeper))


async def answer(keeper: Keeper, line: bytes) -> dict[str, Any]:
    try:
        request = msgspec.json.decode(line, type=Request)
        match request.do, request.vm:
            case "vms", _:
                return {"vms": [shown(kept) for kept in keeper.vms.values()]}
            case "consoles", str(vm):
                return {"consoles": [str(path) for path in keeper.consoles.get(vm, ())]}
            case "take", VMRecord() as vm:
                return {"memory_at": await keeper.take_in(vm, request.move, request.source)}
            case "give", str(vm):
                moved = await keeper.give(_known(keeper, vm), request.move, request.memory_at, request.target)
                return {"stopped_at": moved.stopped_at, "resumed_at": moved.resumed_at}
            case "drop", str(vm):
                await keeper.drop(_known(keeper, vm))
                return {}
            case other, _:
                raise RequestError(f"cannot do {other!r} so: it is vms, consoles, take, give or drop")
    except (msgspec.DecodeError, RequestError, HypervisorError) as error:
        return {"error": str(error)}


def _known(keeper: Keeper, vm: str) -> Kept:
    if vm not in keeper.vms:
        raise RequestError(f"there is no VM {vm!r}; there are: {', '.join(sorted(keeper.vms)) or 'none'}")
    return keeper.vms[vm]


def _port(kept: Kept) -> str:
    if not kept.plugged:
        return ""
    return tap_name(kept.id) if kept.machine is None else kept.machine.spec.port


def shown(kept: Kept) -> dict[str, Any]:
    machine = kept.machine
    return {
        "id": kept.id,
        "mac": kept.record.mac,
        "runs": kept.runs and not kept.handed_over,
        "since": kept.resumed_at,
        "machine": machine is not None,
        "port": _port(kept),
        "move": kept.move,
        "shell": "" if machine is None else str(machine.files.shell),
    }
