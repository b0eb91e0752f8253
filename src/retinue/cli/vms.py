"""`retinue vm`: VMs as the manager books them."""

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from retinue.cli import bindings, options, reach, tables
from retinue.cli.client import Client, DeadlineError
from retinue.cli.errors import CliError

app = options.group("Virtual machines: book, show and remove them.")

READY_SECONDS = 60.0


@app.command()
def add(
    id: Annotated[str | None, typer.Argument(metavar="ID", help="The VM's name.")] = None,
    server: Annotated[str | None, typer.Option(metavar="SERVER", help="Where it is to run.")] = None,
    mac: Annotated[
        str | None, typer.Option(metavar="MAC", help="Its MAC address. Left out: one made from the name.")
    ] = None,
    address: Annotated[
        list[str] | None,
        typer.Option(metavar="IP", help="A static address; may be repeated. Left out: it asks by DHCP."),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="FILE", help='Book many: [{"id", "server", "mac", "addresses"}, ...]. -: stdin.'
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it is ready to start.")] = False,
    timeout: options.Timeout = READY_SECONDS,
    url: options.Url = None,
    lab: options.Lab = None,
    as_json: options.Json = False,
) -> None:
    """Book a VM, or many at once: all of them or, on a mistake, none.

    \b
    Examples:
      retinue vm add vm1 --server server1 --wait
      retinue vm add web --server server2 --mac 52:54:00:00:00:01 --address 10.1.0.50
      retinue vm add --from vms.json
    """
    if (id is None) == (file is None):
        raise typer.BadParameter("give the VM's name, or --from FILE")
    if file is not None and (server or mac or address):
        raise typer.BadParameter("--server, --mac and --address are in the file when --from is given")
    if id is not None and not server:
        raise typer.BadParameter("--server is missing: where is the VM to run?")
    controller = reach.controller(url, lab)
    if file is not None:
        bodies = _read(file)
    else:
        bodies = [{"id": id, "mac": mac or mac_for(id or ""), "server": server, "addresses": address or []}]
    since = controller.last_event()
    booked = controller.post("vms", body=bodies)
    if wait:
        ids = [vm["id"] for vm in booked["vms"]]
        _until_ready(controller, since, ids, READY_SECONDS if timeout is None else timeout)
        booked = {"vms": [controller.get("vms", name) for name in ids]}
    if as_json:
        tables.print_json(booked)
        return
    for vm in booked["vms"]:
        its_address = ", ".join(vm["holds"]) or "its address comes by DHCP once it has booted"
        place = f"at {vm['server']} on {vm['switch']}"
        typer.echo(f"VM {vm['id']} is {vm['state']}: MAC {vm['mac']}, {place}; {its_address}")


@app.command("list")
def list_(url: options.Url = None, lab: options.Lab = None, as_json: options.Json = False) -> None:
    """List all VMs.

    \b
    Example:
      retinue vm list
    """
    data = reach.controller(url, lab).get("vms")
    if as_json:
        tables.print_json(data)
        return
    tables.print_table(
        ("VM", "MAC", "IP", "SERVER", "SWITCH", ">PORT", "STATE", "MOVE", ">FORGED"),
        (
            (
                vm["id"],
                vm["mac"],
                vm["holds"],
                vm["server"],
                vm["switch"],
                vm["port"],
                vm["state"],
                vm["move"],
                vm["forgeries"] or None,
            )
            for vm in data["vms"]
        ),
        "There are no VMs; `retinue vm add ID --server SERVER` books one.",
    )


@app.command()
def show(
    id: Annotated[str, typer.Argument(metavar="ID")],
    url: options.Url = None,
    lab: options.Lab = None,
    as_json: options.Json = False,
) -> None:
    """Show a VM, its bindings, and what it waits for.

    \b
    Example:
      retinue vm show vm1
    """
    controller = reach.controller(url, lab)
    vm = controller.get("vms", id)
    if as_json:
        tables.print_json(vm)
        return
    tables.print_fields(
        (
            ("VM", vm["id"]),
            ("MAC", vm["mac"]),
            ("IP", vm["holds"]),
            ("server", vm["server"]),
            ("also", vm["also"]),
            ("switch", vm["switch"]),
            ("port", vm["port"]),
            ("state", vm["state"]),
            ("waits for", "; ".join(vm["missing"])),
            ("booked by", "its port, no manager" if vm["reported"] else "manager"),
            ("move", vm["move"]),
            ("forgeries", vm["forgeries"] or ""),
        )
    )
    rows = controller.get("bindings", vm=id)["bindings"]
    if rows:
        typer.echo()
        bindings.print_bindings(rows, wide=False)


@app.command()
def remove(
    id: Annotated[str, typer.Argument(metavar="ID")],
    url: options.Url = None,
    lab: options.Lab = None,
    as_json: options.Json = False,
) -> None:
    """Take a VM away: its bindings and flows are deleted.

    \b
    Example:
      retinue vm remove vm1
    """
    data = reach.controller(url, lab).delete("vms", id)
    if as_json:
        tables.print_json(data)
    else:
        typer.echo(f"VM {data['removed']} is removed")


def mac_for(id: str) -> str:
    """A MAC address that is always the same for the same id, from the locally administered 52:54:00 block."""
    return "52:54:00:" + hashlib.sha256(id.encode()).digest()[:3].hex(":")


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
    return [{"mac": mac_for(str(vm.get("id", ""))), **vm} for vm in value]


def _until_ready(controller: Client, since: int, ids: list[str], seconds: float) -> None:
    """Return when all these VMs may start; CliError says what is missing if that is not in time."""
    waiting = {vm for vm in ids if controller.get("vms", vm)["state"] == "booked"}
    if not waiting:
        return
    try:
        for event in controller.events(since, time.monotonic() + seconds):
            vm = event["vm"]["id"] if isinstance(event.get("vm"), dict) else None
            if event["type"] == "vm.removed" and vm in waiting:
                raise CliError(f"VM {vm} was removed while it was waited for")
            if event["type"] in ("vm.ready", "vm.started"):
                waiting.discard(vm)
            if not waiting:
                return
    except DeadlineError:
        first = sorted(waiting)[0]
        missing = "; ".join(controller.get("vms", first)["missing"]) or "nothing is missing any more"
        others = f" (and {len(waiting) - 1} more)" if len(waiting) > 1 else ""
        raise CliError(f"VM {first}{others} is not ready after {seconds:g} s: {missing}") from None
