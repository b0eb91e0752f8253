"""`retinue vrf`: routing domains, each with addresses of its own. Their vnets: `retinue vnet`."""

from typing import Annotated

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.cli.request_bodies import left_in
from retinue.cli.vnet import show
from retinue.protocol.routes import Route

app = options.group("VRFs: routing domains, in which addresses may be the same; nothing passes between them.")

Tag = Annotated[
    int | None,
    typer.Option(metavar="TAG", help="Its VLAN tag on the fabric's links, 1 to 4094. Left out: a free one."),
]


@app.command()
@connected
def add(at: Connection, id: str, tag: Tag = None) -> None:
    """Add a VRF; returns when the switches have it.

    \b
    Example:
      retinue vrf add red
    """
    added = at.client().ask(Route.ADD_VRFS, body={"id": id, **left_in(tag=tag)})
    show(at, added, f"VRF {id} is there; `retinue vnet add ID --vrf {id}` gives it a vnet")


@app.command("list")
@connected
def list_(at: Connection) -> None:
    """List the VRFs with their vnets.

    \b
    Example:
      retinue vrf list
    """
    data = at.client().ask(Route.LIST_VRFS)
    if at.as_json:
        output.print_json(data)
        return
    output.print_table(
        ("VRF", ">TAG", "VNETS", ">ADDRESSES"),
        ((row["id"], row["tag"] or None, row["vnets"], row["used"]) for row in data["vrfs"]),
        "There are no VRFs.",
    )


@app.command()
@connected
def remove(at: Connection, id: str) -> None:
    """Remove a VRF that has no vnets.

    \b
    Example:
      retinue vrf remove red
    """
    show(at, at.client().ask(Route.REMOVE_VRF, id), f"VRF {id} is removed")
