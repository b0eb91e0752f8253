"""`retinue booking`: room on servers for VMs that are to come."""

import time
from typing import Annotated

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.protocol.routes import Route

app = options.group("Bookings: room on a server for a VM that is to come, for a time.")


@app.command()
@connected
def add(
    at: Connection,
    vm: Annotated[str, typer.Argument(metavar="VM")],
    server: Annotated[str, typer.Option(metavar="SERVER")],
    memory: Annotated[int, typer.Option(metavar="MIB", min=0, help="Memory in MiB.")] = 0,
    cpus: Annotated[int, typer.Option(metavar="N", min=0, help="Processors.")] = 0,
    seconds: Annotated[
        float, typer.Option(metavar="N", min=1, help="For how long, if the VM does not come.")
    ] = 300.0,
) -> None:
    """Book room on a server for a VM; it ends when the VM is there, by release, or in time.

    \b
    Example:
      retinue booking add web --server server2 --memory 512 --cpus 2 --seconds 600
    """
    body = {"vm": vm, "memory_mib": memory, "cpus": cpus, "seconds": seconds}
    row = at.client().ask(Route.BOOK_SERVER, server, body=body)
    if at.as_json:
        output.print_json(row)
    else:
        output.say(
            f"{memory} MiB and {cpus} processors of {server} are booked for VM {vm}, for {seconds:g} s"
        )


@app.command("list")
@connected
def list_(at: Connection) -> None:
    """List the bookings.

    \b
    Example:
      retinue booking list
    """
    data = at.client().ask(Route.LIST_BOOKINGS)
    if at.as_json:
        output.print_json(data)
        return
    now = time.time()
    output.print_table(
        ("VM", "SERVER", ">MIB", ">CPUS", ">SECONDS"),
        (
            (row["vm"], row["server"], row["memory_mib"], row["cpus"], f"{max(0, row['until'] - now):.0f}")
            for row in data["bookings"]
        ),
        "Nothing is booked.",
    )


@app.command()
@connected
def release(
    at: Connection,
    vm: Annotated[str, typer.Argument(metavar="VM")],
    server: Annotated[str, typer.Option(metavar="SERVER")],
) -> None:
    """Release what is booked on a server for a VM.

    \b
    Example:
      retinue booking release web --server server2
    """
    row = at.client().ask(Route.RELEASE_BOOKING, server, body={"vm": vm})
    if at.as_json:
        output.print_json(row)
    else:
        output.say(f"nothing is booked on {server} for VM {vm} any more")
