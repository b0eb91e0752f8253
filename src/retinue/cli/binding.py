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
    """List the bindings, and below them the spoofing attempts seen.

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
    seen = [row for row in data["spoof_attempts"] if vm is None or row["vm"] == vm]
    if seen:
        output.say("")
        output.say("Spoofing attempts")
        print_spoof_attempts(seen)
    dropped = data["dropped_frames"] if vm is None else {}
    if dropped:
        counts = ", ".join(f"{switch} {count}" for switch, count in dropped.items())
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


def print_spoof_attempts(rows: list[dict[str, Any]]) -> None:
    output.print_table(
        ("KIND", "VM", "SWITCH", ">PORT", "CLAIMED MAC", "CLAIMED IP", ">COUNT", "LAST"),
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
            )
            for row in rows
        ),
        "There are no spoofing attempts.",
    )


def _state(row: dict[str, Any]) -> str:
    if not row["active"]:
        return "standby"
    return "active" if row["confirmed"] else "installing"
