"""`retinue flow`: the flow entries that the switches should hold."""

import sys
from typing import Annotated

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.protocol.routes import Route

app = options.group("Flow entries of the switches.")


@app.command("list")
@connected
def list_(
    at: Connection,
    switch: Annotated[str | None, typer.Option(metavar="SWITCH", help="Only this switch's.")] = None,
    vm: Annotated[
        str | None, typer.Option("--vm", metavar="VM", help="Only what is there for this VM.")
    ] = None,
    table: Annotated[
        str | None, typer.Option(metavar="TABLE", help="Only this table's, by number or name.")
    ] = None,
) -> None:
    """List the flow entries the switches should hold, in the order they are looked at.

    STATE: confirmed by the switch, or installing. LEASE is the time left of an entry that ends by itself.

    \b
    Examples:
      retinue flow list --switch edge1
      retinue flow list --vm vm1
      retinue flow list --switch leaf1 --table route
    """
    number = None if table is None else table_number(table)
    data = at.client().ask(Route.LIST_FLOWS, switch=switch, vm=vm)
    found = [row for row in data["flows"] if number is None or row["table"] == number]
    if at.as_json:
        output.print_json({"flows": found})
        return
    one = [] if switch is not None else ["SWITCH"]
    output.print_table(
        [*one, "TABLE", ">PRIO", "MATCH", "ACTIONS", "REASON", ">LEASE", "STATE"],
        (
            [row["switch"]] * len(one)
            + [
                f"{row['table']} {row['table_name']}",
                row["priority"],
                _broken(row["match"]),
                _broken(row["actions"]),
            ]
            + [row["reason"], output.left(row["expires_at"])]
            + ["confirmed" if row["confirmed"] else "installing"]
            for row in found
        ),
        "There are no such flows.",
    )


def _broken(text: str) -> str:
    """With spaces where a terminal may break the line; as it is, in the words of ovs-ofctl, for programs."""
    return text.replace(",", ", ") if sys.stdout.isatty() else text


def table_number(text: str) -> int:
    """ "30" or "deliver"; a table that is none is a usage error that names all."""
    from retinue.core.pipeline.tables import Table

    for table in Table:
        if text.upper() == table.name or text == str(int(table)):
            return int(table)
    known = ", ".join(f"{int(table)} {table.name}" for table in Table)
    raise typer.BadParameter(f"there is no table {text!r}; there are {known}")
