"""`retinue server`: the servers, and where each is attached."""

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.core.model import DEFAULT_VRF
from retinue.protocol.routes import Route

app = options.group("Servers, and where they are attached.")


@app.command("list")
@connected
def list_(at: Connection) -> None:
    """List the servers with the leaf port each is at.

    STATE: matched (detected, as given if it was given); given (not detected yet); missing; mismatch;
    unknown (detected, but not registered); with "drained", "fenced" and "lost" (a router) when it is so.

    \b
    Example:
      retinue server list
    """
    data = at.client().ask(Route.LIST_SERVERS)
    if at.as_json:
        output.print_json(data)
        return
    output.print_table(
        ("SERVER", "MAC", "IP", "EDGE", "SERVES", "AT", "STATE", "VMS"),
        (
            (
                row["id"],
                row["mac"],
                row.get("address"),
                row.get("edge"),
                row.get("services"),
                _location(row),
                _state(row),
                row.get("vms"),
            )
            for row in data["servers"]
        ),
        "There are no servers.",
    )


@app.command()
@connected
def show(at: Connection, server: str) -> None:
    """Show a server: where it is, what it has, and how much of it is in use, as its agent reports it.

    \b
    Example:
      retinue server show server2
    """
    from retinue.cli.name import draw

    draw(at, server)


@app.command()
@connected
def routes(at: Connection) -> None:
    """List the prefixes that are reached through routers, with every way to each, the best first.

    NOW: the way; standby (another is better); lost (it is not there, with why).

    \b
    Example:
      retinue server routes
    """
    data = at.client().ask(Route.LIST_SERVERS)
    rows = [
        {"vrf": vrf, "prefix": prefix, "router": row["id"], "metric": row["metric"]}
        | {"at": _location(row) + tag, "now": _now(row, ways, prefix)}
        for row in data["servers"]
        for vrf, tag, routes, ways in _interfaces(row)
        for prefix in routes
    ]
    rows.sort(key=lambda one: (one["vrf"] != DEFAULT_VRF, *(one[name] for name in _ORDER)))
    if at.as_json:
        output.print_json({"routes": rows})
        return
    output.print_table(
        ("VRF", "PREFIX", "ROUTER", ">METRIC", "AT", "NOW"),
        (
            (one["vrf"], one["prefix"], one["router"], str(one["metric"]), one["at"], one["now"])
            for one in rows
        ),
        "There are no routers.",
    )


_ORDER = ("vrf", "prefix", "metric", "router")


def _interfaces(row: dict[str, Any]) -> Iterator[tuple[str, str, list[str], list[str]]]:
    """A router's VRFs: each with the tag behind its port, the prefixes, and those to which it is the way."""
    yield DEFAULT_VRF, "", row.get("routes", []), row.get("ways", [])
    for one in row.get("subinterfaces", ()):
        yield one["vrf"], f".{one['vlan']}", one["routes"], one["ways"]


def _now(row: dict[str, Any], ways: list[str], prefix: str) -> str:
    if row["lost"]:
        return f"lost: {row['lost']}"
    return "the way" if prefix in ways else "standby"


@app.command()
@connected
def remove(at: Connection, server: str) -> None:
    """Remove a server on which no VM runs, or a router: where others lead to its prefixes, they do so first.

    \b
    Example:
      retinue server remove router2
    """
    _ask(at, Route.REMOVE_SERVER, server, f"server {server} is removed")


@app.command()
@connected
def drain(
    at: Connection,
    server: str,
    at_once: Annotated[
        int, typer.Option(metavar="N", min=1, max=16, help="Migrations under way at the same time.")
    ] = 1,
) -> None:
    """Migrate all VMs of a server to others, so many at once; it takes none until `retinue server undrain`.

    Each goes to the server that has the fewest. After the first that cannot be migrated no further one is
    begun, and the exit code is 1.

    \b
    Example:
      retinue server drain server2 --at-once 2
    """
    from retinue.cli.drain import Drain

    Drain(at.client(), server, at_once, output.print_line if at.as_json else None).run()


@app.command()
@connected
def undrain(at: Connection, server: str) -> None:
    """Let a server that was drained take VMs again.

    \b
    Example:
      retinue server undrain server2
    """
    _ask(at, Route.UNDRAIN_SERVER, server, f"{server} takes VMs again")


@app.command()
@connected
def fence(at: Connection, server: str) -> None:
    """Say that a server is dead: shut it out of the network, and go on without it.

    Only say so when it is: nobody must run its VMs any more. Its migrations end. Its VMs can be registered at
    another server (`retinue vm add`), or started there, and keep their addresses and leases. When the server
    is back it stays shut out, until `retinue server unfence`.

    \b
    Example:
      retinue server fence server2
    """
    _ask(at, Route.FENCE_SERVER, server, f"{server} is fenced")


@app.command()
@connected
def unfence(at: Connection, server: str) -> None:
    """Let a server that was fenced take part again, once its switch is connected and in order.

    \b
    Example:
      retinue server unfence server2
    """
    _ask(at, Route.UNFENCE_SERVER, server, f"{server} is no longer fenced")


@app.command("forget-agent")
@connected
def forget_agent(at: Connection, server: str) -> None:
    """Say that a server has no agent of ours any more: its VMs are where managers say, and migrate by theirs.

    Until then an agent that was heard once is one that is away, also after a restart of the controller.

    \b
    Example:
      retinue server forget-agent server2
    """
    _ask(at, Route.FORGET_AGENT, server, f"{server} has no agent")


def _ask(at: Connection, route: Route, server: str, done: str) -> None:
    answer = at.client().ask(route, server)
    if at.as_json:
        output.print_json(answer)
    else:
        output.say(done)


def _state(row: dict[str, Any]) -> str:
    return ", ".join([row["state"], *(mark for mark in ("drained", "fenced", "lost") if row.get(mark))])


def _location(row: dict[str, Any]) -> str:
    at, given = row["at"] or row["detected_at"], row.get("given_at", "")
    return f"{row['detected_at']} (given: {given})" if row["state"] == "mismatch" else at
