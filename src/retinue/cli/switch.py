"""`retinue switch`: are the switches connected, and do they hold what they should?"""

from typing import Annotated, Any

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.protocol.errors import RejectedError
from retinue.protocol.routes import Route

app = options.group("Switches: are they connected, and in order?")


@app.command("list")
@connected
def list_(at: Connection) -> None:
    """List the switches. PENDING are flow changes that the switch has not confirmed yet.

    OPENFLOW is the version spoken with it. With 1.3 a change is made step by step, not at one instant.

    \b
    Example:
      retinue switch list
    """
    data = at.client().ask(Route.LIST_SWITCHES)
    if at.as_json:
        output.print_json(data)
        return
    output.print_table(
        ("SWITCH", "ROLE", "DPID", "SERVER", "CONNECTED", "OPENFLOW", "PEER", ">PORTS", ">FLOWS", ">PENDING"),
        (
            (
                row["id"],
                row["role"],
                row["dpid"],
                row["server"],
                row["connected"],
                row["openflow"],
                row["peer"],
                len(row["ports"]),
                row["flows"],
                row["pending"],
            )
            for row in data["switches"]
        ),
        "There are no switches.",
    )


@app.command()
@connected
def links(at: Connection) -> None:
    """List the links between switches, and whether frames get through: probes tell, several times a second.

    STATE: well; lost (frames vanish, though both ends have a carrier); returning (none vanish any more: it is
    used again when that has been so for a while); no carrier; unknown (not probed: a switch is away or slow).
    USED says whether the lower switch sends up by it.

    \b
    Example:
      retinue switch links
    """
    data = at.client().ask(Route.LIST_LINKS)
    if at.as_json:
        output.print_json(data)
        return
    output.print_table(
        ("LOWER", "UPPER", "STATE", "USED", "REASON"),
        ((row["lower"], row["upper"], row["state"], row["carries"], row["reason"]) for row in data["links"]),
        "There are no links between switches.",
    )


@app.command("audit")
@connected
def audit(
    at: Connection,
    switch: Annotated[
        str | None, typer.Argument(metavar="SWITCH", help="Left out: all that are connected, one by one.")
    ] = None,
) -> None:
    """Read what switches hold, now, and mend what differs from what they should.

    STATE: in order; mended; pending (the switch has not confirmed it yet). A switch is not read while a
    migration concerns it. The controller does this by itself, too: audit_seconds in its configuration.

    \b
    Examples:
      retinue switch audit edge1
      retinue switch audit
    """
    api = at.client()
    names = (
        [row["id"] for row in api.ask(Route.LIST_SWITCHES)["switches"] if row["connected"]]
        if switch is None
        else [switch]
    )
    found, rejected = [], []
    for name in names:
        try:
            found.append(api.ask(Route.AUDIT_SWITCH, name))
        except RejectedError as error:
            rejected.append(str(error))
    if at.as_json:
        output.print_json({"audits": found})
    elif found or not rejected:
        output.print_table(
            ("SWITCH", ">ENTRIES", ">MISSING", ">CHANGED", ">FOREIGN", "STATE"),
            (
                (row["switch"], row["entries"], row["missing"], row["changed"], row["foreign"], _order(row))
                for row in found
            ),
            "No switch is connected.",
        )
    for reason in rejected:
        output.say(f"retinue: {reason}", err=True)
    if rejected:
        raise typer.Exit(1)


@app.command()
@connected
def table(at: Connection, switch: str) -> None:
    """Show the MAC table of an edge switch: MACs of the VMs that are delivered there, each with its port, and
    the gateway's at the uplink, which every other MAC becomes.

    \b
    Example:
      retinue switch table edge1
    """
    data = at.client().ask(Route.GET_MAC_TABLE, switch)
    if at.as_json:
        output.print_json(data)
        return
    output.print_table(
        ("MAC", ">PORT", "NAME", "VM", "CONFIRMED"),
        ((row["mac"], row["port"], row["name"], _whose(row), row["confirmed"]) for row in data["rows"]),
        "It has no row: nobody is there, and it has no uplink.",
    )


def _whose(row: dict[str, Any]) -> str:
    return "(any other)" if row["shared"] else str(row["vm"])


def _order(row: dict[str, Any]) -> str:
    if not row["missing"] + row["changed"] + row["foreign"]:
        return "in order"
    return "mended" if row["mended"] else "pending"
