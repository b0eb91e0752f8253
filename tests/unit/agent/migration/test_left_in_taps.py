"""What a VM that others migrate has left in its taps: taken once its traffic goes elsewhere, from a VM that
stands still, and given to the controller."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from retinue.agent.controller_link.reports import Reports
from retinue.agent.controller_link.vm_reports import VMReports
from retinue.agent.migration import left_in_taps
from retinue.agent.migration.left_in_taps import LeftInTaps
from retinue.agent.vms.local_vm import Switch, UnknownSwitch
from retinue.core.migration import MigrationState
from retinue.host.errors import HostError
from retinue.host.taps import tap_name
from retinue.hypervisor.libvirt.connection import LibvirtHost
from retinue.hypervisor.libvirt.domain_xml import Consoles, domain_xml, taps_of
from retinue.protocol.errors import ErrorCode, RejectedError
from retinue.protocol.hypervisor_events import EventKind, HypervisorEvent
from support.agents.libvirt_world import ID, made_spec
from support.fabric.world import OUTSIDE, udp_frame
from support.fakes.libvirt import FakeDomain, FakeLibrary

LEFT = [
    udp_frame("02:00:00:00:00:01", "52:54:00:00:00:01", OUTSIDE, IPv4Address(f"10.1.0.{n}"))
    for n in (1, 2, 3)
]
LIMIT = 60.0


class Bench:
    """A server with a VM, its switch and its controller: what each is asked for is logged."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.library = FakeLibrary()
        assert self.library.server is not None
        xml = domain_xml(made_spec(), Consoles(Path("/a"), Path("/b")))
        self.domain: FakeDomain = self.library.server.createXML(xml, 0)
        self.rejects = False
        self.on_take: Callable[[], None] = lambda: None
        self.given: list[bytes] = []
        self.holds = True
        self.state = MigrationState.DIVERTED
        host = LibvirtHost("server1", "test:///", self.library)
        self.reports = Reports(self)  # type: ignore[arg-type]
        self.left = LeftInTaps(
            host, VMReports("server1", self.reports), self._switch(), lambda vm: vm != ID, self._hold
        )

    def _switch(self) -> Switch:
        log = self.log

        class Bypassed(UnknownSwitch):
            async def until_bypassed(self, taps: Collection[str], copies_from: str, /) -> bool:
                log.append("bypassed")
                return True

        return Bypassed()

    def _hold(self, taps: Sequence[str]) -> "Bench":
        assert taps == (tap_name(ID),)
        if not self.holds:
            raise HostError("nobody has it open")
        self.log.append("held")
        return self

    def take(self, most: int, most_bytes: int) -> list[bytes]:
        self.log.append("taken")
        self.on_take()
        return [b"no packet", *LEFT]

    def let_go(self) -> None:
        self.log.append("let go")

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        assert path == "/v1/migrations/migration-1/events"
        assert (body["event"], body["server"]) == ("waited", "server1")
        if self.rejects:
            raise RejectedError("no", ErrorCode.NOT_ALLOWED)
        self.log.append("watching" if body.get("watching") else "said")
        self.given += [base64.b64decode(frame) for frame in body.get("waiting", [])]
        return {"state": str(self.state)}

    async def suspended(self, migration: str = "migration-1", *, vm: str = ID) -> list[str]:
        """What has been done when there is nothing more to do."""
        self.domain.now = (3, 2)
        self.say(EventKind.SUSPENDED, migration, vm=vm)
        async with asyncio.timeout(LIMIT):
            while self.left._work and "let go" not in self.log:
                await asyncio.wait(self.left._work, timeout=0.001)
        return self.log

    async def done(self) -> None:
        async with asyncio.timeout(LIMIT):
            while self.left._work:
                await asyncio.wait(self.left._work)

    def say(
        self, kind: EventKind, migration: str = "", *, vm: str = ID, told: "asyncio.Event | None" = None
    ) -> None:
        """`told`: set when the controller may take it in."""

        async def answer() -> dict[str, Any]:
            if told is not None:
                await told.wait()
            if kind is EventKind.RESUMED:
                self.state = MigrationState.ROLLING_BACK
            return {"migration": migration} if migration else {}

        self.left.hear(HypervisorEvent(vm, kind, 1.0), asyncio.create_task(answer()))


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.left.close()
    await made.reports.close()


async def test_what_is_left_is_taken_when_nothing_more_comes_and_told(bench: Bench) -> None:
    assert await bench.suspended() == ["held", "watching", "bypassed", "taken", "said", "let go"]
    assert bench.given == LEFT, "what is no packet nobody misses"


async def test_nothing_is_taken_from_a_vm_that_runs(bench: Bench) -> None:
    real = bench.left._switch.until_bypassed

    async def resumed(*about: Any) -> bool:
        bench.domain.now = (1, 1)
        return await real(*about)

    bench.left._switch.until_bypassed = resumed  # type: ignore[method-assign]
    assert await bench.suspended() == ["held", "watching", "bypassed", "said", "let go"]
    assert bench.given == [], "and the controller waits for nothing"


async def test_what_was_taken_from_a_vm_that_runs_again_is_told_after_that(bench: Bench) -> None:
    """The controller knows then where it is."""
    waits, told = asyncio.Event(), asyncio.Event()

    def run() -> None:
        bench.domain.now = (1, 1)
        waits.set()

    bench.on_take = run
    work = asyncio.create_task(bench.suspended())
    await waits.wait()
    bench.say(EventKind.RESUMED, told=told)
    for _ in range(5):
        await asyncio.sleep(0.002)
    assert bench.given == [], "that it runs here is not known yet"
    told.set()
    await work
    await bench.done()
    assert bench.given == LEFT


@pytest.mark.parametrize("ends", [EventKind.RESUMED, EventKind.DEPARTED])
async def test_what_the_target_has_got_comes_back_when_the_vm_does(bench: Bench, ends: EventKind) -> None:
    """With the target it has gone."""
    await bench.suspended()
    assert bench.given == LEFT
    told = asyncio.Event()
    bench.say(ends, told=told)
    await asyncio.sleep(0.005)
    assert bench.given == LEFT, "the controller would send it to the target once more"
    told.set()
    await bench.done()
    assert bench.given == LEFT * (2 if ends is EventKind.RESUMED else 1)
    assert not bench.left._standing


async def test_libvirts_second_word_of_one_stop_is_no_second_stop(bench: Bench) -> None:
    """In post-copy it says once more why. Who looked once more would find copies."""
    bench.say(EventKind.SUSPENDED, "migration-1")
    await bench.suspended()
    bench.say(EventKind.DEPARTED)
    await bench.done()
    assert bench.log.count("taken") == 1


async def test_taps_are_not_held_while_there_is_no_controller(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VM that comes back would not get them."""
    monkeypatch.setattr(left_in_taps, "TOLD_LIMIT", 0.01)
    told = asyncio.Event()
    bench.say(EventKind.SUSPENDED, "migration-1", told=told)
    await bench.done()
    assert bench.log == ["held", "let go"]
    told.set()


async def test_of_one_whose_end_comes_meanwhile_all_is_there(bench: Bench) -> None:
    assert bench.library.server is not None
    bench.on_take = bench.domain.destroy
    await bench.suspended()
    bench.say(EventKind.DEPARTED)
    await bench.done()
    assert bench.given == LEFT


@pytest.mark.parametrize("why", ["ours", "no migration", "rejected", "not held"])
async def test_where_nothing_is_to_be_handed_on_nothing_is_taken(bench: Bench, why: str) -> None:
    bench.rejects, bench.holds = why == "rejected", why != "not held"
    done = await bench.suspended(
        "" if why == "no migration" else "migration-1", vm="x" if why == "ours" else ID
    )
    assert "taken" not in done
    assert done.count("held") == done.count("let go")
    await bench.done()
    assert not bench.left._standing


def test_the_taps_of_a_vm_are_those_of_its_nics() -> None:
    other = ID[:-1] + "2"
    xml = (
        "<domain><uuid>{uuid}</uuid><devices>"
        "<interface><virtualport type='openvswitch'><parameters interfaceid='{a}'/></virtualport>"
        "<target dev='vnet0'/></interface>"
        "<interface><virtualport type='openvswitch'><parameters interfaceid='{b}'/></virtualport>"
        "<target dev='vnet1'/></interface><interface><target dev='vnet2'/></interface></devices></domain>"
    )
    ours = xml.format(uuid=ID, a=ID, b=other)
    assert (taps_of(ours, ID), taps_of(ours, other)) == (("vnet0", "vnet1"), ())
    anyones = xml.format(uuid="00000000-0000-4000-8000-00000000aaaa", a=ID, b=other)
    assert (taps_of(anyones, ID), taps_of(anyones, other)) == (("vnet0",), ("vnet1",))
    assert taps_of("<no", ID) == ()
