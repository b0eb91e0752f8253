"""`retinue mobility` and `retinue resource`: the two managers as processes of their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from retinue.cli import options, output
from retinue.cli.errors import CliError

mobility = options.group("The mobility manager of a domain as a process of its own.")
resource = options.group("The resource manager of several domains as a process of its own.")

Config = Annotated[Path, typer.Option(metavar="FILE", help="The configuration (TOML).")]


@mobility.command("run")
def run_mobility(config: Config) -> None:
    """Run a domain's mobility manager in the foreground until it is ended (SIGTERM, or Ctrl-C).

    The domain's controller names it in its configuration ([managers] mobility), and decides by itself while
    it is away.

    \b
    Example:
      retinue pki issue mobility m1 --address 192.0.2.5
      retinue mobility run --config mobility.toml
    """
    from retinue.managers import main

    raise typer.Exit(main.run_mobility(config))


@mobility.command("check")
def check_mobility(config: Config) -> None:
    """Check a mobility manager's configuration, and the files that it names, without running anything.

    \b
    Example:
      retinue mobility check --config mobility.toml
    """
    from retinue.managers import main

    _check(main.check_mobility, config)


@resource.command("check")
def check_resource(config: Config) -> None:
    """Check a resource manager's configuration, and the files that it names, without running anything.

    \b
    Example:
      retinue resource check --config resource.toml
    """
    from retinue.managers import main

    _check(main.check_resource, config)


def _check(check: Callable[[Path], str], config: Path) -> None:
    from retinue.config_file import ConfigError
    from retinue.security.authority import PkiError
    from retinue.security.contexts import TlsFilesError

    try:
        output.say(check(config))
    except (ConfigError, TlsFilesError, PkiError) as error:
        text = str(error)
        raise CliError(text if str(config) in text else f"{config}: {text}") from error


@resource.command("run")
def run_resource(config: Config) -> None:
    """Run the resource manager of one domain or several until it is ended (SIGTERM, or Ctrl-C).

    Each domain's controller names it ([managers] resources), and tells it what there is.

    \b
    Example:
      retinue pki issue mobility r1 --address 192.0.2.6
      retinue resource run --config resource.toml
    """
    from retinue.managers import main

    raise typer.Exit(main.run_resource(config))
