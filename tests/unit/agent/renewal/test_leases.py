"""The leases that an agent keeps: written, read by the next agent, told to others, and shown."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import msgspec
import pytest

from retinue.agent import admin_socket, alone
from retinue.agent.alone import AloneAgent
from retinue.agent.migration.peer import Transfer
from retinue.agent.renewal import lease_file
from retinue.agent.renewal.lease_notes import LEASES, LeaseNotes
from retinue.agent.renewal.service import RenewalService
from retinue.agent.renewal.standalone.lease_desk import LeaseDesk, PeersAwayError
from retinue.agent.renewal.standalone.qemu_watch import ForeignNIC, nics_of
from retinue.core.lease_renewal import Lease, Renewal, RenewalState
from retinue.core.lease_watch import KeptLease
from retinue.core.packets import BROADCAST, ack, dhcp_frame, release, request
from retinue.protocol.records import record
from retinue.protocol.renewals import Order, RenewalOrder, RenewalReport
from retinue.steady_clock import ClockAnchor, SteadyClock

SERVER, IP, MAC = IPv4Address("10.9.0.2"), IPv4Address("10.9.0.100"), "52:54:00:00:09:01"
VIA = "02:00:00:00:09:02"
LEASE = Lease(IP, MAC, SERVER, b"\x01\x02", VIA, ((60, b"x"), (55, b"\x01\x06")))
ASKED = request(MAC, 7, IP, SERVER)
EVERYBODY = IPv4Address("255.255.255.255")


class Clocks:
    """A wall clock that may be set, and the time since the machine's start, which may not."""

    def __init__(self) -> None:
        self.wall, self.up, self.boot = 1_000_000.0, 500.0, "first"

    def notes(self, folder: Path) -> LeaseNotes:
        return LeaseNotes(folder / LEASES, SteadyClock(lambda: self.wall, lambda: self.up, lambda: self.boot))

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.up += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def boot(notes: LeaseNotes, ago: float = 0.0) -> None:
    asked = dhcp_frame(ASKED, MAC, BROADCAST, IPv4Address(0), EVERYBODY, 68, 67)
    answer = dhcp_frame(ack(ASKED, IP, SERVER, 600), VIA, MAC, SERVER, IP, 67, 68)
    notes.seen(MAC, asked, from_vm=True, vm="vm1", ago=ago)
    notes.seen(MAC, answer, from_vm=False, vm="vm1", ago=ago)


async def test_the_next_agent_knows_what_this_one_has_learned(tmp_path: Path, clocks: Clocks) -> None:
    notes = clocks.notes(tmp_path)
    boot(notes)
    notes.keep(KeptLease(replace(LEASE, mac="52:54:00:00:09:05"), None, "vm5"))
    await notes.written()
    again = clocks.notes(tmp_path)
    assert again.book.leases == notes.book.leases
    assert again.of_vm("vm1") == [notes.book.leases[MAC]]
    row = again.shown()[0]
    assert (row["vm"], row["ip"], row["server"], row["seconds_left"]) == ("vm1", str(IP), str(SERVER), 600.0)
    assert again.shown()[1]["seconds_left"] is None


async def test_an_ack_that_is_worked_on_late_makes_no_lease_longer(tmp_path: Path, clocks: Clocks) -> None:
    notes = clocks.notes(tmp_path)
    boot(notes, ago=40.0)
    assert notes.shown()[0]["seconds_left"] == 560.0


async def test_a_renewal_counts_from_when_it_was_asked(tmp_path: Path, clocks: Clocks) -> None:
    notes = clocks.notes(tmp_path)
    notes.renewed(LEASE, 600, "vm1", ago=15.0)
    assert notes.shown()[0]["seconds_left"] == 585.0


async def test_a_wall_clock_that_is_set_moves_no_lease_also_over_a_restart(
    tmp_path: Path, clocks: Clocks
) -> None:
    notes = clocks.notes(tmp_path)
    boot(notes)
    clocks.wall += 3600
    clocks.up += 100
    assert notes.shown()[0]["seconds_left"] == 500.0
    await notes.written()
    again = clocks.notes(tmp_path)
    assert again.shown()[0]["seconds_left"] == 500.0
    clocks.wall = notes.now() + 50
    clocks.boot, clocks.up = "second", 5.0
    left = clocks.notes(tmp_path).shown()[0]["seconds_left"]
    assert left == 450.0, "after the machine's own start the wall clock is believed"


async def test_a_lease_given_back_is_gone_and_an_ended_one_kept_a_day(tmp_path: Path, clocks: Clocks) -> None:
    notes = clocks.notes(tmp_path)
    boot(notes)
    frame = dhcp_frame(release(IP, MAC, 8, SERVER), MAC, VIA, IP, SERVER, 68, 67)
    notes.seen(MAC, frame, from_vm=True)
    await notes.written()
    assert notes.shown() == [] and clocks.notes(tmp_path).shown() == []
    boot(notes)
    clocks.pass_by(600 + 86399)
    notes.named({MAC: "web"})
    await notes.written()
    assert clocks.notes(tmp_path).shown()[0]["vm"] == "web"
    clocks.pass_by(2)
    notes.named({MAC: "web2"})
    await notes.written()
    assert clocks.notes(tmp_path).shown() == []


async def test_the_file_is_written_beside_the_event_loop_the_latest_of_it(
    tmp_path: Path, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is slow holds up no VM; what comes meanwhile is written once, together."""
    threads: list[threading.Thread] = []
    done, write = threading.Event(), lease_file.write

    def slowly(path: Path, anchor: ClockAnchor, leases: list[KeptLease]) -> None:
        threads.append(threading.current_thread())
        assert done.wait(60)
        write(path, anchor, leases)

    monkeypatch.setattr(lease_file, "write", slowly)
    notes = clocks.notes(tmp_path)
    boot(notes)
    await asyncio.sleep(0)
    for number in range(5, 9):
        notes.keep(KeptLease(replace(LEASE, mac=f"52:54:00:00:09:0{number}"), None, "vm5"))
        await asyncio.sleep(0)
    done.set()
    await notes.written()
    assert len(clocks.notes(tmp_path).shown()) == 5
    assert len(threads) == 2 and threading.main_thread() not in threads


@pytest.mark.parametrize("text", ["", "{", '{"boot":"x"}', "[]"])
async def test_a_file_that_cannot_be_read_is_no_reason_not_to_start(
    tmp_path: Path, clocks: Clocks, text: str
) -> None:
    (tmp_path / LEASES).write_text(text)
    notes = clocks.notes(tmp_path)
    assert notes.shown() == []
    boot(notes)
    await notes.written()
    assert len(clocks.notes(tmp_path).shown()) == 1


async def test_one_bad_row_costs_itself_alone(tmp_path: Path, clocks: Clocks) -> None:
    notes = clocks.notes(tmp_path)
    boot(notes)
    await notes.written()
    file = json.loads((tmp_path / LEASES).read_text())
    good = file["leases"][0]
    file["leases"] = [{**good, "ip": "10.9.0"}, {**good, "options": "zz"}, {**good, "mac": "x"}, good]
    (tmp_path / LEASES).write_text(json.dumps(file))
    assert len(clocks.notes(tmp_path).shown()) == 1


# ---- ordered by a controller ----

ORDER = {
    "id": "renewal-1", "vm": "vm1", "server": "server1", "switch": "edge1", "port": "tap-vm1",
    "port_number": 5, "ip": str(IP), "mac": MAC, "xid": 9, "dhcp_server": str(SERVER),
    "client_id": "01ff", "next_hop": VIA, "ordered_at": 1.0,
}  # fmt: skip


class Acks:
    """A controller to whom the ACK has come."""

    def __init__(self, **end: object) -> None:
        self.end = end
        self.asked = asyncio.Event()

    async def renew(self, vm: str, server: str = "") -> Order:
        raise AssertionError

    async def renewal_ended(self, id: str) -> Order:
        self.asked.set()
        return record(RenewalOrder, {**ORDER, **self.end})

    async def report_renewal(self, id: str, report: RenewalReport, reason: str) -> None: ...


class NoPort:
    def __init__(self, bridge: str, number: int, name: str) -> None: ...

    async def send(self, frame: bytes) -> None: ...


@pytest.mark.parametrize(
    ("end", "kept"),
    [
        ({"state": "acked", "lease_seconds": 600.0}, 600.0),
        ({"state": "acked", "lease_seconds": None}, None),
        ({"state": "rejected", "reason": "no"}, "nothing"),
    ],
)
async def test_an_order_that_is_acknowledged_is_kept(
    tmp_path: Path, clocks: Clocks, monkeypatch: pytest.MonkeyPatch, end: dict[str, object], kept: object
) -> None:
    from retinue.agent.renewal import service

    monkeypatch.setattr(service, "RenumberedPort", NoPort)
    notes = clocks.notes(tmp_path)
    renewals = RenewalService("server1", "br0", Acks(**end), leases=notes)
    renewals.take(ORDER)
    await asyncio.gather(*renewals._tasks)
    rows = [(row["ip"], row["client_id"], row["seconds_left"]) for row in notes.shown()]
    assert rows == (
        [] if kept == "nothing" else [(str(IP), "01ff", pytest.approx(kept, abs=1) if kept else None)]
    )


# ---- alone ----


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[tuple[LeaseNotes, Transfer]]:
    """The agent of server1, in plain text."""
    (tmp_path / "one").mkdir()
    notes, transfer = LeaseNotes(tmp_path / "one" / LEASES), Transfer("server1")
    transfer.visitors = LeaseDesk(notes, transfer, {})
    await transfer.start("127.0.0.1")
    yield notes, transfer
    await transfer.close()


def desk_of(folder: Path, peers: Mapping[str, str]) -> tuple[LeaseNotes, LeaseDesk]:
    notes = LeaseNotes(folder / LEASES)
    return notes, LeaseDesk(notes, Transfer("server2"), peers)


async def test_a_lease_is_asked_of_the_agent_that_has_seen_it(
    tmp_path: Path, peer: tuple[LeaseNotes, Transfer]
) -> None:
    theirs, transfer = peer
    ours, desk = desk_of(tmp_path, {"server1": transfer.address, "server3": "127.0.0.1:1"})
    with pytest.raises(PeersAwayError, match="server3 cannot be asked"):
        await desk.find(MAC)
    assert await LeaseDesk(ours, Transfer("server2"), {"server1": transfer.address}).find(MAC) is None
    theirs.keep(KeptLease(LEASE, theirs.now() + 300, "vm1"))
    found = await desk.find(MAC)
    assert found is not None and (found.lease, found.vm) == (LEASE, "vm1")
    assert found.end == pytest.approx(ours.now() + 300, abs=5)
    ours.keep(KeptLease(LEASE, ours.now() + 900, "vm1"))
    assert await desk.find(MAC) == ours.of(MAC), "the one that ends last is the latest"
    theirs.keep(KeptLease(LEASE, None, "vm1"))
    assert await desk.find(MAC) == KeptLease(LEASE, None, "vm1")


class Liar(LeaseDesk):
    """Answers with what it likes."""

    def __init__(self, answer: dict[str, object]) -> None:
        self.answer = answer

    async def visit(self, channel, hello, *, manager) -> None:  # type: ignore[no-untyped-def]
        await channel.send_message("lease", **self.answer)


async def test_what_a_peer_says_that_is_no_lease_is_none(tmp_path: Path) -> None:
    good: dict[str, object] = {
        "lease": {"mac": MAC, "ip": str(IP), "server": str(SERVER), "next_hop": VIA}, "seconds_left": 5
    }  # fmt: skip
    lease = good["lease"]
    assert isinstance(lease, dict)
    bad: list[dict[str, object]] = [
        {}, {"lease": 1, "seconds_left": 1},
        {**good, "lease": {**lease, "ip": "x"}}, {**good, "lease": {**lease, "mac": VIA}},
        {**good, "seconds_left": float("nan")}, {**good, "seconds_left": 1e300},
        {**good, "lease": {**lease, "options": "3c01" * 1000}},
        {**good, "lease": {**lease, "vm": "x" * 1000}},
        {**good, "lease": {**lease, "client_id": "01" * 256}},
    ]  # fmt: skip
    for answer in bad:
        transfer = Transfer("server1")
        transfer.visitors = Liar(answer)
        await transfer.start("127.0.0.1")
        _, desk = desk_of(tmp_path, {"server1": transfer.address})
        assert await desk.find(MAC) is None
        for said in (good, {**good, "more": "of a newer release"}):
            transfer.visitors = Liar(said)
            assert await desk.find(MAC) is not None
        await transfer.close()


NETWORK = (
    "net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:09:01\n"
    " \\ net0: index=0,type=tap,ifname=tap-guest,script=no,downscript=no\n"
    "virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:09:02\n"
    " \\ hostnet1: index=0,type=tap,fd=25\n"
    "e1: index=0,type=nic,model=e1000,macaddr=52:54:00:00:09:03\n"
    " \\ u: index=0,type=user,net=10.0.2.0\n"
    "net3: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:09:04\r\n"
    " \\ net3: index=0,type=tap,ifname=tap3,script=no\r\n"
)


def test_qemu_says_which_mac_is_at_which_tap() -> None:
    assert nics_of(NETWORK) == (
        ForeignNIC("52:54:00:00:09:01", "tap-guest"), ForeignNIC("52:54:00:00:09:04", "tap3"),
    )  # fmt: skip
    for nothing in ("", "nonsense\n", " \\ net0: index=0,type=tap,ifname=tap-guest\n"):
        assert nics_of(nothing) == ()


async def test_who_arrives_is_renewed_and_who_was_here_is_not(
    tmp_path: Path, peer: tuple[LeaseNotes, Transfer], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, transfer = peer
    sent: list[tuple[str, str]] = []

    async def renews(lease: Lease, xid: int, tap: str, bridge: str) -> Renewal:
        sent.append((tap, bridge))
        return Renewal(lease, xid, 0.0, RenewalState.ACKED, lease_seconds=900)

    monkeypatch.setattr(alone, "renew_at_tap", renews)
    ours, desk = desk_of(tmp_path, {"server1": transfer.address})
    agent = AloneAgent(ours, desk, "br7")
    nic = ForeignNIC(MAC, "tap-guest")

    async def settled() -> None:
        await asyncio.gather(*agent._renewing.values())

    agent.there("vm1", [nic], arrived=True)
    await settled()
    assert sent == [], "nobody knows its lease"
    theirs.keep(KeptLease(LEASE, theirs.now() + 300, "vm1"))
    agent.there("vm1", [nic], arrived=True)
    await settled()
    assert sent == [("tap-guest", "br7")]
    assert ours.shown()[0]["seconds_left"] == pytest.approx(900, abs=5)
    agent.there("vm1", [nic], arrived=False)
    await settled()
    assert len(sent) == 1, "its lease is known here: it was here before"
    assert {tap: watched.mac for tap, watched in agent.watched().items()} == {"tap-guest": MAC}
    agent.gone("vm1")
    assert agent.watched() == {} and ours.of(MAC) is not None
    await agent.close()


async def test_one_that_is_silent_is_asked_again_and_no_more_than_so_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    async def silent(lease: Lease, xid: int, tap: str, bridge: str) -> Renewal:
        asked.append(xid)
        return Renewal(lease, xid, 0.0, RenewalState.SILENT)

    monkeypatch.setattr(alone, "renew_at_tap", silent)
    monkeypatch.setattr(alone, "AGAIN_SECONDS", 0.001)
    ours, desk = desk_of(tmp_path, {})
    ours.keep(KeptLease(LEASE, ours.now() + 300, "vm1"))
    agent = AloneAgent(ours, desk, "")
    agent.there("vm1", [ForeignNIC(MAC, "tap-guest")], arrived=True)
    await asyncio.gather(*agent._renewing.values())
    assert len(asked) == len(set(asked)) == alone.TRIES


async def test_one_seen_for_the_first_time_is_renewed_as_it_may_have_arrived_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks, or while this agent was not there; its lease is known of an earlier stay."""
    renewed: list[str] = []

    async def renews(lease: Lease, xid: int, tap: str, bridge: str) -> Renewal:
        renewed.append(tap)
        return Renewal(lease, xid, 0.0, RenewalState.ACKED, lease_seconds=900)

    monkeypatch.setattr(alone, "renew_at_tap", renews)
    ours, desk = desk_of(tmp_path, {})
    ours.keep(KeptLease(LEASE, ours.now() + 300, "vm1"))
    agent = AloneAgent(ours, desk, "")
    for _ in range(2):  # The second time: it was paused, and runs on.
        agent.there("vm1", [ForeignNIC(MAC, "tap-guest")], arrived=False)
        await asyncio.gather(*agent._renewing.values())
        assert renewed == ["tap-guest"]
    agent.gone("vm1")
    agent.there("vm1", [ForeignNIC(MAC, "tap-guest")], arrived=False)
    await asyncio.gather(*agent._renewing.values())
    assert len(renewed) == 2, "it was elsewhere meanwhile"
    await agent.close()


async def test_a_peer_that_is_away_is_asked_again(
    tmp_path: Path, peer: tuple[LeaseNotes, Transfer], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, transfer = peer
    theirs.keep(KeptLease(LEASE, theirs.now() + 300, "vm1"))
    renewed: list[str] = []

    async def renews(lease: Lease, xid: int, tap: str, bridge: str) -> Renewal:
        renewed.append(tap)
        return Renewal(lease, xid, 0.0, RenewalState.ACKED, lease_seconds=900)

    monkeypatch.setattr(alone, "renew_at_tap", renews)
    monkeypatch.setattr(alone, "AGAIN_SECONDS", 0.001)
    peers = {"server1": "127.0.0.1:1"}
    ours, desk = desk_of(tmp_path, peers)
    agent = AloneAgent(ours, desk, "")
    asked = desk._ask

    async def then_it_is_back(server: str, address: str, mac: str) -> Any:
        said = await asked(server, address, mac)
        peers["server1"] = transfer.address
        return said

    monkeypatch.setattr(desk, "_ask", then_it_is_back)
    agent.there("vm1", [ForeignNIC(MAC, "tap-guest")], arrived=True)
    await asyncio.gather(*agent._renewing.values())
    assert renewed == ["tap-guest"]
    await agent.close()


async def test_a_renewal_that_is_called_off_has_ended_before_the_next_one_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a filter at the VM's tap to take away, which the next one would have put there."""
    happened: list[str] = []
    begun = asyncio.Semaphore(0)
    may_end, done = asyncio.Event(), asyncio.Event()

    async def renews(lease: Lease, xid: int, tap: str, bridge: str) -> Renewal:
        happened.append("begins")
        begun.release()
        try:
            await done.wait()
        finally:
            await may_end.wait()
            happened.append("ends")
        return Renewal(lease, xid, 0.0, RenewalState.ACKED, lease_seconds=900)

    monkeypatch.setattr(alone, "renew_at_tap", renews)
    ours, desk = desk_of(tmp_path, {})
    ours.keep(KeptLease(LEASE, ours.now() + 300, "vm1"))
    agent = AloneAgent(ours, desk, "")
    nics = [ForeignNIC(MAC, "tap-guest")]
    agent.there("vm1", nics, arrived=True)
    await begun.acquire()
    agent.there("vm1", nics, arrived=True)
    await asyncio.sleep(0)
    agent.gone("vm1")
    agent.there("vm1", nics, arrived=True)
    for _ in range(20):
        await asyncio.sleep(0)
    before = list(happened)
    may_end.set()
    assert before == ["begins"]
    await begun.acquire()
    done.set()
    await asyncio.gather(*agent._renewing.values())
    assert happened == ["begins", "ends", "begins", "ends"]
    await agent.close()


async def test_the_socket_shows_leases_and_alone_nothing_else(tmp_path: Path) -> None:
    notes = LeaseNotes(tmp_path / LEASES)
    boot(notes)
    answer = await admin_socket.answer(None, b'{"do": "leases"}', notes)
    assert [row["ip"] for row in answer["leases"]] == [str(IP)]
    msgspec.json.encode(answer)
    said = await admin_socket.answer(None, b'{"do": "vms"}', notes)
    assert said == {"error": "cannot do 'vms': others run the VMs of this server"}
