"""The program's entry: its nouns and verbs. Each command imports what it needs when it runs."""

import os
from pathlib import Path
from typing import Annotated

import typer

from retinue.cli import (
    agent,
    binding,
    booking,
    controller,
    doctor,
    events,
    flow,
    gateway,
    image,
    move,
    openapi,
    output,
    pair,
    pki,
    placement,
    plugins,
    server,
    setup,
    subnet,
    support,
    switch,
    trace,
    vm,
    vnet,
    vrf,
)
from retinue.cli import (
    name as names,
)
from retinue.cli.errors import CliError, Commands

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
)

for name, noun in (
    *plugins.commands().items(),
    ("controller", controller.app),
    ("agent", agent.app),
    ("vm", vm.app),
    ("move", move.app),
    ("binding", binding.app),
    ("gateway", gateway.app),
    ("booking", booking.app),
    ("pair", pair.app),
    ("vrf", vrf.app),
    ("vnet", vnet.app),
    ("subnet", subnet.app),
    ("server", server.app),
    ("switch", switch.app),
    ("flow", flow.app),
    ("image", image.app),
    ("name", names.app),
    ("placement", placement.app),
    ("domain", placement.domain),
    ("pki", pki.app),
    ("setup", setup.app),
):
    app.add_typer(noun, name=name)
app.command("events")(events.events)
app.command("doctor")(doctor.doctor)
app.command("trace")(trace.trace)
app.command("openapi")(openapi.openapi)
app.command("support-dump")(support.support_dump)


def _version(wanted: bool) -> None:
    if wanted:
        from retinue import __version__

        output.say(f"retinue {__version__}")
        raise typer.Exit


@app.callback()
def retinue(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Whose controller's certificate is trusted. Also RETINUE_CA."),
    ] = None,
    cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your certificate. Also RETINUE_CERT.")
    ] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its key. Also RETINUE_KEY.")] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Your token, instead of a certificate. Also RETINUE_TOKEN."),
    ] = None,
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

    \b
    Example, with a controller elsewhere:
      retinue --ca ca.pem --cert anna.pem --key anna.key vm list --url https://192.0.2.1:8080
    """
    for name, value in (("RETINUE_CA", ca), ("RETINUE_CERT", cert), ("RETINUE_KEY", key)):
        if value is not None:
            os.environ[name] = str(value.absolute())
    if token_file is not None:
        try:
            os.environ["RETINUE_TOKEN"] = token_file.read_text().strip()
        except (OSError, ValueError) as error:
            raise CliError(f"cannot read the token in {token_file}: {error}") from error


if __name__ == "__main__":
    app()
