"""`retinue vnet`: what users call a network. Its subnets: `retinue subnet`."""

from typing import Annotated, Any

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.cli.errors import CliError
from retinue.cli.request_bodies import left_in
from retinue.core.model import Flood
from retinue.protocol.blocking import Client
from retinue.protocol.routes import Route

app = options.group("Vnets: networks of VMs, each with its subnets.")

Vlan = Annotated[int | None, typer.Option(metavar="VLAN", help="Its VLAN, 1 to 4094; 0: none.")]
Vrf = Annotated[
    str | None, typer.Option(metavar="VRF", help="The routing domain it is in. Left out: default.")
]
Isolated = Annotated[
    bool | None,
    typer.Option(
        "--isolated/--routed",
        help="Alone in a VRF: nothing is routed to another vnet, and frames have its VLAN between switches.",
    ),
]
Mtu = Annotated[
    int | None,
    typer.Option(metavar="BYTES", help="Bytes of an IP packet, for the NICs in it; 0: as switches."),
]

Flooding = Annotated[
    Flood | None,
    typer.Option(metavar="HOW", help="Broadcast and multicast in it: dropped (the default) or controlled."),
]


@app.command()
@connected
def add(
    at: Connection,
    id: str,
    vlan: Vlan = None,
    mtu: Mtu = None,
    vrf: Vrf = None,
    flood: Flooding = None,
    isolated: Isolated = None,
) -> None:
    """Add a vnet.

    \b
    Example:
      retinue vnet add shop --vlan 42
      retinue vnet add bank --vlan 50 --isolated
      retinue vnet add cluster --vlan 43 --flood controlled
    """
    said = left_in(vlan=vlan, mtu=mtu, vrf=vrf, flood=flood, isolated=isolated)
    added = at.client().ask(Route.ADD_VNETS, body={"id": id, **said})
    show(at, added, f"vnet {id} is there; `retinue subnet add ID --vnet {id}` gives it a subnet")


@app.command("set")
@connected
def set_(
    at: Connection,
    id: str,
    vlan: Vlan = None,
    mtu: Mtu = None,
    vrf: Vrf = None,
    flood: Flooding = None,
    isolated: Isolated = None,
) -> None:
    """Change what is said of a vnet; what is left out stays.

    \b
    Example:
      retinue vnet set shop --mtu 1400
      retinue vnet set shop --flood controlled
    """
    controller = at.client()
    known = row_of(controller, Route.LIST_VNETS, "vnet", id)
    kept = {name: known[name] for name in ("vlan", "mtu", "vrf", "flood")}
    said = left_in(vlan=vlan, mtu=mtu, vrf=vrf, flood=flood, isolated=isolated)
    if known.get("isolated"):
        del kept["vrf"]  # Its own.
        kept["isolated"] = True
    changed = controller.ask(Route.SET_VNET, id, body={**kept, **said})
    show(at, changed, f"vnet {id} is changed")


@app.command("list")
@connected
def list_(at: Connection) -> None:
    """List the vnets with their subnets, and what was flooded in each.

    FLOODED counts the frames that its NICs have sent to all since the controller's start, DROPPED those of
    them that were more than one NIC may send.

    \b
    Example:
      retinue vnet list
    """
    data = at.client().ask(Route.LIST_VNETS)
    if at.as_json:
        output.print_json(data)
        return
    output.print_table(
        ("VNET", "VRF", ">VLAN", ">MTU", "FLOOD", ">FLOODED", ">DROPPED", "SUBNETS"),
        (
            (
                *(row["id"], row["vrf"], row["vlan"] or None, row["mtu"] or None, row["flood"]),
                *(row["flooded"][name] or None for name in ("frames", "dropped")),
                row["subnets"],
            )
            for row in data["vnets"]
        ),
        "There are no vnets.",
    )


@app.command()
@connected
def remove(at: Connection, id: str) -> None:
    """Remove a vnet that has no subnets.

    \b
    Example:
      retinue vnet remove shop
    """
    show(at, at.client().ask(Route.REMOVE_VNET, id), f"vnet {id} is removed")


def row_of(controller: Client, route: Route, kind: str, id: str) -> dict[str, Any]:
    """What the controller shows of one vnet or subnet. Raises CliError when there is none."""
    rows: list[dict[str, Any]] = controller.ask(route)[f"{kind}s"]
    for row in rows:
        if row["id"] == id:
            return row
    raise CliError(f"there is no {kind} {id}; `retinue {kind} list` shows those there are")


def show(at: Connection, answer: Any, done: str) -> None:
    """What the controller answers as JSON, or what is done in words."""
    if at.as_json:
        output.print_json(answer)
    else:
        output.say(done)
