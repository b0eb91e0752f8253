"""`retinue events`: what happens, in order, as it happens."""

import re
import time
from collections import deque
from typing import Annotated, Any

import typer

from retinue.cli import output
from retinue.cli.connection import Connection, connected

SINCE = re.compile(r"(?P<number>\d{1,18})(?P<unit>[smhd]?)")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LONG_TYPE = 24
"""Characters of most events' types: what they tell stands in a column."""
BYTES = ("remaining", "written_a_second")
MIB = 1 << 20
Event = dict[str, Any]


@connected
def events(
    at: Connection,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with those to come.")] = False,
    last: Annotated[int, typer.Option("--last", "-n", min=0, metavar="N", help="Print the last N.")] = 20,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="ID|AGO", help="After this event, or since 30s, 5m, 2h, 1d."),
    ] = None,
    type: Annotated[
        str, typer.Option("--type", metavar="TYPE", help="Only types that begin so, such as migration.")
    ] = "",
    vm: Annotated[str | None, typer.Option("--vm", metavar="ID", help="Only those about this VM.")] = None,
) -> None:
    """Print the latest events. --json prints one event a line.

    The controller keeps the last 50,000.

    \b
    Examples:
      retinue events
      retinue events --follow --type migration
      retinue events --vm vm1 --since 2h
    """
    from retinue.protocol.events import HELLO, EventType

    def is_wanted(event: Event) -> bool:
        if event["type"] in (HELLO, EventType.EVENTS_LOST):
            return event["type"] != HELLO and begin > 0  # Who asks for all there is has lost none.
        if isinstance(event["at"], (int, float)) and event["at"] < not_before:
            return False
        return event["type"].startswith(type) and (vm is None or is_about(event, vm))

    after, not_before = (0, 0.0) if since is None else _since(since)
    controller = at.client()
    newest = controller.last_event()
    begin = max(0, newest - last) if since is None and not (type or vm) else after
    if not follow and begin >= newest:
        return
    recent: deque[Event] = deque(maxlen=last)
    """Without --since: those that have been, until all of them are known."""
    for event in controller.events(begin):
        is_past = event["type"] == HELLO or event["id"] <= newest
        if is_wanted(event):
            recent.append(event) if since is None and is_past else _show(event, at)
        if event["type"] != HELLO and event["id"] >= newest:
            while recent:
                _show(recent.popleft(), at)
            if not follow:
                return


def _since(text: str) -> tuple[int, float]:
    """After which event, and not before which time."""
    found = SINCE.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is neither an event's id nor a time, such as 30s, 5m, 2h or 1d")
    number = int(found["number"])
    return (0, time.time() - number * SECONDS[found["unit"]]) if found["unit"] else (number, 0.0)


def _show(event: Event, at: Connection) -> None:
    output.print_line(event) if at.as_json else output.say(line(event))


def is_about(event: Event, vm: str) -> bool:
    """True when the event names this VM: by its id, as itself, or in a migration, binding or the like."""
    match event:
        case {"vm": str() as id} | {"vm": {"id": id}} if id == vm:
            return True
        case {"before": str() as id} if id == vm and event["type"] == "address.taken":
            return True
        case {"migration": {"vm": id}} | {"spoofing": {"vm": id}} | {"renewal": {"vm": id}} if id == vm:
            return True
        case {"bindings": list(rows)}:
            return any(row.get("vm") == vm for row in rows)
        case _:
            return False


def line(event: dict[str, Any]) -> str:
    """ "17  09:31:02.114  vm.registered  vm=vm1 edge=edge1"."""
    at = event["at"]
    timed = isinstance(at, (int, float))  # an event about a place may use the name for that
    known = ("id", "type", "at") if timed else ("id", "type")
    told = {key: value for key, value in event.items() if key not in known}
    time = output.clock(at) if timed else ""
    return f"{event['id']:>5}  {time:<12}  {event['type']:<{LONG_TYPE}}  {_data(told)}".rstrip()


def _data(told: dict[str, Any]) -> str:
    """What is empty is left out."""
    given = {key: value for key, value in told.items() if value not in (None, "", [])}
    return " ".join(
        f"{key}={_bytes(value) if key in BYTES else brief(value)}" for key, value in given.items()
    )


def _bytes(value: Any) -> str:
    return f"{value / MIB:.1f}MiB" if isinstance(value, (int, float)) else brief(value)


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
        case dict():
            return f"({_data(value)})"
        case bool():
            return "yes" if value else "no"
        case list():
            return ",".join(map(brief, value))
        case str() if " " in value:
            return f'"{value}"'
        case _:
            return str(value)
