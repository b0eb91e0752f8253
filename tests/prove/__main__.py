"""Proves every moment of every network, and prints what is wrong with it."""

import argparse
import os
import sys
import time

from prove import run
from prove.networks import NETWORKS
from prove.reach import UndecidedError


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make prove", description=__doc__, epilog='for example: make prove ARGS="--network dual"'
    )
    parser.add_argument("--network", action="append", choices=sorted(NETWORKS), help="this one only")
    parser.add_argument("--list", action="store_true", help="the networks and their moments")
    parser.add_argument(
        "--processes", type=int, default=len(os.sched_getaffinity(0)), help="at the same time; one a core"
    )
    args = parser.parse_args()
    networks = args.network or list(NETWORKS)
    if args.list:
        for name in networks:
            print(f"{name}: {' '.join((NETWORKS[name].__doc__ or '').split())}")
            print("".join(f"    {moment.name}\n" for moment in run.moments_of(name)), end="")
        return 0
    began, wrong, moments, fates, honest = time.monotonic(), 0, 0, 0, 0
    try:
        for result in run.all_of(networks, args.processes):
            tally = result.tally
            what = "right" if not result.wrong else f"WRONG: {result.wrong} counter-examples"
            print(
                f"{time.monotonic() - began:4.0f} s  {result.network}, {result.moment}: {tally.fates} fates, "
                f"{tally.honest} of honest frames, {what}",
                flush=True,
            )
            for shown in result.shown:
                print(shown, flush=True)
            wrong, moments = wrong + result.wrong, moments + 1
            fates, honest = fates + tally.fates, honest + tally.honest
    except (run.NothingProvedError, UndecidedError) as error:
        print(f"nothing is proved: {error}", file=sys.stderr)
        return 2
    print(
        f"{'Proved' if not wrong else f'NOT proved, {wrong} counter-examples'}: {moments} moments of "
        f"{len(networks)} networks, {fates} fates, {honest} of honest frames, "
        f"in {time.monotonic() - began:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
