"""Moves made by others: the words of the servers' watchers, in every order, over fake switches."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import permutations

import aiohttp
import pytest

from fake_session import FakeNetwork
from networks import fabric, vm_ip, vm_mac, vm_port
from retinue.api.server import Api
from retinue.controller.booking import VMState
from retinue.controller.controller import Controller
from retinue.controller.foreign import Kind
from retinue.hypervisor import libvirt_events
from retinue.model import VM, ModelError, PortStatus
from retinue.moves import Move, MoveState
from retinue.ovsdb import BridgePort

K = Kind


@dataclass
class Lab:
    """vm1 runs at server1, its address given by the manager."""

    fake: FakeNetwork
    now: float = 1000.0

    @property
    def controller(self) -> Controller:
        return self.fake.controller

    def port(self, edge: int) -> BridgePort:
        return BridgePort(
            dpid=0x30 + edge, bridge="br0", name="vnet0", number=vm_port(1), status=PortStatus.UP,
            iface_id="vm1", attached_mac=vm_mac(1),
        )  # fmt: skip

    async def plug(self, edge: int) -> None:
        self.controller.vm_ports_changed([], [self.port(edge)])
        await self.fake.settle()

    async def unplug(self, edge: int) -> None:
        self.controller.vm_ports_changed([self.port(edge)], [])
        await self.fake.settle()

    async def says(self, server: int, kind: Kind, vm: str = "vm1") -> Move | None:
        self.controller.foreign.says(f"server{server}", vm, kind, self.now)
        await self.fake.settle()
        return self.controller.mover.of_vm(vm)

    @property
    def moves(self) -> list[Move]:
        return list(self.controller.mover.moves.values())

    @property
    def state(self) -> MoveState:
        return self.moves[-1].state

    def at(self) -> list[tuple[str, bool]]:
        """Where its bindings are, and whether active."""
        return sorted((row.switch, row.active) for row in self.controller.net.bindings(["vm1"]))

    def flows(self) -> dict[str, object]:
        return {name: dict(switch.flows) for name, switch in self.fake.fabric.switches.items()}


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    made: Lab
    fake = FakeNetwork(fabric(), clock=lambda: made.now)
    made = Lab(fake)
    await fake.start()
    address = vm_ip(1)
    assert isinstance(address, IPv4Address)
    made.controller.book_vms([VM("vm1", vm_mac(1), "server1", addresses=(address,))])
    await made.plug(1)
    await made.says(1, Kind.STARTED)
    yield made
    await fake.stop()


def test_watcher_and_controller_use_the_same_words() -> None:
    assert set(Kind) == {str(kind) for kind in libvirt_events.Kind}


async def test_the_network_follows_a_move_typed_by_a_person(lab: Lab) -> None:
    await lab.plug(2)
    assert not lab.moves, "a port alone begins nothing"
    await lab.says(2, K.INCOMING)
    assert (lab.state, lab.at()) == (MoveState.COPYING, [("edge1", True), ("edge2", False)])
    await lab.says(1, K.SUSPENDED)
    assert (lab.state, lab.at()) == (MoveState.DIVERTED, [("edge1", False), ("edge2", True)])
    await lab.says(2, K.RESUMED)
    assert (lab.state, lab.at()) == (MoveState.CONFIRMED, [("edge2", True)])
    await lab.says(1, K.DEPARTED)
    await lab.unplug(1)
    (move,) = lab.moves
    assert move.state is MoveState.DONE
    assert (move.source, move.target, move.stopped_at, move.resumed_at) == (
        "server1",
        "server2",
        1000.0,
        1000.0,
    )


async def test_words_that_come_before_their_turn_wait(lab: Lab) -> None:
    """A small VM is copied before the switches have confirmed that it is admitted."""
    gate = lab.fake.sessions["edge2"].hold = asyncio.Event()
    await lab.plug(2)
    for server, kind in ((2, K.INCOMING), (1, K.SUSPENDED), (2, K.RESUMED), (1, K.DEPARTED)):
        await lab.says(server, kind)
    assert lab.state is MoveState.ADMITTING
    gate.set()
    await lab.fake.settle()
    assert (lab.state, lab.at()) == (MoveState.CONFIRMED, [("edge2", True)])


AFTER_INCOMING = [(1, K.SUSPENDED), (2, K.RESUMED), (1, K.DEPARTED)]


@pytest.mark.parametrize("order", list(permutations(AFTER_INCOMING)))
async def test_two_watchers_need_not_agree_on_the_order(lab: Lab, order: list[tuple[int, Kind]]) -> None:
    await lab.plug(2)
    await lab.says(2, K.INCOMING)
    for server, kind in order:
        await lab.says(server, kind)
    await lab.unplug(1)
    assert (lab.state, lab.at()) == (MoveState.DONE, [("edge2", True)])


@pytest.mark.parametrize("said", [[], [(1, K.SUSPENDED)]])
@pytest.mark.parametrize("end", [(2, K.FAILED), (2, K.STOPPED), (1, K.RESUMED)])
async def test_a_move_that_fails_leaves_the_network_as_before(
    lab: Lab, said: list[tuple[int, Kind]], end: tuple[int, Kind]
) -> None:
    before, rows = lab.flows(), lab.at()
    await lab.plug(2)
    await lab.says(2, K.INCOMING)
    for server, kind in (*said, end):
        await lab.says(server, kind)
    await lab.unplug(2)
    assert (lab.state, lab.at()) == (MoveState.UNDONE, rows)
    assert lab.flows() == before
    assert f"server{end[0]}" in lab.moves[-1].reason
    await lab.plug(2)
    await lab.says(2, K.INCOMING)
    assert lab.state is MoveState.COPYING, "it may be tried again"


async def test_in_a_move_of_ours_the_target_does_not_speak_for_the_source(lab: Lab) -> None:
    """That it failed there says nothing of whether the VM runs at its source: the agent there tells."""
    mover = lab.controller.mover
    move = mover.start("vm1", target_server="server2")
    mover.hypervisor_says(move.id, "target_open", 0.0, "", "192.0.2.4:7800")
    await lab.plug(2)
    mover.hypervisor_says(move.id, "copying", 0.0, "")
    await lab.says(2, K.FAILED)
    failed = mover.moves[move.id]
    assert (failed.state, failed.restored) == (MoveState.ROLLING_BACK, False)
    assert mover.hypervisor_says(move.id, "rolled_back", 0.0, "").state is MoveState.UNDONE


async def test_a_server_that_claims_a_vm_does_not_get_it(lab: Lab) -> None:
    """Row F3: a port with the VM's id, and any words of its own, take nothing from a source that holds it."""
    await lab.plug(2)
    for kind in (K.STARTED, K.RESUMED):
        await lab.says(2, kind)
    assert not lab.moves
    assert lab.controller.context.counters["VMs claimed by another server"] == 2
    await lab.says(2, K.INCOMING)
    for kind in (K.RESUMED, K.STARTED, K.DEPARTED, K.SUSPENDED):
        await lab.says(2, kind)
    assert lab.state is MoveState.COPYING
    assert ("edge1", True) in lab.at(), "it is delivered where it was"
    await lab.says(3, K.SUSPENDED)
    assert lab.state is MoveState.COPYING, "a third server has no say"


async def test_a_server_does_not_have_a_vm_brought_to_it_that_our_own_agent_runs(lab: Lab) -> None:
    """Row F3: where the source has no watcher, our agent would carry out a move that the target begins."""
    address = vm_ip(2)
    assert isinstance(address, IPv4Address)
    lab.controller.book_vms([VM("vm2", vm_mac(2), "server1", addresses=(address,))])
    lab.controller.vm_says("vm2", "started", "server1")
    for kind in (K.INCOMING, K.RESUMED, K.INCOMING):
        assert await lab.says(2, kind, "vm2") is None
    assert not lab.moves
    told = lab.controller.events.recent("vm.mismatch", 10)
    assert [(event.data["vm"], event.data["server"]) for event in told] == [("vm2", "server2")] * 2


async def test_a_move_without_its_sources_word_goes_on_when_the_source_has_no_port(lab: Lab) -> None:
    await lab.plug(2)
    await lab.says(2, K.INCOMING)
    await lab.says(2, K.RESUMED)
    assert lab.state is MoveState.COPYING
    await lab.unplug(1)
    assert (lab.state, lab.at()) == (MoveState.DONE, [("edge2", True)])


async def test_a_move_nobody_told_of_is_found_afterwards(lab: Lab) -> None:
    await lab.says(2, K.STARTED)
    assert not lab.moves, "no port there"
    await lab.plug(2)
    await lab.unplug(1)
    await lab.says(2, K.STARTED)
    await lab.says(1, K.DEPARTED)
    await lab.says(1, K.STARTED)  # An old account of server1, late: it has no port there any more.
    assert (lab.state, len(lab.moves), lab.at()) == (MoveState.DONE, 1, [("edge2", True)])


async def test_what_starts_and_ends_where_it_is_booked_is_told_once(lab: Lab) -> None:
    for kind in (K.STARTED, K.STARTED, K.STOPPED, K.STOPPED, K.STARTED):
        await lab.says(1, kind)
    told = [event.type for event in lab.controller.events.recent("vm.", 100)]
    assert told[-3:] == ["vm.started", "vm.stopped", "vm.started"]
    assert lab.controller.vm_states["vm1"] is VMState.RUNNING
    assert not lab.moves


async def test_vms_of_others_are_none_of_our_business_and_unknown_servers_are_refused(lab: Lab) -> None:
    assert await lab.says(2, K.INCOMING, vm="theirs") is None
    with pytest.raises(ModelError, match="there is no server server9"):
        lab.controller.foreign.says("server9", "vm1", K.INCOMING, 1.0)


@pytest.mark.parametrize(
    ("server", "body", "status", "said"),
    [
        ("server2", '{"vm": "vm1", "kind": "incoming", "at": 1000.5}', 200, '"state":"matched"'),
        ("server1", '{"vm": "vm1", "kind": "started", "at": 1000.5}', 200, '"move":""'),
        ("server1", '{"vm": "vm1", "kind": "exploded", "at": 1000.5}', 400, "kind"),
        ("server1", '{"vm": "vm1", "kind": "started", "at": 0}', 400, "at"),
        ("server1", '{"vm": "vm1", "kind": "started"}', 400, "at"),
        ("server1", "nonsense", 400, "body cannot be used"),
        ("dhcp", '{"vm": "vm1", "kind": "incoming", "at": 1.0}', 409, "no edge switch"),
        ("server9", '{"vm": "vm1", "kind": "incoming", "at": 1.0}', 409, "there is no server server9"),
    ],
)
async def test_reports_over_http(lab: Lab, server: str, body: str, status: int, said: str) -> None:
    api = Api(lab.controller, dict)
    port = await api.start("127.0.0.1", 0)
    try:
        url = f"http://127.0.0.1:{port}/v1/servers/{server}/hypervisor-events"
        async with aiohttp.ClientSession() as http, http.post(url, data=body) as answer:
            assert answer.status == status
            assert said in (await answer.text()).replace(": ", ":")
    finally:
        await api.stop()


async def test_where_the_source_opens_the_target_it_is_told_to_begin(lab: Lab) -> None:
    """Our own move through libvirt: the target's agent waits, and its port comes by the source's doing."""
    mover = lab.controller.mover
    move = mover.start("vm1", target_server="server2")
    for _ in ("once", "once more"):
        mover.hypervisor_says(move.id, "target_open", 1.0, "", "192.0.2.4:7800")
        (*_, begin) = lab.controller.events.recent("move.begin", 9)
        assert (begin.data["move"].memory_at, begin.data["vm"].id) == ("192.0.2.4:7800", "vm1")
    await lab.plug(2)
    assert (lab.state, lab.moves[0].memory_at) == (MoveState.PREPARED, "192.0.2.4:7800")
    # What libvirt says of it, too, changes nothing, least of all where the memory goes.
    await lab.says(2, K.INCOMING)
    assert (lab.state, lab.moves[0].memory_at) == (MoveState.COPYING, "192.0.2.4:7800")
    assert len(lab.controller.events.recent("move.begin", 9)) == 2


async def test_libvirts_own_word_of_a_target_does_not_hide_where_its_memory_goes(lab: Lab) -> None:
    mover = lab.controller.mover
    move = mover.start("vm1", target_server="server2")
    mover.hypervisor_says(move.id, "target_open", 1.0, "", "192.0.2.4:7800")
    await lab.says(2, K.INCOMING)
    await lab.plug(2)
    assert lab.moves[0].memory_at == "192.0.2.4:7800"


async def test_who_opens_the_target_by_itself_is_not_told_to_begin(lab: Lab) -> None:
    move = lab.controller.mover.start("vm1", target_server="server2")
    await lab.plug(2)
    lab.controller.mover.hypervisor_says(move.id, "target_open", 1.0, "", "192.0.2.4:7800")
    assert lab.controller.events.recent("move.begin", 9) == []
