"""`retinue link`: links between switches, and whether they lose frames."""

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.cli.vnet import show
from retinue.protocol.routes import Route

app = options.group("Links between switches: which there are, and whether they lose frames.")


@app.command("list")
@connected
def list_(at: Connection) -> None:
    """List the links between switches, and whether frames get through: probes tell, several times a second.

    STATE: well; lost (frames vanish, though both ends have a carrier); returning (none vanish any more: it is
    used again when that has been so for a while); no carrier; unknown (not probed: a switch is away or slow);
    idle (new, and not all in place: REASON says what is missing; or about to be removed).
    USED says whether the lower switch sends up by it.

    \b
    Example:
      retinue link list
    """
    data = at.client().ask(Route.LIST_LINKS)
    if at.as_json:
        output.print_json(data)
        return
    output.print_table(
        ("LOWER", "UPPER", "STATE", "USED", "REASON"),
        ((row["lower"], row["upper"], row["state"], row["carries"], row["reason"]) for row in data["links"]),
        "There are no links between switches.",
    )


@app.command()
@connected
def add(
    at: Connection,
    lower: str = typer.Argument(metavar="LOWER", help="LEAF:PORT, or SPINE:PORT of a link to a core."),
    upper: str = typer.Argument(metavar="UPPER", help="SPINE:PORT, or CORE:PORT."),
) -> None:
    """Add a link; it is used when both its ends hold what they should, and probes come back.

    A spine is sent something once it has links to all leaves of its pod. So a spine, or a leaf, is added link
    by link, and nobody's packet is lost by it.

    \b
    Example:
      retinue link add leaf1:leaf1-spine3 spine3:spine3-leaf1
    """
    added = at.client().ask(Route.ADD_LINKS, body={"lower": lower, "upper": upper})
    show(at, added, f"link {lower} - {upper} is there; `retinue link list` shows when it is used")


@app.command()
@connected
def remove(
    at: Connection,
    lower: str = typer.Argument(metavar="LOWER", help="Its end at a leaf, or at the spine of one to a core."),
) -> None:
    """Remove a link; returns when nothing is sent by it any more, and its entries are gone.

    It stays where packets would be lost without it.

    \b
    Example:
      retinue link remove leaf1:leaf1-spine3
    """
    show(at, at.client().ask(Route.REMOVE_LINK, lower), f"link {lower} is removed")
