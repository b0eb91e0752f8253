"""The program's entry: its nouns and verbs. A noun is imported when it is asked for."""

import importlib
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from retinue.cli import output, plugins
from retinue.cli.errors import CliError, Commands

NOUNS = {
    "controller": "retinue.cli.controller:app",
    "agent": "retinue.cli.agent:app",
    "vm": "retinue.cli.vm:app",
    "move": "retinue.cli.move:app",
    "binding": "retinue.cli.binding:app",
    "gateway": "retinue.cli.gateway:app",
    "client": "retinue.cli.client:app",
    "booking": "retinue.cli.booking:app",
    "pair": "retinue.cli.pair:app",
    "vrf": "retinue.cli.vrf:app",
    "vnet": "retinue.cli.vnet:app",
    "subnet": "retinue.cli.subnet:app",
    "server": "retinue.cli.server:app",
    "switch": "retinue.cli.switch:app",
    "link": "retinue.cli.link:app",
    "flow": "retinue.cli.flow:app",
    "image": "retinue.cli.image:app",
    "name": "retinue.cli.name:app",
    "placement": "retinue.cli.placement:app",
    "domain": "retinue.cli.placement:domain",
    "anchor": "retinue.cli.anchor:app",
    "mobility": "retinue.cli.managers:mobility",
    "resource": "retinue.cli.managers:resource",
    "pki": "retinue.cli.pki:app",
    "setup": "retinue.cli.setup:app",
    "events": "retinue.cli.events:events",
    "doctor": "retinue.cli.doctor:doctor",
    "trace": "retinue.cli.trace:trace",
    "openapi": "retinue.cli.openapi:openapi",
    "support-dump": "retinue.cli.support:support_dump",
}
"""First words, as `--help` lists them, and where each stands: a Typer application, or a command itself."""


class _Nouns(Mapping[str, Any]):
    """Commands by first word, those of other packages before ours; each is made when it is looked at."""

    def __getitem__(self, noun: str) -> Any:
        if noun in NOUNS:
            return _made(noun)
        return _command(noun, plugins.commands()[noun])

    def __iter__(self) -> Iterator[str]:
        yield from (noun for noun in plugins.commands() if noun not in NOUNS)
        yield from NOUNS

    def __len__(self) -> int:
        return sum(1 for _ in self)


@cache
def _made(noun: str) -> Any:
    module, _, attribute = NOUNS[noun].partition(":")
    return _command(noun, getattr(importlib.import_module(module), attribute))


def _command(noun: str, found: Any) -> Any:
    """What typer makes of an application, or of a function."""
    around = typer.Typer(cls=Commands, rich_markup_mode=None, add_completion=False)
    around.callback()(lambda: None)
    if isinstance(found, typer.Typer):
        around.add_typer(found, name=noun)
    else:
        around.command(noun)(found)
    made: Any = typer.main.get_command(around)
    return made.commands[noun]


class Program(Commands):
    """All nouns; a call imports the one that it names, `--help` all of them."""

    def __init__(self, **found: Any) -> None:
        super().__init__(**found)
        self.commands: Any = _Nouns()

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)


app = typer.Typer(
    cls=Program,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
)


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
