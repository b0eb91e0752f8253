"""`retinue controller`: the daemon itself, its configuration checked, its state asked."""

from pathlib import Path
from typing import Annotated

import typer

from retinue.cli import options, reach, tables
from retinue.cli.errors import CliError

app = options.group("The controller: run it, check its configuration, ask how it is.")

Config = Annotated[Path, typer.Option(metavar="FILE", help="The configuration (TOML).")]


@app.command()
def run(
    config: Config,
    database: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where it keeps its state, made if it is not there."),
    ] = None,
) -> None:
    """Run the controller in the foreground until it is ended (SIGTERM, or Ctrl-C).

    \b
    Example:
      retinue controller run --config controller.toml --database controller.db
    """
    from retinue.api import daemon

    raise typer.Exit(daemon.run(config, database))


@app.command()
def check(config: Config) -> None:
    """Check a configuration without running anything.

    \b
    Example:
      retinue controller check --config controller.toml
    """
    from retinue.controller.config import LISTENERS, ConfigError, endpoint, load
    from retinue.controller.protection import protection

    try:
        found = load(config)
        net = found.network()
        guard = protection(found)
        for address in (found.listen.openflow, found.listen.ovsdb, found.listen.rest):
            endpoint(address)
    except ConfigError as error:
        text = str(error)
        raise CliError(text if str(config) in text else f"{config}: {text}") from error
    typer.echo(
        f"{config} is good: {len(net.switches)} switches, {len(net.servers)} servers, "
        f"{len(found.subnet)} subnets; REST at {found.listen.rest}, OpenFlow at {found.listen.openflow}, "
        f"OVSDB at {found.listen.ovsdb}"
    )
    plain = [name for name in LISTENERS if name not in guard.contexts]
    if plain:
        typer.echo(f"plain text, as it says: {', '.join(plain)}")
    if guard.ends is not None:
        typer.echo(f"the controller's certificate is good until {guard.ends:%Y-%m-%d}")


@app.command()
def status(url: options.Url = None, lab: options.Lab = None, as_json: options.Json = False) -> None:
    """Show how the controller is: what it knows, what is pending, what it refused.

    \b
    Example:
      retinue controller status
    """
    controller = reach.controller(url, lab)
    data = controller.get("status")
    if as_json:
        tables.print_json(data)
        return
    switches, servers = data["switches"], data["servers"]
    pending = sum(data["pending"].values())
    tables.print_fields(
        (
            ("controller", f"{controller.url}, version {data['version']}"),
            ("switches", f"{switches['connected']} of {switches['known']} connected"),
            ("servers", f"{servers['placed']} of {servers['known']} in place"),
            ("VMs", data["vms"]),
            ("bindings", data["bindings"]),
            ("moves under way", data["moves_under_way"]),
            ("flow changes", f"{data['flow_mods']} sent, {pending} pending"),
            ("rejected", [f"{switch}: {error}" for switch, error in data["rejected"].items()]),
            ("forgeries", data["forgeries"]),
            ("refused", _refusals(data["refused"])),
            ("refused by agents", _refusals(data["refused_by_agents"])),
        )
    )


def _refusals(counts: dict[str, dict[str, int]]) -> list[str]:
    return [f"{where}: {kind} {count}" for where, kinds in counts.items() for kind, count in kinds.items()]
