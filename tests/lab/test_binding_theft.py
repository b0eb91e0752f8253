"""A binding cannot be stolen: another VM does what it can to get the victim's, and nothing moves.

The victim is vm1. The thief is another VM, at the victim's own server and elsewhere, and it knows all that
can be known: MAC, IP, client identifier, DHCP server. It tries everything in `tries`, while the victim runs,
in the middle of its migration, after it, and when it is off. docs/security.md tells what this promises.
"""

import contextlib
import csv
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from retinue.host.taps import Run, add_port, remove_port
from retinue.security.identity import PeerRole
from support.lab.agent_command import as_agent
from support.lab.frames import ARP, BROADCAST, Ether, arp, dhcp_type, from_client, from_server, hexed, packet
from support.lab.health import strip
from support.lab.migrating import takes_memory
from support.lab.tools import Events, Json, LabBench, at, eventually, mac_of

pytestmark = [pytest.mark.lab, pytest.mark.patient]

VMS = [at("vm1", "server1"), at("vm2", "server1"), at("vm3", "server2"), at("vm4", "server3")]
VICTIM = mac_of("vm1")
GATEWAY, GATEWAY_IP = "00:00:de:ad:be:ef", "10.1.0.254"
DHCP_MAC, DHCP_SERVER = "02:00:00:00:00:d1", "10.1.0.2"
SPOOFED_XID, DISCOVER_XID, REQUEST_XID = 0x5EED, 0x5EE1, 0x5EE2
CLAIMED = tuple[str, str, str]
"""A spoofing's kind, claimed MAC and claimed IP."""


# ---- what a thief tries ----


@dataclass(frozen=True)
class Try:
    frame: str
    told: CLAIMED
    passes: bool = False
    """It is the DHCP server that must say no; the try is told all the same."""


def tries(own: str, own_ip: str, ip: str) -> list[Try]:
    """By a VM with MAC `own` and address `own_ip`, on the victim's address `ip`."""
    return [
        *renewals(own, own_ip, ip),
        *exchange(own, ip),
        *given_back(own, ip),
        *announcements(own, ip),
        *answers(own, own_ip, ip),
        *packets(own, own_ip, ip),
    ]


def renewals(own: str, own_ip: str, ip: str) -> list[Try]:
    """A renewal as the victim would send it, and with more and more of the thief's own in it."""
    to: dict[str, Any] = {"to": DHCP_SERVER, "dst": GATEWAY}
    return [
        Try(from_client(VICTIM, "request", ciaddr=ip, **to), ("rogue-dhcp", VICTIM, ip)),
        Try(from_client(own, "request", ciaddr=ip, chaddr=VICTIM, **to), ("dhcp", VICTIM, ip)),
        Try(from_client(own, "request", ciaddr=ip, **to), ("dhcp", own, ip)),
        Try(from_client(own, "request", ciaddr=own_ip, client_id=VICTIM_ID, **to), ("dhcp", own, own_ip)),
    ]


def exchange(own: str, ip: str) -> list[Try]:
    """DISCOVER and REQUEST as the victim, with the victim's client identifier, and for its address."""
    wanted: dict[str, Any] = {"requested_addr": ip, "server_id": DHCP_SERVER}
    return [
        Try(from_client(VICTIM, "discover"), ("rogue-dhcp", VICTIM, "0.0.0.0")),
        Try(from_client(own, "discover", chaddr=VICTIM), ("dhcp", VICTIM, "")),
        Try(from_client(own, "request", chaddr=VICTIM, **wanted), ("dhcp", VICTIM, ip)),
        Try(from_client(own, "discover", client_id=VICTIM_ID), ("dhcp", own, "")),
        Try(from_client(own, "request", client_id=VICTIM_ID, **wanted), ("dhcp", own, ip)),
        Try(
            from_client(own, "discover", xid=DISCOVER_XID, requested_addr=ip), ("dhcp", own, ip), passes=True
        ),
        Try(from_client(own, "request", xid=REQUEST_XID, **wanted), ("dhcp", own, ip), passes=True),
    ]


def given_back(own: str, ip: str) -> list[Try]:
    """Giving the victim's lease back, so that it could be had."""
    to: dict[str, Any] = {"to": DHCP_SERVER, "dst": GATEWAY}
    return [
        Try(from_client(own, "release", ciaddr=ip, chaddr=VICTIM, **to), ("dhcp", VICTIM, ip)),
        Try(from_client(own, "release", ciaddr=ip, **to), ("dhcp", own, ip)),
        Try(from_client(own, "decline", requested_addr=ip, server_id=DHCP_SERVER), ("dhcp", own, ip)),
    ]


def announcements(own: str, ip: str) -> list[Try]:
    """Gratuitous ARP, request and reply, and RARP as hypervisors announce a VM that has arrived."""

    def rarp(src: str, sha: str, spa: str) -> str:
        body = ARP(op=3, hwsrc=sha, psrc=spa, hwdst=sha, pdst=spa)
        return hexed(Ether(src=src, dst=BROADCAST, type=0x8035) / body)

    return [
        *(Try(arp(op, VICTIM, ip, ip), ("mac", VICTIM, ip)) for op in ("who-has", "is-at")),
        *(Try(arp(op, own, ip, ip), ("arp", own, ip)) for op in ("who-has", "is-at")),
        *(Try(arp(op, VICTIM, ip, ip, src=own), ("arp", VICTIM, ip)) for op in ("who-has", "is-at")),
        Try(rarp(VICTIM, VICTIM, "0.0.0.0"), ("mac", VICTIM, "0.0.0.0")),
        Try(rarp(own, VICTIM, "0.0.0.0"), ("arp", VICTIM, "0.0.0.0")),
        Try(rarp(own, own, ip), ("arp", own, ip)),
    ]


def answers(own: str, own_ip: str, ip: str) -> list[Try]:
    """OFFER, ACK and NAK to the victim, and an ACK of its address to the thief itself."""
    servers = ((own, own_ip), (DHCP_MAC, DHCP_SERVER), (GATEWAY, GATEWAY_IP))
    found = [
        Try(
            from_server(kind, src=src, from_ip=address, client=VICTIM, yiaddr=given, dst=BROADCAST),
            ("rogue-dhcp", src, address),
        )
        for src, address in servers
        for kind, given in (("offer", ip), ("ack", ip), ("nak", "0.0.0.0"))
    ]
    to_itself = from_server("ack", src=DHCP_MAC, from_ip=DHCP_SERVER, client=own, yiaddr=ip)
    return [*found, Try(to_itself, ("rogue-dhcp", DHCP_MAC, DHCP_SERVER))]


def packets(own: str, own_ip: str, ip: str) -> list[Try]:
    return [
        Try(packet(VICTIM, GATEWAY, ip, "203.0.113.9"), ("mac", VICTIM, ip)),
        Try(packet(own, GATEWAY, ip, "203.0.113.9"), ("ip", own, ip)),
        Try(packet(VICTIM, GATEWAY, own_ip, "203.0.113.9"), ("mac", VICTIM, own_ip)),
        Try(packet(own, VICTIM, ip, own_ip), ("ip", own, ip)),
    ]


VICTIM_ID = b"\x01" + bytes.fromhex(VICTIM.replace(":", ""))
"""The client identifier udhcpc sends for the victim (RFC 2132, 9.14: hardware type and address)."""


# ---- when ----


@contextlib.asynccontextmanager
async def moment(bench: LabBench, when: str) -> AsyncIterator[None]:
    """The victim is in this state inside the context."""
    match when:
        case "before":
            await stand(bench, "server1")
            yield
        case "copying" | "diverted":
            await stand(bench, "server1")
            async with bench.events() as events:
                migration = str(
                    (await bench.post("migrations", {"vm": "vm1", "target_server": "server2"}))["id"]
                )
                await reaches(events, migration, "copying")
                async with held(bench, when):
                    await reaches(events, migration, when)
                    yield
                    assert (await bench.get(f"migrations/{migration}"))["state"] == when, (
                        "too slow to show anything"
                    )
                await reaches(events, migration, "done", "undone")
        case "after":
            await stand(bench, "server2")
            yield
        case "off":
            if await bench.machines("vm1"):
                await switch_off(bench)
            yield


@contextlib.asynccontextmanager
async def held(bench: LabBench, when: str) -> AsyncIterator[None]:
    """The target takes no more of the memory; or its switch does not confirm that it is steered to.

    Once its QEMU takes memory: from then on its agent waits neither for that nor for its switch.
    """

    async def tell(number: signal.Signals) -> None:
        if when == "copying":
            await bench.run("sandbox", "kill", f"-{number.value}", str(machine))
        else:
            bench.kill("server2-vswitchd", number)

    await takes_memory(bench, "server2")
    machine = process(bench, "server2")
    await tell(signal.SIGSTOP)
    try:
        yield
    finally:
        await tell(signal.SIGCONT)


def process(bench: LabBench, server: str) -> int:
    """The victim's QEMU on a server, in the sandbox's numbers."""
    return int(json.loads(note(bench, server).read_bytes())["pid"])


def note(bench: LabBench, server: str) -> Path:
    """The note of the victim's QEMU on a server."""
    notes = (bench.lab.directory / "agents" / server / "vms").glob("tap-vm1-*.json")
    return max(notes, key=lambda path: path.stat().st_mtime_ns)


async def stand(bench: LabBench, server: str) -> None:
    if (await bench.vm("vm1"))["server"] != server:
        await bench.migration("vm1", target_server=server)


async def switch_off(bench: LabBench) -> None:
    server = (await bench.vm("vm1"))["server"]
    async with bench.events() as events:
        await bench.run("sandbox", "kill", "-9", str(process(bench, server)))
        await events.until("vm.stopped", lambda e: e["vm"]["id"] == "vm1")


async def reaches(events: Events, migration: str, *states: str) -> None:
    await events.until(
        "migration.step", lambda e: e["migration"]["id"] == migration and e["migration"]["state"] in states
    )


# ---- what must not change ----


async def network(bench: LabBench, but: str) -> Json:
    """Every binding, and every entry of every switch but one that stands still."""
    passing = ("lease_end", "confirmed")
    rows = [{k: v for k, v in row.items() if k not in passing} for row in await bench.bindings()]
    return {"bindings": rows} | {id: strip(flows) for id, flows in (await bench.all_flows(but)).items()}


def lease(bench: LabBench, ip: str) -> tuple[str, str]:
    """The hardware address and client identifier to which the DHCP server has leased an address."""
    (file,) = bench.lab.directory.rglob("leases4.csv")
    with file.open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["address"] == ip]
    return rows[-1]["hwaddr"], rows[-1]["client_id"]


async def told(bench: LabBench, thief: str) -> Counter[tuple[str, ...]]:
    """What is reported of this VM, and how often."""
    rows = (await bench.get("spoof-attempts"))["spoof_attempts"]
    keys = ("switch", "port", "kind", "claimed_mac", "claimed_ip")
    return Counter({tuple(str(r[key]) for key in keys): r["count"] for r in rows if r["vm"] == thief})


async def test_a_server_does_not_pull_another_servers_vm_to_itself(bench: LabBench) -> None:
    """With its agent's certificate: no word about its own hypervisor has the source give its VM away."""
    await stand(bench, "server1")
    (before,) = await bench.bindings("vm1")
    migrations = await bench.get("migrations")
    connector = aiohttp.TCPConnector(
        socket_factory=lambda _: bench.doorman.socket(), ssl=bench.tls_of(PeerRole.AGENT, "server2")
    )
    async with aiohttp.ClientSession(bench.topology.controller_url, connector=connector) as agent:
        for kind in ("incoming", "resumed", "started", "departed", "suspended"):
            async with bench.events() as events:
                body = {"vm": "vm1", "kind": kind, "at": time.time()}
                async with agent.post("/v1/servers/server2/hypervisor-events", json=body) as reply:
                    assert (reply.status, await reply.json()) == (200, {"migration": "", "state": ""})
                if kind == "incoming":
                    told = await events.until("vm.mismatch")
                    assert (told["vm"], told["server"]) == ("vm1", "server2")
    assert await bench.get("migrations") == migrations
    (after,) = await bench.bindings("vm1")
    assert (after["switch"], after["port"]) == (before["switch"], before["port"])
    assert await bench.machines("vm1") == ["server1"]
    assert await reachable(bench, before["ip"])


async def test_a_target_that_says_it_runs_the_vm_is_not_believed_before_its_source(bench: LabBench) -> None:
    """Where others make moves, a target's word begins one, but steers nothing until the source has said
    that the VM stopped there; a third server has no say at all. Every switch is real; both agents are silent
    meanwhile, and what they would tell is said here with their certificates.
    """
    await stand(bench, "server1")
    (before,) = await bench.bindings("vm1")
    servers = ("server1", "server2", "server3")
    async with bench.events() as events, contextlib.AsyncExitStack() as open:
        of = {server: await open.enter_async_context(as_agent(bench, server)) for server in servers}

        async def says(server: str, kind: str) -> Json:
            body = {"vm": "vm1", "kind": kind, "at": time.time()}
            async with of[server].post(f"/v1/servers/{server}/hypervisor-events", json=body) as reply:
                assert reply.status == 200, await reply.text()
                return dict(await reply.json())

        async def unmoved() -> None:
            rows = [row for row in await bench.bindings("vm1") if row["active"]]
            assert [(row["ip"], row["switch"], row["port"]) for row in rows] == [
                (before["ip"], before["switch"], before["port"])
            ]
            assert await reachable(bench, before["ip"])

        for server in servers[:2]:
            bench.kill(f"{server}-agent", signal.SIGSTOP)
        try:
            await says("server1", "started")  # From now on the source's manager tells of it.
            migration = (await says("server2", "incoming"))["migration"]
            assert migration
            await add_port(at_server2(bench), bridge="br0", tap="tap-vm1", vm="vm1", mac=VICTIM)
            await reaches(events, migration, "copying")
            for server, kind in (("server2", "resumed"), ("server3", "resumed"), ("server3", "departed")):
                await says(server, kind)
                await unmoved()
            assert (await bench.get(f"migrations/{migration}"))["state"] == "copying"
            # Nobody is spoken for by another.
            body = {"vm": "vm1", "kind": "suspended", "at": time.time()}
            async with of["server2"].post("/v1/servers/server1/hypervisor-events", json=body) as reply:
                assert reply.status == 403
            await unmoved()
            await says("server1", "resumed")  # It has run on there: the migration is off.
            await reaches(events, migration, "undone")
            await remove_port(at_server2(bench), bridge="br0", tap="tap-vm1")
        finally:
            for server in servers[:2]:
                bench.kill(f"{server}-agent", signal.SIGCONT)
    await unmoved()

    async def at_home() -> bool:
        return await bench.machines("vm1") == ["server1"]

    await eventually(at_home)


def at_server2(bench: LabBench) -> Run:
    async def run(argv: Sequence[str]) -> str:
        return await bench.run("server2", *argv)

    return run


CASES = [
    ("before", "vm2", "same server"),
    ("before", "vm3", "other server"),
    ("copying", "vm2", "source"),
    ("copying", "vm3", "target"),
    ("copying", "vm4", "third server"),
    ("diverted", "vm2", "source"),
    ("diverted", "vm4", "third server"),
    ("after", "vm3", "same server"),
    ("after", "vm2", "former server"),
    ("off", "vm3", "same server"),
    ("off", "vm2", "other server"),
]


@pytest.mark.parametrize(
    ("when", "thief", "location"), CASES, ids=[f"{w}-{p}".replace(" ", "-") for w, _, p in CASES]
)
async def test_a_binding_cannot_be_stolen(bench: LabBench, when: str, thief: str, location: str) -> None:
    """Whatever it tries, from wherever, whenever: nothing moves, nothing comes out, all of it is told."""
    ip, own_ip = await bench.address("vm1"), await bench.address(thief)
    own = await bench.vm(thief)
    attempts = tries(mac_of(thief), own_ip, ip)
    spoofed = {attempt.frame[24:] for attempt in attempts if not attempt.passes}
    expected = Counter((own["switch"], str(own["port"]), *attempt.told) for attempt in attempts)
    leased = lease(bench, ip)
    assert leased[0] == VICTIM
    async with moment(bench, when):
        victim = await bench.vm("vm1")
        halted = "edge2" if when == "diverted" else ""
        before, told_before = await network(bench, halted), await told(bench, thief)
        locations = [(own["server"], "up0", "out"), ("dhcp", "eth0", "in")]
        if when != "off":
            locations.append((victim["server"], "tap-vm1", "out"))
        if when == "copying":
            locations.append(("server2", "tap-vm1", "out"))
        async with bench.captures(*locations) as seen:
            for chunk in (attempts[n : n + 8] for n in range(0, len(attempts), 8)):
                await bench.send(thief, *(attempt.frame for attempt in chunk))

            async def all_told() -> bool:
                return await told(bench, thief) - told_before == expected

            with contextlib.suppress(AssertionError):  # What is missing is shown below.
                await eventually(all_told)
            # Of one port the frames come in order: after this one's answer none is on its way.
            assert await bench.ping(thief, DHCP_SERVER)
            await seen[0].until(lambda f: bool(f.ether.haslayer("ICMP")))
            await seen[1].until(lambda f: bool(f.ether.haslayer("ICMP")))
        assert await told(bench, thief) - told_before == expected
        for capture in seen:
            assert [str(f) for f in capture.frames if f.data[12:].hex() in spoofed] == []
        asked = [f.ether["BOOTP"].xid for f in seen[1].frames if dhcp_type(f.ether)]
        assert SPOOFED_XID not in asked, "the DHCP server heard what was spoofed"
        assert {DISCOVER_XID, REQUEST_XID} <= set(asked), "the DHCP server could not say no"
        assert await network(bench, halted) == before
        assert lease(bench, ip) == leased
        if when not in ("off", "diverted"):
            assert await reachable(bench, ip)
    active = [row for row in await bench.bindings("vm1") if row["active"]]
    assert [(row["ip"], row["mac"]) for row in active] == [(ip, VICTIM)]
    assert active[0]["switch"] == (await bench.vm("vm1"))["switch"]
    if when != "off":
        assert await reachable(bench, ip)
        assert await bench.ping("vm1", "203.0.113.9")


async def reachable(bench: LabBench, ip: str) -> bool:
    """From outside."""
    return " 1 received" in await bench.run("client", "sh", "-c", f"ping -c 1 -W 5 {ip}; :")
