"""`retinue binding`: the snooping table, and the spoofing attempts seen."""

from typing import Annotated, Any

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.protocol.routes import Route

app = options.group("Bindings of addresses to VMs and ports, and spoofing attempts.")


@app.command("list")
@connected
def list_(
    at: Connection,
    vm: Annotated[str | None, typer.Option(metavar="ID", help="Only this VM's.")] = None,
    wide: Annotated[bool, typer.Option("--wide", help="All columns.")] = False,
) -> None:
    """List the bindings.

    STATE: active; standby (the other end of a migration); installing (not yet confirmed by every switch).

    \b
    Examples:
      retinue binding list
      retinue binding list --vm vm1 --wide
    """
    data = at.client().ask(Route.LIST_BINDINGS, vm=vm)
    if at.as_json:
        output.print_json(data)
        return
    print_bindings(data["bindings"], wide)
    if data["spoof_attempts"]:
        output.say("")
        which = "" if vm is None else f" --vm {vm}"
        output.say(f"Spoofing attempts: {data['spoof_attempts']}; see `retinue binding spoofing{which}`")


@app.command()
@connected
def fcoe(
    at: Connection,
    vm: Annotated[str | None, typer.Option(metavar="ID", help="Only this VM's.")] = None,
) -> None:
    """List the ports of Fibre Channel over Ethernet (FCoE) that NICs are logged in with.

    \b
    Example:
      retinue binding fcoe
    """
    data = at.client().ask(Route.LIST_FC_LOGINS, vm=vm)
    if at.as_json:
        output.print_json(data)
        return
    output.print_table(
        ("MAC", "FC ID", "VM", "NIC", "FORWARDER", "SWITCH", ">PORT"),
        (
            (one["mac"], one["fc_id"], one["vm"], one["nic"], one["forwarder"], one["switch"], one["port"])
            for one in data["logins"]
        ),
        "Nobody is logged in.",
    )


@app.command()
@connected
def spoofing(
    at: Connection,
    vm: Annotated[str | None, typer.Option(metavar="ID", help="Only this VM's, each by itself.")] = None,
) -> None:
    """List who has forged frames: the ports, or of one VM what each frame claimed. All of them were dropped.

    `retinue trace --forgery ID` says why one was, and what would have made it pass.

    \b
    Examples:
      retinue binding spoofing
      retinue binding spoofing --vm vm1
    """
    data = at.client().ask(Route.LIST_SPOOF_ATTEMPTS, vm=vm)
    if at.as_json:
        output.print_json(data)
    elif vm is not None:
        print_spoof_attempts(data["spoof_attempts"])
        kept = sum(row["count"] for row in data["spoof_attempts"])
        if (more := sum(port["count"] for port in data["ports"]) - kept) > 0:
            output.say(f"and {more} more, of claims that were not seen for longer")
    else:
        print_ports(data["ports"])
        if data["dropped_frames"]:
            counts = ", ".join(f"{switch} {count}" for switch, count in data["dropped_frames"].items())
            output.say("")
            output.say(f"Spoofed frames dropped: {counts}")


def print_bindings(rows: list[dict[str, Any]], wide: bool) -> None:
    """`wide` adds VRF, VLAN, the port's state and trust, and who made the binding."""
    columns = ["VM", "MAC", "IP", "KIND", ">LEASE", "SWITCH", ">PORT", "STATE"]
    more = ["VRF", ">VLAN", "LINK", "TRUST", "ORIGIN"] if wide else []
    output.print_table(
        columns + more,
        (
            [row["vm"], row["mac"], row["ip"], row["kind"], output.left(row["lease_end"])]
            + [row["switch"], row["port"], _state(row)]
            + ([row["vrf"], row["vlan"], row["port_status"], row["trust"], row["origin"]] if wide else [])
            for row in rows
        ),
        "There are no bindings.",
    )


def print_ports(rows: list[dict[str, Any]]) -> None:
    """The one with most attempts first."""
    output.print_table(
        ("VM", "SWITCH", ">PORT", ">COUNT", "KINDS", "FIRST", "LAST"),
        (
            (
                row["vm"],
                row["switch"],
                row["port"],
                row["count"],
                ", ".join(f"{kind} {count}" for kind, count in row["kinds"].items()),
                output.ago(row["first"]),
                output.ago(row["last"]),
            )
            for row in sorted(rows, key=lambda row: -row["count"])
        ),
        "There are no spoofing attempts.",
    )


def print_spoof_attempts(rows: list[dict[str, Any]]) -> None:
    output.print_table(
        ("KIND", "VM", "SWITCH", ">PORT", "CLAIMED MAC", "CLAIMED IP", ">COUNT", "LAST", "ID"),
        (
            (
                row["kind"],
                row["vm"],
                row["switch"],
                row["port"],
                row["claimed_mac"],
                row["claimed_ip"],
                row["count"],
                output.ago(row["last"]),
                row.get("id", ""),
            )
            for row in rows
        ),
        "There are no spoofing attempts.",
    )


def _state(row: dict[str, Any]) -> str:
    if not row["active"]:
        return "standby"
    return "active" if row["confirmed"] else "installing"
