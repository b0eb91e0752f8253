"""`retinue move`: start a live migration, watch it, cancel it."""

import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from retinue.cli import options, output
from retinue.cli.connection import Connection, connected
from retinue.cli.copy_progress import CopyProgress, unseen
from retinue.cli.errors import CliError
from retinue.cli.request_bodies import left_in
from retinue.core.migration import MigrationState
from retinue.core.migration.copying import Postcopy
from retinue.protocol.blocking import Client, DeadlineError
from retinue.protocol.routes import Route

app = options.group("Live migration of VMs between servers.")

ENDED = tuple(state for state in MigrationState if state.ended)
WAITS_FOR = {
    MigrationState.PLANNED: "the target server's location",
    MigrationState.MATCHED: "the VM's port at the target",
    MigrationState.ADMITTING: "bindings and flows at the target, confirmed",
    MigrationState.PREPARED: "the hypervisor to start the copy",
    MigrationState.COPYING: "all but a little of the VM to be copied; it runs at the source",
    MigrationState.DIVERTED: "the VM to run at the target; its traffic waits there",
    MigrationState.SWITCHING: "its traffic to be diverted to the target, confirmed",
    MigrationState.SWITCHED: "bindings and flows at the source to be deleted, confirmed",
    MigrationState.CONFIRMED: "the hypervisor to free the source",
    MigrationState.FREED: "the source's switch to cease forwarding",
    MigrationState.ROLLING_BACK: "the network and the hypervisor to be as before",
}
"""What each state of a migration waits for, in words."""


@app.command()
@connected
def start(
    at: Connection,
    vm: Annotated[str, typer.Argument(metavar="VM", help="The VM's name.")],
    to: Annotated[
        str | None,
        typer.Option(metavar="SERVER", help="The target server; DOMAIN or DOMAIN/SERVER for another domain."),
    ] = None,
    to_switch: Annotated[
        str | None, typer.Option(metavar="SWITCH", help="The target, by its edge switch.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="SERVER", help="Reject unless the VM is at this server."),
    ] = None,
    downtime: Annotated[
        int | None,
        typer.Option(
            metavar="MS", min=0, help="How long the VM should be paused at the most (100 ms unless told)."
        ),
    ] = None,
    postcopy: Annotated[
        bool | None,
        typer.Option(
            "--postcopy/--no-postcopy",
            help="Let it run at the target after one pass, before all of its memory is there, however much "
            "it writes; it ends if a server or the network fails meanwhile. Rejected where a server cannot.",
        ),
    ] = None,
    compress: Annotated[
        bool | None,
        typer.Option("--compress/--no-compress", help="Compress its memory on the way: for slow networks."),
    ] = None,
    nic: Annotated[
        str | None,
        typer.Option(metavar="NIC", help="Whose addresses are to be other ones; left out: the VM's first."),
    ] = None,
    mac: Annotated[str | None, typer.Option(metavar="MAC", help="Its MAC from the target on.")] = None,
    vnet: Annotated[str | None, typer.Option(metavar="VNET", help="Its vnet from the target on.")] = None,
    address: Annotated[
        list[str] | None,
        typer.Option(metavar="IP", help="A static address of its from the target on; may be repeated."),
    ] = None,
    after_the_fact: Annotated[
        bool,
        typer.Option(
            "--after-the-fact",
            help="It runs there already: hypervisors of others, without our agents, have migrated it.",
        ),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Draw the steps until the migration has ended.")
    ] = False,
    timeout: options.Timeout = None,
) -> None:
    """Migrate a running VM to another server. With --wait the exit code is 1 if the migration was undone.

    Without a target the best server is looked for: `retinue placement explain` shows how it was chosen.

    \b
    Examples:
      retinue move start vm1 --to server2 --wait
      retinue move start vm1 --wait
      retinue move start vm1 --to-switch edge3 --from server1
      retinue move start vm1 --to server2 --downtime 20
      retinue move start vm1 --to server2 --postcopy --wait
      retinue move start vm1 --to server2 --compress
      retinue move start vm1 --to b/server3 --wait
      retinue move start vm1 --to server2 --vnet blue --address 10.2.0.50
      retinue move start vm1 --to-switch edge2 --after-the-fact
    """
    if to is not None and to_switch is not None:
        raise typer.BadParameter("name the target once: --to SERVER, or --to-switch SWITCH")
    controller = at.client()
    wanted = {"target_server": to, "target_switch": to_switch, "source_server": source}
    body: dict[str, Any] = {"vm": vm, **{key: text for key, text in wanted.items() if text}}
    if downtime is not None:
        body["downtime_ms"] = downtime
    if after_the_fact:
        body["after_the_fact"] = True
    if postcopy is not None:
        body["postcopy"] = Postcopy.REQUIRED if postcopy else Postcopy.NEVER
    if compress is not None:
        body["compress"] = compress
    new = left_in(mac=mac, vnet=vnet, addresses=address or None)
    if nic and not new:
        raise typer.BadParameter("say what the NIC is to have: --mac, --vnet or --address")
    if new:
        body["nics"] = [left_in(nic=nic) | new]
    since = controller.last_event()
    migration = controller.ask(Route.START_MIGRATION, body=body)
    if not wait:
        if at.as_json:
            output.print_json(migration)
        else:
            output.say(
                f"{migration['id']}: {vm} migrates from {migration['source']} to {migration['target']}; "
                f"`retinue move show {migration['id']} --follow` draws its steps"
            )
            if migration.get("placement"):
                output.say(f"{migration['placement']['text']}")
        return
    migration = follow_steps(controller, since, migration, draw=not at.as_json, timeout=timeout)
    if at.as_json:
        output.print_json(migration)
    _exit_by(migration)


@app.command("list")
@connected
def list_(at: Connection) -> None:
    """List all migrations, under way and ended. DOWNTIME is from the stop at the source to the run at the
    target.

    \b
    Example:
      retinue move list
    """
    data = at.client().ask(Route.LIST_MIGRATIONS)
    if at.as_json:
        output.print_json(data)
        return
    output.print_table(
        ("MOVE", "VM", "FROM", "TO", "STATE", "BEGAN", ">TOOK", ">DOWNTIME", "REASON"),
        (
            (
                migration["id"],
                migration["vm"],
                migration["source"],
                migration["target"],
                migration["state"],
                output.ago(migration["steps"][0]["at"]),
                output.span(_took(migration)),
                _downtime(migration),
                migration["reason"],
            )
            for migration in data["migrations"]
        ),
        "There are no migrations; `retinue move start VM --to SERVER` starts one.",
    )


@app.command()
@connected
def show(
    at: Connection,
    id: Annotated[str, typer.Argument(metavar="MOVE")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Draw the steps until it has ended.")
    ] = False,
    timeout: options.Timeout = None,
) -> None:
    """Show a migration and the time of each of its steps.

    With --follow --json the migration is printed at each step, one a line.

    \b
    Examples:
      retinue move show migration-1
      retinue move show migration-1 --follow
    """
    controller = at.client()
    since = controller.last_event() if follow else 0
    migration = controller.ask(Route.GET_MIGRATION, id)
    if follow:
        migration = follow_steps(
            controller, since, migration, draw=not at.as_json, lines=at.as_json, timeout=timeout
        )
        _exit_by(migration)
    elif at.as_json:
        output.print_json(migration)
    else:
        _draw_head(migration)
        for number in range(len(migration["steps"])):
            _draw_step(migration, number)
        if migration.get("waits_for"):
            output.say(f"waits for {migration['waits_for']}")
        _draw_end(migration)


@app.command()
@connected
def cancel(
    at: Connection,
    id: Annotated[str, typer.Argument(metavar="MOVE")],
) -> None:
    """Cancel a migration: the VM stays at its source. Rejected once the VM runs at the target.

    \b
    Example:
      retinue move cancel migration-1
    """
    migration = at.client().ask(Route.CANCEL_MIGRATION, id)
    if at.as_json:
        output.print_json(migration)
    else:
        output.say(f"{migration['id']} is {migration['state']}: {migration['reason']}")


# ---- following ----


def follow_steps(
    controller: Client,
    since: int,
    migration: dict[str, Any],
    *,
    draw: bool,
    lines: bool = False,
    timeout: float | None,
) -> dict[str, Any]:
    """Follow the events after `since` until the migration has ended; return it as it then is.

    `draw` its steps for people, or print it at each step as a line of JSON (`lines`).
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    drawn = 0
    copying = CopyProgress() if draw else unseen
    if draw:
        _draw_head(migration)
    try:
        for now in _versions(controller, since, migration, deadline, copying):
            if lines:
                output.print_line(now)
            for number in range(drawn, len(now["steps"]) if draw else 0):
                _draw_step(now, number)
            drawn = max(drawn, len(now["steps"]))
            migration = now
    except DeadlineError:
        raise CliError(
            f"{migration['id']} has not ended after {timeout:g} s; it is {migration['state']}, "
            f"waiting for {WAITS_FOR.get(migration['state'], 'its end')}"
        ) from None
    if draw:
        _draw_end(migration)
    return migration


def _versions(
    controller: Client,
    since: int,
    migration: dict[str, Any],
    deadline: float | None,
    copying: Callable[[dict[str, Any], dict[str, Any]], None],
) -> Any:
    """The migration now, and again each time it has taken a step, until it has ended.

    `copying` is called with the migration and the event when a pass over the VM's memory has begun.
    """
    yield migration
    if migration["state"] in ENDED:
        return
    from retinue.protocol.events import EventType

    steps = len(migration["steps"])
    for event in controller.events(since, deadline):
        if event["type"] == EventType.MIGRATION_COPYING and event["migration_id"] == migration["id"]:
            copying(migration, event)
        now = event.get("migration")
        if (
            event["type"] != EventType.MIGRATION_STEP
            or not isinstance(now, dict)
            or now["id"] != migration["id"]
        ):
            continue
        if now["state"] in ENDED:
            yield controller.ask(Route.GET_MIGRATION, migration["id"])  # with its figures
            return
        if len(now["steps"]) > steps:
            steps = len(now["steps"])
            yield now


def _exit_by(migration: dict[str, Any]) -> None:
    if migration["state"] == MigrationState.UNDONE:
        raise CliError(
            f"{migration['id']} was undone, {migration['vm']} is at {migration['source']}: "
            f"{migration['reason']}"
        )


# ---- drawing ----


def _draw_head(migration: dict[str, Any]) -> None:
    output.say(f"{migration['id']}: {migration['vm']} from {migration['source']} to {migration['target']}")
    chosen = migration.get("placement")
    if chosen:
        output.say(f"chosen for {chosen['reason']}, asked by {chosen['by']}: {chosen['text']}")


def _draw_step(migration: dict[str, Any], number: int) -> None:
    """ "+   0.012 s  admitting     waits for ..."."""
    step = migration["steps"][number]
    passed = step["at"] - migration["steps"][0]["at"]
    waits = WAITS_FOR.get(step["state"])
    note = f"waits for {waits}" if waits else ""
    if step["state"] in (MigrationState.ROLLING_BACK, MigrationState.UNDONE) and migration["reason"]:
        note = migration["reason"]
    output.say(f"  {passed:>9.3f} s  {step['state']:<13} {note}".rstrip())


def _draw_end(migration: dict[str, Any]) -> None:
    figures = migration["figures"]
    late = migration["reason"] if migration["state"] not in (*ENDED, MigrationState.ROLLING_BACK) else ""
    output.print_fields(
        (
            ("late", late),
            ("took", output.span(_took(migration)) if migration["state"] in ENDED else ""),
            ("downtime", _downtime(migration)),
            ("prepared in", _prepared(figures)),
            ("diverted in", _milliseconds(figures, "diverting_ms")),
            ("confirmed in", _milliseconds(figures, "control_ms")),
            ("packets lost", _lost(figures)),
            ("flow changes", figures.get("flow_mods")),
            ("packets to the controller", figures.get("packet_ins")),
        )
    )


def _prepared(figures: dict[str, Any]) -> str:
    """What the target did before the source was told; "" where its agent has not said."""
    if "machine_ms" not in figures:
        return ""
    disks = (
        f", after {figures['image_ms']} ms for what its disks are made over" if figures["image_ms"] else ""
    )
    return f"{figures['machine_ms']} ms{disks}"


def _lost(figures: dict[str, Any]) -> str:
    """Of a migration that came to nothing; "" where nobody has counted."""
    if "lost_about" not in figures:
        return ""
    sent, kept, back = figures["diverted"], figures.get("kept", 0), figures.get("handed_back", 0)
    told = f"about {figures['lost_about']}: {sent} went to the target, {kept} waited at the source"
    return f"{told}, {back} were handed back" if back else told


def _milliseconds(figures: dict[str, Any], name: str) -> str:
    return f"{figures[name]:.1f} ms" if figures.get(name) is not None else ""


def _took(migration: dict[str, Any]) -> float:
    end = migration["steps"][-1]["at"] if migration["state"] in ENDED else time.time()
    return max(0.0, float(end - migration["steps"][0]["at"]))


def _downtime(migration: dict[str, Any]) -> str:
    stopped, resumed = migration["stopped_at"], migration["resumed_at"]
    if stopped is None or resumed is None:
        return ""
    return f"{(resumed - stopped) * 1000:.0f} ms"
