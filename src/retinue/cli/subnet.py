"""`retinue subnet`: prefixes of VMs and servers, and their gateways."""

from typing import Annotated

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.cli.request_bodies import left_in
from retinue.cli.vnet import row_of, show
from retinue.protocol.routes import Route

app = options.group("Subnets: a prefix, its gateway and its vnet.")

Prefix = Annotated[str | None, typer.Option(metavar="PREFIX", help="Such as 10.2.0.0/24.")]
Gateway = Annotated[
    str | None, typer.Option(metavar="IP", help="Its gateway, which every switch answers for.")
]
Vnet = Annotated[str | None, typer.Option(metavar="VNET", help="The vnet it is in. Left out: default.")]
Dhcp = Annotated[
    list[str] | None,
    typer.Option(metavar="IP", help="A DHCP server elsewhere, to which it is relayed; may be repeated."),
]
Slaac = Annotated[
    bool | None, typer.Option("--slaac/--no-slaac", help="Of IPv6: VMs may make their own addresses.")
]
Dhcp6 = Annotated[
    bool | None, typer.Option("--dhcp6/--no-dhcp6", help="Of IPv6: VMs get addresses by DHCPv6.")
]


@app.command()
@connected
def add(
    at: Connection,
    id: str,
    prefix: Annotated[str, typer.Option(metavar="PREFIX", help="Such as 10.2.0.0/24.")],
    gateway: Annotated[str, typer.Option(metavar="IP", help="Its gateway, which every switch answers for.")],
    vnet: Vnet = None,
    dhcp: Dhcp = None,
    slaac: Slaac = None,
    dhcp6: Dhcp6 = None,
) -> None:
    """Add a subnet; returns when the switches have it.

    \b
    Example:
      retinue subnet add green --prefix 10.2.0.0/24 --gateway 10.2.0.254 --vnet shop
    """
    body = {
        "id": id,
        "prefix": prefix,
        "gateway": gateway,
        **left_in(vnet=vnet, dhcp=dhcp or None, slaac=slaac, dhcp6=dhcp6),
    }
    show(at, at.client().ask(Route.ADD_SUBNETS, body=body), f"subnet {id} is there: {prefix} by {gateway}")


@app.command("set")
@connected
def set_(
    at: Connection,
    id: str,
    prefix: Prefix = None,
    gateway: Gateway = None,
    vnet: Vnet = None,
    dhcp: Dhcp = None,
    slaac: Slaac = None,
    dhcp6: Dhcp6 = None,
) -> None:
    """Change a subnet; what is left out stays. What is used of it must stay inside.

    \b
    Example:
      retinue subnet set green --prefix 10.2.0.0/23
    """
    controller = at.client()
    known = row_of(controller, Route.LIST_SUBNETS, "subnet", id)
    kept = {
        name: known[name] for name in ("prefix", "gateway", "vnet", "dhcp", "dhcp_pools", "slaac", "dhcp6")
    }
    changes = left_in(prefix=prefix, gateway=gateway, vnet=vnet, dhcp=dhcp or None, slaac=slaac, dhcp6=dhcp6)
    changed = controller.ask(Route.SET_SUBNET, id, body={**kept, **changes})
    show(at, changed, f"subnet {id} is changed")


@app.command("list")
@connected
def list_(at: Connection) -> None:
    """List the subnets. USED: how many addresses of each are held.

    \b
    Example:
      retinue subnet list
    """
    data = at.client().ask(Route.LIST_SUBNETS)
    if at.as_json:
        output.print_json(data)
        return
    columns = ("SUBNET", "PREFIX", "GATEWAY", "VNET", ">VLAN", "DHCP", "IPV6", ">USED")
    rows = data["subnets"]
    output.print_table(
        columns,
        (
            (
                *(r["id"], r["prefix"], r["gateway"], r["vnet"], r["vlan"] or None, r["dhcp"]),
                [name for name in ("slaac", "dhcp6") if r[name]],
                r["used"],
            )
            for r in rows
        ),
        "There are no subnets; `retinue subnet add` adds one.",
    )


@app.command()
@connected
def remove(at: Connection, id: str) -> None:
    """Remove a subnet of which no address is used.

    \b
    Example:
      retinue subnet remove green
    """
    show(at, at.client().ask(Route.REMOVE_SUBNET, id), f"subnet {id} is removed")
