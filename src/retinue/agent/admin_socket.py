"""What the agent answers those on its own server, at a socket (see `lines`).

    {"do": "vms"}                               -> {"vms": [{"id", "mac", "runs", "since", "port", ...}, ...]}
    {"do": "leases"}                            -> {"leases": [{"vm", "mac", "ip", "server", ...}, ...]}
    {"do": "consoles", "vm"}                    -> {"consoles": [...]}: files of what it wrote on its consoles
    {"do": "take", "vm": {"id", "mac", "server"}, "migration", "source"}
                                                -> {"memory_at"}: wait for a VM that is brought here
    {"do": "give", "vm", "migration", "memory_at", "target"}
                                                -> {"stopped_at", "resumed_at"}: bring it there
    {"do": "report", "vm", "mac", "addresses", "gone"}
                                                -> {"waiting"}: addresses that no manager has confirmed; tell
                                                the controller of a VM that was made here
    {"do": "drop", "vm"}                        -> {}: end what is here of a VM, and remove its port
    anything that cannot be done                -> {"error": "..."}

"take", "give" and "drop" are a migration in which the controller has no part: nobody is asked, nobody is
told.
"""

import functools
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec

from retinue.agent.controller_link.made_here import MadeHere
from retinue.agent.dispatcher import Dispatcher
from retinue.agent.renewal.lease_notes import LeaseNotes
from retinue.agent.vms.local_vm import LocalVM
from retinue.core.migration.presence import Plugged
from retinue.host.errors import HostError
from retinue.host.taps import tap_name
from retinue.protocol import json_lines
from retinue.protocol.errors import ControllerError
from retinue.protocol.json_lines import RequestError
from retinue.protocol.vms import VMRecord

SOCKET = "agent.sock"


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """One line of a client; which fields are needed depends on `do`."""

    do: str
    vm: str | VMRecord = ""
    migration: str = ""
    source: str = ""
    target: str = ""
    memory_at: str = ""
    mac: str = ""
    addresses: list[str] = []
    gone: bool = False


def serving(
    path: Path,
    dispatcher: Dispatcher | None,
    leases: LeaseNotes | None = None,
    made: MadeHere | None = None,
) -> AbstractAsyncContextManager[None]:
    """Listen at `path` inside the context. Without a dispatcher, where others run the VMs, only leases are
    shown."""
    return json_lines.serving(path, functools.partial(answer, dispatcher, leases=leases, made=made))


async def answer(
    dispatcher: Dispatcher | None,
    line: bytes,
    leases: LeaseNotes | None = None,
    made: MadeHere | None = None,
) -> dict[str, Any]:
    try:
        request = msgspec.json.decode(line, type=Request)
        if request.do == "leases":
            return {"leases": [] if leases is None else leases.shown()}
        if dispatcher is None:
            raise RequestError(f"cannot do {request.do!r}: others run the VMs of this server")
        match request.do, request.vm:
            case "vms", _:
                return {"vms": [shown(vm) for vm in dispatcher.vms.values()]}
            case "consoles", str(vm):
                return {"consoles": [str(path) for path in dispatcher.consoles.get(vm, ())]}
            case "take", VMRecord() as vm:
                return {"memory_at": await dispatcher.by_hand.take_in(vm, request.migration, request.source)}
            case "give", str(vm):
                migrated = await dispatcher.by_hand.give(
                    _known(dispatcher, vm), request.migration, request.memory_at, request.target
                )
                return {"stopped_at": migrated.stopped_at, "resumed_at": migrated.resumed_at}
            case "report", str(vm) if vm and made is not None:
                told = await made.tell(vm, request.mac, request.addresses, gone=request.gone)
                return {"waiting": told.get("waiting", [])}
            case "drop", str(vm):
                await dispatcher.by_hand.drop(_known(dispatcher, vm))
                return {}
            case other, _:
                raise RequestError(
                    f"cannot do {other!r} so: it is vms, leases, consoles, report, take, give or drop"
                )
    except (msgspec.DecodeError, RequestError, HostError, ControllerError) as error:
        return {"error": str(error)}


def _known(dispatcher: Dispatcher, vm: str) -> LocalVM:
    if vm not in dispatcher.vms:
        raise RequestError(f"there is no VM {vm!r}; there are: {', '.join(sorted(dispatcher.vms)) or 'none'}")
    return dispatcher.vms[vm]


def _port(vm: LocalVM) -> str:
    """The VM's tap, "" where it has none, or nobody but libvirt knows."""
    if vm.machine is not None:
        return vm.machine.spec.port
    return tap_name(vm.id) if isinstance(vm.presence, Plugged) else ""


def shown(vm: LocalVM) -> dict[str, Any]:
    machine = vm.machine
    return {
        "id": vm.id,
        "mac": vm.record.mac,
        "nics": msgspec.to_builtins(vm.record.all_nics),
        "runs": vm.runs,
        "since": vm.since,
        "machine": machine is not None,
        "port": _port(vm),
        "migration": vm.migration_id,
        "shell": "" if machine is None else str(machine.files.shell),
    }
