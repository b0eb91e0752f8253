"""Renewal on a VM's behalf on real parts: real switches, a real guest, Kea as the judge."""

import asyncio
import signal
from ipaddress import IPv4Address
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from retinue.core.lease_renewal import Lease, request_frame
from support.lab.agent_command import agent, renew
from support.lab.frames import BOOTP, IP, dhcp_type
from support.lab.guest_dhcp import of_vm, udhcpc
from support.lab.migrating import start_agent
from support.lab.tools import Json, LabBench, at, eventually, mac_of
from support.lab.watch import Frame
from support.oracles.dhcp import RENEWAL, asked_of_kea, kea_log, kea_tells_all, tshark

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("leased")]

VMS = [at("vm1", "server1"), at("vm2", "server1")]
ONE, TWO = mac_of("vm1"), mac_of("vm2")
GATEWAY = "00:00:de:ad:be:ef"
DHCP_SERVER = "10.1.0.2"


def is_dhcp(frame: Frame) -> bool:
    return bool(dhcp_type(frame.ether))


async def where(bench: LabBench, vm: str) -> str:
    return str((await bench.vm(vm))["server"])


async def test_the_renewal_is_judged_by_kea_and_the_guest_sees_nothing(
    bench: LabBench, kea: Json, tmp_path: Path
) -> None:
    """Byte by byte to tshark, in Kea's own log, in the binding, and on the guest's tap."""
    await kea_tells_all(bench)
    server = await where(bench, "vm1")
    (before,) = await bench.bindings("vm1")
    async with (
        bench.events() as events,
        bench.capture(server, "tap-vm1", "inout") as tap,
        bench.capture("dhcp", "eth0") as at_server,
    ):
        outcome = await renew(bench, server, "vm1")
        assert outcome.code == 0, outcome.words
        answer = await at_server.until(lambda f: dhcp_type(f.ether) == "ack")
        acked = await events.until("renewal.acked", of_vm("vm1"))
        # An honest packet to the guest and back closes the capture at its tap.
        assert await bench.ping("vm1", DHCP_SERVER)
        await tap.until(lambda f: f.ether.haslayer("ICMP"))
    assert [str(f) for f in tap.frames if is_dhcp(f)] == [], "the guest must see nothing"

    order = acked["renewal"]
    xid = int(outcome.data["xid"], 16)
    (sent,) = [f for f in at_server.frames if dhcp_type(f.ether) == "request"]
    (read,) = tshark([sent.data], [*RENEWAL, "dhcp.id", "dhcp.ip.client", "dhcp.hw.mac_addr"], tmp_path)
    assert read == {
        **RENEWAL,
        "dhcp.id": f"{xid:#010x}",
        "dhcp.ip.client": before["ip"],
        "dhcp.hw.mac_addr": ONE,
    }
    assert (sent.src, sent.ether[IP].src, sent.ether[IP].dst) == (ONE, before["ip"], DHCP_SERVER)

    (message,) = asked_of_kea(kea_log(bench), xid)
    assert "msg_type=DHCPREQUEST" in message
    assert "type=061" in message, "the client identifier the guest uses"
    for absent in ("type=050", "type=054", "type=082"):
        assert absent not in message
    extends = f"ALLOC_ENGINE_V4_REQUEST_EXTEND_LEASE [hwtype=1 {ONE}]"
    lines = [line for line in kea_log(bench).splitlines() if f"tid={xid:#x}" in line]
    assert any(extends in line for line in lines), lines

    (row,) = await bench.bindings("vm1")
    assert (row["ip"], row["port"], row["switch"]) == (before["ip"], before["port"], before["switch"])
    assert row["lease_end"] > before["lease_end"]
    assert row["confirmed"]
    assert order["recorded_port"] == row["port"]
    assert outcome.data["lease_seconds"] == 600
    assert outcome.data["lease_end"] == row["lease_end"]
    given = BOOTP(bytes.fromhex(order["answer"]))
    as_sent = bytes(answer.ether["BOOTP"])  # The padding behind the last option is nobody's.
    assert bytes(given).rstrip(b"\0") == as_sent.rstrip(b"\0"), "the agent has the server's ACK as it was"
    assert (dhcp_type(answer.ether), given.xid, given.yiaddr) == ("ack", xid, before["ip"])
    kinds = [e["type"] for e in events.seen if e["type"].startswith(("renewal", "binding"))]
    assert kinds == ["renewal.sent", "binding.renewed", "renewal.acked"]


async def test_after_a_move_the_vm_is_renewed_from_its_new_port_and_nobody_had_to_ask(
    bench: LabBench,
) -> None:
    """The agent there does it when the VM has arrived; traffic goes on, the guest sees nothing."""
    (before,) = await bench.bindings("vm1")
    source = await where(bench, "vm1")
    target = "server2" if source != "server2" else "server3"
    async with (
        bench.events() as events,
        bench.capture("dhcp", "eth0", "in") as at_server,
        bench.traffic(before["ip"]) as traffic,
    ):
        await bench.migration("vm1", target_server=target)
        async with bench.capture(target, "tap-vm1", "out") as tap:
            acked = await events.until("renewal.acked", of_vm("vm1"))
            await tap.until(lambda f: f.ether.haslayer(IP))
        await bench.unharmed(traffic)
    assert [str(f) for f in tap.frames if is_dhcp(f)] == []
    (row,) = await bench.bindings("vm1")
    order = acked["renewal"]
    assert (order["server"], order["switch"], row["switch"]) == (target, f"edge{target[-1]}", order["switch"])
    assert order["recorded_port"] == row["port"]
    assert row["lease_end"] == order["lease_end"] > before["lease_end"]
    (sent,) = [f for f in at_server.frames if dhcp_type(f.ether) == "request"]
    assert (sent.src, sent.ether["BOOTP"].xid) == (ONE, order["xid"])


async def test_a_renewal_the_controller_did_not_live_to_see_is_ordered_by_the_next(bench: LabBench) -> None:
    """The DHCP server is silent while the VM moves, and the controller is killed in between."""
    source = await where(bench, "vm1")
    target = "server2" if source != "server2" else "server3"
    bench.kill("kea-dhcp4", signal.SIGSTOP)
    try:
        async with bench.events() as events:
            await bench.migration("vm1", target_server=target)
            sent = await events.until("renewal.sent", of_vm("vm1"))
        (before,) = await bench.bindings("vm1")
        bench.kill("controller", signal.SIGKILL)
    finally:
        bench.kill("kea-dhcp4", signal.SIGCONT)
    await bench.restart_controller()
    async with bench.events(since=0) as events:
        acked = await events.until("renewal.acked", of_vm("vm1"))
    order = acked["renewal"]
    assert order["id"] != sent["renewal"]["id"]
    assert (order["server"], order["switch"]) == (target, f"edge{target[-1]}")
    (row,) = await bench.bindings("vm1")
    assert (row["ip"], row["switch"]) == (before["ip"], order["switch"])
    assert row["lease_end"] == order["lease_end"] > before["lease_end"]


async def test_a_nak_to_the_agent_is_told_and_the_guests_own_client_finds_out(
    bench: LabBench, kea: Json
) -> None:
    """The guest has asked nothing: it keeps its address till it asks by itself, and then gets another."""
    server, old = await where(bench, "vm1"), await bench.address("vm1")
    kea["Dhcp4"]["subnet4"][0]["reservations"] = [{"hw-address": "52:54:00:aa:aa:aa", "ip-address": old}]
    await bench.kea("config-set", kea)
    async with (
        bench.events() as events,
        bench.capture(server, "tap-vm1", "inout") as tap,
        bench.capture("dhcp", "eth0") as at_server,
    ):
        outcome = await renew(bench, server, "vm1")
        await at_server.until(lambda f: dhcp_type(f.ether) == "nak")
        rejected = await events.until("renewal.rejected", of_vm("vm1"))
        assert [str(f) for f in tap.frames if is_dhcp(f)] == []
        assert (outcome.code, outcome.data["state"]) == (1, "rejected")
        words = "rejected by DHCP server dhcp; the VM keeps its address until the lease ends"
        assert outcome.data["reason"] == rejected["reason"] == words
        assert [row["ip"] for row in await bench.bindings("vm1")] == [old]
        assert await bench.ping("vm1", DHCP_SERVER)
        await udhcpc(bench, "vm1", "USR1")
        gone = await events.until("binding.removed", of_vm("vm1"))
        assert (gone["ip"], gone["reason"]) == (old, "rejected by DHCP server dhcp")
        assert await bench.flows(f"edge{server[-1]}", f"nw_src={old}") == []
        added = await events.until("binding.added", of_vm("vm1"), after=gone)
    assert added["bindings"][0]["ip"] != old


async def test_a_nak_to_a_renewal_that_was_ordered_has_the_guest_see_its_link_go_and_come(
    bench: LabBench, kea: Json
) -> None:
    """Its udhcpc does not watch the link; clients that do are in test_dhcp_clients."""
    server, old = await where(bench, "vm1"), await bench.address("vm1")
    kea["Dhcp4"]["subnet4"][0]["reservations"] = [{"hw-address": "52:54:00:aa:aa:aa", "ip-address": old}]
    await bench.kea("config-set", kea)
    changes = "cat /sys/class/net/eth0/carrier_changes"
    before = int(await bench.guest("vm1", changes))
    async with bench.events() as events:
        await bench.post("vms/vm1/renewals", {"server": server})
        await events.until("renewal.rejected", of_vm("vm1"))
    await bench.guest("vm1", f"until [ $({changes}) -eq {before + 2} ]; do usleep 20000; done")
    assert await bench.ping("vm1", DHCP_SERVER), "it has its address till it asks, or the lease ends"


async def test_a_server_that_judges_by_the_vms_class_judges_the_renewal_as_it_did(
    bench: LabBench, kea: Json
) -> None:
    """Kea serves clients of one vendor class only; the agent says the guest's class, byte by byte."""
    server = await where(bench, "vm1")
    kea["Dhcp4"]["client-classes"] = [
        {"name": "guests", "test": "substring(option[60].hex,0,5) == 'udhcp'"},
    ]
    kea["Dhcp4"]["subnet4"][0]["client-class"] = "guests"
    await bench.kea("config-set", kea)
    async with bench.capture("dhcp", "eth0", "in") as at_server:
        await udhcpc(bench, "vm1", "USR1")
        own = await at_server.until(lambda f: dhcp_type(f.ether) == "request")
        outcome = await renew(bench, server, "vm1")
        assert (outcome.code, outcome.data["state"]) == (0, "acked"), outcome.words
        xid = int(outcome.data["xid"], 16)
        by_agent = await at_server.until(lambda f: f.ether.haslayer(BOOTP) and f.ether[BOOTP].xid == xid)
    assert own.ether[BOOTP].xid != xid
    said, repeated = (
        {o[0]: o[1:] for o in f.ether["DHCP options"].options if isinstance(o, tuple)}
        for f in (own, by_agent)
    )
    assert "vendor_class_id" in said
    said.pop("max_dhcp_size", None)
    (asked,), (more,) = said.pop("param_req_list"), repeated.pop("param_req_list")
    assert list(more) == [*asked, *(code for code in (51, 6, 44) if code not in asked)]
    assert repeated == said


async def test_the_agent_keeps_the_lease_over_its_own_restart_and_updates_it(bench: LabBench) -> None:
    """Learned from the guest's own DHCP at its tap, brought up to date by the ACK to the agent."""
    server = await where(bench, "vm1")
    config = bench.lab.directory / "agents" / server / "agent.toml"

    async def kept() -> Json:
        shown = await agent(bench.lab, server, "leases", "--config", str(config))
        assert shown.code == 0, shown.words
        rows: Any = shown.data
        (row,) = [row for row in rows if row["vm"] == "vm1"]
        return dict(row)

    async with bench.events() as events:
        await bench.guest("vm1", "kill -USR1 $(cat /run/udhcpc.pid)")
        await events.until("binding.renewed", of_vm("vm1"))
    (bound,) = await bench.bindings("vm1")
    learned = await kept()
    assert (learned["mac"], learned["ip"], learned["server"]) == (ONE, bound["ip"], DHCP_SERVER)
    assert learned["end"] == pytest.approx(bound["lease_end"], abs=2)
    bench.kill(f"{server}-agent", signal.SIGKILL)
    await start_agent(bench, server)
    assert {**await kept(), "seconds_left": 0} == {**learned, "seconds_left": 0}
    async with bench.events() as events:
        await bench.post("vms/vm1/renewals", {"server": server})
        acked = await events.until("renewal.acked", of_vm("vm1"))

    async def updated() -> bool:
        return bool((await kept())["end"] > learned["end"])

    await eventually(updated)
    assert (await kept())["end"] == pytest.approx(acked["renewal"]["lease_end"], abs=2)


async def test_name_servers_that_the_guest_has_not_heard_of_are_told(bench: LabBench, kea: Json) -> None:
    """Kea names others than it did; the ACK with them ends at the agent."""
    server = await where(bench, "vm1")
    subnet = kea["Dhcp4"]["subnet4"][0]

    async def names(dns: str) -> None:
        others = [one for one in subnet.get("option-data", []) if one.get("name") != "domain-name-servers"]
        subnet["option-data"] = [*others, {"name": "domain-name-servers", "data": dns}]
        await bench.kea("config-set", kea)

    await names("10.1.0.5")
    async with bench.events() as events:
        await bench.guest("vm1", "kill -USR1 $(cat /run/udhcpc.pid)")
        await events.until("binding.renewed", of_vm("vm1"))
        assert (await renew(bench, server, "vm1")).code == 0
        await names("10.1.0.6")
        assert (await renew(bench, server, "vm1")).code == 0
        told = await events.until("lease.differs", of_vm("vm1"))
        assert [e["type"] for e in events.seen].count("lease.differs") == 1
        address = await bench.address("vm1")
        assert told["reason"] == (
            f"{address}: the DHCP server now names DNS 10.1.0.6; the VM was told DNS 10.1.0.5, and "
            "hears of it when it renews by itself"
        )
        assert told["reason"] in (await bench.vm("vm1"))["warnings"]
        await bench.guest("vm1", "kill -USR1 $(cat /run/udhcpc.pid)")
        await events.until("binding.renewed", of_vm("vm1"), after=told)
    assert told["reason"] not in (await bench.vm("vm1"))["warnings"], "the guest has asked by itself"


async def test_the_port_in_force_when_the_request_came_in_is_recorded(bench: LabBench) -> None:
    """The VM's port gets another number while Kea is silent; the agent asks again at that one."""
    server = await where(bench, "vm1")
    (before,) = await bench.bindings("vm1")
    bench.kill("kea-dhcp4", signal.SIGSTOP)
    try:
        async with bench.events() as events:
            await bench.post("vms/vm1/renewals", {"server": server})
            first = await events.until("renewal.sent", of_vm("vm1"))
            assert first["renewal"]["recorded_port"] == before["port"]
            new = before["port"] + 60
            await bench.run(server, "ovs-vsctl", "set", "Interface", "tap-vm1", f"ofport_request={new}")
            await events.until("port.added", lambda e: e["vm"] == "vm1" and e["port"] == new)
            again = await events.until("renewal.sent", of_vm("vm1"), after=first)
            assert again["renewal"]["recorded_port"] in (before["port"], new)
            bench.kill("kea-dhcp4", signal.SIGCONT)
            acked = await events.until("renewal.acked", of_vm("vm1"))
            sent = [e for e in events.seen if e["type"] == "renewal.sent"]
            assert acked["renewal"]["recorded_port"] == sent[-1]["renewal"]["recorded_port"]
    finally:
        bench.kill("kea-dhcp4", signal.SIGCONT)
    (row,) = await bench.bindings("vm1")
    assert row["port"] == new
    assert await bench.ping("vm1", DHCP_SERVER)


async def test_silence_is_asked_again_and_then_reported(bench: LabBench) -> None:
    """Asked again after 1, 2, 4, 8 s; the binding stays as long as its lease."""
    server = await where(bench, "vm2")
    (before,) = await bench.bindings("vm2")
    bench.kill("kea-dhcp4", signal.SIGSTOP)
    try:
        async with bench.events() as events, bench.capture("dhcp", "eth0", "in") as at_server:
            outcome = await renew(bench, server, "vm2")
            silent = await events.until("renewal.silent", of_vm("vm2"))
            asked = at_server.those(lambda f: dhcp_type(f.ether) == "request")
    finally:
        bench.kill("kea-dhcp4", signal.SIGCONT)
    assert (outcome.code, outcome.data["state"]) == (1, "silent")
    assert (
        silent["reason"] == outcome.data["reason"] == "DHCP server 10.1.0.2 did not answer 4 requests in 15 s"
    )
    assert silent["renewal"]["sent"] == 4
    assert len({f.ether["BOOTP"].xid for f in asked}) == 1
    pauses = [later.at - earlier.at for earlier, later in pairwise(asked)]
    assert pauses == pytest.approx([1, 2, 4], abs=0.7)
    assert [f.ether["BOOTP"].secs for f in asked] == pytest.approx([0, 1, 3, 7], abs=1)
    assert await bench.bindings("vm2") == [before]


async def lease_ends(bench: LabBench, kea: Json, vm: str) -> str:
    """Let a VM's lease end while its guest does nothing about it; the address it had."""
    subnet = kea["Dhcp4"]["subnet4"][0]
    for key in ("valid-lifetime", "min-valid-lifetime", "max-valid-lifetime"):
        subnet[key] = 4
    subnet["renew-timer"], subnet["rebind-timer"] = 2, 3
    await bench.kea("config-set", kea)
    address = await bench.address(vm)
    async with bench.events() as events:
        await udhcpc(bench, vm, "USR1")
        await events.until("binding.renewed", of_vm(vm))
        await udhcpc(bench, vm, "KILL")
        gone = await events.until("binding.removed", of_vm(vm))
        assert gone["reason"] == "the lease ended"
    return address


async def test_a_lease_that_ended_on_the_way_is_granted_again_or_not(bench: LabBench, kea: Json) -> None:
    """Without a word of the server there is no binding; with its ACK there is one again."""
    address = await lease_ends(bench, kea, "vm2")
    server = await where(bench, "vm2")
    subnet = kea["Dhcp4"]["subnet4"][0]
    for key in ("valid-lifetime", "min-valid-lifetime", "max-valid-lifetime"):
        subnet[key] = 600
    subnet["reservations"] = [{"hw-address": "52:54:00:aa:aa:aa", "ip-address": address}]
    await bench.kea("config-set", kea)
    async with bench.events() as events:
        outcome = await renew(bench, server, "vm2")
        assert (outcome.code, outcome.data["state"]) == (1, "rejected")
        assert await bench.bindings("vm2") == []
        subnet["reservations"] = []
        await bench.kea("config-set", kea)
        outcome = await renew(bench, server, "vm2")
        assert (outcome.code, outcome.data["ip"]) == (0, address), outcome.words
        await events.until("binding.added", of_vm("vm2"))
    (row,) = await bench.bindings("vm2")
    assert (row["ip"], row["confirmed"]) == (address, True)


async def test_a_spoofed_renewal_moves_nothing(bench: LabBench) -> None:
    """Another VM that knows everything, transaction id and all, is dropped and reported."""
    before = await bench.bindings("vm1")
    address = await bench.address("vm1")
    async with bench.events() as events, bench.capture("dhcp", "eth0", "in") as at_server:
        order = await bench.post("vms/vm1/renewals", {"agent": True})
        lease = Lease(
            ip=IPv4Address(address), mac=ONE, server=IPv4Address(DHCP_SERVER),
            client_id=bytes.fromhex(order["client_id"]), next_hop=GATEWAY,
        )  # fmt: skip
        perfect = request_frame(lease, order["xid"])
        as_itself = perfect[:6] + bytes.fromhex(TWO.replace(":", "")) + perfect[12:]
        last = None
        for frame in (perfect, as_itself):
            await bench.send("vm2", frame.hex())
            last = await events.until("spoofing", after=last)
            assert last["spoofing"]["vm"] == "vm2"
        # What the DHCP server hears next is honest: had it heard the others, they would be before it.
        await udhcpc(bench, "vm1", "USR1")
        await at_server.until(lambda f: dhcp_type(f.ether) == "request" and f.src == ONE)
    assert [f.src for f in at_server.frames if is_dhcp(f)] == [ONE]
    xids = {f.ether["BOOTP"].xid for f in at_server.frames if is_dhcp(f)}
    assert order["xid"] not in xids
    after = await bench.bindings("vm1")
    assert [(r["ip"], r["switch"], r["port"]) for r in after] == [
        (r["ip"], r["switch"], r["port"]) for r in before
    ]
    assert (await bench.get(f"renewals/{order['id']}"))["state"] == "ordered"


async def test_the_guests_own_renewal_meanwhile_reaches_the_guest(bench: LabBench) -> None:
    """What the guest asks is answered to the guest, what the agent asks to the agent."""
    server = await where(bench, "vm1")
    async with bench.capture(server, "tap-vm1", "inout") as tap:
        outcome, _ = await asyncio.gather(renew(bench, server, "vm1"), udhcpc(bench, "vm1", "USR1"))
        await tap.until(lambda f: dhcp_type(f.ether) == "ack")
    assert outcome.code == 0, outcome.words
    xids = {f.ether["BOOTP"].xid for f in tap.frames if is_dhcp(f)}
    assert int(outcome.data["xid"], 16) not in xids
    assert len(xids) == 1


async def test_alone_it_goes_in_through_open_vswitch_and_the_answer_is_taken_at_the_tap(
    bench: LabBench,
) -> None:
    """On an Open vSwitch whose controller, here ours, was told nothing: to it the VM itself renews."""
    server = await where(bench, "vm1")
    (before,) = await bench.bindings("vm1")
    lease = ("--mac", ONE, "--ip", before["ip"], "--server", DHCP_SERVER, "--server-mac", GATEWAY)
    identity = ("--client-id", "01" + ONE.replace(":", ""))
    port = ("--port", "tap-vm1", "--bridge", "br0")
    async with bench.events() as events, bench.capture(server, "tap-vm1", "out") as tap:
        outcome = await agent(
            bench.lab, server, "renew", "--standalone", "--vm", "vm1", *lease, *identity, *port
        )
        assert outcome.code == 0, outcome.words
        await events.until("binding.renewed", of_vm("vm1"))
        assert await bench.ping("vm1", DHCP_SERVER)
        await tap.until(lambda f: f.ether.haslayer("ICMP"))
    # Of what the guest itself has asked, before this test, another answer may come.
    xids = {f.ether["BOOTP"].xid for f in tap.frames if is_dhcp(f)}
    assert int(outcome.data["xid"], 16) not in xids, "the guest must see nothing"
    assert events.of("renewal.sent") == []
    (row,) = await bench.bindings("vm1")
    assert row["lease_end"] > before["lease_end"]


SECOND_CLIENT = """#!/bin/busybox sh
[ "$1" = bound ] && ip address add "$ip/$mask" dev "$interface"
[ "$1" = deconfig ] && [ -n "$ip" ] && ip address del "$ip/$mask" dev "$interface"
true"""
SECOND_ID = "0073656336"


async def test_a_second_client_of_the_guest_has_a_lease_of_its_own_that_migrates_and_ends_by_itself(
    bench: LabBench,
) -> None:
    """To Kea it is another client. Both addresses are sent to while the VM migrates, and both are renewed."""
    (first,) = [row["ip"] for row in await bench.bindings("vm1")]
    asks = f"udhcpc -b -i eth0 -C -x 0x3d:{SECOND_ID} -s /tmp/second -p /run/second.pid -T 1"
    async with bench.events() as events:
        await bench.guest("vm1", f"cat >/tmp/second <<'END'\n{SECOND_CLIENT}\nEND\nchmod +x /tmp/second")
        await bench.guest("vm1", f"{asks} </dev/null >/dev/null 2>&1")
        added = await events.until("binding.added", lambda e: len(e["bindings"]) == 2)
    (second,) = {row["ip"] for row in added["bindings"]} - {first}
    await bench.guest("vm1", f"until ip -4 address show dev eth0 | grep -q {second}/; do usleep 20000; done")
    target = "server2" if await where(bench, "vm1") != "server2" else "server1"
    async with bench.traffic(first) as to_first, bench.traffic(second) as to_second:
        async with bench.events() as events:
            await bench.migration("vm1", target_server=target)
            for ip in (first, second):
                renewed = await events.until("renewal.acked", lambda e, ip=ip: e["renewal"]["ip"] == ip)  # type: ignore[misc]
                assert renewed["renewal"]["server"] == target
        assert {row["ip"] for row in await bench.bindings("vm1")} == {first, second}
        for traffic in (to_first, to_second):
            await bench.unharmed(traffic)
    async with bench.events() as events:
        await bench.guest("vm1", "kill -USR2 $(cat /run/second.pid)")
        await events.until("binding.removed", lambda e: e["ip"] == second)
    assert [row["ip"] for row in await bench.bindings("vm1")] == [first]
    assert await bench.ping("vm2", first)
    await bench.guest("vm1", "kill $(cat /run/second.pid)")
