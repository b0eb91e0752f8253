"""`retinue move`: start a live migration, watch it, cancel it."""

import time
from typing import Annotated, Any

import typer

from retinue.cli import options, reach, tables
from retinue.cli.client import Client, DeadlineError
from retinue.cli.errors import CliError

app = options.group("Moves of VMs between servers (live migration).")

ENDED = ("done", "undone")
WAITS_FOR = {
    "planned": "the target server's place",
    "matched": "the VM's port at the target",
    "admitting": "bindings and flows at the target, confirmed",
    "prepared": "the hypervisor to start the copy",
    "copying": "all but a little of the VM to be copied; it runs on",
    "diverted": "the VM to run at the target; its traffic waits there",
    "switching": "its traffic to be steered to the target, confirmed",
    "switched": "bindings and flows at the source to be deleted, confirmed",
    "confirmed": "the hypervisor to free the source",
    "freed": "the source's switch to cease sending on what comes late",
    "rolling back": "the network and the hypervisor to be as before",
}
"""What each state of a move waits for, in words."""


@app.command()
def start(
    vm: Annotated[str, typer.Argument(metavar="VM", help="The VM's name.")],
    to: Annotated[str | None, typer.Option(metavar="SERVER", help="The target server.")] = None,
    to_switch: Annotated[
        str | None, typer.Option(metavar="SWITCH", help="The target, by its edge switch.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="SERVER", help="Refuse unless the VM is at this server."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Draw the steps until the move has ended.")] = False,
    timeout: options.Timeout = None,
    url: options.Url = None,
    lab: options.Lab = None,
    as_json: options.Json = False,
) -> None:
    """Move a running VM to another server. With --wait the exit code is 1 if the move was undone.

    \b
    Examples:
      retinue move start vm1 --to server2 --wait
      retinue move start vm1 --to-switch edge3 --from server1
    """
    if (to is None) == (to_switch is None):
        raise typer.BadParameter("name the target once: --to SERVER, or --to-switch SWITCH")
    controller = reach.controller(url, lab)
    wanted = {"target_server": to, "target_switch": to_switch, "source_server": source}
    since = controller.last_event()
    move = controller.post("moves", body={"vm": vm, **{key: text for key, text in wanted.items() if text}})
    if not wait:
        if as_json:
            tables.print_json(move)
        else:
            typer.echo(
                f"{move['id']}: {vm} moves from {move['source']} to {move['target']}; "
                f"`retinue move show {move['id']} --follow` draws its steps"
            )
        return
    move = _follow(controller, since, move, draw=not as_json, timeout=timeout)
    if as_json:
        tables.print_json(move)
    _exit_by(move)


@app.command("list")
def list_(url: options.Url = None, lab: options.Lab = None, as_json: options.Json = False) -> None:
    """List all moves, under way and ended. DOWNTIME is from the stop at the source to the run at the target.

    \b
    Example:
      retinue move list
    """
    data = reach.controller(url, lab).get("moves")
    if as_json:
        tables.print_json(data)
        return
    tables.print_table(
        ("MOVE", "VM", "FROM", "TO", "STATE", "BEGAN", ">TOOK", ">DOWNTIME", "REASON"),
        (
            (
                move["id"],
                move["vm"],
                move["source"],
                move["target"],
                move["state"],
                tables.ago(move["steps"][0]["at"]),
                tables.span(_took(move)),
                _downtime(move),
                move["reason"],
            )
            for move in data["moves"]
        ),
        "There are no moves; `retinue move start VM --to SERVER` starts one.",
    )


@app.command()
def show(
    id: Annotated[str, typer.Argument(metavar="MOVE")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Draw the steps until it has ended.")
    ] = False,
    timeout: options.Timeout = None,
    url: options.Url = None,
    lab: options.Lab = None,
    as_json: options.Json = False,
) -> None:
    """Show a move and the time of each of its steps.

    With --follow --json the move is printed at each step, one a line.

    \b
    Examples:
      retinue move show move-1
      retinue move show move-1 --follow
    """
    controller = reach.controller(url, lab)
    since = controller.last_event() if follow else 0
    move = controller.get("moves", id)
    if follow:
        move = _follow(controller, since, move, draw=not as_json, lines=as_json, timeout=timeout)
        _exit_by(move)
    elif as_json:
        tables.print_json(move)
    else:
        _draw_head(move)
        for number in range(len(move["steps"])):
            _draw_step(move, number)
        _draw_end(move)


@app.command()
def cancel(
    id: Annotated[str, typer.Argument(metavar="MOVE")],
    url: options.Url = None,
    lab: options.Lab = None,
    as_json: options.Json = False,
) -> None:
    """Take a move back. Refused once the VM runs at the target.

    \b
    Example:
      retinue move cancel move-1
    """
    move = reach.controller(url, lab).post("moves", id, "cancel")
    if as_json:
        tables.print_json(move)
    else:
        typer.echo(f"{move['id']} is {move['state']}: {move['reason']}")


# ---- following ----


def _follow(
    controller: Client,
    since: int,
    move: dict[str, Any],
    *,
    draw: bool,
    lines: bool = False,
    timeout: float | None,
) -> dict[str, Any]:
    """Follow the events after `since` until the move has ended; return it as it then is.

    `draw` its steps for people, or print it at each step as a line of JSON (`lines`).
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    drawn = 0
    if draw:
        _draw_head(move)
    try:
        for now in _versions(controller, since, move, deadline):
            if lines:
                tables.print_line(now)
            for number in range(drawn, len(now["steps"]) if draw else 0):
                _draw_step(now, number)
            drawn = max(drawn, len(now["steps"]))
            move = now
    except DeadlineError:
        raise CliError(
            f"{move['id']} has not ended after {timeout:g} s; it is {move['state']}, "
            f"waiting for {WAITS_FOR.get(move['state'], 'its end')}"
        ) from None
    if draw:
        _draw_end(move)
    return move


def _versions(controller: Client, since: int, move: dict[str, Any], deadline: float | None) -> Any:
    """The move now, and again each time it has taken a step, until it has ended."""
    yield move
    if move["state"] in ENDED:
        return
    steps = len(move["steps"])
    for event in controller.events(since, deadline):
        now = event.get("move")
        if event["type"] != "move.step" or not isinstance(now, dict) or now["id"] != move["id"]:
            continue
        if now["state"] in ENDED:
            yield controller.get("moves", move["id"])  # with its figures
            return
        if len(now["steps"]) > steps:
            steps = len(now["steps"])
            yield now


def _exit_by(move: dict[str, Any]) -> None:
    if move["state"] == "undone":
        raise CliError(f"{move['id']} was undone, {move['vm']} is at {move['source']}: {move['reason']}")


# ---- drawing ----


def _draw_head(move: dict[str, Any]) -> None:
    typer.echo(f"{move['id']}: {move['vm']} from {move['source']} to {move['target']}")


def _draw_step(move: dict[str, Any], number: int) -> None:
    """ "+   0.012 s  admitting     waits for ..."."""
    step = move["steps"][number]
    passed = step["at"] - move["steps"][0]["at"]
    waits = WAITS_FOR.get(step["state"])
    note = f"waits for {waits}" if waits else ""
    if step["state"] in ("rolling back", "undone") and move["reason"]:
        note = move["reason"]
    typer.echo(f"  {passed:>9.3f} s  {step['state']:<13} {note}".rstrip())


def _draw_end(move: dict[str, Any]) -> None:
    figures = move["figures"]
    late = move["reason"] if move["state"] not in (*ENDED, "rolling back") else ""
    tables.print_fields(
        (
            ("late", late),
            ("took", tables.span(_took(move)) if move["state"] in ENDED else ""),
            ("downtime", _downtime(move)),
            ("steered in", _milliseconds(figures, "steering_ms")),
            ("confirmed in", _milliseconds(figures, "control_ms")),
            ("packets lost", _lost(figures)),
            ("flow changes", figures.get("flow_mods")),
            ("packets to the controller", figures.get("packet_ins")),
        )
    )


def _lost(figures: dict[str, Any]) -> str:
    """Of a move that came to nothing; "" where nobody has counted."""
    if "lost_about" not in figures:
        return ""
    sent, kept = figures["diverted"], figures.get("kept", 0)
    return f"about {figures['lost_about']}: {sent} went to the target, {kept} waited at the source"


def _milliseconds(figures: dict[str, Any], name: str) -> str:
    return f"{figures[name]:.1f} ms" if figures.get(name) is not None else ""


def _took(move: dict[str, Any]) -> float:
    end = move["steps"][-1]["at"] if move["state"] in ENDED else time.time()
    return max(0.0, float(end - move["steps"][0]["at"]))


def _downtime(move: dict[str, Any]) -> str:
    stopped, resumed = move["stopped_at"], move["resumed_at"]
    if stopped is None or resumed is None:
        return ""
    return f"{(resumed - stopped) * 1000:.0f} ms"
