"""`retinue gateway`: the MACs by which VMs know their gateway, the fabric's own and those of groups."""

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.cli.vnet import show
from retinue.protocol.routes import Route

app = options.group("Groups of servers whose VMs know the gateway by a MAC of their own.")


@app.command("list")
@connected
def list_(at: Connection) -> None:
    """List the gateway's MACs: the one of all servers that are in no group, and each group's.

    \b
    Example:
      retinue gateway list
    """
    data = at.client().ask(Route.LIST_GATEWAY_GROUPS)
    if at.as_json:
        output.print_json(data)
        return
    output.print_table(
        ("GROUP", "MAC", "SERVERS"),
        [
            ("", data["gateway_mac"], "all others"),
            *((row["id"], row["mac"], row["servers"]) for row in data["groups"]),
        ],
        "",
    )


@app.command()
@connected
def add(at: Connection, id: str, mac: str = typer.Option(metavar="MAC", help="Nobody else's.")) -> None:
    """Add a group; returns when the switches take its MAC.

    A server is put into it by POST /v1/servers. Its VMs keep what they know: what they send to the MAC that
    they knew before is taken to the gateway as well.

    \b
    Example:
      retinue gateway add rack7 --mac 02:00:5e:00:07:01
    """
    added = at.client().ask(Route.ADD_GATEWAY_GROUPS, body={"id": id, "mac": mac})
    show(at, added, f"gateway group {id} is there: servers can be put into it")


@app.command()
@connected
def remove(at: Connection, id: str) -> None:
    """Remove a group that no server is in.

    \b
    Example:
      retinue gateway remove rack7
    """
    show(at, at.client().ask(Route.REMOVE_GATEWAY_GROUP, id), f"gateway group {id} is removed")
