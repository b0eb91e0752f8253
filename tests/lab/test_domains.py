"""A VM moves between two domains while it runs, under traffic of a client that knows the first one only."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.dhcp6 import DUID_EN, DHCP6_Renew, DHCP6_Reply, DHCP6OptIA_NA

from retinue.core.content import CHUNK_BYTES
from retinue.host.taps import tap_name
from retinue_lab.network import agents
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology import topology_file
from retinue_lab.topology.topology import SANDBOX
from support.lab import dhcp6, licence_server
from support.lab.losses import overtaken
from support.lab.migrating import begin, reaches
from support.lab.start import boot, lab_of, running
from support.lab.tools import Doorman, Events, Json, LabBench, at, eventually, mac_of
from support.lab.watch import Lines

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.long]

FIRST, FIRST6, SECOND = "10.1.0.50", "fd00:a::50", "10.1.0.51"
PPS = {FIRST: 400, FIRST6: 200, SECOND: 400}
"""Requests a second to each."""
GATEWAY = "10.1.0.254"
OUTSIDE, LICENCES = "203.0.113.9", 4433
IMAGE_CHUNKS = 24
JUST = 0.5
"""Seconds that are just before something."""
NICS = [
    {"mac": "52:54:00:00:00:01", "addresses": [FIRST, FIRST6]},
    {"mac": "52:54:00:00:01:01", "addresses": [SECOND]},
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    with lab_of(tmp_path_factory.mktemp("labs"), topology_file.load("domains")) as handle:
        boot(handle, [{"id": "vm1", "server": "server1", "nics": NICS}])
        asyncio.run(checked(handle))
        yield handle


async def checked(lab: LabHandle) -> None:
    """Return when the guest has its address of IPv6 to itself: for a second it asks for others."""
    with contextlib.closing(Doorman(lab)) as doorman:
        async with contextlib.aclosing(LabBench(lab, doorman)) as bench:
            is_its_own = f"ip -6 address show dev eth0 | grep {FIRST6} | grep -vq tentative"
            await bench.guest("vm1", f"until {is_its_own}; do usleep 20000; done")


@pytest.fixture
async def there(lab: LabHandle, doorman: Doorman) -> AsyncIterator[LabBench]:
    """Domain b."""
    made = LabBench(lab.beside(), doorman)
    yield made
    await made.aclose()


@asynccontextmanager
async def told_if_it_fails(*benches: LabBench) -> AsyncIterator[None]:
    """With the events of each domain beside the failure."""
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(bench.events()) for bench in benches]
        try:
            yield
        except BaseException:
            for bench, events in zip(benches, streams, strict=True):
                print(f"-- domain {bench.topology.domain}")
                for event in events.seen:
                    about = event.get("said") or event.get("reason") or event.get("error")
                    if "migration" in event:
                        about = [event["migration"][key] for key in ("id", "state", "reason", "far")]
                    print(event["type"], about, event.get("switch", ""))
                log = (bench.lab.directory / "logs" / "controller.log").read_text().splitlines()
                print("\n".join(line for line in log[-60:] if "rror" in line or "domain" in line))
            raise


@asynccontextmanager
async def undisturbed(bench: LabBench, *also: LabBench) -> AsyncIterator[None]:
    """Both NICs of vm1, and both families, are sent requests inside the context: none is lost, doubled or
    reordered.

    But for what the guest sent just before it came home, which is on its way through the tunnel: on a busy
    machine its memory may take less time (docs/domains.md, what it does not do).
    """
    async with told_if_it_fails(bench, *also), AsyncExitStack() as stack:
        sent = {to: await stack.enter_async_context(bench.traffic(to, pps=pps)) for to, pps in PPS.items()}
        yield
        for to, traffic in sent.items():
            figures = await bench.unharmed(traffic)
            print(f"{to}: {figures}")
            assert figures.sent > PPS[to] / 10
            _, record = await traffic.end()
            came_home = [one["stopped_at"] for one in await ended(*also) if one["target"] == "gateway2"]
            late = [at for at in overtaken(record) if not any(0 < stop - at < JUST for stop in came_home)]
            assert not late, f"overtaken: sent at {late}; {figures}; came home at {came_home}"


@asynccontextmanager
async def licensed(bench: LabBench) -> AsyncIterator[Lines]:
    """A program in vm1 shows its licence five times a second, in one TLS session with a server outside: the
    licence is bound to the machine's name, MAC and address, and is lost with the session."""
    folder = bench.lab.directory
    files = [str(folder / name) for name in ("licence.pem", "licence.key")]
    made = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=licences", "-days", "2")
    await bench.run(SANDBOX, "openssl", *made, "-out", files[0], "-keyout", files[1])
    argv = [sys.executable, "-I", "-S", licence_server.__file__, OUTSIDE, str(LICENCES), *files]
    shows = "echo $(hostname) $(cat /sys/class/net/eth0/address) $(ip -o -4 addr show eth0 | tr / ' ')"
    program = f"while usleep 200000; do {shows}; done | ssl_client -s 3 >/tmp/licence 2>&1"
    async with bench.lines("client", *argv) as server:
        await server.until("listens")
        script = f"cat >/tmp/licensed <<'END'\n#!/bin/sh\nexec 3<&0\n{program}\nEND"
        await bench.guest("vm1", f"{script}\nchmod +x /tmp/licensed")
        await bench.guest("vm1", f"nc {OUTSIDE} {LICENCES} -e /tmp/licensed >/dev/null 2>&1 &")
        await server.until("granted", times=5)
        yield server
        shown = len(server.those("granted"))
        await server.until("granted", times=shown + 5)
    assert len(server.those("session")) == 1, server.seen
    assert not server.those("refused") and not server.those("lost"), server.seen


@asynccontextmanager
async def held_while_copied(bench: LabBench, events: Events) -> AsyncIterator[str]:
    """A migration to server3 of domain b, whose source's agent copies nothing inside the context."""
    id = await begin(bench, to="b/server3")
    await reaches(events, id, "copying")
    bench.kill("server1-agent", signal.SIGSTOP)
    try:
        yield id
    finally:
        bench.kill("server1-agent", signal.SIGCONT)


async def ended(*benches: LabBench) -> list[Json]:
    """All migrations of these domains, when none is under way: each domain ends its own half."""
    found: list[Json] = []

    async def none_under_way() -> bool:
        found[:] = [one for bench in benches for one in (await bench.get("migrations"))["migrations"]]
        return all(one["state"] in ("done", "undone") for one in found)

    await eventually(none_under_way)
    return found


async def come_home(bench: LabBench, there: LabBench) -> None:
    await ended(bench, there)
    await there.migration("vm1", target_server="a/server1")
    await ended(bench, there)


async def entries(bench: LabBench) -> dict[str, int]:
    return {switch["id"]: switch["flows"] for switch in (await bench.get("switches"))["switches"]}


async def same_entries(before: tuple[dict[str, int], ...], *benches: LabBench) -> None:
    """Return when every switch has as many as before."""

    async def as_before() -> bool:
        return tuple([await entries(bench) for bench in benches]) == before

    await eventually(as_before)


async def test_a_vm_goes_to_another_domain_and_comes_back(bench: LabBench, there: LabBench) -> None:
    """0 lost, 0 doubled, 0 reordered; addresses and name unchanged; home hears of domain changes only. A TLS
    session, and a licence that is bound to name, MAC and address, go on."""
    before = await entries(bench), await entries(there)
    async with undisturbed(bench, there), licensed(bench) as licences:
        await bench.migration("vm1", target_server="b/server3")
        shown = len(licences.those("granted"))
        await licences.until("granted", times=shown + 5)
        assert (await there.vm("vm1"))["server"] == "server3"
        assert (await bench.vm("vm1"))["server"] == "gateway1"
        assert await named(bench, "vm1") == await named(there, "vm1") == {FIRST, SECOND}

        await ended(bench, there)
        async with AsyncExitStack() as stack:
            both = [await stack.enter_async_context(one.events()) for one in (bench, there)]
            await there.migration("vm1", target_server="server4")
            for events in both:
                assert not events.of("domain.said")
                assert not events.of("domain.heard")

        await come_home(bench, there)
    assert (await bench.vm("vm1"))["server"] == "server1"
    await same_entries(before, bench, there)
    assert not (await there.get("vms"))["vms"]


async def passed(bench: LabBench) -> tuple[int, int]:
    """Of vm1, by its gateway, read anew: packets that have arrived for it, and that were dropped."""
    before = (await bench.get("anchors/vm1"))["read_at"] or 0.0
    row: Json = {}

    async def read_twice() -> bool:  # The first may have begun before what is to be counted was sent.
        row.update(await bench.get("anchors/vm1"))
        return bool((row["read_at"] or 0.0) > before + JUST)

    await eventually(read_twice)
    before = row["read_at"]
    await eventually(read_twice)
    return row["arrived"]["packets"], row["dropped"]["packets"]


async def test_home_lets_nothing_through_for_a_vm_that_is_away_and_then_does_again(
    bench: LabBench, there: LabBench
) -> None:
    """The gateways count what passes, packet by packet. When home stands in for the VM no longer, none comes
    through, and each is counted; taken up again, none is lost. It comes home from there all the same."""
    pings = 20
    ping = f"ping -c {pings} -i 0.05 -W 1 {FIRST} || true"
    async with told_if_it_fails(bench, there):
        await bench.migration("vm1", target_server="b/server3")
        await ended(bench, there)
        before, _ = await passed(bench)
        async with bench.traffic(FIRST) as traffic:
            sent = (await bench.unharmed(traffic)).sent
        arrived, dropped = await passed(bench)
        assert sent <= arrived - before <= sent + 50, f"{sent} sent"
        assert dropped == 0
        assert (await there.get("anchors/vm1"))["arrived"]["packets"] >= sent

        assert "nothing passes gateway1 for VM vm1" in await bench.cli("anchor", "end", "vm1")
        assert "100% packet loss" in await bench.run("client", "sh", "-c", ping)
        arrived_then, dropped = await passed(bench)
        assert arrived_then == arrived
        assert pings <= dropped <= pings + 50
        assert "ended: a manager's word" in await bench.cli("anchor", "list")
        assert await named(bench, "vm1") == {FIRST, SECOND}

        await bench.cli("anchor", "resume", "vm1")
        async with bench.traffic(FIRST) as traffic:
            await bench.unharmed(traffic)
        await bench.put("anchors/vm1", {"ended": True})
        await come_home(bench, there)
        async with bench.traffic(FIRST) as traffic:
            await bench.unharmed(traffic)
        assert (await bench.get("anchors"))["anchors"] == (await there.get("anchors"))["anchors"] == []


async def test_a_vm_runs_in_a_domain_without_a_controller(bench: LabBench, there: LabBench) -> None:
    """It died when its switches had diverted: the VM goes over and runs there all the same, finds its gateway
    anew, and what it is sent comes to it. Nothing is undone: its home waits for the word that it runs there,
    or has heard it."""

    async def answers_there() -> bool:
        sent = f"/sys/class/net/{tap_name('vm1')}/statistics/rx_packets"
        return int(await there.run("server3", "cat", sent)) > PPS[FIRST]

    async with undisturbed(bench, there), bench.events() as events:
        id = await begin(bench, to="b/server3")
        await reaches(events, id, "diverted")
        there.kill("controller")
        await eventually(answers_there)
        assert (await bench.get(f"migrations/{id}"))["state"] in ("diverted", "confirmed", "freed", "done")
        # As it does by itself a minute after it was answered last. (A flush would look for more, and find the
        # entry that waits for its answer, with the packets that wait for that.)
        await there.guest("vm1", f"arp -i eth0 -d {GATEWAY}; arp -i eth1 -d {GATEWAY}")
        mac = there.topology.gateway_mac
        for nic in ("eth0", "eth1"):
            await there.guest("vm1", f"until ip neigh show dev {nic} | grep {mac}; do usleep 20000; done")
        await there.restart_controller()
        await reaches(events, id, "done")
        assert (await there.vm("vm1"))["server"] == "server3"
        await come_home(bench, there)


async def test_its_controller_dies_and_does_not_come_back(bench: LabBench, there: LabBench) -> None:
    """While the VM is copied: it stays where it is. What is left in the other domain goes when its controller
    is started again."""
    before = await entries(bench), await entries(there)
    async with undisturbed(bench), bench.events() as events:
        async with held_while_copied(bench, events) as id:
            there.kill("controller")
        undone = await reaches(events, id, "undone")
    assert "domain b does not divert" in undone["reason"]
    assert (await bench.vm("vm1"))["server"] == "server1"
    await there.restart_controller()
    await same_entries(before, bench, there)
    assert not (await there.get("vms"))["vms"]


async def test_a_guest_that_is_removed_is_gone_at_its_home(bench: LabBench, there: LabBench) -> None:
    """Nothing of it is left in either domain: neither entries nor its machine."""
    before = await entries(bench), await entries(there)
    async with told_if_it_fails(bench, there), bench.events() as events:
        await bench.post("vms", at("vm2", "server2", "10.1.0.60"))
        await events.until("vm.started", lambda e: e["vm"]["id"] == "vm2")
        await bench.migration("vm2", target_server="b/server4")
        await ended(bench, there)
        await there.request("DELETE", "vms/vm2")
        await events.until("vm.removed", lambda e: e["vm"]["id"] == "vm2")
        await same_entries(before, bench, there)

        async def no_machine() -> bool:
            found = "ip netns pids server4 | xargs ps -o comm= | grep qemu || true"
            return not await there.run(SANDBOX, "sh", "-c", found)

        await eventually(no_machine)


async def named(bench: LabBench, name: str) -> set[str]:
    """The IPv4 addresses that the domain's controller answers for a name; none: or it does not know."""
    topology = bench.topology
    at = topology.management_addresses[topology.controller].ip
    ask = f"found = resolver.resolve('{name}.{topology.zone}', 'A', raise_on_no_answer=False)"
    program = "\n".join(
        (
            "import dns.exception, dns.resolver",
            "resolver = dns.resolver.Resolver(configure=False)",
            f"resolver.nameservers = ['{at}']",
            f"try: {ask}",
            "except dns.exception.DNSException: found = ()",
            "print(*found)",
        )
    )
    return set((await bench.run(topology.controller, sys.executable, "-c", program)).split())


async def test_names_of_both_domains_are_found_at_either(bench: LabBench, there: LabBench) -> None:
    """Each controller answers for the one zone, by DNS, with what the other has told it."""
    for name, its in (("vm1", {FIRST, SECOND}), ("server1", {"10.0.0.11"}), ("server3", {"10.8.0.13"})):
        for one in (bench, there):

            async def is_found(one: LabBench = one, name: str = name, its: set[str] = its) -> bool:
                return await named(one, name) == its

            await eventually(is_found)


async def test_an_image_of_the_other_domain_is_fetched_by_its_name(
    bench: LabBench, there: LabBench, tmp_path: Path
) -> None:
    """Two servers of domain a at once, by TLS, of one that b has: about one copy comes between them."""
    file = tmp_path / "base.raw"
    file.write_bytes(os.urandom(IMAGE_CHUNKS * CHUNK_BYTES + 77))
    retinue = (sys.executable, "-P", "-m", "retinue.cli.main", "image", "publish")
    at = ("--url", there.topology.controller_url)
    await there.run("server3", *retinue, str(file), "base-1", "--server", "server3", *at)
    assert "there is no domain c" in await bench.cli("image", "fetch", "base-1", "--from", "c", fails=True)
    asked = ("--to", "server1", "--to", "server2", "--base", "--wait", "--timeout", "300")
    said = await bench.cli("image", "fetch", "base-1", *asked)
    print(said)
    for server in ("server1", "server2"):
        made = agents.folder(Path(bench.lab.directory), server) / "content" / "base" / "base-1"
        assert made.read_bytes() == file.read_bytes()
    row = await bench.get("images/base-1")
    assert (row["origin"], row["publisher"]) == ("b/server3", (await there.get("images/base-1"))["publisher"])
    between = sum(held["origins"].get("b/server3", 0) for held in row["held"])
    assert file.stat().st_size <= between < 1.7 * file.stat().st_size
    assert (await there.get("images"))["rejected"] == (await bench.get("images"))["rejected"] == {}


async def test_a_lease_goes_along_and_is_renewed_at_home(bench: LabBench, there: LabBench) -> None:
    """A VM whose address is leased goes to the other domain and back under traffic. There its lease is
    renewed with the DHCP server at its home, on its behalf and by itself, and it is never without it."""
    async with told_if_it_fails(bench, there), bench.events() as here, there.events() as events:
        await bench.post("vms", {"id": "vm3", "mac": "52:54:00:00:00:03", "server": "server2"})
        await running(bench, here, "vm3")
        (before,) = await bench.bindings("vm3")
        async with bench.traffic(before["ip"]) as echoes:
            await bench.migration("vm3", target_server="b/server4")
            order = (await events.until("renewal.acked", lambda e: e["vm"] == "vm3"))["renewal"]
            assert (order["ip"], order["server"], order["lease_seconds"]) == (before["ip"], "server4", 600)
            for one, edge in ((bench, "border1"), (there, "edge4")):
                (left,) = await one.bindings("vm3")
                assert (left["ip"], left["kind"], left["switch"]) == (before["ip"], "dynamic", edge)
                assert left["lease_end"] > before["lease_end"]
            await there.guest("vm3", "kill -USR1 $(cat /run/udhcpc.pid)")
            await events.until("binding.renewed", lambda e: e["bindings"][0]["lease_end"] > left["lease_end"])
            await ended(bench, there)
            await there.migration("vm3", target_server="a/server1")
            await ended(bench, there)
            order = (await here.until("renewal.acked", lambda e: e["vm"] == "vm3"))["renewal"]
            assert (order["ip"], order["server"]) == (before["ip"], "server1")
            figures = await bench.unharmed(echoes)
            assert figures.sent > 200
            print(f"lease: {figures}")
        assert not here.of("binding.removed") and not events.of("binding.removed")
        await bench.request("DELETE", "vms/vm3")
        await here.until("vm.removed", lambda e: e["vm"]["id"] == "vm3")


BLUE6 = dhcp6.Served("blue6", "fd00:a::/64", "fd00:a::fe", slaac=True)


async def test_a_lease_of_dhcpv6_goes_along_and_is_renewed_at_home(bench: LabBench, there: LabBench) -> None:
    """The same of a lease that Kea gives by DHCPv6: the agent of the other domain renews it, and the guest by
    itself, by the tunnel; at home it goes on with it."""
    mac = mac_of("vm4")
    async with (
        told_if_it_fails(bench, there),
        dhcp6.running(bench, BLUE6, valid=600, renew=300),
        bench.events() as here,
        there.events() as events,
    ):
        vm = {"id": "vm4", "mac": mac, "server": "server2", "addresses": ["10.1.0.54"]}
        await bench.post("vms", vm)
        await running(bench, here, "vm4")
        ip = await dhcp6.lease(bench, "vm4", "server2")
        before = await leased6(bench, ip)
        await bench.migration("vm4", target_server="b/server4")
        order = (await events.until("renewal.acked", lambda e: e["vm"] == "vm4"))["renewal"]
        assert (order["ip"], order["server"]) == (ip, "server4")
        for one, edge in ((bench, "border1"), (there, "edge4")):
            left = await leased6(one, ip)
            assert left["switch"] == edge
            assert left["lease_end"] > before["lease_end"]
        async with there.capture("server4", "tap-vm4", "out") as tap:
            duid = DUID_EN(bytes.fromhex(order["server_duid"]))
            await there.send("vm4", dhcp6.said_by(mac, DHCP6_Renew(trid=0xA7), ip, duid))
            renewed: Any = (await tap.until(dhcp6.answered(DHCP6_Reply, 0xA7))).ether
            assert renewed[DHCP6OptIA_NA].ianaopts[0].addr == ip
        assert (await leased6(there, ip))["lease_end"] > left["lease_end"]
        await ended(bench, there)
        await there.migration("vm4", target_server="a/server1")
        await ended(bench, there)
        order = (await here.until("renewal.acked", lambda e: e["vm"] == "vm4"))["renewal"]
        assert (order["ip"], order["server"]) == (ip, "server1")
        assert not here.of("binding.removed") and not events.of("binding.removed")
        await bench.request("DELETE", "vms/vm4")
        await here.until("vm.removed", lambda e: e["vm"]["id"] == "vm4")


async def leased6(bench: LabBench, ip: str) -> Json:
    """The row of vm4's lease."""
    (row,) = [one for one in await bench.bindings("vm4") if one["ip"] == ip]
    assert row["kind"] == "dynamic"
    return row


async def test_the_other_domain_dies_in_the_middle(bench: LabBench, there: LabBench) -> None:
    """All of it, its switches, agents and controller: the VM stays where it runs.

    The last test of this module, whose second domain is dead then.
    """
    before = await entries(bench)
    async with undisturbed(bench), bench.events() as events:
        id = await begin(bench, to="b/server3")
        await reaches(events, id, "copying")
        for node in there.topology.nodes:
            await bench.run("sandbox", "sh", "-c", f"kill -9 $(ip netns pids {node}) || true")
        await reaches(events, id, "undone")
    assert (await bench.vm("vm1"))["server"] == "server1"
    await same_entries((before,), bench)
