"""`retinue vrf`: routing domains, each with addresses of its own. Their vnets: `retinue vnet`."""

from typing import Annotated, Any

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.cli.errors import CliError
from retinue.cli.request_bodies import left_in
from retinue.cli.vnet import show
from retinue.protocol.routes import Route

app = options.group("VRFs: routing domains, in which addresses may be the same; nothing passes between them.")

Tag = Annotated[
    int | None,
    typer.Option(metavar="TAG", help="Its VLAN tag on the fabric's links, 1 to 4094. Left out: a free one."),
]

Router = Annotated[
    str, typer.Option("--router", metavar="SERVER", help="A server with the service `router`.")
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
    """List the VRFs with their vnets, and the routers that are their ways out.

    \b
    Example:
      retinue vrf list
    """
    data = at.client().ask(Route.LIST_VRFS)
    if at.as_json:
        output.print_json(data)
        return
    output.print_table(
        ("VRF", ">TAG", "VNETS", "ROUTERS", ">ADDRESSES"),
        ((row["id"], row["tag"] or None, row["vnets"], row["routers"], row["used"]) for row in data["vrfs"]),
        "There are no VRFs.",
    )


@app.command("add-router")
@connected
def add_router(
    at: Connection,
    id: str,
    router: Router,
    vlan: Annotated[int, typer.Option(metavar="VLAN", help="The tag that the VRF has at the router's port.")],
    route: Annotated[
        list[str], typer.Option(metavar="PREFIX", help="Reached through it; may be given several times.")
    ],
    address: Annotated[str, typer.Option(metavar="IP", help="The router's own address in the VRF.")] = "",
    port: Annotated[
        str,
        typer.Option(
            "--at", metavar="SWITCH:PORT", help="Its port. Left out: as given, or where it was found."
        ),
    ] = "",
) -> None:
    """Give a VRF a way out: a router that is known, by a VLAN tag at its port. What is said replaces what was
    said of this router and VRF before.

    \b
    Example:
      retinue vrf add-router red --router border1 --vlan 100 --route 0.0.0.0/0 --address 198.51.100.1
    """
    new = {"vrf": id, "vlan": vlan, "routes": route, "address": address}
    _set_router(at, id, router, [new], f"VRF {id} goes out by {router}, VLAN {vlan}", port)


@app.command("remove-router")
@connected
def remove_router(at: Connection, id: str, router: Router) -> None:
    """Take a VRF's way out by this router away.

    \b
    Example:
      retinue vrf remove-router red --router border1
    """
    _set_router(at, id, router, [], f"VRF {id} does not go out by {router} any more")


def _set_router(
    at: Connection, id: str, router: str, new: list[dict[str, Any]], done: str, port: str = ""
) -> None:
    """The router is registered as it is, but for its subinterface in this VRF."""
    client = at.client()
    row = next((one for one in client.ask(Route.LIST_SERVERS)["servers"] if one["id"] == router), None)
    if row is None:
        raise CliError(f"there is no server {router}; `retinue server list` shows those there are")
    fields = ("vrf", "vlan", "routes", "address")
    others = [{name: one[name] or "" for name in fields} for one in row["subinterfaces"] if one["vrf"] != id]
    others = [one | {"routes": one["routes"] or []} for one in others]
    if not new and len(others) == len(row["subinterfaces"]):
        raise CliError(f"VRF {id} does not go out by {router}")
    kept = ("id", "mac", "edge", "services", "gateway_group", "hosts")
    place = port or row["given_at"] or (row["at"] if new else "")
    body = {name: row[name] for name in kept} | {"address": row["address"] or "", "at": place}
    show(at, client.ask(Route.REGISTER_SERVERS, body=body | {"subinterfaces": [*others, *new]}), done)


@app.command()
@connected
def remove(at: Connection, id: str) -> None:
    """Remove a VRF that has no vnets and no router.

    \b
    Example:
      retinue vrf remove red
    """
    show(at, at.client().ask(Route.REMOVE_VRF, id), f"VRF {id} is removed")
