"""`retinue placement` and `retinue domain`: why a VM went where it went, and spreading the VMs."""

from typing import Annotated, Any

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.cli.errors import CliError
from retinue.cli.move import follow_steps
from retinue.core.migration import MigrationState
from retinue.core.placement import Metric, Reason
from retinue.protocol.blocking import Client
from retinue.protocol.errors import RejectedError
from retinue.protocol.routes import Route

app = options.group("How the target of a migration was chosen.")
domain = options.group("The servers of the domain together.")

METRICS = " or ".join(Metric)


@app.command()
@connected
def explain(at: Connection, id: Annotated[str, typer.Argument(metavar="MOVE")]) -> None:
    """Show why a VM went where it went: every server with its points, or why it was refused.

    The decision is made once more, from what was known when it fell; the exit code is 1 if it differs.

    \b
    Example:
      retinue placement explain migration-1
    """
    found = at.client().ask(Route.EXPLAIN_PLACEMENT, id)
    if at.as_json:
        output.print_json(found)
    else:
        _draw(found)
    if not found["same"]:
        raise CliError(f"made once more, the decision is another: {found['recomputed']['text']}")


@app.command()
@connected
def find(
    at: Connection,
    vm: Annotated[str, typer.Argument(metavar="VM")],
    to: Annotated[str, typer.Option(metavar="SERVER", help="Whether this one would do.")] = "",
) -> None:
    """Show which server would be best for a VM now, for whoever brings it there himself; nothing is moved.

    The exit code is 1 where no server is better than the one it is at.

    \b
    Example:
      retinue placement find web
    """
    found = at.client().ask(Route.CHOOSE_SERVER, vm, body={"server": to} if to else {})
    decision, need = found["decision"], found["snapshot"]["need"]
    if at.as_json:
        output.print_json(found)
    else:
        output.print_fields(
            (
                ("needs", f"{need['memory_mib']} MiB, {need['cpus']} processors"),
                ("best", decision["target"]),
                ("runner-up", decision["runner_up"]),
                ("decided by", decision["decided_by"]),
            )
        )
        _draw_verdicts(decision)
    if not decision["target"]:
        raise CliError(decision["text"])


def _draw(found: dict[str, Any]) -> None:
    decision, snapshot = found["decision"], found["snapshot"]
    wish, need = snapshot["wish"], snapshot["need"]
    measured = ""
    if wish["threshold"]:
        over = f"over {wish['threshold'] / 100:.2f} % for {wish['seconds']} s"
        measured = f" ({wish['measured'] / 100:.2f} %, {over})"
    output.print_fields(
        (
            ("move", f"{found['migration']}, {found['match']}"),
            ("asked by", found["by"]),
            ("because", f"{found['why']}{measured}"),
            ("needs", f"{need['memory_mib']} MiB, {need['cpus']} processors"),
            ("chosen", decision["target"]),
            ("runner-up", decision["runner_up"]),
            ("decided by", decision["decided_by"]),
            ("why", decision["text"]),
        )
    )
    _draw_verdicts(decision)


def _draw_verdicts(decision: dict[str, Any]) -> None:
    rows = []
    for verdict in (*decision["ranked"], *decision["refused"]):
        shown = " ".join(f"{one['measure']} {one['points'] / 100:.2f}" for one in verdict["scores"])
        refused = "; ".join(f"{one['filter']}: {one['text']}" for one in verdict["refused"])
        rows.append((verdict["server"], f"{verdict['total'] / 100:.2f}", shown, refused))
    output.print_table(("SERVER", ">POINTS", "OF", "REFUSED"), rows, "There are no servers.")


@domain.command()
@connected
def rebalance(
    at: Connection,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be moved, and why.")
    ] = False,
    metric: Annotated[
        str, typer.Option(metavar="METRIC", help=f"What a server's load is: {METRICS} that its VMs have.")
    ] = Metric.MEMORY,
    threshold: Annotated[
        int, typer.Option(metavar="PERCENT", min=0, max=100, help="An imbalance up to this is none.")
    ] = 20,
    timeout: options.Timeout = None,
) -> None:
    """Spread the VMs over the servers: bring apart those that must be, then relieve the fullest server.

    Each move is shown with what it is good for before it is made. They are made one after the other; the
    first that cannot be ends it, and the exit code is 1.

    \b
    Examples:
      retinue domain rebalance --dry-run
      retinue domain rebalance --metric cpu --threshold 10
    """
    controller = at.client()
    plan = controller.ask(Route.PLAN_DOMAIN, metric=metric, threshold=threshold)
    if at.as_json and dry_run:
        output.print_json(plan)
        return
    if not at.as_json:
        _draw_plan(plan)
    for step in () if dry_run else plan["steps"]:
        migration = _make(controller, step, timeout)
        if at.as_json:
            output.print_line(migration)
        else:
            output.say(f"{migration['id']}: {step['vm']} is at {step['target']}")


def _draw_plan(plan: dict[str, Any]) -> None:
    before, after = plan["imbalance_before"] / 100, plan["imbalance_after"] / 100
    output.print_table(
        ("SERVER", f">{plan['metric'].upper()} NOW", ">THEN"),
        (
            (server, f"{load / 100:.2f} %", f"{plan['after'][server] / 100:.2f} %")
            for server, load in plan["before"].items()
        ),
        "There are no servers of which it is known what they have.",
    )
    output.print_table(
        ("VM", "FROM", "TO", "RULE", "WHAT IT IS GOOD FOR"),
        ((s["vm"], s["source"], s["target"], s["rule"], s["text"]) for s in plan["steps"]),
        "Nothing is to be moved.",
    )
    for sentence in plan["left"]:
        output.say(sentence)
    output.say(f"imbalance {before:.2f} % -> {after:.2f} %")


def _make(controller: Client, step: dict[str, Any], timeout: float | None) -> dict[str, Any]:
    """Make one move of a plan, to its end. Raises CliError."""
    body = {"vm": step["vm"], "target_server": step["target"], "reason": Reason.UTILISATION}
    since = controller.last_event()
    try:
        migration = controller.ask(Route.START_MIGRATION, body=body)
    except RejectedError as error:
        raise CliError(f"VM {step['vm']} cannot be moved to {step['target']}: {error}") from error
    migration = follow_steps(controller, since, migration, draw=False, timeout=timeout)
    if migration["state"] == MigrationState.UNDONE:
        raise CliError(f"{migration['id']} of {step['vm']} was undone: {migration['reason']}")
    return migration


@domain.command("list")
@connected
def list_(at: Connection) -> None:
    """List the other domains, and which VMs are there, or are guests here.

    \b
    Example:
      retinue domain list
    """
    data = at.client().ask(Route.LIST_DOMAINS)
    if at.as_json:
        output.print_json(data)
        return
    output.print_table(
        ("DOMAIN", "GATEWAY", "TUNNEL", "MAY BRING", ">AWAY", ">GUESTS"),
        (
            (row["id"], row["gateway"], row["tunnel"], row["prefixes"], row["away"], row["guests"])
            for row in data["domains"]
        ),
        "No other domain is configured.",
    )
    if data["vms"]:
        output.print_table(
            ("VM", "ADDRESSES", "HOME", "IS IN", "BY SERVER"),
            (
                (row["vm"], row["addresses"], row["home"] or "here", row["domain"] or "here", row["server"])
                for row in data["vms"]
            ),
            "",
        )
