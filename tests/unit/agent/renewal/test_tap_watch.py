"""Which frames at which interfaces are looked into, and how many."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retinue.agent import main
from retinue.agent.alone import AloneAgent
from retinue.agent.main import ManagedTaps
from retinue.agent.migration.peer import Transfer
from retinue.agent.renewal.lease_notes import LEASES, LeaseNotes
from retinue.agent.renewal.standalone.lease_desk import LeaseDesk
from retinue.agent.renewal.standalone.qemu_watch import ForeignNIC
from retinue.agent.renewal.tap_watch import A_SECOND, AT_ONCE, TapWatch, WatchedTap
from retinue.host.taps import tap_name
from retinue.protocol.events import ControllerEvent
from retinue.protocol.nics import NICRecord
from support.agents.world import VM, bench_up

MAC, OTHER = "52:54:00:00:00:01", "52:54:00:00:00:02"
TAPS = {"tap1": WatchedTap("vm1", MAC), "tap2": WatchedTap("vm2", OTHER)}


def about(mac: str) -> bytes:
    return b"DHCP of " + bytes.fromhex(mac.replace(":", ""))


@dataclass
class Listening:
    seen_of: list[str] = field(default_factory=list)

    def seen(self, mac: str, frame: bytes, *, from_vm: bool, vm: str = "", ago: float = 0.0) -> None:
        self.seen_of.append(vm)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(now=100.0)
    monkeypatch.setattr("time.monotonic", lambda: made.now)
    return made


@dataclass
class SomeTaps:
    taps: Mapping[str, WatchedTap]
    changes: int = 0

    def watched(self) -> Mapping[str, WatchedTap]:
        return self.taps


def watch() -> tuple[TapWatch, list[str]]:
    listening = Listening()
    return TapWatch(listening, SomeTaps(TAPS)), listening.seen_of


def test_a_guest_that_floods_is_not_worked_for_and_holds_up_no_other(clock: SimpleNamespace) -> None:
    watching, seen = watch()
    for _ in range(1000):
        watching.passed("tap1", about(MAC), from_vm=True)
    assert len(seen) == A_SECOND
    watching.passed("tap2", about(OTHER), from_vm=False)
    assert seen[-1] == "vm2"
    clock.now += 0.5
    for _ in range(1000):
        watching.passed("tap1", about(MAC), from_vm=True)
    assert seen.count("vm1") == A_SECOND * 1.5


def test_what_a_bridge_floods_of_others_takes_nothing_of_what_is_ones_own(clock: SimpleNamespace) -> None:
    watching, seen = watch()
    for _ in range(1000):
        watching.passed("tap2", about(MAC), from_vm=False)
    watching.passed("tap2", about(OTHER), from_vm=False)
    watching.passed("eth0", about(OTHER), from_vm=False)
    assert seen == ["vm2"]


def test_who_has_gone_is_not_kept_in_mind(clock: SimpleNamespace) -> None:
    taps = SomeTaps(TAPS)
    watching = TapWatch(Listening(), taps)
    watching.passed("tap1", about(MAC), from_vm=True)
    taps.taps, taps.changes = {"tap2": TAPS["tap2"]}, 1
    watching.passed("tap2", about(OTHER), from_vm=True)
    assert watching._buckets.keys() == {"tap2"}


def test_the_loop_has_its_turn_after_a_few_frames() -> None:
    class Wire:
        left = 1000

        def recvmsg(self, *sizes: int) -> Any:
            self.left -= 1
            return about(MAC), [], 0, ("tap1", 0, socket.PACKET_OUTGOING)

    watching, _ = watch()
    wire = watching._wire = Wire()  # type: ignore[assignment]
    watching._readable()
    assert wire.left == 1000 - AT_ONCE
    assert AT_ONCE <= 8


async def test_the_taps_are_named_anew_only_when_vms_or_nics_have_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with bench_up() as bench:
        dispatcher = bench.source.dispatcher
        taps, listening = ManagedTaps(dispatcher), Listening()
        watching = TapWatch(listening, taps)
        assert taps.watched() == {}
        watching.passed(tap_name("web"), about(VM.mac), from_vm=True)
        assert listening.seen_of == []
        await bench.registered()
        assert taps.watched() == {tap_name("web"): WatchedTap("web", VM.mac)}
        watching.passed(tap_name("web"), about(VM.mac), from_vm=True)
        assert listening.seen_of == ["web"]
        named: list[str] = []

        def name(id: str) -> str:
            named.append(id)
            return tap_name(id)

        monkeypatch.setattr(main, "tap_name", name)
        watching.passed(tap_name("web"), about(VM.mac), from_vm=True)
        assert listening.seen_of == ["web", "web"] and named == []
        nics = [NICRecord("web", VM.mac), NICRecord("web-2", OTHER)]
        record = type(VM)(VM.id, VM.mac, VM.server, nics=nics)
        await bench.after(ControllerEvent("vm.nics", vm=record))
        assert taps.watched().keys() == {tap_name("web"), tap_name("web-2")}
        watching.passed(tap_name("web-2"), about(OTHER), from_vm=True)
        assert listening.seen_of == ["web", "web", "web"]
        await bench.after(ControllerEvent("vm.removed", vm=record))
        assert taps.watched() == {}


async def test_alone_it_is_the_same_until_a_vm_comes_or_goes(tmp_path: Path) -> None:
    notes = LeaseNotes(tmp_path / LEASES)
    agent = AloneAgent(notes, LeaseDesk(notes, Transfer("server1"), {}), "")
    agent.there("vm1", [ForeignNIC(MAC, "tap1")], arrived=False)
    changes = agent.changes
    assert agent.watched().keys() == {"tap1"}
    assert agent.changes == changes
    agent.gone("vm1")
    assert agent.watched() == {} and agent.changes > changes
    await agent.close()
