"""`retinue events`: what happens, in order, as it happens."""

from typing import Annotated, Any

import typer

from retinue.cli import output
from retinue.cli.connection import Connection, connected


@connected
def events(
    at: Connection,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with those to come.")] = False,
    last: Annotated[int, typer.Option("--last", "-n", min=0, metavar="N", help="Begin N events back.")] = 20,
    since: Annotated[
        int | None, typer.Option("--since", min=0, metavar="ID", help="Begin after this event.")
    ] = None,
    type: Annotated[
        str, typer.Option("--type", metavar="TYPE", help="Only types that begin so, such as migration.")
    ] = "",
) -> None:
    """Print the latest events. --json prints one event a line.

    \b
    Examples:
      retinue events
      retinue events --follow --type migration
    """
    from retinue.protocol.events import HELLO

    controller = at.client()
    newest = controller.last_event()
    begin = since if since is not None else max(0, newest - last)
    if not follow and begin >= newest:
        return
    for event in controller.events(begin):
        shown = event["type"] != HELLO and event["type"].startswith(type)
        if shown and at.as_json:
            output.print_line(event)
        elif shown:
            output.say(line(event))
        if not follow and event["type"] != HELLO and event["id"] >= newest:
            return


def line(event: dict[str, Any]) -> str:
    """ "17  09:31:02.114  vm.registered  vm=vm1 edge=edge1"."""
    at = event["at"]
    timed = isinstance(at, (int, float))  # an event about a place may use the name for that
    known = ("id", "type", "at") if timed else ("id", "type")
    given = {key: value for key, value in event.items() if key not in known and value not in (None, "", [])}
    data = " ".join(f"{key}={brief(value)}" for key, value in given.items())
    time = output.clock(at) if timed else ""
    return f"{event['id']:>5}  {time:<12}  {event['type']:<20} {data}".rstrip()


def brief(value: Any) -> str:
    """A thing by its name and what changes about it."""
    match value:
        case {"source": source, "target": target, "state": state, "id": id, "vm": vm}:
            return f"{id} ({vm}: {source} to {target}, {state})"
        case {"kind": kind, "claimed_mac": mac, "claimed_ip": ip, "count": count}:
            who = value["vm"] or f"{value['switch']}:{value['port']}"
            return f"({kind} by {who} as {mac} {ip or '-'}, {count} times)"
        case {"xid": _, "ip": ip, "id": id, "state": state}:
            return f"{id} ({ip}, {state})"
        case {"ip": ip, "vm": vm, "switch": switch, "port": port}:
            return f"{ip}@{vm}:{switch}:{port}" + ("" if value.get("active") else "(standby)")
        case {"id": id}:
            return str(id)
        case list():
            return ",".join(map(brief, value))
        case str() if " " in value:
            return f'"{value}"'
        case _:
            return str(value)
