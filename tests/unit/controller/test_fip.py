"""Storage logins through the whole controller, on fake switches, with a fake forwarder and fake nodes."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from retinue.controller.app import Controller
from retinue.core.packets import MIN_FRAME, EtherType
from retinue.core.packets.fip import Descriptor
from retinue.core.pipeline.entry import Field
from retinue.core.snooping.fip_rules import SILENCE_SECONDS
from support.fabric.networks import add_vm, fabric, moved, vm_mac, vm_port
from support.fabric.storage import (
    FORWARDER,
    FORWARDER_PORT,
    add_forwarder,
    advertisement,
    answers,
    asks,
    clears,
    forgeries,
    from_forwarder,
    granted_mac,
    keep_alive,
    login,
    solicitation,
    to_forwarder,
)
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork
from support.recent_events import recent

AT = ("leaf2", FORWARDER_PORT)
"""Where the forwarder is."""


class San(FakeNetwork):
    """VM 1 is on server1, at another leaf than the forwarder; VM 2 on server2, at the same."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.now = 1000.0
        net = fabric()
        add_forwarder(net)
        add_vm(net, 1, 1, ports_on=(2,))
        add_vm(net, 2, 2)
        super().__init__(net, lambda: self.now, store)

    def says(self, number: int, frame: bytes, at: int = 0) -> list[tuple[str, int, bytes]]:
        """A VM sends it; what came out at hosts' ports."""
        self.heard.clear()
        self.send(f"edge{at or number}", vm_port(number), frame)
        return list(self.heard)

    def forwarder_says(self, frame: bytes) -> list[tuple[str, int, bytes]]:
        self.heard.clear()
        self.send(*AT, frame)
        return list(self.heard)

    async def log_in(self, number: int) -> None:
        assert self.says(number, asks(number)) == [(*AT, asks(number))]
        self.heard.clear()
        self.send(*AT, answers(number))
        await self.settle()
        edge = self.net.servers[self.net.vms[f"vm{number}"].server].edge
        assert self.heard == [(edge, vm_port(number), answers(number))]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event.data for event in recent(self.controller.events) if event.type == kind]


@pytest.fixture
async def san() -> AsyncIterator[San]:
    made = San()
    await made.start()
    yield made
    await made.stop()


async def test_a_vm_finds_the_forwarder_logs_in_and_its_frames_pass_both_ways(san: San) -> None:
    assert san.says(1, solicitation(1)) == [(*AT, solicitation(1))]
    unicast = advertisement(vm_mac(1))
    assert san.forwarder_says(unicast) == [("edge1", vm_port(1), unicast)]
    assert san.forwarder_says(advertisement()) == [("edge1", vm_port(1), advertisement())], "vm2 never asked"
    assert san.says(1, to_forwarder(1)) == [], "not before it is logged in"
    await san.log_in(1)
    assert san.events("storage.login") == [
        {"vm": "vm1", "nic": vm_mac(1), "mac": granted_mac(1), "fc_id": "010101", "forwarder": FORWARDER}
    ]
    assert san.says(1, to_forwarder(1, b"up")) == [(*AT, to_forwarder(1, b"up"))]
    down = from_forwarder(1, b"down")
    assert san.forwarder_says(down) == [("edge1", vm_port(1), down)], "nothing of it is rewritten"
    large = down + bytes(2100)
    assert san.forwarder_says(large) == [("edge1", vm_port(1), large)]
    assert san.forwarder_says(from_forwarder(2)) == [], "nobody is logged in with that"


async def test_what_is_forged_is_dropped_and_counted(san: San) -> None:
    await san.log_in(1)
    await san.log_in(2)
    attempts = san.controller.context.spoof_attempts
    for number, frame in enumerate(forgeries(1, 2)):
        before, refused = attempts.total, san.controller.context.counters["bad FIP frames"]
        assert san.says(1, frame) == [], f"forgery {number} came through"
        noise = number == 1  # From the NIC's own MAC, which is what a guest's LLDP is, too.
        told = attempts.total - before + san.controller.context.counters["bad FIP frames"] - refused
        assert told == (not noise)
    assert san.says(2, to_forwarder(2)) == [(*AT, to_forwarder(2))]


async def test_a_rogue_forwarder_is_not_believed(san: San) -> None:
    """vm2 answers vm1's question before the real one does; so does a machine at another port of the leaf."""
    san.says(1, asks(1))
    assert san.says(2, answers(1, src=vm_mac(2))) == []
    san.heard.clear()
    for port in (90, 91):
        san.send("leaf2", port, answers(1))
        san.send("leaf2", port, advertisement())
    await san.settle()
    assert san.heard == [] and not san.net.fc_logins


async def test_a_grant_is_handed_on_only_when_the_frames_may_pass(san: San) -> None:
    san.says(1, asks(1))
    san.sessions["edge1"].reject = 100
    san.heard.clear()
    san.send(*AT, answers(1))
    await san.settle()
    assert san.heard == []
    assert san.events("storage.login") == []
    san.sessions["edge1"].reject = 0
    san.controller.disconnected(san.sessions["edge1"], "gone")
    san.connect("edge1")
    await san.settle()
    await san.log_in(1)


async def test_one_port_is_granted_to_one_nic(san: San) -> None:
    await san.log_in(1)
    san.says(2, asks(2))
    assert san.forwarder_says(answers(2, mac=granted_mac(1))) == []
    await san.settle()
    assert san.heard == [] and san.net.fc_logins == {granted_mac(1): login(1)}
    assert san.controller.context.counters["bad FIP frames"] == 1


@pytest.mark.parametrize("how", ["logout", "cleared", "silent", "removed"])
async def test_a_login_ends(san: San, how: str) -> None:
    await san.log_in(1)
    await san.log_in(2)
    reason = {"logout": "logged out", "cleared": "its links were cleared", "silent": "the node is silent"}
    match how:
        case "logout":
            san.says(1, asks(1, Descriptor.LOGO))
            answer = answers(1, Descriptor.LOGO)
            assert san.forwarder_says(answer) == [("edge1", vm_port(1), answer)]
        case "cleared":
            assert san.forwarder_says(clears(1)) == [("edge1", vm_port(1), clears(1))]
        case "silent":
            for _ in range(3):
                san.now += SILENCE_SECONDS / 2
                san.says(2, keep_alive(2, of_port=True))
                san.controller.fip.look()
        case _:
            await san.controller.inventory.remove_vm("vm1")
    await san.settle()
    assert set(san.net.fc_logins) == {granted_mac(2)}
    assert san.says(1, to_forwarder(1)) == []
    assert san.forwarder_says(from_forwarder(1)) == []
    (told,) = san.events("storage.logout")
    assert (told["mac"], told["reason"]) == (granted_mac(1), reason.get(how, "removed"))


async def test_a_login_goes_with_the_vm_and_is_never_copied(san: San) -> None:
    """Diverted before the stop: both places may send; what comes comes to one place, and to the new one."""
    await san.log_in(1)
    net = san.net
    before = net.vms["vm1"]

    async def put(vm: object) -> None:
        await san.controller.context.install(net.put_vm(vm))  # type: ignore[arg-type]

    await put(replace(before, also=frozenset({"server2"})))
    down = from_forwarder(1)
    for at in (1, 2):
        assert san.says(1, to_forwarder(1), at=at) == [(*AT, to_forwarder(1))]
    assert san.forwarder_says(down) == [("edge1", vm_port(1), down)]
    diverted = replace(moved(before, "server2"), copied_to="server1", forwarded_from="server1")
    await put(diverted)
    for at in (1, 2):
        assert san.says(1, to_forwarder(1), at=at) == [(*AT, to_forwarder(1))]
    assert san.forwarder_says(down) == [("edge2", vm_port(1), down)], "once, though IP is copied"
    await put(replace(before, server="server2"))
    assert san.says(1, to_forwarder(1), at=1) == []
    assert san.says(1, to_forwarder(1), at=2) == [(*AT, to_forwarder(1))]
    assert san.forwarder_says(down) == [("edge2", vm_port(1), down)]
    assert san.says(1, keep_alive(1), at=2) == [(*AT, keep_alive(1))]
    assert san.net.fc_logins == {granted_mac(1): login(1)}, "and no new login"


async def test_logins_outlive_the_controller(san: San) -> None:
    store = MemoryStore()
    first = San(store)
    await first.start()
    await first.log_in(1)
    await first.stop()
    net = fabric()
    add_forwarder(net)
    add_vm(net, 1, 1)
    add_vm(net, 2, 2)
    again = Controller(net, clock=lambda: 2000.0)
    stored = store.load()
    assert stored.fc_logins == [login(1)]
    again.restore(replace(stored, servers=[], vms=[], assignments=[], locations=[]))
    assert net.fc_logins == {granted_mac(1): login(1)}


async def test_without_a_forwarder_there_is_nothing_of_storage(san: San) -> None:
    await san.log_in(1)
    await san.controller.context.install(san.net.remove_server(FORWARDER))
    assert san.says(1, to_forwarder(1)) == [] and san.says(1, solicitation(1)) == []
    for switch in san.net.switches:
        kinds = {
            {f: v for f, v, _ in flow.match}.get(Field.ETH_TYPE) for flow in san.fabric[switch].flows.values()
        }
        assert not kinds & {EtherType.FCOE, EtherType.FIP}
    await san.controller.context.install(san.net.log_out(granted_mac(1)))


async def test_frames_that_are_no_fip_are_counted(san: San) -> None:
    frame = bytearray(solicitation(1))
    frame[14] = 0x20
    assert san.says(1, bytes(frame)) == []
    san.send(*AT, bytes(frame[:6]) + bytes.fromhex("020000000f01") + bytes(frame[12:]))
    assert san.controller.context.counters["bad FIP frames"] == 2
    assert len(frame) >= MIN_FRAME
