"""Gives each parser damaged input, and prints what it does not declare to raise."""

import argparse
import os
import sys
import time

from fuzz.parsers import PARSERS
from fuzz.run import Outcome, all_of


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make fuzz",
        description=__doc__,
        epilog='for example: make fuzz ARGS="--parser nd --inputs 9999"',
    )
    names = [one.name for one in PARSERS]
    parser.add_argument("--parser", action="append", choices=names, help="this one only")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="for each parser")
    parser.add_argument("--list", action="store_true", help="the parsers")
    parser.add_argument(
        "--processes", type=int, default=len(os.sched_getaffinity(0)), help="at the same time; one a core"
    )
    args = parser.parse_args()
    if args.list:
        print("\n".join(names))
        return 0
    began, failed = time.monotonic(), 0
    totals: dict[str, Outcome] = {}
    for outcome in all_of(args.parser or names, args.inputs, args.processes):
        total = totals.setdefault(outcome.parser, Outcome(outcome.parser))
        total.inputs += outcome.inputs
        total.read += outcome.read
        if outcome.failure is not None:
            failed += 1
            print(f"\n{outcome.failure}", flush=True)
        last = total.inputs >= args.inputs
        if sys.stdout.isatty() or last or total.inputs % 100_000 == 0:
            took = time.monotonic() - began
            line = f"{took:5.0f} s  {total.parser}: {total.inputs} inputs, {total.read} of them valid"
            print(line, end="\n" if last or not sys.stdout.isatty() else "\r", flush=True)
    print(f"{failed} failures" if failed else f"no failures, in {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
