"""Brings desired entries onto all switches, stage by stage; each switch has a SwitchProgrammer of its own."""

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from retinue.controller.switches.programmer import SwitchProgrammer
from retinue.core.model.network import Owner
from retinue.core.pipeline.compiler import Compiler, Keys
from retinue.core.pipeline.cookies import owner_hash
from retinue.core.pipeline.knowledge import Knowledge
from retinue.core.pipeline.underlay import Near, underlay_of


@dataclass
class InstallReport:
    """What an installation did: flow entries sent, and switches that have not confirmed it."""

    flow_mods: int = 0
    missing: set[str] = field(default_factory=set)
    changed: Keys = field(default_factory=dict)


class Installer:
    """Compiles what was touched, and programs the switches in an order that loses and doubles no packet."""

    def __init__(self, compiler: Compiler, knowledge: Knowledge, clock: Callable[[], float]) -> None:
        self._compiler = compiler
        self._knowledge = knowledge
        self._clock = clock
        self.switches: dict[str, SwitchProgrammer] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self.follow()

    def follow(self) -> None:
        """Switches have come or gone: each has its programmer. What one holds that is gone stays there."""
        net = self._compiler.net
        for switch in net.switches.keys() - self.switches.keys():
            programmer = SwitchProgrammer(switch, self._compiler, self._knowledge, self._clock, self._notify)
            self.switches[switch] = programmer
        for switch in self.switches.keys() - net.switches.keys():
            self.switches.pop(switch).leave(f"switch {switch} was removed")
        self._notify()

    # ---- changes ----

    async def install(
        self, touched: Iterable[Owner], near: Near = (), patient: Callable[[str], bool] = lambda switch: False
    ) -> InstallReport:
        """Compute the touched owners again and bring the changes onto the switches that are connected.

        With them goes what was held on a switch and can be judged by now; there may be nothing else. A switch
        that does not confirm holds up the later stages for as long as the change is `patient` with it.

        Raises ConflictError when two clash, after all the others have been sent.
        """
        owners = list(touched)
        changed, clash = self._compiler.update_each(owners)
        changed = {switch: before for switch, before in changed.items() if switch in self.switches}
        for switch, before in changed.items():
            self.switches[switch].mirror.changed(before)
        report = InstallReport(changed={switch: frozenset(before) for switch, before in changed.items()})
        holding = [(switch, one) for switch, one in self.switches.items() if one.held]
        computed = {owner_hash(owner) for owner in owners} if holding else set()
        for switch, programmer in holding:
            if released := programmer.release(computed):
                report.changed[switch] = report.changed.get(switch, frozenset()) | released
        # All of it is pending from now on, also what is sent in a later stage: see `wait_confirmed`.
        for switch, keys in report.changed.items():
            self.switches[switch].pending.update(keys)
        for each in underlay_of(self._compiler.net).stages(report.changed, near):
            stage = [switch for switch in each if switch in self.switches]  # Others have gone meanwhile.
            results = await asyncio.gather(*(self.switches[s].send(report.changed[s]) for s in stage))
            for switch, sent in zip(stage, results, strict=True):
                if sent.confirmed:
                    report.flow_mods += sent.flow_mods
                else:
                    report.missing.add(switch)
            await self._until_stage_is_confirmed(stage, report.changed, patient)
        if clash is not None:
            raise clash
        return report

    async def _until_stage_is_confirmed(
        self, stage: Collection[str], changed: Keys, patient: Callable[[str], bool]
    ) -> None:
        def missing() -> bool:
            there = (s for s in stage if s in self.switches)
            return any(self.switches[s].pending & changed[s] and patient(s) for s in there)

        await self.wait_confirmed(missing)

    async def wait_confirmed(self, missing: Callable[[], Collection[str] | bool]) -> None:
        """Return when nothing is missing; asked again whenever a switch confirms, comes or goes."""
        while missing():
            news = asyncio.get_running_loop().create_future()
            self._waiting.append(news)
            await news

    def unconfirmed(
        self,
        changed: Keys,
        owner: Owner,
        concerned: Collection[str],
        *,
        read: bool = False,
        connected_only: bool = False,
    ) -> set[str]:
        """The switches that have yet to confirm these entries, or of those concerned anything of the owner.

        Entries of the owner that must go count, too, also those nobody can judge yet. With `read`, whoever
        is concerned must have been read. With `connected_only` a switch that is away is not waited for, it is
        corrected when it comes back; nor is what nobody can judge yet.
        """
        waiting = set(self.pending(changed))
        for name in concerned:
            switch = self.switches.get(name)
            if switch is None:
                continue
            if switch.pending_of(owner, with_held=not connected_only) if switch.is_read else read:
                waiting.add(name)
        return {name for name in waiting if self.switches[name].is_connected} if connected_only else waiting

    def look_again(self) -> None:
        """Something else was told: those who wait look again."""
        self._notify()

    def _notify(self) -> None:
        """Something was confirmed, or a switch came or went: those who wait look again."""
        for news in self._waiting:
            if not news.done():
                news.set_result(None)
        self._waiting.clear()

    async def renew_long_leases(self) -> None:
        """Send again the entries whose lease is longer than a switch's longest timeout."""
        for switch in list(self.switches.values()):
            await switch.renew_long_leases()

    def close(self) -> None:
        """Send nothing again any more."""
        for switch in self.switches.values():
            switch.close()

    # ---- questions ----

    def connected(self) -> set[str]:
        """The switches that are connected (see SwitchProgrammer.is_connected)."""
        return {name for name, switch in self.switches.items() if switch.is_connected}

    def pending(self, changed: Keys | None = None) -> dict[str, int]:
        """By switch, how many entries wait for its confirmation: of all, or of `changed`."""
        if changed is None:
            counts = {name: len(switch.pending) for name, switch in self.switches.items()}
        else:
            there = {name: self.switches[name] for name in changed if name in self.switches}
            counts = {name: len(one.pending & changed[name]) for name, one in there.items()}
        return {switch: count for switch, count in counts.items() if count}

    @property
    def flow_mods(self) -> int:
        """Flow entries sent and confirmed so far, by all switches."""
        return sum(switch.flow_mods for switch in self.switches.values())

    @property
    def rejected(self) -> dict[str, str]:
        """The last rejection of each switch that rejected something, as a sentence."""
        return {name: s.rejection for name, s in self.switches.items() if s.rejection}
