"""How the controller bears a large network: from empty, at rest, by events one by one and a hundred a second,
by leases, after a restart. The controller is the real daemon; switches, databases, agents, hypervisors are
fakes. Writes a file (JSON) and prints a table; each size is written as soon as it has been measured.
"""

import argparse
import asyncio
import gc
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import structlog

from bench.scale.daemon import DaemonError, Others
from bench.scale.plan import Plan
from bench.scale.report import Machine, Report, table, written
from bench.scale.run import LIMIT, Bench, Effort, load
from retinue.protocol.errors import ControllerError
from retinue.security.listener import descriptors

SIZES = ((10, 100), (50, 1000), (200, 10_000), (1000, 20_000), (1000, 100_000))
SHORT = 2
"""How many of them the short form has."""


def _size(text: str) -> tuple[int, int]:
    servers, _, vms = text.partition(",")
    try:
        found = int(servers), int(vms)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not SERVERS,VMS, such as 50,1000") from None
    if min(found) < 2:
        raise argparse.ArgumentTypeError("it takes two servers and two VMs at least")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="for example:\n"
        "  make bench                                   all sizes (up to an hour)\n"
        "  make bench SHORT=1                           the first two (under two minutes)\n"
        '  make bench ARGS="--size 200,10000"           one size\n'
        '  make bench ARGS="--size 10,100 --keep /tmp/b"  and keep the files of the controller, its log too',
    )
    parser.add_argument("--short", action="store_true", help=f"the first {SHORT} sizes, with fewer events")
    parser.add_argument(
        "--size", type=_size, action="append", metavar="SERVERS,VMS", help="this one; may be repeated"
    )
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"))
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep what the controller wrote there")
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="SECONDS", help="of one phase")
    args = parser.parse_args()
    sizes = args.size or (SIZES[:SHORT] if args.short else SIZES)
    effort = Effort(events=50, seconds=5.0, leases=200) if args.short else Effort()
    effort = replace(effort, limit=args.limit)
    structlog.configure(processors=[structlog.dev.ConsoleRenderer()])
    descriptors.raise_limit()
    gc.disable()  # What stops here would count as the controller's.
    report, failed = Report(), False
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for servers, vms in sizes:
        failed |= not asyncio.run(_measure(Plan(servers, vms), effort, args.keep, report))
        args.output.write_bytes(written(report))
        gc.collect()
    print(table(report))
    return 1 if failed else 0


async def _measure(plan: Plan, effort: Effort, keep: Path | None, report: Report) -> bool:
    """Add the size to the report; False, and the reason is told, if it could not be measured to its end."""
    others, began = Others(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="retinue-bench-") as temporary:
        folder = Path(temporary) if keep is None else keep / f"{plan.servers}-{plan.vms}"
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(plan, effort, folder, _progress)
        report.sizes.append(bench.size)
        try:
            await bench.run()
        except (ControllerError, DaemonError, TimeoutError) as error:
            _progress(
                f"{plan.servers}, {plan.vms}: given up after {time.monotonic() - began:.0f} s: {error!r}"
            )
            return False
        finally:
            cores = others.cores(bench.controller_cpu)
            report.machine = Machine(load(), round(max(report.machine.others_cores, cores), 2))
    return True


def _progress(line: str) -> None:
    print(f"[load {load():.2f}] {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
