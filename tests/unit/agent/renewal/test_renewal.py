"""The agent carries a renewal out: over a port that is a list, with a clock of its own."""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from retinue.agent.renewal import service
from retinue.agent.renewal.openflow_port import OvsPort, port_number
from retinue.agent.renewal.renewing import InjectionError, fresh_xid, renew
from retinue.agent.renewal.service import RenewalService, carry_out, lease_of
from retinue.agent.renewal.standalone import at_tap as standalone
from retinue.agent.renewal.standalone.at_tap import ArrivalError, arrived
from retinue.agent.renewal.standalone.tap_port import TapPort
from retinue.core import lease_renewal as rules
from retinue.core.lease_renewal import AnswerReceived, Event, Lease, Renewal, RenewalState
from retinue.core.model.link_local import link_local
from retinue.core.packets import DHCP, ack, build_dhcp, nak, parse_dhcp_frame, renewal
from retinue.core.packets.dhcp6 import MessageType6, parse_dhcp6, parse_udp6_frame
from retinue.protocol.client import ControllerClient
from retinue.protocol.errors import ControllerAwayError, RecordError, RejectedError
from retinue.protocol.records import record
from retinue.protocol.renewals import Order, RenewalOrder, RenewalReport, order_of
from support import virtual_time

SERVER, IP, MAC = IPv4Address("10.1.0.2"), IPv4Address("10.1.0.101"), "52:54:00:00:00:01"
LEASE = Lease(IP, MAC, SERVER)
XID = 77


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "BACK_OFF", (0.01, 0.02, 0.04, 0.08))


@dataclass
class Wire:
    """A port, and the answers that come back at it."""

    answer: Callable[[DHCP], DHCP | None] = lambda asked: None
    deaf_for: int = 0
    sent: list[DHCP] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    heard: "asyncio.Queue[Event]" = field(default_factory=asyncio.Queue)
    more: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def send(self, frame: bytes) -> None:
        asked = parse_dhcp_frame(frame)[2]
        self.sent.append(asked)
        self.at.append(asyncio.get_running_loop().time())
        async with self.more:
            self.more.notify_all()
        reply = self.answer(asked)
        if reply is not None and len(self.sent) > self.deaf_for:
            self.heard.put_nowait(AnswerReceived(reply))

    async def next(self) -> Event:
        return await self.heard.get()


async def test_an_answer_ends_it_at_once() -> None:
    wire = Wire(lambda asked: ack(asked, IP, SERVER, 600))
    done = await renew(LEASE, XID, wire, wire)
    assert (done.state, done.lease_seconds, len(wire.sent)) == (RenewalState.ACKED, 600, 1)


async def test_a_rejection_ends_it_at_once() -> None:
    wire = Wire(lambda asked: nak(asked, SERVER, "no"))
    done = await renew(LEASE, XID, wire, wire)
    assert (done.state, done.reason) == (RenewalState.REJECTED, "rejected by DHCP server 10.1.0.2: no")


async def test_it_asks_again_when_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "BACK_OFF", (0.01, 0.02, 60.0, 60.0))
    wire = Wire(lambda asked: ack(asked, IP, SERVER, 600), deaf_for=2)
    done = await renew(LEASE, XID, wire, wire)
    assert (done.state, len(wire.sent)) == (RenewalState.ACKED, 3)
    assert {asked.xid for asked in wire.sent} == {XID}


def renewed_in_virtual_time(wire: Wire) -> tuple[Renewal, list[float]]:
    """How it ended, and when it had sent and when it had ended, since its beginning."""

    async def story() -> tuple[Renewal, list[float]]:
        clock = asyncio.get_running_loop().time
        began = clock()
        done = await renew(LEASE, XID, wire, wire, clock)
        return done, [at - began for at in (*wire.at, clock())]

    return virtual_time.run(story())


SENT_AND_ENDED = pytest.approx([0.0, 0.01, 0.03, 0.07, 0.15], abs=1e-6)


def test_it_gives_up_after_its_four_waits() -> None:
    done, times = renewed_in_virtual_time(Wire())
    assert done.state is RenewalState.SILENT
    assert times == SENT_AND_ENDED


def test_strangers_messages_neither_end_it_nor_hurry_it() -> None:
    wire = Wire(lambda asked: replace(ack(asked, IP, SERVER, 600), xid=asked.xid + 1))
    done, times = renewed_in_virtual_time(wire)
    assert (done.state, len(wire.sent)) == (RenewalState.SILENT, 4)
    assert times == SENT_AND_ENDED


def test_transaction_ids_are_fresh() -> None:
    found = {fresh_xid() for _ in range(100)}
    assert len(found) == 100
    assert all(0 <= xid < 1 << 32 for xid in found)


# ---- with a controller ----

ASKED = renewal(IP, MAC, XID)
ORDER: dict[str, Any] = {
    "id": "renewal-1", "vm": "vm1", "server": "server1", "switch": "edge1", "port": "tap-vm1",
    "port_number": 5, "ip": str(IP), "mac": MAC, "xid": XID, "dhcp_server": str(SERVER),
    "client_id": "01ff", "next_hop": "00:00:de:ad:be:ef", "state": "ordered", "ordered_at": 1.0,
}  # fmt: skip


class Desk:
    """Stands in for the controller: its word comes when it has seen so many requests."""

    def __init__(self, wire: Wire, after: int, **end: Any) -> None:
        self.wire, self.after, self.end = wire, after, end
        self.reports: list[tuple[str, str, str]] = []

    async def renew(self, vm: str, server: str = "") -> RenewalOrder:
        return record(RenewalOrder, ORDER)

    async def renewal_ended(self, id: str) -> RenewalOrder:
        while len(self.wire.sent) < self.after and not self.reports:
            async with self.wire.more:
                await self.wire.more.wait()
        if self.reports:
            return record(RenewalOrder, {**ORDER, "state": self.reports[0][1], "reason": self.reports[0][2]})
        return record(RenewalOrder, {**ORDER, **self.end})

    async def report_renewal(self, id: str, report: RenewalReport, reason: str) -> None:
        self.reports.append((id, report, reason))


async def test_an_order_is_carried_out_until_the_controller_has_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rules, "BACK_OFF", (0.01, 60.0, 60.0, 60.0))
    wire = Wire()
    desk = Desk(wire, 2, state="acked", lease_seconds=600.0)
    done = await carry_out(await desk.renew("vm1"), wire, desk)
    assert (done.state, done.lease_seconds, len(wire.sent)) == ("acked", 600, 2)
    assert (wire.sent[0].ciaddr, wire.sent[0].client_id, wire.sent[0].xid) == (IP, b"\x01\xff", XID)
    assert desk.reports == []


async def test_the_controllers_rejection_ends_an_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "BACK_OFF", (60.0, 60.0, 60.0, 60.0))
    wire = Wire()
    desk = Desk(wire, 1, state="rejected", reason="rejected by DHCP server dhcp")
    done = await carry_out(await desk.renew("vm1"), wire, desk)
    assert (done.state, done.reason, len(wire.sent)) == ("rejected", "rejected by DHCP server dhcp", 1)


@pytest.mark.parametrize(
    ("end", "refused"),
    [
        ({"state": "rejected", "answer": build_dhcp(nak(ASKED, SERVER, "no")).hex()}, ["vm1"]),
        ({"state": "rejected", "answer": build_dhcp(ack(ASKED, IP, SERVER, 600)).hex()}, []),
        ({"state": "rejected", "answer": "c0ffee"}, []),
        ({"state": "rejected"}, []),
        ({"state": "acked", "answer": build_dhcp(ack(ASKED, IP, SERVER, 600)).hex()}, []),
        ({"state": "silent"}, []),
    ],
)
async def test_only_a_nak_is_a_reason_to_have_the_guest_ask(
    monkeypatch: pytest.MonkeyPatch, end: dict[str, str], refused: list[str]
) -> None:
    wire, told = Wire(), list[str]()
    monkeypatch.setattr(service, "RenumberedPort", lambda bridge, number, name: wire)
    renewals = RenewalService("server1", "br0", Desk(wire, 1, **end), told.append)
    renewals.take(ORDER | {"server": "server2"})
    renewals.take(ORDER)
    await asyncio.gather(*renewals._tasks)
    assert told == refused


ORDER6: dict[str, Any] = {
    **{name: ORDER[name] for name in ("id", "vm", "server", "switch", "port", "port_number", "mac")},
    "ip": "fd00:1::1:1", "xid": 0xABCDEF, "client_id": "00030001525400000001", "server_duid": "0002aabb",
    "iaid": 7, "options": "000600020017", "state": "ordered", "ordered_at": 1.0,
}  # fmt: skip


class Port6:
    def __init__(self) -> None:
        self.sent: list[bytes] = []

    async def send(self, frame: bytes) -> None:
        self.sent.append(frame)


class Desk6:
    """Says how a renewal of DHCPv6 has ended when it has been asked for."""

    def __init__(self, **end: Any) -> None:
        self.end = end

    async def renew(self, vm: str, server: str = "") -> Order:
        return order_of(ORDER6)

    async def renewal_ended(self, id: str) -> Order:
        return order_of({**ORDER6, **self.end})

    async def report_renewal(self, id: str, report: RenewalReport, reason: str) -> None:
        raise AssertionError(report)


@pytest.mark.parametrize("state", ["acked", "rejected"])
async def test_a_lease_of_dhcpv6_is_renewed_by_its_own_message(state: str) -> None:
    """And a refusal is no reason to have the guest ask: it has the address till the lease ends."""
    port, desk = Port6(), Desk6(state=state, lease_seconds=600.0)
    done = await carry_out(await desk.renew("vm1"), port, desk)
    assert (done.state, service.is_refused(done)) == (state, False)
    (frame,) = port.sent
    ethernet, datagram = parse_udp6_frame(frame)
    assert (ethernet.src, ethernet.dst) == (MAC, "33:33:00:01:00:02")
    assert (str(datagram.src), str(datagram.dst)) == (str(link_local(MAC)), "ff02::1:2")
    assert (datagram.sport, datagram.dport) == (546, 547)
    said = parse_dhcp6(datagram.payload)
    assert (said.type, said.xid) == (MessageType6.RENEW, 0xABCDEF)
    assert (said.client_id.hex(), said.server_id.hex()) == (ORDER6["client_id"], ORDER6["server_duid"])
    assert (said.ias[0].iaid, [str(ip) for ip in said.addresses]) == (7, [ORDER6["ip"]])
    assert said.options == ((8, b"\0\0"), (6, b"\0\x17"))


async def test_silence_is_reported() -> None:
    wire = Wire()
    desk = Desk(wire, 99)
    done = await carry_out(await desk.renew("vm1"), wire, desk)
    assert done.state == "silent"
    ((_, event, reason),) = desk.reports
    assert (event, len(wire.sent)) == ("silent", 4)
    assert "did not answer 4 requests" in reason


class Broken(Wire):
    async def send(self, frame: bytes) -> None:
        raise InjectionError("the switch is gone")


async def test_a_port_that_takes_nothing_is_reported() -> None:
    wire = Broken()
    desk = Desk(wire, 99)
    done = await carry_out(await desk.renew("vm1"), wire, desk)
    assert desk.reports == [("renewal-1", "failed", "the switch is gone")]
    assert done.state == "failed"


async def test_orders_over_http(tmp_path: Path) -> None:
    """An answer that is rejected, none at all, and one that is no order: in words."""
    asked: list[tuple[str, str]] = []

    async def handle(request: web.Request) -> web.Response:
        asked.append((request.method, request.path_qs))
        if "nobody" in request.path:
            return web.json_response({"error": "there is no VM nobody"}, status=409)
        if "odd" in request.path:
            return web.json_response({"id": 7})
        state = "acked" if len(asked) > 1 else "ordered"
        return web.json_response({**ORDER, "state": state})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    orders = ControllerClient(f"http://127.0.0.1:{port}/")
    try:
        order = await orders.renew("vm1", "server2")
        assert isinstance(order, RenewalOrder)
        assert lease_of(order) == Lease(IP, MAC, SERVER, b"\x01\xff", "00:00:de:ad:be:ef")
        assert (await orders.renewal_ended(order.id)).state == "acked"
        await orders.report_renewal(order.id, RenewalReport.SILENT, "nothing")
        assert [method for method, _ in asked] == ["POST", "GET", "POST"]
        with pytest.raises(RejectedError, match="there is no VM nobody"):
            await orders.renew("nobody")
        with pytest.raises(RecordError, match="no proper RenewalOrder"):
            await orders.renew("odd")
    finally:
        await orders.close()
        await runner.cleanup()
    away = ControllerClient(f"http://127.0.0.1:{port}")
    try:
        with pytest.raises(ControllerAwayError, match="cannot be reached"):
            await away.renew("vm1")
    finally:
        await away.close()


# ---- ports ----


async def test_open_vswitch_is_given_the_frame_at_the_vms_port(tmp_path: Path) -> None:
    said = tmp_path / "argv"
    fake = ("sh", "-c", f'echo "$@" > {said}', "ovs-ofctl")
    await OvsPort("br0", 5, fake).send(b"\x01\x02")
    words = said.read_text().split()
    assert words[2:] == ["packet-out", "br0", "in_port=5,packet=0102,actions=TABLE"]


async def test_a_switch_that_refuses_is_named() -> None:
    fake = ("sh", "-c", "echo br7 is not a bridge >&2; exit 1", "ovs-ofctl")
    with pytest.raises(InjectionError, match=r"port 5 of br7: br7 is not a bridge"):
        await OvsPort("br7", 5, fake).send(b"\x01\x02")
    with pytest.raises(InjectionError, match="cannot be run"):
        await OvsPort("br7", 5, ("/nowhere/ovs-ofctl",)).send(b"\x01\x02")


async def test_port_numbers_are_asked_by_name() -> None:
    assert await port_number("tap1", ("sh", "-c", "echo 12", "ovs-vsctl")) == 12
    with pytest.raises(InjectionError, match="no port tap1"):
        await port_number("tap1", ("sh", "-c", "echo", "ovs-vsctl"))
    with pytest.raises(InjectionError, match="cannot be asked for port tap1: no database"):
        await port_number("tap1", ("sh", "-c", "echo no database >&2; exit 1", "ovs-vsctl"))


async def test_a_tap_that_is_not_there_is_named() -> None:
    with pytest.raises(InjectionError, match="there is no interface tap-none here"):
        async with TapPort("tap-none", XID):
            pass


# ---- arrival ----

_QMP = """
import json, socket, sys
status, event = sys.argv[2], sys.argv[3]
door = socket.socket(socket.AF_UNIX)
door.bind(sys.argv[1])
door.listen()
print("listening", flush=True)
wire, _ = door.accept()
def say(**what):
    wire.sendall(json.dumps(what).encode() + b"\\n")
say(QMP={"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []})
while data := wire.recv(4096):
    asked = json.loads(data)  # The library sends one request and waits for its answer.
    answer = {"status": status, "running": False} if asked["execute"] == "query-status" else {}
    say(**{"return": answer}, **{key: asked[key] for key in asked if key == "id"})
    if asked["execute"] == "query-status" and event:
        say(event=event, timestamp={"seconds": 1, "microseconds": 2})
"""


@pytest.mark.parametrize(
    ("status", "event", "waited", "words"),
    [
        ("running", "", False, ""),
        ("inmigrate", "RESUME", True, ""),
        ("inmigrate", "SHUTDOWN", True, "the VM has ended"),
        ("inmigrate", "", True, "not arrived in 60 s"),
        ("postmigrate", "", False, "neither runs nor arrives"),
    ],
)
async def test_arrival_is_qemus_word(
    tmp_path: Path, status: str, event: str, waited: bool, words: str
) -> None:
    path = tmp_path / "qmp"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _QMP, str(path), status, event, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    told: list[bool] = []

    def wait() -> None:
        told.append(True)
        if "not arrived" in words:
            virtual_time.pass_over(61)

    try:
        if words:
            with pytest.raises(ArrivalError, match=words):
                await arrived(path, 60, wait)
        else:
            await arrived(path, 60, wait)
    finally:
        process.kill()
        await process.wait()
    assert bool(told) is waited


async def test_a_qmp_socket_that_somebody_else_speaks_to_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU takes one client at a time; the next one is let in, and hears nothing."""
    monkeypatch.setattr(standalone, "GREETING_LIMIT", 0.1)
    server = await asyncio.start_unix_server(lambda reader, writer: None, tmp_path / "qmp")
    async with server:
        with pytest.raises(ArrivalError, match="no greeting"):
            await arrived(tmp_path / "qmp", None)


async def test_a_qmp_socket_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArrivalError, match="QMP socket"):
        await arrived(tmp_path / "none", 1)
