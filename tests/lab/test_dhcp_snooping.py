"""DHCP snooping on real parts: what makes a binding, what ends it, and who may not."""

import signal
import time
from itertools import groupby

import pytest

from support.lab.frames import (
    ARP,
    BOOTP,
    BROADCAST,
    IP,
    Ether,
    arp,
    carries,
    dhcp_type,
    from_client,
    from_server,
    hexed,
    packet,
)
from support.lab.guest_dhcp import of_vm, start_udhcpc, udhcpc
from support.lab.start import addressed, running
from support.lab.tools import Json, LabBench, Picks, at, mac_of

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("leased")]

VMS = [at("vm1", "server1"), at("vm2", "server1")]
ONE, TWO = mac_of("vm1"), mac_of("vm2")
GATEWAY = "00:00:de:ad:be:ef"
DHCP_SERVER = "10.1.0.2"


def claiming(ip: str, kind: str = "ip") -> Picks:
    """Forgeries of this kind that claim this address; of other kinds an earlier test's may still come."""
    return lambda e: (e["spoofing"]["kind"], e["spoofing"]["claimed_ip"]) == (kind, ip)


def with_lease(config: Json, seconds: int) -> Json:
    subnet = config["Dhcp4"]["subnet4"][0]
    for key in ("valid-lifetime", "min-valid-lifetime", "max-valid-lifetime"):
        subnet[key] = seconds
    subnet["renew-timer"], subnet["rebind-timer"] = seconds - 2, seconds - 1
    return config


# ---- what makes a binding ----


async def test_the_first_boot_is_snooped_and_the_binding_stands_before_the_vm_has_its_address(
    bench: LabBench,
) -> None:
    """The whole exchange passes and makes the binding; till then nothing else leaves the server."""
    mac = mac_of("vm3")
    async with (
        bench.events() as events,
        bench.capture("dhcp", "eth0") as at_server,
        bench.capture("server2", "up0", "out") as uplink,
    ):
        await bench.post("vms", at("vm3", "server2"))
        await events.until("port.added", of_vm("vm3"))
        async with bench.capture("server2", "tap-vm3") as tap:
            await running(bench, events, "vm3")
            ack = await tap.until(lambda f: dhcp_type(f.ether) == "ack")
        added = await events.until("binding.added", of_vm("vm3"))
        assert await bench.ping("vm3", "10.1.0.254")
        assert await bench.ping("vm3", DHCP_SERVER)
        await uplink.until(lambda f: f.ether.haslayer(IP) and f.ether[IP].dst == DHCP_SERVER)
    kinds = [kind for kind, _ in groupby(dhcp_type(f.ether) for f in at_server.frames) if kind]
    assert kinds == ["discover", "offer", "request", "ack"]
    (row,) = added["bindings"]
    assert row["ip"] == ack.ether[BOOTP].yiaddr
    assert row["mac"] == mac
    assert (row["kind"], row["origin"]) == ("dynamic", "controller")
    assert row["lease_end"] == pytest.approx(added["at"] + 600, abs=5)
    assert ack.at >= added["at"], "the VM had its address before the binding stood"
    assert [str(f) for f in uplink.frames if f.src == mac and f.at < added["at"]] == []


async def test_without_a_binding_only_dhcp_and_an_arp_probe_pass(bench: LabBench) -> None:
    """Everything else a VM without a binding sends ends at its own port; RELEASE ends a binding."""
    one, two = await bench.address("vm1"), await bench.address("vm2")
    silent = [
        packet(TWO, ONE, two, one),
        packet(TWO, GATEWAY, two, "203.0.113.9"),
        packet(TWO, BROADCAST, two, "255.255.255.255"),
        packet(TWO, BROADCAST, "0.0.0.0", "255.255.255.255"),
        packet(TWO, "01:00:5e:00:00:01", two, "224.0.0.1"),
        arp("who-has", TWO, two, one),
        arp("is-at", TWO, two, two),
        arp("is-at", TWO, two, one, tha=ONE),
        *(hexed(Ether(src=TWO, dst=to, type=0x88B5) / ("spoofed" * 10)) for to in (ONE, GATEWAY, BROADCAST)),
        hexed(Ether(src=TWO, dst="01:80:c2:00:00:0e", type=0x88CC) / ("spoofed" * 10)),
        hexed(Ether(src=TWO, dst=BROADCAST, type=0x8100) / bytes.fromhex("00050800") / IP(src=two, dst=one)),
        hexed(Ether(src=TWO, dst="33:33:00:00:00:01", type=0x86DD) / bytes(60)),
    ]
    async with (
        bench.events() as events,
        bench.capture("server1", "tap-vm2", "in") as sent,
        bench.capture("server1", "tap-vm2", "out") as answers,
        bench.capture("server1", "tap-vm1", "out") as neighbour,
        bench.capture("server1", "up0", "out") as uplink,
        bench.capture("dhcp", "eth0") as at_server,
    ):
        await udhcpc(bench, "vm2", "USR2")
        gone = await events.until("binding.removed", of_vm("vm2"))
        assert (gone["ip"], gone["reason"]) == (two, "released by the VM")
        assert await bench.bindings("vm2") == []

        await bench.send("vm2", *silent)
        await sent.until(lambda f: f.data.hex() in silent, times=len(silent))
        # What must pass: a probe, which is answered for an address that is held, and DHCP.
        await bench.send("vm2", arp("who-has", TWO, "0.0.0.0", one), from_client(TWO, "discover"))
        await answers.until(lambda f: f.ether.haslayer(ARP) and f.ether[ARP].psrc == one)
        await at_server.until(lambda f: dhcp_type(f.ether) == "discover" and f.src == TWO)
        # An honest packet of the neighbour closes each capture: what had passed before is in it.
        assert await bench.ping("vm1", DHCP_SERVER)
        for seen in (uplink, at_server):
            await seen.until(lambda f: f.src in (ONE, GATEWAY) and f.ether.haslayer(IP))
        await neighbour.until(lambda f: f.ether.haslayer(IP) and f.ether[IP].src == DHCP_SERVER)

        assert [str(f) for f in neighbour.frames if f.src == TWO] == []
        assert [str(f) for f in uplink.frames if f.src == TWO] == []
        assert {dhcp_type(f.ether) for f in at_server.frames if f.src == TWO} == {"release", "discover"}
        spoofed = await events.until("spoofing", lambda e: e["spoofing"]["kind"] == "ip")
        assert (spoofed["spoofing"]["vm"], spoofed["spoofing"]["claimed_ip"]) == ("vm2", two)

        await udhcpc(bench, "vm2", "USR1")
        await events.until("binding.added", of_vm("vm2"), after=gone)
    await addressed(bench, "vm2")
    assert await bench.ping("vm2", one)


async def test_a_dhcp_server_on_a_vm_port_is_silent_and_reported(bench: LabBench) -> None:
    """OFFER and ACK from an untrusted port reach nobody, whatever MAC and IP they claim."""
    one, two = await bench.address("vm1"), await bench.address("vm2")
    port = (await bench.vm("vm2"))["port"]
    rogue = [
        from_server(kind, src=src, from_ip=ip, client=ONE, yiaddr="10.1.0.66", dst=dst)
        for kind in ("offer", "ack")
        for src, ip in ((TWO, two), ("02:00:00:00:00:d1", DHCP_SERVER))
        for dst in (BROADCAST, ONE)
    ]
    async with (
        bench.events() as events,
        bench.capture("server1", "tap-vm2", "in") as sent,
        bench.capture("server1", "tap-vm1", "out") as neighbour,
        bench.capture("server1", "up0", "out") as uplink,
        bench.capture("dhcp", "eth0", "in") as at_server,
    ):
        await bench.send("vm2", *rogue)
        await sent.until(lambda f: f.data.hex() in rogue, times=len(rogue))
        assert await bench.ping("vm2", one)
        assert await bench.ping("vm2", DHCP_SERVER)
        for seen in (neighbour, uplink, at_server):
            await seen.until(lambda f: f.ether.haslayer("ICMP"))
            assert [str(f) for f in seen.frames if dhcp_type(f.ether)] == []
        rows = [
            (await events.until("spoofing", claiming(ip, "rogue-dhcp")))["spoofing"]
            for ip in (two, DHCP_SERVER)
        ]
    assert {(r["vm"], r["switch"], r["port"]) for r in rows} == {("vm2", "edge1", port)}
    assert await bench.address("vm1") == one


_UDHCPD = """
start 10.1.0.210
end 10.1.0.219
interface eth0
lease_file /tmp/udhcpd.leases
pidfile /tmp/udhcpd.pid
option subnet 255.255.255.0
option router 10.1.0.254
option lease 600
"""


async def test_a_vm_is_a_dhcp_server_where_its_port_is_trusted_and_that_migrates_with_it(
    bench: LabBench,
) -> None:
    """While Kea stands still vm1 has its address from vm2; vm2 serves on from another server, till it is
    trusted no more."""
    server = await bench.address("vm2")
    granted: list[str] = []

    async def trust(bench: LabBench) -> set[str]:
        return {row["trust"] for row in await bench.bindings("vm2")}

    await bench.guest("vm2", f"echo '{_UDHCPD}' >/tmp/udhcpd.conf; touch /tmp/udhcpd.leases")
    await bench.guest("vm2", "udhcpd -f /tmp/udhcpd.conf </dev/null >/tmp/udhcpd.log 2>&1 &")
    await bench.cli("vm", "nic", "set", "vm2", "--trust")
    bench.kill("kea-dhcp4", signal.SIGSTOP)
    try:
        async with bench.events() as events:
            await udhcpc(bench, "vm1", "USR2")
            last = await events.until("binding.removed", of_vm("vm1"))
            for home in ("server1", "server2"):
                if home == "server2":
                    await bench.migration("vm2", target_server=home)
                    await udhcpc(bench, "vm1", "USR2")
                    last = await events.until("binding.removed", of_vm("vm1"), after=last)
                assert await trust(bench) == {"trust"}
                assert (await bench.vm("vm2"))["server"] == home
                await udhcpc(bench, "vm1", "USR1")
                last = await events.until("binding.added", of_vm("vm1"), after=last)
                granted.append(last["bindings"][0]["ip"])
                await addressed(bench, "vm1")
                assert await bench.ping("vm1", server)
            assert set(granted) <= {f"10.1.0.{n}" for n in range(210, 220)}

            await bench.cli("vm", "nic", "set", "vm2", "--no-trust")
            assert await trust(bench) == {"untrust"}
            offer = from_server("offer", src=TWO, from_ip=server, client=ONE, yiaddr=granted[-1])
            async with bench.capture("server1", "tap-vm1", "out") as tap:
                await bench.send("vm2", offer)
                await events.until("spoofing", claiming(server, "rogue-dhcp"))
                assert await bench.ping("vm2", granted[-1])
                await tap.until(lambda f: f.ether.haslayer("ICMP"))
                assert [str(f) for f in tap.frames if dhcp_type(f.ether)] == []
            await udhcpc(bench, "vm1", "USR2")
            last = await events.until("binding.removed", of_vm("vm1"), after=last)
    finally:
        bench.kill("kea-dhcp4", signal.SIGCONT)
    async with bench.events() as events:
        await udhcpc(bench, "vm1", "USR1")
        await events.until("binding.added", of_vm("vm1"))
    await bench.guest("vm2", "killall udhcpd")
    await bench.migration("vm2", target_server="server1")


# ---- what ends a binding ----


async def test_another_vms_address_cannot_be_released_or_declined(bench: LabBench) -> None:
    """RELEASE and DECLINE count only for what the sender itself holds; the attempt is reported."""
    one = await bench.address("vm1")
    attempts = [
        from_client(TWO, "release", ciaddr=one, to=DHCP_SERVER, dst=GATEWAY),
        from_client(TWO, "release", ciaddr=one, to=DHCP_SERVER, dst=GATEWAY, chaddr=ONE),
        from_client(TWO, "decline", requested_addr=one),
    ]
    async with bench.events() as events, bench.capture("dhcp", "eth0") as at_server:
        last = None
        for frame in attempts:
            await bench.send("vm2", frame)
            last = await events.until("dhcp.rejected", after=last)
        await bench.send("vm1", from_client(ONE, "discover"))
        await at_server.until(lambda f: dhcp_type(f.ether) == "discover")
    assert [dhcp_type(f.ether) for f in at_server.frames if f.src == TWO] == []
    assert [e["vm"] for e in events.of("dhcp.rejected")] == ["vm2"] * 3
    assert await bench.address("vm1") == one
    assert await bench.ping("vm1", "10.1.0.254")


async def test_decline_ends_a_binding(bench: LabBench) -> None:
    """The address the VM declines is no longer its own; it gets another one."""
    two = await bench.address("vm2")
    async with bench.events() as events:
        await bench.send("vm2", from_client(TWO, "decline", requested_addr=two, server_id=DHCP_SERVER))
        gone = await events.until("binding.removed", of_vm("vm2"))
        assert (gone["ip"], gone["reason"]) == (two, "declined by the VM")
        await stopped(bench, "vm2", two)
        await udhcpc(bench, "vm2", "USR1")
        added = await events.until("binding.added", of_vm("vm2"))
    assert added["bindings"][0]["ip"] != two


async def test_a_binding_ends_with_its_lease(bench: LabBench, kea: Json) -> None:
    """A VM that does not renew loses its binding at the lease's end, and its traffic stops then."""
    address = await bench.address("vm2")
    await bench.kea("config-set", with_lease(kea, 5))
    async with bench.events() as events, bench.traffic(address) as traffic:
        await udhcpc(bench, "vm2", "USR1")
        renewed = await events.until("binding.renewed", of_vm("vm2"))
        await udhcpc(bench, "vm2", "KILL")
        gone = await events.until("binding.removed", of_vm("vm2"))
        assert await bench.flows("edge1", address) == []
        assert await bench.flows("spine1", address) == []
        await stopped(bench, "vm2", address)
        _, record = await traffic.end()
    end = renewed["bindings"][0]["lease_end"]
    assert gone["reason"] == "the lease ended"
    assert end <= gone["at"] < end + 1
    answered = [arrival.at / 1e9 for arrival in record.arrivals]
    assert end - 0.5 < max(answered) < gone["at"] + 0.5, "traffic stopped before, or went on after its time"


async def test_a_binding_ends_on_the_switch_with_the_controller_dead(bench: LabBench, kea: Json) -> None:
    """Nobody needs to tell the switch; and a controller that comes back does not revive the binding."""
    address = await bench.address("vm2")
    await bench.kea("config-set", with_lease(kea, 6))
    async with (
        bench.events() as events,
        bench.flow_changes("edge1") as changes,
        bench.traffic(address) as traffic,
    ):
        await udhcpc(bench, "vm2", "USR1")
        renewed = await events.until("binding.renewed", of_vm("vm2"))
        await udhcpc(bench, "vm2", "KILL")
        bench.kill("controller", signal.SIGKILL)
        end = renewed["bindings"][0]["lease_end"]
        assert time.time() < end, "too slow to show anything"
        ended = await changes.until("event=DELETED", f"nw_src={address}")
        _, record = await traffic.end()
    assert await bench.flows("edge1", address) == []
    answered = [arrival.at / 1e9 for arrival in record.arrivals]
    assert end - 1.5 < ended < end + 2.5
    assert end - 1.5 < max(answered) < ended + 0.5

    await bench.restart_controller()
    assert await bench.bindings("vm2") == []
    async with bench.events() as events:
        await start_udhcpc(bench, "vm2")
        await events.until("binding.added", of_vm("vm2"))
    await addressed(bench, "vm2")
    assert await bench.ping("vm2", "10.1.0.254")


async def stopped(bench: LabBench, vm: str, address: str) -> None:
    """Show that what this VM sends from the address goes nowhere: it is dropped, and reported."""
    mac = mac_of(vm)
    async with (
        bench.events() as events,
        bench.capture("server1", "up0", "out") as uplink,
    ):
        await bench.send(vm, packet(mac, GATEWAY, address, "203.0.113.9", "stale"))
        await events.until("spoofing", claiming(address))
        other = "vm1" if vm == "vm2" else "vm2"
        marker = packet(mac_of(other), GATEWAY, await bench.address(other), "203.0.113.9", "marker")
        await bench.send(other, marker)
        await uplink.until(lambda f: carries(f.ether, "marker"))
    assert [str(f) for f in uplink.frames if carries(f.ether, "stale")] == []
