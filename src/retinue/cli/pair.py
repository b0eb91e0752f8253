"""`retinue pair`: pairs of MAC and IP, of which VMs take the next."""

from typing import Annotated

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.protocol.routes import Route

app = options.group("Pairs of MAC and IP, of which `retinue vm add --from-pool` takes the next free one.")


@app.command()
@connected
def add(
    at: Connection,
    pairs: Annotated[list[str], typer.Argument(metavar="MAC=IP", help="One pair, or many.")],
) -> None:
    """Give pairs of MAC and IP: all of them or, on a mistake, none.

    \b
    Example:
      retinue pair add 52:54:00:00:01:01=10.1.0.51 52:54:00:00:01:02=10.1.0.52
    """
    bodies = []
    for text in pairs:
        mac, _, ip = text.partition("=")
        if not mac or not ip:
            raise typer.BadParameter(f"{text}: not MAC=IP, such as 52:54:00:00:01:01=10.1.0.51")
        bodies.append({"mac": mac, "ip": ip})
    data = at.client().ask(Route.ADD_PAIRS, body=bodies)
    if at.as_json:
        output.print_json(data)
    else:
        output.say(f"{len(data['pairs'])} pairs are there")


@app.command("list")
@connected
def list_(at: Connection) -> None:
    """List the pairs in the order in which they are given out, each with the VM that has it.

    \b
    Example:
      retinue pair list
    """
    data = at.client().ask(Route.LIST_PAIRS)
    if at.as_json:
        output.print_json(data)
        return
    output.print_table(
        (">NUMBER", "MAC", "IP", "VM"),
        ((row["number"], row["mac"], row["ip"], row["vm"]) for row in data["pairs"]),
        "There are no pairs; `retinue pair add` gives some.",
    )


@app.command()
@connected
def remove(at: Connection, mac: Annotated[str, typer.Argument(metavar="MAC")]) -> None:
    """Take a pair back that no VM has.

    \b
    Example:
      retinue pair remove 52:54:00:00:01:01
    """
    data = at.client().ask(Route.REMOVE_PAIR, mac)
    if at.as_json:
        output.print_json(data)
    else:
        output.say(f"the pair of {data['removed']} is gone")
