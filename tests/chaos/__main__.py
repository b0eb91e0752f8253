"""make chaos: faults at random moments of migrations, under traffic, and what must hold after each.

    make chaos SECONDS=600
    make chaos ARGS="--trials 20 --seed 7 --fault 'kill controller'"

Real switches, VMs and agents, in a laboratory of its own. Every trial is a migration, or several, a fault at
a random moment of it, and the check of all invariants when it is over. The seed is printed: with the same one
the same faults come in the same order, at the same steps. Writes build/chaos.json, and after each violation
all logs of the laboratory into build/chaos-logs.
"""

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chaos.faults import FAULTS, Fault, Ground
from chaos.invariants import answers, settle, violations
from retinue.protocol.errors import ControllerError
from retinue_lab.sandbox.handle import LabHandle
from support.lab.start import boot, lab_of
from support.lab.tools import Doorman, Events, LabBench, at, story

VMS = [at("vm1", "server1"), at("vm2", "server2"), at("vm3", "server3", "10.1.0.50")]
NAMES = tuple(vm["id"] for vm in VMS)
SERVERS = ("server1", "server2", "server3")
STATES = (
    "planned", "matched", "admitting", "prepared", "copying", "diverted", "switched", "confirmed", "freed",
)  # fmt: skip
"""Of a migration: in which the fault may strike."""
PATTERNS = ("one",) * 4 + ("two at once",) * 2 + ("back at once",) * 2 + ("cancel",)
LATEST = 0.4
"""Seconds after a step at which the fault strikes at the latest."""
REACHED = 30.0
"""Seconds in which a migration comes to the state that was chosen, or the fault strikes as it is."""
PPS = 100
MOST_TOLD = 5
"""Gaps of one VM's traffic that are told."""


@dataclass(frozen=True)
class Plan:
    """What a trial is to be: a migration of `vm`, and when the fault strikes."""

    fault: Fault
    pattern: str
    state: str
    vm: str
    toward: float
    """0 to 1: which of the other servers."""
    chance: float
    delay: float

    @classmethod
    def drawn(cls, draw: random.Random, faults: Sequence[Fault]) -> "Plan":
        fault, pattern, state = draw.choice(faults), draw.choice(PATTERNS), draw.choice(STATES)
        return cls(
            fault, pattern, state, draw.choice(NAMES), draw.random(), draw.random(), draw.random() * LATEST
        )

    def target(self, source: str) -> str:
        others = [server for server in SERVERS if server != source]
        return others[int(self.toward * len(others))]


@dataclass
class Trial:
    number: int
    fault: str
    pattern: str
    state: str
    """In which the migration was to be hit."""
    struck_in: str = ""
    """In which it was."""
    ended: str = ""
    violations: list[str] = field(default_factory=list)
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    seconds: float = 0.0


class Chaos:
    """One laboratory, and its trials."""

    def __init__(self, bench: LabBench, seed: int, faults: Sequence[Fault]) -> None:
        self._bench = bench
        self._random = random.Random(seed)
        self._faults = faults

    async def trial(self, number: int) -> Trial:
        plan = Plan.drawn(self._random, self._faults)
        fault, vm = plan.fault, plan.vm
        source = (await self._bench.vm(vm))["server"]
        trial = Trial(number, fault.name, plan.pattern, plan.state)
        ground = Ground(self._bench, vm, source, plan.target(source), plan.chance)
        began = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            traffic = {
                name: await stack.enter_async_context(
                    self._bench.traffic(await self._bench.address(name), pps=PPS)
                )
                for name in NAMES
            }
            events = await stack.enter_async_context(self._bench.events())
            await self._begin(ground, plan.pattern)
            back = asyncio.create_task(self._back(events, ground, plan.pattern))
            trial.struck_in = await self._reached(events, vm, plan.state)
            await asyncio.sleep(plan.delay)
            heal = await fault.strike(ground)
            if heal is not None:
                await heal()
            await asyncio.wait({back}, timeout=REACHED)
            back.cancel()
            trial.violations += await settle(self._bench, NAMES)
            died = await self._died()
            moves = (await self._bench.get("migrations"))["migrations"]
            for name, echoes in traffic.items():
                figures, record = await echoes.end()
                if name in died:
                    continue
                if figures.lost and not fault.may_lose:
                    trial.violations += [f"{name}: {told}" for told in story(record, moves)[:MOST_TOLD]]
                trial.lost += figures.lost
                trial.duplicated += figures.duplicated
                trial.reordered += figures.reordered
        trial.ended = await self._how_it_ended(vm)
        if trial.duplicated or (trial.lost and not fault.may_lose):
            trial.violations.append(f"{trial.lost} lost, {trial.duplicated} doubled")
        if died and "QEMU" not in fault.name:
            trial.violations.append(f"{died} ended")
        try:
            trial.violations += await violations(self._bench, NAMES, died)
            for name in died:
                await self._bench.cli("vm", "start", name)
                trial.violations += await settle(self._bench, NAMES)
                trial.violations += await answers(self._bench, name)
        except (AssertionError, ControllerError) as error:  # Such as a guest's shell that does not answer.
            trial.violations.append(f"cannot be looked at: {error}")
        trial.seconds = round(time.monotonic() - began, 1)
        return trial

    async def _begin(self, ground: Ground, pattern: str) -> None:
        """The migrations of a trial; what they are rejected for is no matter."""
        first = await self._migrate(ground.vm, ground.target)
        if pattern == "two at once":
            other = next(name for name in NAMES if name != ground.vm)
            place = (await self._bench.vm(other))["server"]
            await self._migrate(other, next(server for server in SERVERS if server != place))
        elif pattern == "cancel" and first:
            with contextlib.suppress(ControllerError):
                await self._bench.post(f"migrations/{first}/cancel")

    async def _back(self, events: Events, ground: Ground, pattern: str) -> None:
        """As soon as it has come to its target it goes back."""
        if pattern == "back at once" and await self._reached(events, ground.vm, "done") == "done":
            await self._migrate(ground.vm, ground.source)

    async def _migrate(self, vm: str, to: str) -> str:
        try:
            return str((await self._bench.post("migrations", {"vm": vm, "target_server": to}))["id"])
        except ControllerError:
            return ""

    async def _reached(self, events: Events, vm: str, state: str) -> str:
        """Return when the VM's migration has come so far, or has ended; where it is."""
        ends = (state, "done", "undone")
        with contextlib.suppress(AssertionError):
            step = await events.until(
                "migration.step",
                lambda e: e["migration"]["vm"] == vm and e["migration"]["state"] in ends,
                timeout=REACHED,
            )
            return str(step["migration"]["state"])
        return "none"

    async def _died(self) -> list[str]:
        with contextlib.suppress(ControllerError):
            return [name for name in NAMES if (await self._bench.vm(name))["state"] == "crashed"]
        return []

    async def _how_it_ended(self, vm: str) -> str:
        rows = [m for m in (await self._bench.get("migrations"))["migrations"] if m["vm"] == vm]
        return f"{rows[-1]['state']} {rows[-1]['reason']}".strip() if rows else "none"


def options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__, allow_abbrev=False)
    parser.add_argument("--seconds", type=float, default=600, help="begin no trial after so many (600)")
    parser.add_argument("--trials", type=int, default=0, help="at most so many; 0: as time allows")
    parser.add_argument("--seed", type=int, default=0, help="0: a random one, which is printed")
    parser.add_argument("--fault", action="append", default=[], help="only those whose name has this in it")
    parser.add_argument("--output", type=Path, default=Path("build/chaos.json"))
    return parser.parse_args(argv)


async def run(lab: LabHandle, given: argparse.Namespace, faults: Sequence[Fault]) -> list[Trial]:
    """All trials, each printed as it ends."""
    made: list[Trial] = []
    end = time.monotonic() + given.seconds
    with contextlib.closing(Doorman(lab)) as doorman:
        async with contextlib.aclosing(LabBench(lab, doorman)) as bench:
            chaos = Chaos(bench, given.seed, faults)
            while time.monotonic() < end and not (given.trials and len(made) >= given.trials):
                trial = await chaos.trial(len(made) + 1)
                made.append(trial)
                print(line(trial), flush=True)
                save(given.output, given.seed, made)
                if trial.violations:
                    logs = given.output.parent / "chaos-logs" / f"{given.seed}-{trial.number}"
                    shutil.copytree(lab.directory / "logs", logs, dirs_exist_ok=True)
    return made


def line(trial: Trial) -> str:
    """One trial, for people."""
    hit = f"{trial.fault} in {trial.struck_in}"
    hit += f" (not {trial.state})" if trial.struck_in != trial.state else ""
    figures = f"{trial.lost} lost, {trial.duplicated} doubled, {trial.reordered} reordered"
    text = f"{trial.number:4}  {hit}, {trial.pattern}: {trial.ended}; {figures}; {trial.seconds:g} s"
    return "\n      ! ".join([text, *trial.violations])


def save(path: Path, seed: int, trials: Sequence[Trial]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [vars(trial) for trial in trials]
    path.write_text(json.dumps({"schema": 1, "seed": seed, "trials": rows}, indent=1))


def summary(trials: Sequence[Trial]) -> str:
    """By fault: trials, those with violations, and what was lost."""
    rows = [f"{'fault':28}  {'trials':>6}  {'violated':>8}  {'lost: median':>12}  {'most':>6}"]
    for name in sorted({trial.fault for trial in trials}):
        those = [trial for trial in trials if trial.fault == name]
        violated, lost = sum(bool(trial.violations) for trial in those), [trial.lost for trial in those]
        median = statistics.median(lost)
        rows.append(f"{name:28}  {len(those):6}  {violated:8}  {median:12g}  {max(lost):6}")
    return "\n".join(rows)


def main(argv: Sequence[str]) -> int:
    given = options(argv)
    given.seed = given.seed or random.SystemRandom().randrange(1, 1 << 32)
    faults = [one for one in FAULTS if not given.fault or any(word in one.name for word in given.fault)]
    if not faults:
        print(
            f"no fault has such a name; there are: {', '.join(one.name for one in FAULTS)}", file=sys.stderr
        )
        return 2
    print(f"seed {given.seed}", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as folder,
        lab_of(Path(folder), name="chaos") as lab,
    ):
        boot(lab, VMS)
        trials = asyncio.run(run(lab, given, faults))
    print(summary(trials))
    return 1 if any(trial.violations for trial in trials) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
