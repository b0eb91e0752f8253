"""`retinue lab compare`: live migration by this and by other systems, under the same traffic."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from retinue.cli import options
from retinue_lab.cli import target

DEFAULT_OUTPUT = Path("build/compare.json")
NARROWEST = 100
"""Columns of text."""


def _numbers(text: str, what: str, most: int) -> list[int]:
    try:
        found = [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise typer.BadParameter(f"{what}: whole numbers are wanted, not {text!r}") from None
    if not found or not all(1 <= number <= most for number in found):
        raise typer.BadParameter(f"{what}: numbers from 1 to {most} are wanted, not {text!r}")
    return found


def compare(
    systems: Annotated[
        str, typer.Option(metavar="NAME,...", help="Which to compare. Left out: retinue and those of others.")
    ] = "",
    mechanisms: Annotated[
        bool,
        typer.Option(
            "--mechanisms", help="In the place of --systems: the five mechanisms, each alone, and together."
        ),
    ] = False,
    runs: Annotated[
        int, typer.Option(metavar="N", min=1, max=1000, help="Moves for each rate and size.")
    ] = 10,
    pps: Annotated[str, typer.Option(metavar="N,...", help="Packets a second, each way.")] = "500,2000",
    sizes: Annotated[str, typer.Option(metavar="N,...", help="Bytes of payload.")] = "64,1400",
    tcp: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, help="Moves under a TCP bulk stream (iperf3). Left out: as many as --runs."
        ),
    ] = None,
    writes: Annotated[
        str,
        typer.Option(
            metavar="N,...", help="MiB a second that the guest writes in further moves; 0: no such moves."
        ),
    ] = "20",
    dual: Annotated[
        bool,
        typer.Option(
            "--dual",
            help="A VM with two NICs, each with IPv4 and IPv6: the traffic is to and from each of the four.",
        ),
    ] = False,
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="Gets all figures; the picture goes beside it as .svg.")
    ] = DEFAULT_OUTPUT,
    add: Annotated[
        bool, typer.Option("--add", help="Keep what FILE holds of other systems, rates and sizes.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Compare live migration under traffic with other systems, each in a lab of its own.

    \b
    Examples:
      retinue lab compare
      retinue lab compare --systems retinue,learning-switch --pps 500 --runs 2
      retinue lab compare --mechanisms --pps 500 --sizes 64 --runs 3 --tcp 0 --writes 0
      retinue lab compare --dual --pps 125 --sizes 64 --runs 3 --writes 0
    """
    with target.lab_errors():
        from retinue_lab.compare import run as comparison
        from retinue_lab.compare.report import summary, table

        if mechanisms and systems:
            raise typer.BadParameter("say either which systems, or --mechanisms", param_hint="--systems")
        if dual and tcp:
            raise typer.BadParameter("with --dual no TCP is measured: leave it out", param_hint="--tcp")
        named = comparison.MECHANISMS if mechanisms else systems.replace(",", " ").split()
        plan = comparison.Plan(
            systems=named or comparison.USUAL,
            runs=runs,
            pps=_numbers(pps, "--pps", 20_000),
            sizes=_numbers(sizes, "--sizes", 1472),
            tcp_runs=(0 if dual else runs) if tcp is None else tcp,
            dual=dual,
            write_mib_s=[] if writes.strip() == "0" else _numbers(writes, "--writes", 10_000),
        )

        def say(text: str) -> None:
            typer.echo(text, err=as_json)

        report, complete = comparison.run(plan, output, say, add=add)
        if as_json:
            typer.echo(summary.encode(report), nl=False)
        else:
            width = max(NARROWEST, shutil.get_terminal_size((NARROWEST, 24)).columns)
            typer.echo(table.table(report, colour=sys.stdout.isatty(), width=width))
            typer.echo(f"All figures: {output}; the picture: {comparison.picture_of(output)}")
    raise typer.Exit(0 if complete else 1)
