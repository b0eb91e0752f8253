"""IPv6 beside IPv4 on real parts: guests with addresses of both, moved under traffic on both at once."""

import asyncio
import contextlib
import itertools
import signal
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv6Network

import pytest
from scapy.layers.dhcp6 import (
    DUID_EN,
    DUID_LL,
    DHCP6_Release,
    DHCP6_Renew,
    DHCP6_Reply,
    DHCP6OptClientId,
    DHCP6OptIA_NA,
    DHCP6OptServerId,
)
from scapy.layers.inet import UDP
from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6NDOptPrefixInfo, IPv6
from scapy.layers.l2 import Ether

from retinue.core.model.link_local import ALL_ROUTERS, link_local
from retinue.core.packets import ND, NDOptions, RouterSolicitation, nd_frame
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.topology_file import load
from support.fabric.ipv6 import advertises, asks, says, vm_ip6, vm_local
from support.lab import dhcp6
from support.lab.start import boot, lab_of
from support.lab.tools import Doorman, LabBench, Picks, at, eventually, mac_of
from support.lab.watch import Frame

pytestmark = [pytest.mark.lab, pytest.mark.alone]

OWN4 = {"vm1": "10.1.0.51", "vm2": "10.1.0.52", "vm3": "10.1.0.53"}
OWN6 = {f"vm{number}": str(vm_ip6(number)) for number in (1, 2, 3)}
GATEWAY, CLIENT = "fd00:1::fe", "2001:db8::9"
GATEWAY_MAC = "00:00:de:ad:be:ef"
HOME = {"vm1": "server1", "vm2": "server2", "vm3": "server1"}
KNOWN = "nud reachable nud stale nud delay nud probe"
"""Neighbours whose MAC is known: with one that is being asked for, a kernel drops what waits for it."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    with lab_of(tmp_path_factory.mktemp("labs"), load("dual-stack"), "dual") as handle:
        boot(handle, [at(vm, server, OWN4[vm], OWN6[vm]) for vm, server in HOME.items()])
        asyncio.run(checked(handle))
        yield handle


async def checked(lab: LabHandle) -> None:
    """Return when each guest has its address of IPv6 to itself: for a second it asks for others."""
    with contextlib.closing(Doorman(lab)) as doorman:
        async with contextlib.aclosing(LabBench(lab, doorman)) as bench:
            for vm, address in OWN6.items():
                await bench.guest(vm, CHECKED.format(address))


@pytest.fixture(autouse=True)
async def home(bench: LabBench) -> AsyncIterator[None]:
    """After each test vm1 is where it was."""
    yield
    if (await bench.vm("vm1"))["server"] != HOME["vm1"]:
        await bench.migration("vm1", target_server=HOME["vm1"])


async def test_both_families_migrate_without_loss(bench: LabBench) -> None:
    """There and back, with traffic on both at once; afterwards everybody is found where they are."""
    async with (
        bench.traffic(OWN4["vm1"]) as over_ipv4,
        bench.traffic(OWN6["vm1"]) as over_ipv6,
    ):
        for target in ("server2", "server1"):
            migration = await bench.migration("vm1", target_server=target)
            figures = migration["figures"]
            for rows in (figures["bindings_before"], figures["bindings_after"]):
                assert {row["ip"] for row in rows} >= {OWN4["vm1"], OWN6["vm1"]}
            held = {row["ip"]: row["switch"] for row in await bench.bindings("vm1")}
            edge = f"edge{target[-1]}"
            assert held == {OWN4["vm1"]: edge, OWN6["vm1"]: edge}
            assert await bench.flows(edge, f"ipv6_src={OWN6['vm1']}")
        flows = [await bench.unharmed(traffic) for traffic in (over_ipv4, over_ipv6)]
    assert all(of.sent > 200 and of.reordered == 0 for of in flows), flows
    assert await bench.flows("edge2", f"ipv6_src={OWN6['vm1']}") == []


async def test_neighbours_the_gateway_and_the_outside_are_found(bench: LabBench) -> None:
    """On the same server by its own MAC, elsewhere by the gateway's; and after the neighbour has moved."""
    for to in (GATEWAY, f"{link_local(GATEWAY_MAC)}%eth0", OWN6["vm2"], OWN6["vm3"], CLIENT):
        assert await bench.ping("vm1", to), to
    known = await bench.guest("vm1", "ip -6 neigh show dev eth0")
    macs = {line.split()[0]: line.split()[2] for line in known.splitlines() if "lladdr" in line}
    assert macs[OWN6["vm2"]] == macs[GATEWAY] == GATEWAY_MAC
    assert macs[OWN6["vm3"]] == mac_of("vm3")
    assert not await bench.ping("vm1", f"{vm_local(3)}%eth0")
    await bench.migration("vm1", target_server="server2")
    for to in (GATEWAY, OWN6["vm2"], OWN6["vm3"], CLIENT):
        assert await bench.ping("vm1", to), to
    assert await bench.ping("vm3", OWN6["vm1"])


async def test_what_is_set_of_vnet_and_gateway_meanwhile_harms_no_migration(bench: LabBench) -> None:
    """Its MTU, its VLAN, whether it floods, and the gateway's MAC, again and again until the VM is there."""
    await bench.cli("gateway", "add", "rack7", "--mac", "02:00:5e:00:07:01")
    changes = [
        ("vnet", "set", "default", "--vlan", "30", "--flood", "controlled"),
        ("gateway", "set", "rack7", "--default"),
        ("vnet", "set", "default", "--mtu", "1400"),
        ("vnet", "set", "default", "--mtu", "0", "--flood", "dropped"),
        ("gateway", "set", "rack7", "--no-default"),
    ]
    rounds = 0
    async with bench.traffic(OWN4["vm1"]) as over_ipv4, bench.traffic(OWN6["vm1"]) as over_ipv6:
        for target in ("server2", "server1"):
            moving = asyncio.create_task(bench.migration("vm1", target_server=target))
            for words in itertools.cycle(changes):
                await bench.cli(*words)
                if moving.done() and words is changes[-1]:
                    break
                rounds += 1
            await moving
        flows = [await bench.unharmed(traffic) for traffic in (over_ipv4, over_ipv6)]
    assert all(of.sent > 200 for of in flows), flows
    assert rounds >= 2 * len(changes) - 2
    await bench.cli("gateway", "remove", "rack7")
    await bench.cli("vnet", "set", "default", "--vlan", "0")


async def test_without_a_controller_neighbours_are_found_anew_as_those_of_ipv4(bench: LabBench) -> None:
    """Switches answer for the gateway and for who is there: a guest's kernel takes it, and so does the
    router's. None of the traffic from outside is lost while all caches are emptied again and again."""
    gateway4 = "10.1.0.254"

    async def forget() -> None:
        await bench.guest("vm1", f"ip neigh flush dev eth0 {KNOWN}; ip -6 neigh flush dev eth0 {KNOWN}")

    async def found(*addresses: str) -> list[bool]:
        await forget()
        return [await bench.ping("vm1", to) for to in addresses]

    local = f"{link_local(GATEWAY_MAC)}%eth0"
    async with bench.traffic(OWN4["vm1"]) as over_ipv4, bench.traffic(OWN6["vm1"]) as over_ipv6:
        bench.kill("controller", signal.SIGKILL)
        try:
            for _ in range(5):
                assert await found(GATEWAY, local, OWN6["vm3"], CLIENT) == [True] * 4
                assert await found(gateway4, OWN4["vm3"]) == [True] * 2
                await bench.run("router", "ip", "neigh", "flush", "all", *KNOWN.split())
            known = await bench.guest("vm1", "ip -6 neigh show dev eth0")
            await forget()
            elsewhere = await bench.answering("vm1", OWN6["vm2"], OWN4["vm2"])
        finally:
            await bench.restart_controller()
        flows = [await bench.unharmed(traffic) for traffic in (over_ipv4, over_ipv6)]
    assert all(of.sent > 200 for of in flows), flows
    assert elsewhere == [], "of who is on another server the controller alone is asked"
    assert await found(OWN6["vm2"], OWN4["vm2"]) == [True] * 2
    assert GATEWAY_MAC in known


async def test_an_address_that_another_has_is_not_taken(bench: LabBench) -> None:
    """The guest's own duplicate check hears so; of its own address it hears nothing."""
    assert "dadfailed" not in await bench.guest("vm1", "ip -6 address show dev eth0")
    failed = "until ip -6 address show dev eth0 | grep -q dadfailed; do usleep 20000; done"
    await bench.guest("vm1", f"ip address add {OWN6['vm2']}/64 dev eth0; {failed}")
    await bench.guest("vm1", f"ip address del {OWN6['vm2']}/64 dev eth0")
    assert await bench.ping("vm2", CLIENT)


def claiming(ip: str) -> Picks:
    return lambda e: bool(e["spoofing"]["claimed_ip"] == ip)


async def test_forged_neighbour_discovery_goes_nowhere_and_is_told(bench: LabBench) -> None:
    one, two = mac_of("vm1"), mac_of("vm2")
    router = link_local(GATEWAY_MAC)
    forged = {
        OWN6["vm3"]: nd_frame(says(vm_ip6(1), vm_ip6(3), one, vm_ip6(3)), one, mac_of("vm3")),
        OWN6["vm2"]: nd_frame(says(vm_ip6(2), vm_ip6(2), one), one),
        GATEWAY: nd_frame(says(vm_ip6(1), load("dual-stack").subnet6[0].gateway, one), one),
        str(router): nd_frame(advertises(router, one), one),
        str(vm_local(1)): nd_frame(advertises(vm_local(1), one), one),
        str(vm_local(2)): nd_frame(asks(vm_local(2), vm_ip6(3), one), one),
    }

    def is_forged(frame: Frame) -> bool:
        return frame.src == one and frame.ethertype == 0x86DD

    places = (("server1", "tap-vm3", "out"), ("server1", "up0", "out"), ("server2", "tap-vm2", "out"))
    async with bench.captures(*places) as captures, bench.events() as events:
        await bench.send("vm1", *(frame.hex() for frame in forged.values()), times=3)
        for claim in forged:
            told = await events.until("spoofing", claiming(claim))
            assert (told["spoofing"]["kind"], told["spoofing"]["vm"]) == ("nd", "vm1")
            assert (told["spoofing"]["switch"], told["spoofing"]["claimed_mac"]) == ("edge1", one)
    assert not [str(frame) for capture in captures for frame in capture.those(is_forged)]

    async def all_counted() -> bool:
        rows = (await bench.get("spoof-attempts"))["spoof_attempts"]
        counts = {row["claimed_ip"]: row["count"] for row in rows if row["kind"] == "nd"}
        return all(counts.get(claim) == 3 for claim in forged)

    await eventually(all_counted)
    assert await bench.ping("vm3", OWN6["vm2"])
    assert two not in await bench.guest("vm3", "ip -6 neigh show dev eth0")


async def test_the_gateway_advertises_itself_to_who_asks(bench: LabBench) -> None:
    question = ND(vm_local(1), ALL_ROUTERS, RouterSolicitation(NDOptions(source_mac=mac_of("vm1"))))
    async with bench.capture("server1", "tap-vm1", "out") as tap:
        await bench.send("vm1", nd_frame(question, mac_of("vm1")).hex())
        said = await tap.until(lambda frame: frame.ether.haslayer(ICMPv6ND_RA) == 1)
    assert (said.src, said.dst) == (GATEWAY_MAC, mac_of("vm1"))
    ip, prefix = said.ether[IPv6], said.ether[ICMPv6NDOptPrefixInfo]
    assert (ip.src, ip.dst, ip.hlim) == (str(link_local(GATEWAY_MAC)), str(vm_local(1)), 255)
    assert (prefix.prefix, prefix.prefixlen, prefix.L, prefix.A) == ("fd00:1::", 64, 1, 1)


async def test_an_address_that_the_guest_makes_itself_is_bound_and_moves(bench: LabBench) -> None:
    """SLAAC: the guest hears the gateway, makes an address, checks it, and has it, wherever it is."""
    own, settings = "fd00:1::5054:ff:fe00:1", "/proc/sys/net/ipv6/conf/eth0"
    question = ND(vm_local(1), ALL_ROUTERS, RouterSolicitation(NDOptions(source_mac=mac_of("vm1"))))

    async def reaches_the_outside() -> None:
        said = await bench.guest("vm1", f"ping -c 1 -W 5 -I {own} {CLIENT}", check=False)
        assert " 1 packets received" in said, said

    async with bench.events() as events:
        await bench.guest("vm1", f"echo 1 >{settings}/autoconf; echo 1 >{settings}/accept_ra")
        await bench.send("vm1", nd_frame(question, mac_of("vm1")).hex())
        added = await events.until("binding.added", lambda e: any(r["ip"] == own for r in e["bindings"]))
    (row,) = [row for row in added["bindings"] if row["ip"] == own]
    assert (row["kind"], row["origin"], row["switch"], row["lease_end"]) == (
        "slaac",
        "controller",
        "edge1",
        None,
    )
    checked = f"until ip -6 address show dev eth0 | grep {own} | grep -vq tentative; do usleep 20000; done"
    await bench.guest("vm1", f"echo 0 >{settings}/accept_ra; {checked}")
    await reaches_the_outside()
    await bench.migration("vm1", target_server="server2")
    await reaches_the_outside()


BLUE6 = dhcp6.Served("blue6", "fd00:1::/64", GATEWAY, slaac=True)


def renewal_of(ip: str, server: str) -> Picks:
    return lambda e: (e["renewal"]["ip"], e["renewal"]["server"]) == (ip, server)


CHECKED = "until ip -6 address show dev eth0 | grep {} | grep -vq tentative; do usleep 20000; done"


async def test_a_lease_of_dhcpv6_migrates_under_traffic_and_is_renewed_on_the_vms_behalf(
    bench: LabBench,
) -> None:
    """Kea grants it and renews it; the guest has asked once, and hears nothing of the renewals."""
    async with (
        dhcp6.running(bench, BLUE6, valid=600, renew=300),
        bench.events() as events,
        bench.capture("dhcp", "eth0", "in") as at_server,
    ):
        ip = await dhcp6.lease(bench, "vm1", "server1")
        added = await events.until("binding.added", lambda e: any(r["ip"] == ip for r in e["bindings"]))
        (row,) = [row for row in added["bindings"] if row["ip"] == ip]
        assert (row["kind"], row["switch"], row["lease_end"]) == (
            "dynamic", "edge1", pytest.approx(added["at"] + 600, abs=30),
        )  # fmt: skip
        await bench.guest("vm1", f"ip address add {ip}/64 dev eth0; {CHECKED.format(ip)}")
        async with bench.traffic(ip) as echoes:
            for target in ("server2", "server1"):
                await bench.migration("vm1", target_server=target)
                renewed = await events.until("renewal.acked", renewal_of(ip, target))
                order = renewed["renewal"]
                assert (order["server"], order["lease_seconds"]) == (target, 600)
                circuit = f"{order['switch']}:{order['port_number']}"
                asked = await at_server.until(dhcp6.relayed(DHCP6_Renew, ip, circuit))
                said = dhcp6.inside(asked)
                assert bytes(said[DHCP6OptClientId].duid) == bytes(DUID_LL(lladdr=mac_of("vm1")))
                assert bytes(said[DHCP6OptServerId].duid).hex() == order["server_duid"]
                assert said[DHCP6OptIA_NA].iaid == 1
            figures = await bench.unharmed(echoes)
        assert figures.sent > 200
        assert figures.reordered == 0
        duid = DUID_EN(bytes.fromhex(order["server_duid"]))
        await bench.send("vm1", dhcp6.said_by(mac_of("vm1"), DHCP6_Release(trid=0xA9), ip, duid))
        gone = await events.until("binding.removed", lambda e: e["ip"] == ip)
        assert gone["reason"] == "released by the VM"
        await at_server.until(dhcp6.relayed(DHCP6_Release, ip))
        await bench.guest("vm1", f"ip address del {ip}/64 dev eth0")


async def test_a_delegated_prefix_migrates_under_traffic_and_is_renewed_on_the_vms_behalf(
    bench: LabBench,
) -> None:
    """Kea delegates it: an address of it, which the guest has on no link, is reached wherever the VM is."""
    outside = f"ip -6 route replace fd00:8::/48 via {link_local(GATEWAY_MAC)} dev eth0"
    await bench.run("router", "sh", "-ec", outside)
    async with dhcp6.running(bench, BLUE6, valid=600, renew=300), bench.events() as events:
        prefix, duid = await dhcp6.delegation(bench, "vm1", "server1")
        (row,) = [row for row in await bench.bindings("vm1") if row["ip"] == prefix]
        assert (row["kind"], row["switch"]) == ("dynamic", "edge1")
        inside = str(IPv6Network(prefix)[0x77])
        await bench.guest("vm1", f"ip address add {inside}/128 dev lo")
        async with bench.traffic(inside) as echoes:
            await bench.migration("vm1", target_server="server2")
            renewed = await events.until("renewal.acked", renewal_of(prefix.partition("/")[0], "server2"))
            assert (renewed["renewal"]["ia"], renewed["renewal"]["prefix_length"]) == ("pd", 60)
            figures = await bench.unharmed(echoes)
        assert figures.sent > 100 and figures.reordered == 0
        release = dhcp6.for_prefix(mac_of("vm1"), DHCP6_Release(trid=0xB9), prefix, duid)
        await bench.send("vm1", release)
        await events.until("binding.removed", lambda e: e["ip"] == prefix)
        assert not await bench.flows("edge2", f"ipv6_dst={prefix}")
        await bench.guest("vm1", f"ip address del {inside}/128 dev lo")


async def test_prefixes_that_are_routed_to_a_nic_migrate_under_traffic(bench: LabBench) -> None:
    """Of both families: an address of each, which the guest has on no link, is reached wherever the VM is."""
    inside = {"10.9.0.0/28": "10.9.0.7", "fd00:9::/64": "fd00:9::7"}
    way = (await bench.run("router", "ip", "route", "show", "10.1.0.0/24")).split(" via ")[1].split()[0]
    await bench.cli("vm", "nic", "set", "vm1", *(word for one in inside for word in ("--prefix", one)))
    routes = (("10.9.0.0/28", way), ("fd00:9::/64", str(link_local(GATEWAY_MAC))))
    for prefix, via in routes:
        await bench.run("router", "ip", "route", "replace", prefix, "via", via, "dev", "eth0")
    await bench.guest("vm1", "; ".join(f"ip address add {ip} dev lo" for ip in inside.values()))
    async with (
        bench.traffic(inside["10.9.0.0/28"]) as over_ipv4,
        bench.traffic(inside["fd00:9::/64"]) as over_ipv6,
    ):
        for target in ("server2", "server1"):
            await bench.migration("vm1", target_server=target)
            for prefix in inside:
                assert await bench.flows(f"edge{target[-1]}", prefix)
        flows = [await bench.unharmed(traffic) for traffic in (over_ipv4, over_ipv6)]
    assert all(of.sent > 200 and of.reordered == 0 for of in flows), flows
    await bench.cli("vm", "nic", "set", "vm1", "--prefix", "none")
    for prefix, ip in inside.items():
        assert not await bench.flows("edge1", prefix)
        await bench.guest("vm1", f"ip address del {ip} dev lo")
        await bench.run("router", "ip", "route", "del", prefix)


async def test_a_dhcpv6_servers_message_from_a_vm_reaches_nobody(bench: LabBench) -> None:
    one, three = mac_of("vm1"), mac_of("vm3")
    reply = DHCP6_Reply(trid=1) / DHCP6OptServerId(duid=DUID_LL(lladdr=three))
    way = Ether(src=three, dst=one) / IPv6(src=str(vm_local(3)), dst=str(vm_local(1)))
    frame = bytes(way / UDP(sport=547, dport=546) / reply).hex()
    async with bench.capture("server1", "tap-vm1", "out") as tap, bench.events() as events:
        await bench.send("vm3", frame, times=3)
        told = await events.until("spoofing", lambda e: e["spoofing"]["vm"] == "vm3")
        assert (told["spoofing"]["kind"], told["spoofing"]["claimed_mac"]) == ("rogue-dhcp", three)
        assert await bench.ping("vm3", OWN6["vm1"])
    assert not tap.those(lambda seen: bool(seen.ether.haslayer(DHCP6_Reply)))
