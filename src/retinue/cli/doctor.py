"""`retinue doctor`: what is not as it should be, in words, the worst first."""

import time
from dataclasses import asdict
from typing import Any

import typer

from retinue.cli import output
from retinue.cli.connection import Connection, connected
from retinue.cli.findings import Finding, Grade, Snapshot, examine
from retinue.protocol.blocking import Client
from retinue.protocol.errors import ControllerAwayError, ControllerError
from retinue.protocol.routes import Route

WORDS = {Grade.CRITICAL: "CRITICAL", Grade.WARNING: "warning", Grade.NOTE: "note"}
UNKNOWN = 3
"""Exit code where nothing can be said, as monitoring programs know it."""


@connected
def doctor(at: Connection) -> None:
    """Say what is not as it should be, the worst first, each with the command to type next.

    The exit code is for monitoring: 0 all is well, 1 warnings, 2 critical, 3 the controller does not say.

    \b
    Example:
      retinue doctor
    """
    try:
        client = at.client()
        findings = examine(snapshot(client, time.time()))
    except ControllerAwayError as error:
        meanwhile = (
            "switches forward as before and VMs run on; none is bound, started or migrated until it is back"
        )
        words = f"{error} ({meanwhile})"
        findings = [Finding(Grade.CRITICAL, "controller", words, "systemctl status retinue-controller")]
    except ControllerError as error:  # Refused, or not even asked: of the controller that says nothing.
        output.say(f"retinue: {error}", err=True)
        raise typer.Exit(UNKNOWN) from error
    worst = max((finding.grade for finding in findings), default=Grade.NOTE)
    if at.as_json:
        rows = [{**asdict(one), "grade": one.grade.name.lower()} for one in findings]
        output.print_json({"state": worst.name.lower() if worst else "ok", "findings": rows})
    else:
        _draw(findings)
    raise typer.Exit(int(worst))


def snapshot(client: Client, now: float) -> Snapshot:
    """All that is looked at. Raises ControllerError."""

    def ask(route: Route) -> dict[str, Any]:
        answer: dict[str, Any] = client.ask(route)
        return answer

    vms = ask(Route.LIST_VMS)
    return Snapshot(
        status=ask(Route.GET_STATUS),
        switches=ask(Route.LIST_SWITCHES)["switches"],
        links=ask(Route.LIST_LINKS)["links"],
        servers=ask(Route.LIST_SERVERS)["servers"],
        vms=vms["vms"],
        removed=vms["removed"],
        migrations=ask(Route.LIST_MIGRATIONS)["migrations"],
        bindings=ask(Route.LIST_BINDINGS)["bindings"],
        spoof_attempts=ask(Route.LIST_SPOOF_ATTEMPTS)["spoof_attempts"],
        renewals=ask(Route.LIST_RENEWALS)["renewals"],
        images=ask(Route.LIST_IMAGES),
        now=now,
    )


def _draw(findings: list[Finding]) -> None:
    for finding in findings:
        output.say(f"{WORDS[finding.grade]:<8}  {finding.about}: {finding.words}")
        if finding.command:
            output.say(f"{'':<8}  $ {finding.command}")
    counts = [sum(one.grade is grade for one in findings) for grade in (Grade.CRITICAL, Grade.WARNING)]
    if any(counts):
        output.say(f"{counts[0]} critical, {counts[1]} warnings")
    else:
        output.say("All is as it should be.")
