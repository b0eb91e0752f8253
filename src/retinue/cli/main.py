"""The program's entry: its nouns and verbs. Each command imports what it needs when it runs."""

from typing import Annotated

import typer

from retinue.cli import agent, bindings, daemon, events, lab, moves, network, vms
from retinue.cli.errors import Commands

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

for name, noun in (
    ("lab", lab.app),
    ("controller", daemon.app),
    ("agent", agent.app),
    ("vm", vms.app),
    ("move", moves.app),
    ("binding", bindings.app),
    ("server", network.servers),
    ("switch", network.switches),
    ("flow", network.flows),
):
    app.add_typer(noun, name=name)
app.command("events")(events.events)


def _version(wanted: bool) -> None:
    if wanted:
        from retinue import __version__

        typer.echo(f"retinue {__version__}")
        raise typer.Exit


@app.callback()
def retinue(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Live migration of virtual machines whose network moves with them.

    Commands speak to the controller of the running lab, or to the one named by --url or RETINUE_URL.

    \b
    Example, on one machine:
      retinue lab up
      retinue vm add vm1 --server server1 --wait
      retinue move start vm1 --to server2 --wait
      retinue binding list
      retinue lab down
    """


if __name__ == "__main__":
    app()
