"""`retinue controller`: the daemon itself, its configuration checked, its state asked."""

from pathlib import Path
from typing import Annotated

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.cli.errors import CliError
from retinue.protocol.routes import Route

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
    from retinue.controller import main

    raise typer.Exit(main.run(config, database))


@app.command()
def check(config: Config) -> None:
    """Check a configuration without running anything.

    \b
    Example:
      retinue controller check --config controller.toml
    """
    from retinue.config_file import ConfigError
    from retinue.controller.authn.tls import protection
    from retinue.controller.config import LISTENERS, load

    try:
        found = load(config)
        net = found.network()
        guard = protection(found)
    except ConfigError as error:
        text = str(error)
        raise CliError(text if str(config) in text else f"{config}: {text}") from error
    output.say(
        f"{config} is good: {len(net.switches)} switches, {len(net.servers)} servers, "
        f"{len(found.subnet)} subnets; REST at {found.listen.rest}, OpenFlow at {found.listen.openflow}, "
        f"OVSDB at {found.listen.ovsdb}"
    )
    plain = [name for name in LISTENERS if name not in guard.contexts]
    if plain:
        output.say(f"plaintext listeners: {', '.join(plain)}")
    if guard.ends is not None:
        output.say(f"the controller's certificate is good until {guard.ends:%Y-%m-%d}")


@app.command()
@connected
def status(at: Connection) -> None:
    """Show how the controller is: what it knows, what is pending, what it rejected.

    \b
    Example:
      retinue controller status
    """
    controller = at.client()
    data = controller.ask(Route.GET_STATUS)
    if at.as_json:
        output.print_json(data)
        return
    switches, servers = data["switches"], data["servers"]
    pending = sum(data["pending"].values())
    output.print_fields(
        (
            ("controller", f"{controller.url}, version {data['version']}"),
            ("switches", f"{switches['connected']} of {switches['known']} connected"),
            ("servers", f"{servers['placed']} of {servers['known']} in place"),
            ("VMs", data["vms"]),
            ("bindings", data["bindings"]),
            ("migrations under way", data["migrations_under_way"]),
            ("flow changes", f"{data['flow_mods']} sent, {pending} pending"),
            ("rejected", [f"{switch}: {error}" for switch, error in data["rejected"].items()]),
            ("spoof_attempts", data["spoof_attempts"]),
            ("rejected", _rejections(data["rejected"])),
            ("rejected by agents", _rejections(data["rejected_by_agents"])),
        )
    )


def _rejections(counts: dict[str, dict[str, int]]) -> list[str]:
    return [f"{where}: {kind} {count}" for where, kinds in counts.items() for kind, count in kinds.items()]
