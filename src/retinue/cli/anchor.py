"""`retinue anchor`: the gateways that stand in for VMs that are in another domain."""

import time
from typing import Annotated, Any

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.cli.errors import CliError
from retinue.core.limits import MOST_ANCHOR_SECONDS
from retinue.protocol.routes import Route

app = options.group("Gateways that stand in for VMs that are in another domain.")

VM = Annotated[str, typer.Argument(metavar="VM")]


@app.command("list")
@connected
def list_(at: Connection) -> None:
    """List the VMs that are in another domain, or guests here, and what passes the gateway for each.

    Packets are counted since the controller was started, by the gateway's switch.

    \b
    Example:
      retinue anchor list
    """
    data = at.client().ask(Route.LIST_ANCHORS)
    if at.as_json:
        output.print_json(data)
        return
    now = time.time()
    output.print_table(
        ("VM", "HOME", "IS IN", "GATEWAY", ">FOR", ">ARRIVED", ">SENT", ">DROPPED", "LAST", "STATE"),
        (
            (
                row["vm"],
                row["home"] or "here",
                row["domain"] or "here",
                row["gateway"],
                _ago(row["since"], now),
                _passed(row["arrived"]),
                _passed(row["sent"]),
                _passed(row["dropped"]),
                "" if row["last_arrived"] is None else f"{_ago(row['last_arrived'], now)} ago",
                "anchored" if row["ended"] is None else f"ended: {row['reason']}",
            )
            for row in data["anchors"]
        ),
        "No VM is in another domain, and none is a guest here.",
    )


@app.command()
@connected
def show(at: Connection, vm: VM) -> None:
    """Show what passes the gateway for one VM, and how long it is to.

    \b
    Example:
      retinue anchor show web
    """
    row = at.client().ask(Route.GET_ANCHOR, vm)
    if at.as_json:
        output.print_json(row)
    else:
        _draw(row)


@app.command("set")
@connected
def set_(
    at: Connection,
    vm: VM,
    idle: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0,
            max=MOST_ANCHOR_SECONDS,
            help="Without a packet for the VM, after which it ends; 0: never.",
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--for",
            metavar="SECONDS",
            min=0,
            max=MOST_ANCHOR_SECONDS,
            help="From now on, after which it ends in any case; 0: without end.",
        ),
    ] = None,
) -> None:
    """Set for how long the gateway stands in for a VM of ours that is in another domain.

    \b
    Examples:
      retinue anchor set web --idle 3600
      retinue anchor set web --for 86400
    """
    if idle is None and seconds is None:
        raise CliError("say what is to be set: --idle, or --for")
    values = {"idle_seconds": idle, "seconds": seconds}
    _set(at, vm, {key: value for key, value in values.items() if value is not None})


@app.command()
@connected
def end(at: Connection, vm: VM) -> None:
    """Let nothing through for a VM of ours that is in another domain, neither to it nor from it.

    It runs on where it is, and keeps its name and addresses; it comes home as before, and is reached again
    when it is there.

    \b
    Example:
      retinue anchor end web
    """
    _set(at, vm, {"ended": True})


@app.command()
@connected
def resume(at: Connection, vm: VM) -> None:
    """Let everything through again for a VM of ours that is in another domain.

    \b
    Example:
      retinue anchor resume web
    """
    _set(at, vm, {"ended": False})


def _set(at: Connection, vm: str, values: dict[str, Any]) -> None:
    row = at.client().ask(Route.SET_ANCHOR, vm, body=values)
    if at.as_json:
        output.print_json(row)
    elif row["ended"] is not None:
        output.say(f"nothing passes {row['gateway']} for VM {vm}, which is in domain {row['domain']}")
    else:
        output.say(f"{row['gateway']} stands in for VM {vm}, {_until(row, time.time())}")


def _draw(row: dict[str, Any]) -> None:
    now = time.time()
    last, read = row["last_arrived"], row["read_at"]
    output.print_fields(
        (
            ("vm", row["vm"]),
            ("home", row["home"] or "here"),
            ("is in", row["domain"] or "here"),
            ("gateway", row["gateway"]),
            ("addresses", row["addresses"]),
            ("for", _ago(row["since"], now)),
            ("state", _until(row, now) if row["ended"] is None else f"ended: {row['reason']}"),
            ("arrived", _passed(row["arrived"])),
            ("sent", _passed(row["sent"])),
            ("dropped", _passed(row["dropped"])),
            ("last", "" if last is None else f"{_ago(last, now)} ago"),
            ("counted", "not yet" if read is None else f"{_ago(read, now)} ago"),
        )
    )


def _until(row: dict[str, Any], now: float) -> str:
    ends = [f"for {row['until'] - now:.0f} s"] if row["until"] is not None else []
    if row["idle_seconds"]:
        ends.append(f"until nothing has come for it for {row['idle_seconds']:g} s")
    return ", or ".join(ends) or "without end"


def _passed(passed: dict[str, int]) -> str:
    return f"{passed['packets']} ({passed['bytes']} B)"


def _ago(at: float, now: float) -> str:
    return f"{max(0.0, now - at):.0f} s"
