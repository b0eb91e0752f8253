"""`retinue name`: named entities, what is said of each, and where it is."""

from typing import Annotated, Any

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.core.placement import EntityKind
from retinue.protocol.routes import Route

app = options.group(
    "Names of VMs, servers, services, images, clients, disks: what is said of each, and where it is."
)

KINDS = ", ".join(EntityKind)


@app.command("list")
@connected
def list_(
    at: Connection,
    kind: Annotated[str | None, typer.Option(metavar="KIND", help=f"Only of this kind: {KINDS}.")] = None,
) -> None:
    """List all names with where what they name is.

    \b
    Example:
      retinue name list --kind service
    """
    data = at.client().ask(Route.LIST_ENTITIES, kind=kind)
    if at.as_json:
        output.print_json(data)
        return
    output.print_table(
        ("NAME", "KIND", "WHERE", "ADDRESSES"),
        ((row["name"], row["kind"], where(row), row["locator"].get("addresses")) for row in data["entities"]),
        "There are no names.",
    )


@app.command()
@connected
def resolve(at: Connection, name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Show what has a name, what is said and measured of it, and where it is now.

    \b
    Example:
      retinue name resolve shop
    """
    draw(at, name)


@app.command()
@connected
def add(
    at: Connection,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    kind: Annotated[str, typer.Option(metavar="KIND", help=f"What it is: {KINDS}.")],
    os: Annotated[str | None, typer.Option(metavar="NAME", help="Operating system.")] = None,
    version: Annotated[str | None, typer.Option(metavar="VERSION")] = None,
    application: Annotated[list[str] | None, typer.Option(metavar="NAME", help="May be repeated.")] = None,
    cpus: Annotated[int | None, typer.Option(metavar="N", min=0)] = None,
    memory: Annotated[int | None, typer.Option(metavar="MIB", min=0)] = None,
    disk: Annotated[int | None, typer.Option(metavar="MIB", min=0)] = None,
    bandwidth: Annotated[int | None, typer.Option(metavar="MBPS", min=0)] = None,
    client: Annotated[
        list[str] | None, typer.Option(metavar="IP", help="Whom the VM serves; may be repeated.")
    ] = None,
    image: Annotated[str | None, typer.Option(metavar="NAME", help="The image it is made of.")] = None,
    apart: Annotated[
        str | None, typer.Option(metavar="WORD", help="VMs with the same word are kept on different servers.")
    ] = None,
    pinned: Annotated[bool, typer.Option("--pinned", help="It moves only to a server you name.")] = False,
    served_by: Annotated[
        list[str] | None,
        typer.Option(metavar="VM", help="The VM that serves the service; may be repeated, the best first."),
    ] = None,
) -> None:
    """Say what a thing is: a service or image gets a name, a VM or server a profile in place of the last one.

    \b
    Examples:
      retinue name add shop --kind service --served-by vm1
      retinue name add vm1 --kind vm --os debian --version 12 --memory 512 --client 10.1.0.9
    """
    said = {
        "os": os, "version": version, "applications": application, "cpus": cpus, "memory_mib": memory,
        "disk_mib": disk, "bandwidth_mbps": bandwidth, "clients": client, "image": image, "apart": apart,
        "pinned": pinned, "served_by": served_by,
    }  # fmt: skip
    profile = {key: value for key, value in said.items() if value}
    answer = at.client().ask(Route.REGISTER_ENTITIES, body={"name": name, "kind": kind, "profile": profile})
    if at.as_json:
        output.print_json(answer)
    else:
        output.say(f"{name} is a {kind} {where(answer['entities'][0])}".rstrip())


@app.command()
@connected
def remove(at: Connection, name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Take back what was said: a service or image is no more, a VM or server has no profile.

    \b
    Example:
      retinue name remove shop
    """
    answer = at.client().ask(Route.REMOVE_ENTITY, name)
    if at.as_json:
        output.print_json(answer)
    else:
        output.say(f"nothing is said of {name} any more")


def draw(at: Connection, name: str) -> None:
    """One entity, for people or as JSON."""
    row = at.client().ask(Route.GET_ENTITY, name)
    if at.as_json:
        output.print_json(row)
        return
    output.print_fields(
        (
            ("name", row["name"]),
            ("kind", row["kind"]),
            ("where", where(row)),
            ("addresses", row["locator"].get("addresses")),
            *profile_fields(row["profile"]),
            *measured_fields(row["measured"] or {}),
        )
    )


def where(row: dict[str, Any]) -> str:
    """ "at server1, edge1:3", "served by vm1 at server1, edge1:3", "held by server1, server2"."""
    locator = row["locator"]
    match row["kind"]:
        case EntityKind.DISK:
            return f"of {locator['vm']}, {locator['path'] or 'at ' + locator['server']}"
        case EntityKind.IMAGE | EntityKind.SEGMENT:
            return f"held by {', '.join(locator['servers'])}" if locator["servers"] else "held by nobody"
        case EntityKind.SERVER:
            return f"at {locator['at']}" if locator["at"] else ""
        case EntityKind.SERVICE if not locator["vm"]:
            return "served by nobody"
        case EntityKind.CLIENT if not locator["server"]:
            return "attached nowhere"
    port = "" if locator["port"] is None else f":{locator['port']}"
    place = f"at {locator['server']}, {locator['switch']}{port}"
    return f"served by {locator['vm']} {place}" if row["kind"] == EntityKind.SERVICE else place


_PROFILE = (
    ("os", "os", ""), ("version", "version", ""), ("applications", "applications", ""),
    ("processors", "cpus", ""), ("memory", "memory_mib", " MiB"), ("disk", "disk_mib", " MiB"),
    ("bandwidth", "bandwidth_mbps", " Mbit/s"), ("clients", "clients", ""), ("image", "image", ""),
    ("apart", "apart", ""), ("pinned", "pinned", ""), ("served by", "served_by", ""),
)  # fmt: skip


def profile_fields(profile: dict[str, Any]) -> list[tuple[str, Any]]:
    """What was said, field by field; what was not is left out."""
    found = [(name, profile[key], unit) for name, key, unit in _PROFILE if profile.get(key)]
    return [(name, f"{value}{unit}" if unit else value) for name, value, unit in found]


_MEASURED = (
    ("processors there", "cpus", ""), ("memory there", "memory_mib", " MiB"),
    ("memory free", "memory_free_mib", " MiB"), ("disk free", "disk_free_mib", " MiB"),
    ("bandwidth there", "bandwidth_mbps", " Mbit/s"), ("bandwidth in use", "bandwidth_used_mbps", " Mbit/s"),
    ("processors in use", "cpu_used", "%"), ("wait for processors", "cpu_pressure", "%"),
    ("wait for memory", "memory_pressure", "%"), ("wait for disks", "io_pressure", "%"),
    ("images", "images", ""), ("size", "size_mib", " MiB"), ("made of", "made_of", ""),
    ("bytes", "bytes", ""), ("chunks", "chunks", ""),
)  # fmt: skip


def measured_fields(measured: dict[str, Any]) -> list[tuple[str, Any]]:
    """What is measured of it, field by field; what is not known is left out."""
    found = [(name, measured.get(key), unit) for name, key, unit in _MEASURED]
    return [
        (name, f"{value / 100:.2f} %" if unit == "%" else f"{value}{unit}" if unit else value)
        for name, value, unit in found
        if value is not None and (value or unit == "%")
    ]
