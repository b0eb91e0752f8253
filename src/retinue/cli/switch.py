"""`retinue switch`: which there are; are they connected, and do they hold what they should?"""

from enum import StrEnum
from typing import Annotated, Any

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.cli.errors import CliError
from retinue.cli.request_bodies import left_in
from retinue.cli.vnet import show
from retinue.core.model import Role
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


class Places(StrEnum):
    """Where servers at a leaf are said to be."""

    DETECTED = "detected"
    GIVEN = "given"


Dpid = Annotated[str | None, typer.Option(metavar="DPID", help="Its datapath id, hexadecimal.")]
Uplinks = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PORT", help="Of an edge: its port to a leaf; named again: a further one, to another leaf."
    ),
]
PlacesOf = Annotated[
    Places | None, typer.Option(metavar="HOW", help="Of a leaf: servers there are detected, or all given.")
]
Vdp = Annotated[
    bool | None, typer.Option("--vdp/--no-vdp", help="Of an edge: its leaf says its gateway group, by LLDP.")
]
Group = Annotated[
    str | None, typer.Option(metavar="GROUP", help='Of a leaf: the gateway group that it says; "none": none.')
]


@app.command()
@connected
def add(
    at: Connection,
    id: str,
    role: Annotated[Role, typer.Option(metavar="ROLE", help="edge, leaf, spine or core.")],
    dpid: Annotated[str, typer.Option(metavar="DPID", help="Its datapath id, hexadecimal.")],
    uplink: Uplinks = None,
    places: PlacesOf = None,
    tunnel: Annotated[
        str | None, typer.Option(metavar="PORT", help="Of a leaf joined by VXLAN: its port to the others.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="IP", help="... and its address on the network between them.")
    ] = None,
    vdp: Vdp = None,
    gateway_group: Group = None,
) -> None:
    """Add a switch; returns when the others know of it. Point it at the controller, and it is programmed.

    Links to a leaf, spine or core are added by `retinue link add`, and are used when both ends are in place.

    \b
    Examples:
      retinue switch add spine3 --role spine --dpid 53
      retinue switch add edge9 --role edge --dpid 39 --uplink eth0
    """
    said = left_in(places=places, tunnel=tunnel, endpoint=endpoint, vdp=vdp, **_of(uplink, gateway_group))
    added = at.client().ask(Route.ADD_SWITCHES, body={"id": id, "role": role, "dpid": dpid, **said})
    show(at, added, f"switch {id} is there; `retinue switch list` shows when it has connected")


@app.command("set")
@connected
def set_(
    at: Connection,
    id: str,
    dpid: Dpid = None,
    uplink: Uplinks = None,
    places: PlacesOf = None,
    vdp: Vdp = None,
    gateway_group: Group = None,
) -> None:
    """Change what is said of a switch; what is left out stays, and what it is for.

    \b
    Examples:
      retinue switch set leaf2 --places given
      retinue switch set spine3 --dpid 63
    """
    controller = at.client()
    rows: list[dict[str, Any]] = controller.ask(Route.LIST_SWITCHES)["switches"]
    known = next((row for row in rows if row["id"] == id), None)
    if known is None:
        raise CliError(f"there is no switch {id}; `retinue switch list` shows those there are")
    names = ("dpid", "uplink", "standby", "places", "tunnel", "endpoint", "vdp", "gateway_group")
    said = left_in(dpid=dpid, places=places, vdp=vdp, **_of(uplink, gateway_group))
    changed = controller.ask(Route.SET_SWITCH, id, body={**{name: known[name] for name in names}, **said})
    show(at, changed, f"switch {id} is changed")


@app.command()
@connected
def remove(at: Connection, id: str) -> None:
    """Remove a switch to which no link leads, and at which no server is. What it holds stays on it.

    \b
    Example:
      retinue switch remove spine3
    """
    show(at, at.client().ask(Route.REMOVE_SWITCH, id), f"switch {id} is removed")


def _of(uplinks: list[str] | None, group: str | None) -> dict[str, Any]:
    return {
        "uplink": uplinks[0] if uplinks else None,
        "standby": uplinks[1:] if uplinks else None,
        "gateway_group": "" if group == "none" else group,
    }


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
