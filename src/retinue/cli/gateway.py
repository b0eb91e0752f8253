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
    """List the gateway's MACs: the fabric's own, and each group's.

    \b
    Example:
      retinue gateway list
    """
    data = at.client().ask(Route.LIST_GATEWAY_GROUPS)
    if at.as_json:
        output.print_json(data)
        return
    others = "all others"
    rest = "nobody" if any(row["default"] for row in data["groups"]) else others
    output.print_table(
        ("GROUP", "MAC", "SERVERS"),
        [
            ("", data["gateway_mac"], rest),
            *(
                (row["id"], row["mac"], [*row["servers"], *([others] if row["default"] else [])])
                for row in data["groups"]
            ),
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


@app.command("set")
@connected
def set_(
    at: Connection,
    id: str,
    default: bool = typer.Option(
        ..., "--default/--no-default", help="Whether servers that are in no group are in this one."
    ),
) -> None:
    """Put all servers that are in no group into this one, or take them out; nobody's packet is lost by it.

    One group at most is so: without it they have the fabric's own MAC.

    \b
    Example:
      retinue gateway set all --default
    """
    answer = at.client().ask(Route.SET_GATEWAY_GROUP, id, body={"default": default})
    show(at, answer, f"servers in no group are {'' if default else 'not '}in gateway group {id}")


@app.command()
@connected
def remove(at: Connection, id: str) -> None:
    """Remove a group that no server is in.

    \b
    Example:
      retinue gateway remove rack7
    """
    show(at, at.client().ask(Route.REMOVE_GATEWAY_GROUP, id), f"gateway group {id} is removed")
