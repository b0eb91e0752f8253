"""`retinue vm`: VMs as the manager registers them."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from retinue.cli import binding, disk, nic, options, output
from retinue.cli.connection import Connection, connected
from retinue.cli.errors import CliError
from retinue.cli.name import profile_fields
from retinue.cli.reported import confirm
from retinue.cli.request_bodies import left_in
from retinue.cli.vm_set import Memory, set_, warn
from retinue.protocol.blocking import Client, DeadlineError
from retinue.protocol.routes import Route

app = options.group("Virtual machines: register, show, start, stop and remove them.")

app.command("set")(set_)
app.command()(confirm)
app.add_typer(nic.app, name="nic")

READY_SECONDS = 60.0


@app.command()
@connected
def add(
    at: Connection,
    id: Annotated[str | None, typer.Argument(metavar="ID", help="The VM's name.")] = None,
    server: Annotated[str | None, typer.Option(metavar="SERVER", help="Where it is to run.")] = None,
    mac: Annotated[
        str | None, typer.Option(metavar="MAC", help="Its MAC address. Left out: one made from the name.")
    ] = None,
    address: Annotated[
        list[str] | None,
        typer.Option(metavar="IP", help="A static address; may be repeated. Left out: it asks by DHCP."),
    ] = None,
    nics: Annotated[
        list[str] | None,
        typer.Option(
            "--nic",
            metavar="NIC",
            help="A NIC of several, in the guest's order: mac=MAC,address=IP,vnet=VNET,id=ID,enabled=no, "
            "each of which may be left out; with trunk=ID it goes by the port of the NIC with that id, with "
            "its vnet's VLAN as tag. In place of --mac and --address.",
        ),
    ] = None,
    restart: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            help="When it is started again: never (the default), or on-crash, if it ends by itself.",
        ),
    ] = None,
    memory: Memory = None,
    disks: Annotated[
        list[str] | None,
        typer.Option(
            "--disk",
            metavar="DISK",
            help="A disk; may be repeated, in the guest's order. size=10G: a private one, with image=NAME "
            "or base=PATH over what is there already; shared=PATH: a file on shared storage. "
            "format=qcow2 is that of the file base or shared, if it is not raw.",
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help='Register many: [{"id", "server", "mac", "addresses"}, ...], or "nics". -: stdin.',
        ),
    ] = None,
    from_pool: Annotated[
        bool, typer.Option("--from-pool", help="MAC and address: the next free pair of `retinue pair list`.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it is ready to start.")] = False,
    timeout: options.Timeout = READY_SECONDS,
) -> None:
    """Register a VM, or many at once: all of them or, on a mistake, none.

    \b
    Examples:
      retinue vm add vm1 --server server1 --wait
      retinue vm add web --server server2 --mac 52:54:00:00:00:01 --address 10.1.0.50
      retinue vm add db --server server1 --restart on-crash --memory 256
      retinue vm add gw --server server1 --nic mac=52:54:00:00:00:02 --nic address=10.1.0.51
      retinue vm add fw --server server1 --nic vnet=web --nic trunk=fw,vnet=shop
      retinue vm add web2 --server server1 --disk image=debian-12,size=20G
      retinue vm add shop --server server1 --from-pool
      retinue vm add --from vms.json
    """
    if (id is None) == (file is None):
        raise typer.BadParameter("give the VM's name, or --from FILE")
    if file is not None and (server or mac or address or nics or restart or disks or memory is not None):
        raise typer.BadParameter("--server, --mac and the like are in the file given by --from")
    if from_pool and (file is not None or nics or mac or address):
        raise typer.BadParameter("--from-pool is in the place of --mac, --address and --nic")
    if nics and (mac or address):
        raise typer.BadParameter("say --mac and --address inside of --nic")
    if id is not None and not server:
        raise typer.BadParameter("--server is missing: where is the VM to run?")
    if file is not None:
        bodies = _read(file)
    else:
        one: dict[str, Any] = {"id": id, "server": server}
        if nics:
            from retinue.core.model import port_id_of

            ids = [port_id_of(id or "", number) for number in range(1, len(nics) + 1)]
            one["nics"] = [nic.parsed(text, port_id) for text, port_id in zip(nics, ids, strict=True)]
        else:
            if not from_pool:
                one |= {"mac": mac or nic.mac_for(id or ""), "addresses": address or []}
        if disks:
            one["disks"] = [disk.parsed(text) for text in disks]
        bodies = [one | left_in(restart=restart, memory_mib=memory)]
    controller = at.client()
    since = controller.last_event()
    registered = controller.ask(Route.REGISTER_VMS, body=bodies)
    if wait:
        ids = [vm["id"] for vm in registered["vms"]]
        _until_ready(controller, since, ids, READY_SECONDS if timeout is None else timeout)
        registered = {"vms": [controller.ask(Route.GET_VM, name) for name in ids]}
    if at.as_json:
        output.print_json(registered)
        return
    for vm in registered["vms"]:
        its_address = ", ".join(vm["holds"]) or "its address comes by DHCP once it has booted"
        location = f"at {vm['server']} on {vm['switch']}"
        macs = ", ".join(one["mac"] for one in vm["nics"])
        output.say(f"VM {vm['id']} is {vm['state']}: MAC {macs}, {location}; {its_address}")
        warn(vm)


@app.command("list")
@connected
def list_(at: Connection) -> None:
    """List all VMs.

    \b
    Example:
      retinue vm list
    """
    data = at.client().ask(Route.LIST_VMS)
    if at.as_json:
        output.print_json(data)
        return
    output.print_table(
        ("VM", "MAC", "IP", "SERVER", "SWITCH", ">PORT", "STATE", "MOVE", ">SPOOFED"),
        (
            (
                vm["id"],
                [one["mac"] for one in vm["nics"]],
                vm["holds"],
                vm["server"],
                vm["switch"],
                [one["port"] for one in vm["nics"]] if len(vm["nics"]) > 1 else vm["port"],
                vm["state"],
                vm["migration"],
                vm["spoof_attempts"] or None,
            )
            for vm in data["vms"]
        ),
        "There are no VMs; `retinue vm add ID --server SERVER` registers one.",
    )


@app.command()
@connected
def show(
    at: Connection,
    id: Annotated[str, typer.Argument(metavar="ID")],
) -> None:
    """Show a VM, its bindings, and what it waits for.

    \b
    Example:
      retinue vm show vm1
    """
    controller = at.client()
    vm = controller.ask(Route.GET_VM, id)
    if at.as_json:
        output.print_json(vm)
        return
    output.print_fields(
        (
            ("VM", vm["id"]),
            ("MAC", [one["mac"] for one in vm["nics"]]),
            ("IP", vm["holds"]),
            ("server", vm["server"]),
            ("also", vm["also"]),
            ("switch", vm["switch"]),
            ("port", vm["port"]),
            ("state", vm["state"]),
            ("why", vm["power_reason"]),
            ("restart", vm["restart"]),
            ("memory", f"{vm['memory_mib']} MiB" if vm.get("memory_mib") else ""),
            ("warnings", "; ".join(vm.get("warnings", []))),
            ("waits for", "; ".join(vm["missing"])),
            ("registered by", "its server, no manager" if vm["reported"] else "manager"),
            ("reported", _reported(vm)),
            ("migration", vm["migration"]),
            ("spoofing attempts", _spoofed(vm)),
            *profile_fields(vm.get("profile", {})),
        )
    )
    if len(vm["nics"]) > 1 or nic.is_set(vm["nics"][0]):
        output.say("")
        for one in vm["nics"]:
            output.say(f"NIC {one['id']}: {nic.words(one)}")
    if vm.get("disks"):
        output.say("")
        for number, one in enumerate(vm["disks"], 1):
            output.say(f"disk {number}: {disk.words(one)}")
    rows = controller.ask(Route.LIST_BINDINGS, vm=id)["bindings"]
    if rows:
        output.say("")
        binding.print_bindings(rows, wide=False)


def _spoofed(vm: dict[str, Any]) -> str:
    return f"{vm['spoof_attempts']}: retinue binding spoofing --vm {vm['id']}" if vm["spoof_attempts"] else ""


def _reported(vm: dict[str, Any]) -> str:
    addresses = ", ".join(vm.get("reported_addresses", []))
    return addresses and f"{addresses}: not confirmed (retinue vm confirm {vm['id']})"


@app.command()
@connected
def remove(
    at: Connection,
    id: Annotated[str, typer.Argument(metavar="ID")],
) -> None:
    """Take a VM away: its bindings and flows are deleted.

    \b
    Example:
      retinue vm remove vm1
    """
    data = at.client().ask(Route.REMOVE_VM, id)
    if at.as_json:
        output.print_json(data)
    else:
        output.say(f"VM {data['removed']} is removed")


Id = Annotated[str, typer.Argument(metavar="ID", help="The VM's name.")]
Seconds = Annotated[
    float | None,
    typer.Option(metavar="N", min=0, help="How long the guest may take to shut down. Left out: a minute."),
]
Wait = Annotated[bool, typer.Option("--wait", help="Return when it is so.")]


@app.command()
@connected
def start(at: Connection, id: Id, wait: Wait = False, timeout: options.Timeout = READY_SECONDS) -> None:
    """Start a VM that is off, or has crashed; it is started when its network is ready.

    \b
    Examples:
      retinue vm start vm1
      retinue vm start vm1 --wait
    """
    _power(at, Route.START_VM, id, None, "is to run", ("vm.started",) if wait else (), timeout)


@app.command()
@connected
def stop(
    at: Connection,
    id: Id,
    hard: Annotated[bool, typer.Option("--hard", help="Switch it off without asking the guest.")] = False,
    seconds: Seconds = None,
    wait: Wait = False,
    timeout: options.Timeout = None,
) -> None:
    """Switch a VM off, by its power button (ACPI) and, if the guest does not heed it in time, at once.

    It stays off, whatever is started again, until `retinue vm start`.

    \b
    Examples:
      retinue vm stop vm1
      retinue vm stop vm1 --seconds 20 --wait
      retinue vm stop vm1 --hard
    """
    limit = (seconds or READY_SECONDS) + READY_SECONDS if timeout is None else timeout
    body = {"hard": hard} | _given(seconds)
    _power(at, Route.STOP_VM, id, body, "is to be off", ("vm.stopped",) if wait else (), limit)


@app.command()
@connected
def reboot(at: Connection, id: Id, seconds: Seconds = None) -> None:
    """Have a VM shut down and start anew, at the same port; one that does not heed it is reset.

    \b
    Examples:
      retinue vm reboot vm1
      retinue vm reboot vm1 --seconds 20
    """
    _power(at, Route.REBOOT_VM, id, _given(seconds), "is rebooted")


@app.command()
@connected
def reset(at: Connection, id: Id) -> None:
    """Start a VM anew at once, as its reset button would.

    \b
    Example:
      retinue vm reset vm1
    """
    _power(at, Route.RESET_VM, id, None, "is reset")


def _given(seconds: float | None) -> dict[str, Any]:
    return {} if seconds is None else {"seconds": seconds}


def _power(
    at: Connection,
    route: Route,
    id: str,
    body: dict[str, Any] | None,
    what: str,
    until: tuple[str, ...] = (),
    timeout: float | None = None,
) -> None:
    """Order something, and wait for one of these events of the VM."""
    controller = at.client()
    since = controller.last_event()
    vm = controller.ask(route, id, body=body)
    if until and vm["state"] != {"vm.started": "running", "vm.stopped": "off"}[until[0]]:
        limit = READY_SECONDS if timeout is None else timeout
        _until_event(controller, since, id, until, limit)
        vm = controller.ask(Route.GET_VM, id)
    if at.as_json:
        output.print_json(vm)
    else:
        output.say(f"VM {id} is {vm['state']}" if until else f"VM {id} {what}; it is {vm['state']}")


def _until_event(controller: Client, since: int, id: str, types: tuple[str, ...], seconds: float) -> None:
    try:
        for event in controller.events(since, time.monotonic() + seconds):
            its = isinstance(event.get("vm"), dict) and event["vm"]["id"] == id
            if its and event["type"] in types:
                return
    except DeadlineError:
        vm = controller.ask(Route.GET_VM, id)
        waits = f", and waits for: {'; '.join(vm['missing'])}" if vm["missing"] else ""
        raise CliError(f"VM {id} is {vm['state']} after {seconds:g} s{waits}") from None


def _read(file: str) -> list[dict[str, Any]]:
    """The VMs of a file, each with a MAC address."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        value = json.loads(text)
    except OSError as error:
        raise CliError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise CliError(f"{file} is not JSON: {error}") from error
    if isinstance(value, dict) and list(value) == ["vms"]:
        value = value["vms"]
    if not isinstance(value, list) or not all(isinstance(vm, dict) for vm in value):
        raise CliError(f'{file}: expected a list of VMs, [{{"id": "vm1", "server": "server1"}}, ...]')
    return [vm if "nics" in vm else {"mac": nic.mac_for(str(vm.get("id", ""))), **vm} for vm in value]


def _until_ready(controller: Client, since: int, ids: list[str], seconds: float) -> None:
    """Return when all these VMs may start; CliError says what is missing if that is not in time."""
    from retinue.protocol.events import EventType
    from retinue.protocol.vms import VMState

    waiting = {vm for vm in ids if controller.ask(Route.GET_VM, vm)["state"] == VMState.REGISTERED}
    if not waiting:
        return
    try:
        for event in controller.events(since, time.monotonic() + seconds):
            vm = event["vm"]["id"] if isinstance(event.get("vm"), dict) else None
            if event["type"] == EventType.VM_REMOVED and vm in waiting:
                raise CliError(f"VM {vm} was removed while it was waited for")
            if event["type"] in (EventType.VM_READY, EventType.VM_STARTED):
                waiting.discard(vm)
            if not waiting:
                return
    except DeadlineError:
        first = sorted(waiting)[0]
        missing = "; ".join(controller.ask(Route.GET_VM, first)["missing"]) or "nothing is missing any more"
        others = f" (and {len(waiting) - 1} more)" if len(waiting) > 1 else ""
        raise CliError(f"VM {first}{others} is not ready after {seconds:g} s: {missing}") from None
