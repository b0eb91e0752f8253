"""Programs of others, each in a namespace at a server's port: ISC's dhclient, dhcpcd, systemd-networkd.

They ask, renew and rebind as their authors wrote them, with leases of seconds. No agent runs here: what a
hypervisor would tell of a migration is told by the test. And keepalived, with addresses that two VMs share.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from ipaddress import ip_address
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from scapy.layers.dhcp6 import DHCP6_Renew

from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology import SANDBOX
from retinue_lab.topology.topology_file import load
from support.lab import dhcp6, foreign_clients, keepalived, second_dhcp
from support.lab.foreign_clients import Client
from support.lab.frames import BOOTP, EVERYBODY, IP, NOBODY, dhcp_type
from support.lab.guest_dhcp import of_vm
from support.lab.start import lab_of
from support.lab.tools import Events, Json, LabBench, Picks, eventually
from support.lab.watch import Frame, Lines, Wanted

pytestmark = [pytest.mark.lab, pytest.mark.patient]

SERVER = "10.1.0.2"
LEASE, RENEW, REBIND = 60, 4, 8
"""Seconds; dhcpcd takes no lease of less than twenty."""
CLIENTS = [
    Client(name, name, f"52:54:00:00:01:0{n}") for n, name in enumerate(("dhclient", "dhcpcd", "networkd"))
]
CLIENTS6 = [Client(name, name, f"52:54:00:00:01:2{n}") for n, name in enumerate(("dhclient6", "dhcpcd6"))]
TWO = Client("two", "dhclient", "52:54:00:00:01:10")
"""Asks when there are two servers."""
NAMES = [client.name for client in CLIENTS]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    topology = load()
    assert topology.dhcp is not None
    dhcp = msgspec.structs.replace(topology.dhcp, lease_seconds=LEASE)
    network = msgspec.structs.replace(topology, dhcp=dhcp)
    with lab_of(tmp_path_factory.mktemp("labs"), network, "clients", agents=False) as handle:
        foreign_clients.make(handle, [*CLIENTS, TWO, *CLIENTS6])
        yield handle


@pytest.fixture(autouse=True)
async def leased(bench: LabBench) -> AsyncIterator[None]:
    """Each client holds a lease; the DHCP server answers as it should."""
    if not await bench.bindings(NAMES[0]):
        await set_kea(bench)
        async with bench.events() as events:
            for client in CLIENTS:
                foreign_clients.run(bench.lab, client)
            for name in NAMES:
                await events.until("binding.added", of_vm(name))
    yield


async def set_kea(
    bench: LabBench, *classes: dict[str, str], renew: int = RENEW, reservations: Sequence[Json] = ()
) -> None:
    """Short times for the clients, these classes of messages, and addresses that are others'."""
    config = await bench.kea("config-get")
    config.pop("hash", None)
    subnet = config["Dhcp4"]["subnet4"][0]
    subnet["renew-timer"], subnet["rebind-timer"] = renew, renew + REBIND - RENEW
    subnet["reservations"] = list(reservations)
    config["Dhcp4"]["client-classes"] = list(classes)
    await bench.kea("config-set", config)


def renewals(client: Client, address: str, to: str) -> Wanted:
    """Picks the REQUESTs by which this client renews its address, sent to one server or to everybody.

    systemd-networkd, which has an address, rebinds from 0.0.0.0.
    """

    def picks(frame: Frame) -> bool:
        ether: Any = frame.ether
        if dhcp_type(ether) != "request" or ether[BOOTP].chaddr[:6].hex(":") != client.mac:
            return False
        sources = (address, NOBODY) if to == EVERYBODY else (address,)
        return ether[IP].src in sources and (ether[IP].dst, ether[BOOTP].ciaddr) == (to, address)

    return picks


def asks_anew(mac: str, frame: Frame) -> bool:
    """A message of a client that does not say it has its address, as one that renews or rebinds does."""
    ether: Any = frame.ether
    if not dhcp_type(ether) or ether[BOOTP].chaddr[:6].hex(":") != mac:
        return False
    return bool(ether[BOOTP].ciaddr == NOBODY)


async def held(bench: LabBench, client: Client, version: int = 4) -> str:
    """The address that both the network and the client say is the client's."""
    rows = [row for row in await bench.bindings(client.name) if row["active"]]
    (row,) = [row for row in rows if ip_address(row["ip"]).version == version and row["kind"] == "dynamic"]

    async def set_on_the_link() -> bool:
        return await foreign_clients.addresses(bench, client, version) == [row["ip"]]

    await eventually(set_on_the_link)
    return str(row["ip"])


async def renewed(events: Events, name: str, at: float) -> None:
    """Return when the binding has been renewed after that time."""
    await events.until("binding.renewed", lambda e: of_vm(name)(e) and e["at"] >= at)


async def test_each_has_a_lease_and_renews_it_by_unicast(bench: LabBench) -> None:
    async with bench.events() as events, bench.capture("dhcp", "eth0", "in") as at_server:

        async def follow(client: Client) -> None:
            address = await held(bench, client)
            asked = await at_server.until(renewals(client, address, SERVER))
            await renewed(events, client.name, asked.at)
            assert await held(bench, client) == address

        await asyncio.gather(*map(follow, CLIENTS))
        assert not events.of("binding.removed")
        assert not events.of("dhcp.rejected")


async def test_each_takes_its_lease_along_and_renews_it_at_the_new_port(bench: LabBench) -> None:
    async with bench.events() as events, bench.capture("dhcp", "eth0", "in") as at_server:

        async def follow(client: Client) -> None:
            address = await held(bench, client)
            done = await foreign_clients.move(bench, events, client, "server1", "server2")
            await renewed(events, client.name, done["at"])
            assert await held(bench, client) == address
            (row,) = await bench.bindings(client.name)
            assert (row["switch"], row["confirmed"]) == ("edge2", True)

        await asyncio.gather(*map(follow, CLIENTS))
        assert not events.of("binding.removed")
        assert {dhcp_type(frame.ether) for frame in at_server.frames} <= {"", "request"}


async def test_each_rebinds_when_its_server_does_not_hear_it(bench: LabBench) -> None:
    """The server ignores what is sent to it alone, so the clients ask everybody."""
    await set_kea(bench, {"name": "DROP", "test": f"pkt.dst == {SERVER}"})
    async with bench.events() as events, bench.capture("dhcp", "eth0", "in") as at_server:

        async def follow(client: Client) -> None:
            address = await held(bench, client)
            asked = await at_server.until(renewals(client, address, EVERYBODY))
            await renewed(events, client.name, asked.at)
            assert await held(bench, client) == address

        await asyncio.gather(*map(follow, CLIENTS))
        assert not events.of("binding.removed")
    await set_kea(bench)


async def test_those_that_watch_their_link_ask_when_it_comes_back(bench: LabBench) -> None:
    """What the agent does to a VM whose lease is refused. The server gives the addresses to others, so each
    gets a fresh one; dhclient, which does not look, keeps its own till it renews."""
    watching = [client for client in CLIENTS if client.name in ("dhcpcd", "networkd")]
    before = {client.name: await held(bench, client) for client in watching}
    await set_kea(bench, renew=LEASE // 2)
    async with bench.events() as events:
        for name in before:
            await renewed(events, name, 0.0)  # So none renews by itself for a while.
    others = [
        {"hw-address": f"52:54:00:aa:aa:0{n}", "ip-address": ip} for n, ip in enumerate(before.values())
    ]
    await set_kea(bench, renew=LEASE // 2, reservations=others)
    async with bench.events() as events, bench.capture("dhcp", "eth0", "in") as at_server:
        for client in watching:
            await foreign_clients.flap(bench, client)
            await at_server.until(partial(asks_anew, client.mac))
        for client in watching:
            gone = await events.until("binding.removed", of_vm(client.name))
            await events.until("binding.added", of_vm(client.name), after=gone)
    assert [await held(bench, client) == before[client.name] for client in watching] == [False, False]


@pytest.mark.long
async def test_of_two_servers_one_is_taken_and_the_others_offer_binds_nothing(bench: LabBench) -> None:
    async with (
        second_dhcp.running(bench),
        bench.events() as events,
        bench.capture("server1", f"vm-{TWO.name}", "out") as at_client,
    ):
        foreign_clients.run(bench.lab, TWO)
        await events.until("binding.added", of_vm(TWO.name))
        await at_client.until(lambda f: dhcp_type(f.ether) == "offer", times=2)
        address = await held(bench, TWO)
        offers = [f.ether for f in at_client.frames if dhcp_type(f.ether) == "offer"]
        acks = {str(f.ether[BOOTP].yiaddr) for f in at_client.frames if dhcp_type(f.ether) == "ack"}
        offered = {str(ether[BOOTP].yiaddr) for ether in offers}
        assert {str(ether[IP].src) for ether in offers} == {SERVER, second_dhcp.ADDRESS}
        assert acks == {address}
        (other,) = offered - {address}
        assert [row["ip"] for row in await bench.bindings(TWO.name)] == [address]
        assert await bench.flows("edge1", f"nw_src={address}") != []
        assert await bench.flows("edge1", f"nw_src={other}") == []
        # Renewed at the server that was taken; the other says nothing of it.
        taken = next(str(ether[IP].src) for ether in offers if str(ether[BOOTP].yiaddr) == address)
        async with bench.capture("server1", f"vm-{TWO.name}", "in") as asking:
            asked = await asking.until(renewals(TWO, address, taken))
        await renewed(events, TWO.name, asked.at)
        assert not events.of("binding.removed")


async def test_clients_of_dhcpv6_have_leases_renew_them_and_take_them_along(bench: LabBench) -> None:
    """dhclient asks at once, dhcpcd when the gateway's advertisement says that there is DHCPv6."""
    async with (
        dhcp6.running(bench, valid=LEASE, renew=RENEW),
        bench.events() as events,
        bench.capture("dhcp", "eth0", "in") as at_server,
    ):

        async def follow(client: Client) -> None:
            foreign_clients.run(bench.lab, client)
            added = await events.until("binding.added", of_vm(client.name))
            (row,) = [row for row in added["bindings"] if row["ip"].startswith("fd00:6::1")]
            assert (row["kind"], row["switch"], row["mac"]) == ("dynamic", "edge1", client.mac)
            assert added["at"] < row["lease_end"] <= added["at"] + LEASE
            assert await held(bench, client, 6) == row["ip"]
            circuit = f"edge1:{row['port']}"
            asked = await at_server.until(dhcp6.relayed(DHCP6_Renew, row["ip"], circuit))
            await renewed(events, client.name, asked.at)
            done = await foreign_clients.move(bench, events, client, "server1", "server2")
            await renewed(events, client.name, done["at"])
            assert await held(bench, client, 6) == row["ip"]
            (row,) = [r for r in await bench.bindings(client.name) if r["ip"] == row["ip"]]
            assert (row["switch"], row["confirmed"]) == ("edge2", True)

        await asyncio.gather(*map(follow, CLIENTS6))
        assert not events.of("binding.removed")
        assert not events.of("dhcp.rejected")


@pytest.fixture
async def routers(bench: LabBench) -> AsyncIterator[None]:
    """Two VMs with keepalived and one beside them, in a network of both families."""
    subnet = ("--prefix", "fd00:1::/64", "--gateway", "fd00:1::fe")
    await bench.cli("subnet", "add", "blue6", *subnet)
    await keepalived.start(bench)
    yield
    await keepalived.stop(bench)
    await bench.cli("subnet", "remove", "blue6")


@pytest.mark.usefixtures("routers")
async def test_keepalived_takes_its_addresses_over_by_its_announcements(
    bench: LabBench, record_property: Callable[[str, object], None]
) -> None:
    """When the master's link goes down the backup has both addresses, and gives them back when it returns.

    A neighbour that pings them is answered by whoever has them; each way is told, and nobody else's changes.
    """
    one, two, beside = (router.client for router in keepalived.ALL)
    inside = ("ip", "netns", "exec", beside.name)
    pings = [(*inside, "ping", "-n", "-i", "0.02", ip) for ip in keepalived.SHARED]

    async def goes_to(events: Events, client: Client, before: str, log: Lines) -> None:
        for ip in keepalived.SHARED:
            await events.until("address.taken", taken(ip, client.name, before))
        # From now on it answers, and goes on to; the port says who does.
        async with bench.capture(client.home, f"vm-{client.name}", "in") as port:
            await port.until(lambda f: from_shared(f.ether), times=20)
        await log.until("bytes from", times=len(log.those("bytes from")) + 20)

    async with bench.events(0) as events, bench.lines(SANDBOX, *pings[0]) as v4:
        await goes_to(events, one, "", v4)
        async with bench.lines(SANDBOX, *pings[1]) as v6:
            await v6.until("bytes from", times=20)
            for unplugged in (True, False):
                await keepalived.plug(bench, keepalived.MASTER, "down" if unplugged else "up")
                to, before = (two, one) if unplugged else (one, two)
                await goes_to(events, to, before.name, v4)
                await v6.until("bytes from", times=len(v6.those("bytes from")) + 20)
                for family, log in (("IPv4", v4), ("IPv6", v6)):
                    record_property(f"longest silence, {family}", longest_silence(log))
            others = {row["ip"] for name in NAMES for row in await bench.bindings(name)}
            assert not others & {*keepalived.SHARED}
            kinds = {row["ip"]: (row["kind"], row["vm"]) for row in await bench.bindings(one.name)}
            assert [kinds[ip] for ip in keepalived.SHARED] == [("allowed", one.name)] * 2
            assert {e["vm"] for e in events.of("address.taken")} == {one.name, two.name}


def from_shared(ether: Any) -> bool:
    return bool(ether.haslayer(IP) and ether[IP].src == keepalived.SHARED[0])


def taken(ip: str, vm: str, before: str) -> Picks:
    return lambda e: (e["ip"], e["vm"], e["before"]) == (ip, vm, before)


def longest_silence(log: Lines) -> float:
    """Seconds between two replies."""
    times = [at for at, _ in log.those("bytes from")]
    return max(later - earlier for earlier, later in pairwise(times))
