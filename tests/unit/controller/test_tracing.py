"""Traces by the controller: of the entries it wants, of those that switches hold, of forgeries in its log."""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import msgspec
import pytest

from retinue.controller import tracing
from retinue.controller.api import views
from retinue.core.limits import MOST_TRACES
from retinue.core.model import ModelError
from retinue.core.model.link_local import ALL_NODES
from retinue.core.model.network import Owner
from retinue.core.packets import (
    BROADCAST,
    ND,
    Ethernet,
    NDOptions,
    NeighbourAdvertisement,
    arp_request,
    dhcp_frame,
    discover,
    nd_frame,
)
from retinue.core.pipeline.cookies import SPOOF_ATTEMPTS
from retinue.core.pipeline.entry import Change, Flow, Output, match
from retinue.core.pipeline.tables import Table
from retinue.core.snooping import SpoofingKind
from retinue.core.tracing import follow
from retinue.core.tracing.forgeries import id_of
from retinue.protocol.traces import TraceBody
from retinue.southbound.openflow.codec.messages import FlowStats
from support.fabric import ipv6
from support.fabric.networks import GATEWAY_MAC, add_ipv6, add_vm, fabric, holding6, vm_ip, vm_mac, vm_port
from support.fabric.world import EVERYWHERE, NOWHERE, OUTSIDE, dhcp_answer, tagged, udp_frame
from support.fakes.session import FakeNetwork

TO_3 = {"vm": "vm1", "to": str(vm_ip(3)), "kind": "udp", "port": 53}
STRANGE = Flow(Table.DELIVER, 999, match(eth_type=0x0800), ())


@pytest.fixture
async def fake() -> AsyncIterator[FakeNetwork]:
    """vm1 and vm2 on server1, vm3 on server2; all switches have what they should."""
    net = fabric()
    add_ipv6(net)
    made = FakeNetwork(net, clock=lambda: 1000.0)
    await made.start()
    for number, at in ((1, 1), (2, 1), (3, 2)):
        add_vm(made.net, number, at)
        made.net.assign(holding6(number))
    await made.controller.context.install(made.net.everything())
    yield made
    await made.stop()


async def ask(fake: FakeNetwork, **asked: Any) -> dict[str, Any]:
    """As JSON, as it is answered."""
    body = msgspec.json.decode(msgspec.json.encode(asked), type=TraceBody)
    found: dict[str, Any] = views.plain(await fake.controller.tracer.answer(body))
    return found


def ends(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [(end["fate"], end["who"]) for end in found["ends"]]


async def test_a_trace_by_the_entries_that_switches_should_have(fake: FakeNetwork) -> None:
    found = await ask(fake, **TO_3)
    assert ends(found) == [("delivered", "vm3")]
    assert [hop["switch"] for hop in found["hops"]] == ["edge1", "leaf1", "spine1", "leaf2", "edge2"]
    first = found["hops"][0]["entries"][0]
    assert (first["table_name"], first["priority_name"]) == ("ADMIT", "BOUND")
    assert (first["owners"], first["confirmed"]) == (["vm vm1"], True)
    assert "matched" not in found["hops"][0], "the entries are told in words"
    assert found["at"]["name"] == "edge1:tap1"
    assert found["frame"].startswith(GATEWAY_MAC.replace(":", "") + vm_mac(1).replace(":", ""))
    assert "live" not in found


async def test_what_a_switch_has_not_confirmed_is_told_so(fake: FakeNetwork) -> None:
    fake.sessions["edge2"].hold = asyncio.Event()
    change = fake.net.assign(replace(holding6(3), ip=IPv4Address("10.1.0.33")))
    installing = asyncio.create_task(fake.controller.context.install(change))
    await fake.settle()
    found = await ask(fake, vm="vm1", to="10.1.0.33")
    assert [entry["confirmed"] for entry in found["hops"][-1]["entries"]] == [True, False]
    fake.sessions["edge2"].hold.set()
    await installing


async def test_a_frame_may_be_given_whole_and_a_vm_called_by_its_name(fake: FakeNetwork) -> None:
    frame = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), OUTSIDE)
    assert ends(await ask(fake, at="edge1:tap1", frame=frame.hex())) == [("delivered", "router")]
    assert ends(await ask(fake, at=f"edge1:{vm_port(1)}", frame=frame.hex())) == [("delivered", "router")]
    assert ends(await ask(fake, vm="vm1", nic="vm1", to="vm3")) == [("delivered", "vm3")]
    assert ends(await ask(fake, at="leaf2:router", src=str(OUTSIDE), to="vm1")) == [("delivered", "vm1")]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "say from where"),
        ({"vm": "vm1", "at": "edge1:tap1", "to": "vm3"}, "one of them"),
        ({"vm": "vm1"}, "say what is sent"),
        ({"vm": "vm1", "to": "vm3", "frame": "00" * 20}, "say what is sent"),
        ({"vm": "vm1", "frame": "00" * 13}, "a frame of 13 bytes has no Ethernet header"),
        ({"vm": "vm9", "to": "vm3"}, "there is no VM 'vm9'"),
        ({"vm": "vm1", "nic": "eth7", "to": "vm3"}, "VM vm1 has no NIC 'eth7', but: vm1"),
        ({"vm": "vm1", "server": "server9", "to": "vm3"}, "there is no server 'server9'"),
        ({"vm": "vm1", "server": "dhcp", "to": "vm3"}, "has no port on dhcp"),
        ({"vm": "vm1", "to": "10.1.0.999"}, "neither an IP address nor a VM's id"),
        ({"vm": "vm1", "to": "vm3", "src": "x\x1b[31m"}, "neither an IP address"),
        ({"vm": "vm1", "to": "vm3", "src_mac": "no"}, "not a MAC address"),
        ({"at": "edge9:1", "to": "vm3"}, "'edge9:1' is no port: it is written SWITCH:PORT"),
        ({"at": "edge1", "to": "vm3"}, "is no port"),
        ({"at": "edge1:up9", "to": "vm3"}, "switch edge1 has no port"),
        ({"forgery": "00000000"}, "there is no spoofing attempt '00000000' in the log"),
    ],
)
async def test_what_cannot_be_asked_is_said_in_words(
    fake: FakeNetwork, asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said) as error:
        await ask(fake, **asked)
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    "asked",
    [
        {"frame": "0"},
        {"frame": "zz"},
        {"frame": "00" * 20_000},
        {"port": -1},
        {"port": 65536},
        {"ttl": 256},
        {"kind": "sctp"},
        {"vm": "v" * 262},
        {"live": "yes"},
        {"payload": "00"},
    ],
)
async def test_a_body_has_its_limits(fake: FakeNetwork, asked: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        await ask(fake, **{"vm": "vm1", "to": "vm3", **asked})


# ---- entries as switches hold them ----


async def test_live_and_in_order(fake: FakeNetwork) -> None:
    before = sum(len(session.applied) for session in fake.sessions.values())
    found = await ask(fake, **TO_3, live=True)
    live = found["live"]
    assert (live["differs"], live["unread"]) == ([], {})
    assert [hop["switch"] for hop in live["hops"]] == [hop["switch"] for hop in found["hops"]]
    assert ends(live) == ends(found) == [("delivered", "vm3")]
    assert {entry["packets"] for hop in live["hops"] for entry in hop["entries"]} == {0}
    assert sum(len(session.applied) for session in fake.sessions.values()) == before, "nothing is sent"


async def test_live_where_somebody_has_taken_an_entry_out(fake: FakeNetwork) -> None:
    switch = fake.fabric["edge2"]
    (gone,) = (f for f in switch.flows.values() if f.table == Table.DELIVER and _is_for(f, vm_ip(3)))
    switch.apply(Change(remove=(gone,)))
    found = await ask(fake, **TO_3, live=True)
    assert ends(found) == [("delivered", "vm3")]
    assert ends(found["live"]) == [("dropped", "")]
    assert found["live"]["differs"] == [
        "edge2 lacks DELIVER VM (200) eth_type=0x0800,ipv4_dst=10.1.0.103",
        "and so it ends otherwise than it should",
    ]
    assert not found["live"]["passes"]


async def test_live_where_somebody_has_put_one_in_and_changed_one(fake: FakeNetwork) -> None:
    switch = fake.fabric["edge2"]
    (own,) = (f for f in switch.flows.values() if f.table == Table.DELIVER and _is_for(f, vm_ip(3)))
    switch.apply(Change(add=(replace(own, actions=(Output(7),)),)))
    found = await ask(fake, **TO_3, live=True)
    assert found["live"]["differs"][0].startswith("edge2 has DELIVER VM (200)")
    assert found["live"]["differs"][0].endswith("otherwise than it should")
    switch.apply(Change(add=(own, STRANGE)))
    found = await ask(fake, **TO_3, live=True)
    assert found["live"]["differs"] == [
        "edge2 has what it should not: DELIVER not ours (999) eth_type=0x0800",
        "and so it ends otherwise than it should",
    ]
    assert "an entry of edge2 drops it" in found["live"]["ends"][0]["text"]


async def test_live_tells_what_entries_have_counted(
    fake: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = fake.sessions["edge1"]

    async def read_flows(cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        return [FlowStats(f, f.priority, 0, 0.0, 0) for f in fake.fabric["edge1"].flows.values()]

    monkeypatch.setattr(session, "read_flows", read_flows)
    found = await ask(fake, **TO_3, live=True)
    assert [entry["packets"] for entry in found["live"]["hops"][0]["entries"]] == [150, 100]


async def test_live_of_a_switch_that_is_away_or_does_not_answer(
    fake: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of that one the entries are told that it should have."""
    fake.sessions["spine1"].close("gone")

    async def read_flows(cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        raise TimeoutError("no answer within 10 s")

    monkeypatch.setattr(fake.sessions["leaf2"], "read_flows", read_flows)
    found = await ask(fake, **TO_3, live=True)
    unread = found["live"]["unread"]
    assert unread["spine1"] == "it is not connected"
    assert unread["leaf2"] == "it cannot be read: no answer within 10 s"
    assert ends(found["live"]) == [("delivered", "vm3")]
    packets = {hop["switch"]: hop["entries"][0]["packets"] for hop in found["live"]["hops"]}
    assert (packets["edge1"], packets["spine1"]) == (0, None)


async def test_live_leaves_alone_what_a_migration_waits_for(
    fake: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    auditor = fake.controller.auditor
    monkeypatch.setattr(auditor, "kept_from", lambda name: "m-1 of VM vm9 is under way" * (name == "edge1"))
    found = await ask(fake, **TO_3, live=True)
    assert found["live"]["unread"] == {"edge1": "m-1 of VM vm9 is under way"}


async def test_the_event_loop_goes_on_while_a_frame_is_followed(
    fake: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many entries that takes a while. It is done in a thread, one at a time; so many wait for it."""
    goes_on, under_way = threading.Event(), 0

    def slow(*args: Any) -> Any:
        nonlocal under_way
        under_way += 1
        assert under_way == 1
        assert goes_on.wait(60)
        under_way -= 1
        return follow(*args)

    monkeypatch.setattr(tracing, "follow", slow)
    asked = [asyncio.create_task(ask(fake, **TO_3)) for _ in range(MOST_TRACES)]
    await fake.settle()
    with pytest.raises(ModelError, match="8 traces wait to be followed already"):
        await ask(fake, **TO_3)
    goes_on.set()
    assert {tuple(ends(await one)) for one in asked} == {(("delivered", "vm3"),)}


async def test_only_so_many_wait_to_read_switches(fake: FakeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = asyncio.Event()
    reading = 0

    async def read_flows(cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        nonlocal reading
        reading += 1
        assert reading == 1, "one at a time"
        await answers.wait()
        reading -= 1
        return [FlowStats(f, 0, 0, 0.0, 0) for f in fake.fabric["edge1"].flows.values()]

    monkeypatch.setattr(fake.sessions["edge1"], "read_flows", read_flows)
    asked = [asyncio.create_task(ask(fake, **TO_3, live=True)) for _ in range(MOST_TRACES)]
    await fake.settle()
    with pytest.raises(ModelError, match="8 traces wait to read switches already"):
        await ask(fake, **TO_3, live=True)
    assert ends(await ask(fake, **TO_3)) == [("delivered", "vm3")], "without switches nobody waits"
    answers.set()
    assert all([ends(await one) for one in asked])
    assert ends((await ask(fake, **TO_3, live=True))["live"]) == [("delivered", "vm3")]


def _is_for(flow: Flow, ip: IPv4Address) -> bool:
    return any(value == int(ip) for _, value, _ in flow.match)


# ---- forgeries of the log ----


def forged() -> dict[str, tuple[bytes, str]]:
    """By name: a frame of vm1, and what is said of it afterwards."""
    arp = arp_request(vm_mac(1), vm_ip(2), vm_ip(2))
    named = NeighbourAdvertisement(ipv6.vm_ip6(2), options=NDOptions(target_mac=vm_mac(1)))
    nd = nd_frame(ND(ipv6.vm_ip6(1), ALL_NODES, named), vm_mac(1))
    return {
        "ip": (udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(2), OUTSIDE), "vm1 has no binding for 10.1.0.102"),
        "ipv6": (
            ipv6.udp6_frame(vm_mac(1), GATEWAY_MAC, ipv6.vm_ip6(2), ipv6.OUTSIDE6),
            f"vm1 has no binding for {ipv6.vm_ip6(2)}",
        ),
        "mac": (udp_frame(vm_mac(2), GATEWAY_MAC, vm_ip(2), OUTSIDE), f"comes from {vm_mac(2)}"),
        "mac of no IP": (
            Ethernet(BROADCAST, vm_mac(2), 0x88B5, bytes(50)).build(),
            f"comes from {vm_mac(2)}",
        ),
        "arp": (arp, "vm1 has no binding for 10.1.0.102"),
        "nd": (nd, "neighbour discovery that says of vm1 what is not so"),
        "rogue DHCP": (dhcp_answer(vm_mac(1), GATEWAY_MAC, vm_ip(1), 2), "vm1 is no DHCP server"),
    }


@pytest.mark.parametrize("name", forged())
async def test_why_was_this_dropped(fake: FakeNetwork, name: str) -> None:
    """Each kind of forgery, as it came by the switch into the log, and asked for by its id."""
    frame, said = forged()[name]
    fake.send("edge1", vm_port(1), frame)
    fake.send("edge1", vm_port(1), frame)
    (row,) = views.spoof_attempts(fake.controller)["spoof_attempts"]
    found = await ask(fake, forgery=row["id"])
    assert found["at"]["name"] == "edge1:tap1"
    (end,) = found["ends"]
    assert end["fate"] == "dropped"
    assert said in end["text"]
    assert end["reported"] in (reason.name.lower() for reason in SPOOF_ATTEMPTS)
    assert end["advice"]
    assert found["notes"][0].startswith("seen 2 times; the frame is made of what the log keeps of it")


async def test_a_forgery_that_the_controller_itself_has_judged(fake: FakeNetwork) -> None:
    """A DHCP message on another's behalf passes the switch: it is the controller that drops it."""
    asked = dhcp_frame(discover(vm_mac(2), 7), vm_mac(1), BROADCAST, NOWHERE, EVERYWHERE, 68, 67)
    fake.send("edge1", vm_port(1), asked)
    (row,) = views.spoof_attempts(fake.controller)["spoof_attempts"]
    assert row["kind"] == "dhcp"
    found = await ask(fake, forgery=row["id"])
    assert f"the controller has judged that it spoke for {vm_mac(2)}" in found["notes"][1]


async def test_a_forgery_is_judged_by_what_is_so_now(fake: FakeNetwork) -> None:
    fake.send("edge1", vm_port(1), udp_frame(vm_mac(1), GATEWAY_MAC, IPv4Address("10.1.0.9"), OUTSIDE))
    (row,) = fake.controller.context.spoof_attempts.rows()
    change = fake.net.assign(replace(holding6(1), ip=IPv4Address("10.1.0.9")))
    await fake.controller.context.install(change)
    found = await ask(fake, forgery=id_of(row))
    assert "nothing that a router may forward" in found["ends"][0]["text"], (
        "it is its own now, sent to nobody"
    )
    fake.net.remove_vm("vm1")
    await fake.controller.context.install({Owner("vm", "vm1")})
    assert "no VM is known at port" in (await ask(fake, forgery=id_of(row)))["ends"][0]["text"]


async def test_ids_of_forgeries_tell_them_apart(fake: FakeNetwork) -> None:
    log = fake.controller.context.spoof_attempts
    for kind in SpoofingKind:
        for ip in ("10.1.0.1", "", "x"):
            log.note(kind, "edge1", vm_port(1), "vm1", (vm_mac(2), ip), 1.0)
    rows = views.spoof_attempts(fake.controller)["spoof_attempts"]
    assert len({row["id"] for row in rows}) == len(rows) == 3 * len(SpoofingKind)
    for row in rows:
        assert (await ask(fake, forgery=row["id"]))["ends"]
    log.note(SpoofingKind.IP, "edge1", vm_port(1), "vm1", (vm_mac(2), "10.1.0.1"), 2.0)
    again = views.spoof_attempts(fake.controller)["spoof_attempts"]
    assert {row["id"] for row in again} == {row["id"] for row in rows}, "the same while the log has it"


async def test_a_tag_in_a_forgery_is_not_kept_and_that_is_said(fake: FakeNetwork) -> None:
    fake.send("edge1", vm_port(1), tagged(udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), OUTSIDE), 666))
    (row,) = views.spoof_attempts(fake.controller)["spoof_attempts"]
    found = await ask(fake, forgery=row["id"])
    assert "the frame is made of what the log keeps" in found["notes"][0]
    assert "what the log keeps of it is no forgery" in found["notes"][1]
