"""`retinue binding`: the snooping table, and the forgeries seen."""

from typing import Annotated, Any

import typer

from retinue.cli import options, reach, tables

app = options.group("Bindings of addresses to VMs and ports, and forgeries.")


@app.command("list")
def list_(
    vm: Annotated[str | None, typer.Option(metavar="ID", help="Only this VM's.")] = None,
    wide: Annotated[bool, typer.Option("--wide", help="All columns.")] = False,
    url: options.Url = None,
    lab: options.Lab = None,
    as_json: options.Json = False,
) -> None:
    """List the bindings, and below them the forgeries seen.

    STATE: active; standby (the other end of a move); installing (not yet confirmed by every switch).

    \b
    Examples:
      retinue binding list
      retinue binding list --vm vm1 --wide
    """
    data = reach.controller(url, lab).get("bindings", vm=vm)
    if as_json:
        tables.print_json(data)
        return
    print_bindings(data["bindings"], wide)
    seen = [row for row in data["forgeries"] if vm is None or row["vm"] == vm]
    if seen:
        typer.echo("\nForgeries")
        print_forgeries(seen)
    dropped = data["dropped_frames"] if vm is None else {}
    if dropped:
        counts = ", ".join(f"{switch} {count}" for switch, count in dropped.items())
        typer.echo(f"\nForged frames dropped: {counts}")


def print_bindings(rows: list[dict[str, Any]], wide: bool) -> None:
    """`wide` adds VLAN, the port's state and trust, and who made the binding."""
    columns = ["VM", "MAC", "IP", "KIND", ">LEASE", "SWITCH", ">PORT", "STATE"]
    more = [">VLAN", "LINK", "TRUST", "ORIGIN"] if wide else []
    tables.print_table(
        columns + more,
        (
            [row["vm"], row["mac"], row["ip"], row["kind"], tables.left(row["lease_end"])]
            + [row["switch"], row["port"], _state(row)]
            + ([row["vlan"], row["port_status"], row["trust"], row["origin"]] if wide else [])
            for row in rows
        ),
        "There are no bindings.",
    )


def print_forgeries(rows: list[dict[str, Any]]) -> None:
    tables.print_table(
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
                tables.ago(row["last"]),
            )
            for row in rows
        ),
        "There are no forgeries.",
    )


def _state(row: dict[str, Any]) -> str:
    if not row["active"]:
        return "standby"
    return "active" if row["confirmed"] else "installing"
