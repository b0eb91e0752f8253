"""`retinue server`, `retinue switch`, `retinue flow`: the network as the controller sees and wants it."""

import sys
from typing import Annotated, Any

import typer

from retinue.cli import options, reach, tables
from retinue.cli.client import ApiError

servers = options.group("Servers, and where they are attached.")
switches = options.group("Switches: are they connected, and in order?")
flows = options.group("Flow entries of the switches.")


@servers.command("list")
def list_servers(url: options.Url = None, lab: options.Lab = None, as_json: options.Json = False) -> None:
    """List the servers with the leaf port each is at.

    STATE: matched (detected, as given if it was given); given (not detected yet); missing; mismatch;
    unknown (detected, but not booked).

    \b
    Example:
      retinue server list
    """
    data = reach.controller(url, lab).get("servers")
    if as_json:
        tables.print_json(data)
        return
    tables.print_table(
        ("SERVER", "MAC", "IP", "EDGE", "SERVES", "AT", "STATE", "VMS"),
        (
            (
                row["id"],
                row["mac"],
                row.get("address"),
                row.get("edge"),
                row.get("services"),
                _place(row),
                row["state"],
                row.get("vms"),
            )
            for row in data["servers"]
        ),
        "There are no servers.",
    )


def _place(row: dict[str, Any]) -> str:
    at, given = row["at"] or row["detected_at"], row.get("given_at", "")
    return f"{row['detected_at']} (given: {given})" if row["state"] == "mismatch" else at


@switches.command("list")
def list_switches(url: options.Url = None, lab: options.Lab = None, as_json: options.Json = False) -> None:
    """List the switches. PENDING are flow changes that the switch has not confirmed yet.

    \b
    Example:
      retinue switch list
    """
    data = reach.controller(url, lab).get("switches")
    if as_json:
        tables.print_json(data)
        return
    tables.print_table(
        ("SWITCH", "ROLE", "DPID", "SERVER", "CONNECTED", "PEER", ">PORTS", ">FLOWS", ">PENDING"),
        (
            (
                row["id"],
                row["role"],
                row["dpid"],
                row["server"],
                row["connected"],
                row["peer"],
                len(row["ports"]),
                row["flows"],
                row["pending"],
            )
            for row in data["switches"]
        ),
        "There are no switches.",
    )


@switches.command("audit")
def audit_switches(
    switch: Annotated[
        str | None, typer.Argument(metavar="SWITCH", help="Left out: all that are connected, one by one.")
    ] = None,
    url: options.Url = None,
    lab: options.Lab = None,
    as_json: options.Json = False,
) -> None:
    """Read what switches hold, now, and mend what differs from what they should.

    STATE: in order; mended; pending (the switch has not confirmed it yet). A switch is not read while a move
    concerns it. The controller does this by itself, too: audit_seconds in its configuration.

    \b
    Examples:
      retinue switch audit edge1
      retinue switch audit
    """
    api = reach.controller(url, lab)
    names = (
        [row["id"] for row in api.get("switches")["switches"] if row["connected"]]
        if switch is None
        else [switch]
    )
    found, refused = [], []
    for name in names:
        try:
            found.append(api.post("switches", name, "audit"))
        except ApiError as error:
            refused.append(str(error))
    if as_json:
        tables.print_json({"audits": found})
    elif found or not refused:
        tables.print_table(
            ("SWITCH", ">ENTRIES", ">MISSING", ">CHANGED", ">FOREIGN", "STATE"),
            (
                (row["switch"], row["entries"], row["missing"], row["changed"], row["foreign"], _order(row))
                for row in found
            ),
            "No switch is connected.",
        )
    for reason in refused:
        typer.echo(f"retinue: {reason}", err=True)
    if refused:
        raise typer.Exit(1)


def _order(row: dict[str, Any]) -> str:
    if not row["missing"] + row["changed"] + row["foreign"]:
        return "in order"
    return "mended" if row["mended"] else "pending"


@flows.command("list")
def list_flows(
    switch: Annotated[str | None, typer.Option(metavar="SWITCH", help="Only this switch's.")] = None,
    vm: Annotated[
        str | None, typer.Option("--vm", metavar="VM", help="Only what is there for this VM.")
    ] = None,
    table: Annotated[
        str | None, typer.Option(metavar="TABLE", help="Only this table's, by number or name.")
    ] = None,
    url: options.Url = None,
    lab: options.Lab = None,
    as_json: options.Json = False,
) -> None:
    """List the flow entries the switches should hold, in the order they are looked at.

    STATE: confirmed by the switch, or installing. LEASE is the time left of an entry that ends by itself.

    \b
    Examples:
      retinue flow list --switch edge1
      retinue flow list --vm vm1
      retinue flow list --switch leaf1 --table route
    """
    number = None if table is None else table_number(table)
    data = reach.controller(url, lab).get("flows", switch=switch, vm=vm)
    found = [row for row in data["flows"] if number is None or row["table"] == number]
    if as_json:
        tables.print_json({"flows": found})
        return
    one = [] if switch is not None else ["SWITCH"]
    tables.print_table(
        [*one, "TABLE", ">PRIO", "MATCH", "ACTIONS", "REASON", ">LEASE", "STATE"],
        (
            [row["switch"]] * len(one)
            + [
                f"{row['table']} {row['table_name']}",
                row["priority"],
                _broken(row["match"]),
                _broken(row["actions"]),
            ]
            + [row["reason"], tables.left(row["expires_at"])]
            + ["confirmed" if row["confirmed"] else "installing"]
            for row in found
        ),
        "There are no such flows.",
    )


def _broken(text: str) -> str:
    """With spaces where a terminal may break the line; as it is, in the words of ovs-ofctl, for programs."""
    return text.replace(",", ", ") if sys.stdout.isatty() else text


def table_number(text: str) -> int:
    """ "30" or "deliver"; a table that is none is a usage error that names all."""
    from retinue.flows.pipeline import Table

    for table in Table:
        if text.upper() == table.name or text == str(int(table)):
            return int(table)
    known = ", ".join(f"{int(table)} {table.name}" for table in Table)
    raise typer.BadParameter(f"there is no table {text!r}; there are {known}")
