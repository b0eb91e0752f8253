"""Bad input at every door of a running lab: it is rejected, counted and told, and disturbs nothing else."""

import asyncio
import contextlib
import random
import re
import ssl
import sys
from collections import Counter

import pytest

from retinue.security.authority import Authority
from retinue.security.identity import PeerRole
from retinue_lab.network import credentials
from retinue_lab.topology.topology import OPENFLOW_PORT, OVSDB_PORT, REST_PORT
from support.lab.frames import ARP, arp, damaged_arp, damaged_dhcp, from_client
from support.lab.health import undisturbed
from support.lab.tools import LabBench, at, eventually, mac_of

pytestmark = [pytest.mark.lab, pytest.mark.patient]

VMS = [at("vm1", "server1"), at("vm2", "server2")]
TWO = mac_of("vm2")
SERVER = b"02:00:00:00:00:01"
GOING_AWAY = 60.0
"""Seconds within which the controller ends a connection that is none."""


async def rejected(bench: LabBench, door: str) -> Counter[str]:
    return Counter((await bench.get("status"))["rejected"][door])


def logged(bench: LabBench, text: str) -> int:
    """How many lines of the controller's log have it."""
    return (bench.lab.directory / "logs" / "controller.log").read_text().count(text)


async def until_cut_off(bench: LabBench, port: int, data: bytes, tls: ssl.SSLContext | None = None) -> bytes:
    """Send to one of the controller's ports and wait until it ends the connection; what it said.

    With `tls` it is sent after the handshake, by somebody with a good certificate.
    """
    reader, writer = await bench.dial(port, tls)
    said = b""
    try:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            writer.write(data)
            await writer.drain()
            async with asyncio.timeout(GOING_AWAY):
                said = await reader.read()
    finally:
        writer.close()
    return said


# ---- bad input ----


DOORS = {
    "openflow": (OPENFLOW_PORT, "openflow.rejected"),
    "ovsdb": (OVSDB_PORT, "ovsdb.rejected"),
    "rest": (REST_PORT, "rest.connection_rejected"),
}
"""By the name its rejections are counted under: a port of the controller, and what its log says of each."""


async def test_no_port_takes_what_is_no_tls(bench: LabBench) -> None:
    """Bad input in front of the handshake: plain text of each protocol, noise, halves, lies, silence."""
    attempts = {
        "noise": random.Random(7).randbytes(5000),
        "OpenFlow": bytes.fromhex("0500000800000001"),
        "JSON": b'{"method":"list_dbs","params":[],"id":1}',
        "http": b"GET /v1/status HTTP/1.1\r\nHost: c\r\n\r\n",
        "half a record": bytes.fromhex("16030100c8010000"),
        "record of nothing": bytes.fromhex("1603010000"),
        "a length that lies": bytes.fromhex("160301ffff") + bytes(100),
        "SSL 2": bytes.fromhex("802e0100020015000000100100800200800300800400800500800600400700c0"),
        "an alert": bytes.fromhex("15030300020228"),
        "data before the handshake": bytes.fromhex("1703030010") + bytes(16),
        "silence": b"",
    }
    before = {door: await rejected(bench, door) for door in DOORS}
    lines = {door: logged(bench, log) for door, (_, log) in DOORS.items()}
    async with undisturbed(bench):
        each = ((port, data) for port, _ in DOORS.values() for data in attempts.values())
        await asyncio.gather(*(until_cut_off(bench, port, data) for port, data in each))
    for door, (_, log) in DOORS.items():
        told = await rejected(bench, door) - before[door]
        assert told.total() == len(attempts), (door, told)
        # What only begins like TLS is waited for, which OVSDB counts as silence.
        assert set(told) <= {"tls", "timeout"} and told["tls"] >= len(attempts) - 4, (door, told)
        assert logged(bench, log) == lines[door] + len(attempts), door


async def test_the_openflow_port_refuses_what_is_no_switch(bench: LabBench) -> None:
    """Bad input: noise, foreign versions, lengths that lie, halves of messages, silence."""
    noise = random.Random(7).randbytes(5000)
    hello = bytes.fromhex("0500000800000001")
    rejections = {
        "noise": noise,
        "version 1 only": bytes.fromhex("0100000800000001"),
        "version 0x99": bytes.fromhex("9900000800000001"),
        "64 KB of length": bytes.fromhex("0500ffff00000001") + bytes(100),
        "length 0": bytes.fromhex("0500000000000001"),
        "half a message": hello + bytes.fromhex("05060020"),
        "half a header": hello[:3],
        "silence": b"",
        "packet-in before the handshake": hello + bytes.fromhex("050a0020") + bytes(28),
        "features reply cut short": hello + bytes.fromhex("050600100000000200000000000000aa"),
        "features reply with no id": hello + bytes.fromhex("0506002000000002") + bytes(24),
        "ten thousand echo requests": hello + bytes.fromhex("0502000800000009") * 10_000,
    }
    before, lines = await rejected(bench, "openflow"), logged(bench, "openflow.rejected")
    tls = bench.tls_of(PeerRole.SWITCH, "server3")
    async with undisturbed(bench):
        await asyncio.gather(
            *(until_cut_off(bench, OPENFLOW_PORT, data, tls) for data in rejections.values())
        )
    told = await rejected(bench, "openflow") - before
    assert told.total() == len(rejections), told
    assert {"version", "length", "timeout", "handshake"} <= set(told)
    assert logged(bench, "openflow.rejected") == lines + len(rejections)


async def test_an_unknown_switch_is_rejected(bench: LabBench) -> None:
    """Bad input: a whole handshake with a datapath id that is not in the configuration.

    Its certificate is good: the operator has made it, and has not yet told the controller of the switch.
    """
    made = Authority(credentials.folder(bench.lab.directory)).issue(PeerRole.SWITCH, "newcomer", days=1)
    tls = bench.tls_of(PeerRole.SWITCH, made.label)
    features = bytes.fromhex("0506002000000002") + (0xBAD).to_bytes(8, "big") + bytes(16)
    ports = bytes.fromhex("05130010") + (4).to_bytes(4, "big") + bytes.fromhex("000d000000000000")
    async with undisturbed(bench), bench.events() as events:
        await until_cut_off(bench, OPENFLOW_PORT, bytes.fromhex("0500000800000001") + features + ports, tls)
        unknown = await events.until("switch.unknown")
    assert unknown["dpid"] == "0xbad"


async def test_the_ovsdb_port_refuses_what_is_no_database(bench: LabBench) -> None:
    """Bad input: noise, JSON of the wrong shape, halves of it, and silence."""
    attempts = {
        "noise": random.Random(8).randbytes(5000),
        "a list": b"[1, 2, 3]",
        "nested without end": b"[" * 200_000,
        "a number": b"1" * 5000,
        "half an object": b'{"id": "half',
        "not UTF-8": b'{"id": "\xff\xfe"}',
        "silence": b"",
        "an answer nobody asked for": b'{"id": "never", "result": [], "error": null}',
        "http": b"GET / HTTP/1.1\r\n\r\n",
    }
    before, lines = await rejected(bench, "ovsdb"), logged(bench, "ovsdb.rejected")
    tls = bench.tls_of(PeerRole.SWITCH, "server3")
    async with undisturbed(bench):
        await asyncio.gather(*(until_cut_off(bench, OVSDB_PORT, data, tls) for data in attempts.values()))
    told = await rejected(bench, "ovsdb") - before
    assert told.total() == len(attempts), told
    assert {"malformed", "timeout"} <= set(told)
    assert logged(bench, "ovsdb.rejected") == lines + len(attempts)


def http(method: str, path: str, body: bytes = b"", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = f"{method} {path} HTTP/1.1\r\nHost: c\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + body


async def test_the_rest_interface_refuses_bad_requests_with_a_reason(bench: LabBench) -> None:
    """Bad input: what is not HTTP, too large, no JSON, of the wrong types or fields, or nowhere."""
    vm = b'{"id": "x", "mac": "52:54:00:00:00:77", "server": "server1"'
    cases = {
        "noise": (random.Random(9).randbytes(3000), 400),
        "a header without end": (b"GET /v1/status HTTP/1.1\r\nX: " + b"a" * 100_000, 400),
        "too large": (http("POST", "/v1/vms", length=17 << 20) + b"[" * (17 << 20), 413),
        "no JSON": (http("POST", "/v1/vms", b"{nonsense"), 400),
        "not UTF-8": (http("POST", "/v1/vms", b'{"id": "\xff\xfe"}'), 400),
        "nested": (http("POST", "/v1/vms", b"[" * 100_000), 400),
        "empty": (http("POST", "/v1/vms"), 400),
        "wrong type": (http("POST", "/v1/vms", b'{"id": 5, "mac": [], "server": null}'), 400),
        "missing field": (http("POST", "/v1/vms", b'{"id": "x"}'), 400),
        "unknown field": (http("POST", "/v1/vms", vm + b', "colour": "red"}'), 400),
        "bad address": (http("POST", "/v1/vms", vm + b', "addresses": ["10.1.0.999"]}'), 409),
        "foreign address": (http("POST", "/v1/vms", vm + b', "addresses": ["192.0.2.9"]}'), 409),
        "empty id": (http("POST", "/v1/vms", vm.replace(b'"x"', b'""') + b"}"), 409),
        "broadcast MAC": (http("POST", "/v1/vms", vm.replace(b"52:54", b"ff:ff") + b"}"), 409),
        "server's MAC": (http("POST", "/v1/vms", vm.replace(b"52:54:00:00:00:77", SERVER) + b"}"), 409),
        "server without edge": (http("POST", "/v1/vms", vm.replace(b"server1", b"dhcp") + b"}"), 409),
        "bad server": (http("POST", "/v1/servers", b'{"id": "s", "mac": "zz"}'), 409),
        "bad place": (http("POST", "/v1/servers", b'{"id":"s","mac":"02:00:00:00:00:99","at":"leaf1"}'), 409),
        "no such VM": (http("GET", "/v1/vms/none"), 404),
        "no such migration": (http("POST", "/v1/migrations/none/cancel"), 409),
        "no such switch": (http("GET", "/v1/flows?switch=none"), 404),
        "bad event id": (http("GET", "/v1/events?since=yesterday"), 400),
        "unknown event": (http("POST", "/v1/vms/vm1/events", b'{"event": "explodes"}'), 400),
        "nowhere": (http("GET", "/etc/passwd"), 404),
        "wrong method": (http("DELETE", "/v1/bindings"), 405),
    }  # fmt: skip
    before = await rejected(bench, "rest")
    known = await bench.get("vms"), await bench.get("servers")
    async with undisturbed(bench):
        answers = await asyncio.gather(
            *(until_cut_off(bench, REST_PORT, data, bench.tls) for data, _ in cases.values())
        )
    codes = {name: status_of(said) for name, said in zip(cases, answers, strict=True)}
    assert codes == {name: code for name, (_, code) in cases.items()}
    for name, said in zip(cases, answers, strict=True):
        if name not in ("noise", "a header without end"):
            assert re.search(rb'\{"error":".{8,}', said), f"{name}: {said!r}"
    assert (await rejected(bench, "rest") - before).total() == len(cases)
    assert (await bench.get("vms"), await bench.get("servers")) == known


def status_of(answer: bytes) -> int:
    """The status code of an HTTP answer; 0 for none."""
    found = re.match(rb"HTTP/1\.[01] (\d{3})", answer)
    return int(found[1]) if found else 0


async def test_damaged_dhcp_from_a_vm_is_rejected_and_counted(bench: LabBench) -> None:
    """Bad input: each damaged frame is told with its place and reason, and none goes further."""
    frames = damaged_dhcp(TWO)
    port = (await bench.vm("vm2"))["port"]
    before = (await bench.get("status"))["counters"].get("bad DHCP frames", 0)
    async with (
        undisturbed(bench),
        bench.events() as events,
        bench.capture("dhcp", "eth0", "in") as at_server,
    ):
        await bench.send("vm2", *frames.values())

        async def all_counted() -> bool:
            return bool(
                (await bench.get("status"))["counters"].get("bad DHCP frames", 0) == before + len(frames)
            )

        await eventually(all_counted)
        # The same once more in a second is told once more, whenever it came.
        told = {e["reason"] for e in events.of("frame.rejected")}
        assert len(told) > len(frames) / 3
        assert {e["where"] for e in events.of("frame.rejected")} == {f"edge2 port {port}"}
        assert all(len(reason) > 10 for reason in told)
        await bench.send("vm2", from_client(TWO, "discover"))
        await at_server.until(lambda f: f.src == TWO)
        assert len(at_server.those(lambda f: f.src == TWO)) == 1
    assert (await bench.get("status"))["counters"]["bad DHCP frames"] == before + len(frames)
    assert await bench.ping("vm2", "10.1.0.2")


async def test_damaged_arp_is_rejected_and_counted(bench: LabBench) -> None:
    """Bad input: at a VM's port it counts as spoofed; at a leaf's it is rejected with its reason."""
    async with (
        undisturbed(bench),
        bench.events() as events,
        bench.capture("server2", "tap-vm2", "out") as tap,
    ):
        frames = damaged_arp(TWO)
        await bench.send("vm2", *frames.values())

        def counted() -> int:
            """By the last count told of each claim."""
            rows = [e["spoofing"] for e in events.of("spoofing")]
            last = {(row["kind"], row["claimed_mac"], row["claimed_ip"]): row["count"] for row in rows}
            return sum(last.values())

        await eventually(lambda: so(counted() == len(frames)))
        assert {e["spoofing"]["vm"] for e in events.of("spoofing")} == {"vm2"}
        await bench.send("vm2", arp("who-has", TWO, await bench.address("vm2"), "10.1.0.254"))
        await tap.until(lambda f: f.ether.haslayer(ARP))
        assert len(tap.those(lambda f: f.ether.haslayer(ARP))) == 1, "something answered damaged ARP"

        before = await bad_frames(bench)
        mac = bench.topology.dhcp.mac if bench.topology.dhcp else ""
        await send_from_server(bench, "dhcp", *damaged_arp(mac).values())
        await send_from_server(bench, "dhcp", *damaged_dhcp(mac, 67, 68).values())
        wanted = before + Counter({"ARP": len(damaged_arp(mac)), "DHCP": len(damaged_dhcp(mac))})

        async def all_counted() -> bool:
            return await bad_frames(bench) == wanted

        await eventually(all_counted)
        assert {e["where"] for e in events.of("frame.rejected")} >= {"DHCP server dhcp"}


async def bad_frames(bench: LabBench) -> Counter[str]:
    """By protocol, those that could not be read so far."""
    counters = (await bench.get("status"))["counters"]
    return Counter({what: counters.get(f"bad {what} frames", 0) for what in ("ARP", "DHCP")})


async def so(what: bool) -> bool:
    return what


async def send_from_server(bench: LabBench, node: str, *frames: str) -> None:
    """Frames sent by a machine on a leaf's port."""
    program = (
        "import socket, sys\n"
        "with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:\n"
        "    wire.bind(('eth0', 0))\n"
        "    [wire.send(bytes.fromhex(frame)) for frame in sys.argv[1:]]\n"
    )
    await bench.run(node, sys.executable, "-I", "-S", "-c", program, *frames)
