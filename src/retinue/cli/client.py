"""`retinue client`: hosts that roam between attachment points, as these report them."""

import time
from typing import Annotated

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.protocol.routes import Route

app = options.group("Roaming clients: what an attachment point reports of them.")

WORDS = {
    "attached": "started",
    "coming": "incoming",
    "leaving": "suspended",
    "arrived": "resumed",
    "left": "departed",
    "lost": "stopped",
}
"""What happens at an attachment point, and as what a server reports the same of a VM
(protocol.hypervisor_events)."""


@app.command()
@connected
def report(
    at: Connection,
    client: Annotated[str, typer.Argument(metavar="CLIENT", help="The iface-id of its port.")],
    server: Annotated[str, typer.Option(metavar="SERVER", help="The attachment point that reports it.")],
    what: Annotated[str, typer.Option("--is", metavar="WORD", help=", ".join(WORDS))],
) -> None:
    """Report what a roaming client does at an attachment point: for its hooks, with its own certificate.

    The new one says `coming` when it has made the client's port, the old one `leaving` when it takes nothing
    from it any more; the new one `arrived`, the old one `left`, once its port is gone. `attached`: it is
    there, without a handover; it is said again from time to time. `lost`: it has gone without one.

    \b
    Examples:
      retinue client report phone1 --server ap2 --is coming
      retinue client report phone1 --server ap1 --is leaving
    """
    if what not in WORDS:
        raise typer.BadParameter(f"{what!r} is none of {', '.join(WORDS)}", param_hint="--is")
    body = {"vm": client, "kind": WORDS[what], "at": time.time()}
    told = at.client().ask(Route.REPORT_HYPERVISOR_EVENT, server, body=body)
    if at.as_json:
        output.print_json(told)
        return
    handover = f" ({told['migration']})" if told.get("migration") else ""
    output.say(f"{client} is reported to be {what} at {server}{handover}")
