"""`retinue controller`: the daemon itself, its configuration checked, its state asked."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.cli.errors import CliError
from retinue.protocol.blocking import Client
from retinue.protocol.errors import ControllerError
from retinue.protocol.routes import Route

if TYPE_CHECKING:
    from retinue.core.model import Network

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
    from retinue.controller.config import load
    from retinue.controller.config_tables import LISTENERS
    from retinue.controller.leadership.candidate import database_context

    try:
        found = load(config)
        net = found.network()
        guard = protection(found)
        if found.cluster is not None:
            database_context(found.cluster)
    except ConfigError as error:
        text = str(error)
        raise CliError(text if str(config) in text else f"{config}: {text}") from error
    output.say(
        f"{config} is good: {len(net.switches)} switches, {len(net.servers)} servers, "
        f"{len(found.subnet)} subnets; REST at {found.listen.rest}, OpenFlow at {found.listen.openflow}, "
        f"OVSDB at {found.listen.ovsdb}"
    )
    for note in notes(net):
        output.say(f"note: {note}")
    if found.cluster is not None:
        at = ", ".join(found.cluster.database)
        output.say(f"one of several controllers, {found.cluster.name}; their database is at {at}")
    plain = [name for name in LISTENERS if name not in guard.contexts]
    if plain:
        output.say(f"plaintext listeners: {', '.join(plain)}")
    if guard.ends is not None:
        output.say(f"the controller's certificate is good until {guard.ends:%Y-%m-%d}")


def notes(net: "Network") -> Iterator[str]:
    """What a file may have and mean, and does more often by mistake."""
    for server in net.servers.values():
        at = server.given_at
        if at is not None and at.switch not in net.switches:
            yield f"server {server.id}: at: there is no switch {at.switch} in this file"
        if "router" in server.services and not (server.routes or server.subinterfaces):
            yield f"server {server.id}: it is a router, and leads to nothing: routes"
        subnets = net.subnets.values()
        if server.address is not None and not any(server.address in one.prefix for one in subnets):
            yield f"server {server.id}: {server.address} is in no subnet of this file"
    if not net.subnets:
        yield "there is no subnet: no VM can have an address"


@app.command()
def schema() -> None:
    """Print the schema of the database that several controllers share, for ovsdb-tool and ovsdb-client.

    \b
    Example:
      retinue controller schema > retinue.ovsschema
      ovsdb-tool create /var/lib/retinue/retinue.db retinue.ovsschema
    """
    from retinue.controller.store.schema import schema as declaration

    output.print_json(declaration())


@app.command()
@connected
def status(at: Connection) -> None:
    """Show how the controller is: what it knows, what is pending, what it rejected.

    Of several controllers, also which one is active, since when, and how near the others follow: of those
    whose addresses are given.

    \b
    Examples:
      retinue controller status
      retinue controller status --url https://192.0.2.1:8080,https://192.0.2.2:8080
    """
    controller = at.client()
    cluster = [_which(one) for one in controller.each()]
    several = len(cluster) > 1 or cluster[0].get("role") != "alone"
    try:
        data = controller.ask(Route.GET_STATUS)
    except ControllerError as error:
        if not several:
            raise
        data = {"error": str(error)}
    if at.as_json:
        output.print_json(data | {"controllers": cluster} if several else data)
        return
    if several:
        _print_cluster(cluster)
    if "error" in data:
        raise CliError(data["error"])
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
            (
                "entries rejected",
                [f"{switch}: {error}" for switch, error in data["entries_rejected"].items()],
            ),
            ("managers", [_manager(name, one) for name, one in data.get("managers", {}).items()]),
            *([("not kept", data["not_kept"])] if data.get("not_kept") else []),
            ("spoofing attempts", data["spoof_attempts"]),
            ("rejected", _rejections(data["rejected"])),
            ("rejected by agents", _rejections(data["rejected_by_agents"])),
        )
    )


def _manager(name: str, one: dict[str, Any]) -> str:
    found = "" if one["since"] is None else f", found so {output.ago(one['since'])}"
    return f"{name} {one['state']}{found}" + (f": {one['reason']}" if one["reason"] else "")


def _which(controller: Client) -> dict[str, Any]:
    """What one controller says of itself and the others."""
    try:
        return {"url": controller.url, **controller.ask(Route.GET_CLUSTER)}
    except ControllerError as error:
        return {"url": controller.url, "role": "away", "error": str(error)}


def _print_cluster(cluster: list[dict[str, Any]]) -> None:
    output.print_table(
        ("CONTROLLER", "ADDRESS", "ROLE", ">EPOCH", "SINCE", "DATABASE", "STATE"),
        (
            (
                one.get("name", ""),
                one["url"],
                one["role"],
                active["epoch"] if (active := one.get("active")) else "",
                output.ago(active["since"]) if active and one["role"] == "active" else "",
                one.get("database", ""),
                _how_it_is(one),
            )
            for one in cluster
        ),
        "There is no controller.",
    )
    output.say("")


def _how_it_is(one: dict[str, Any]) -> str:
    match one["role"]:
        case "active":
            return f"may go on for {one['mandate_seconds']:.1f} s without the database"
        case "standby":
            active, heard = one.get("active"), one.get("heard_seconds")
            if not one.get("database"):
                return "cannot reach the database"
            of = f"heard {active['name']} {heard:.1f} s ago, " if active and heard is not None else ""
            return f"{of}{one['switches_standing']} switches connected"
    return str(one.get("error", ""))


def _rejections(counts: dict[str, dict[str, int]]) -> list[str]:
    return [f"{where}: {kind} {count}" for where, kinds in counts.items() for kind, count in kinds.items()]
