"""Moves made by others: the words of the servers' watchers, in every order, over fake switches."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import permutations

import aiohttp
import pytest

from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.controller.changes import VMPlaced
from retinue.controller.migrations.orchestrator import MigrationError
from retinue.core.migration import Migration, MigrationState, PlacementChange, placement
from retinue.core.model import NIC, VM, ModelError, PortStatus
from retinue.host.timing import CACHE_LAG
from retinue.protocol.hypervisor_events import EventKind
from retinue.protocol.migrations import Report
from retinue.protocol.vms import VMReport, VMState
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import GATEWAY_MAC, fabric, vm_ip, vm_mac, vm_port
from support.fabric.world import OUTSIDE, udp_frame
from support.fakes.session import FakeNetwork
from support.recent_events import recent

K = EventKind


@dataclass
class OneVM:
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
        self.controller.inventory.ports.changed([], [self.port(edge)])
        await self.fake.settle()

    async def unplug(self, edge: int) -> None:
        self.controller.inventory.ports.changed([self.port(edge)], [])
        await self.fake.settle()

    async def says(self, server: int, kind: EventKind, vm: str = "vm1") -> Migration | None:
        self.controller.external_migrations.on_report(f"server{server}", vm, kind, self.now)
        await self.fake.settle()
        return self.controller.orchestrator.of_vm(vm)

    @property
    def migrations(self) -> list[Migration]:
        return list(self.controller.orchestrator.migrations.values())

    @property
    def state(self) -> MigrationState:
        return self.migrations[-1].state

    def at(self) -> list[tuple[str, bool]]:
        """Where its bindings are, and whether active."""
        return sorted((row.switch, row.active) for row in self.controller.net.bindings(["vm1"]))

    def flows(self) -> dict[str, object]:
        return {name: dict(switch.flows) for name, switch in self.fake.fabric.switches.items()}


@pytest.fixture
async def lab() -> AsyncIterator[OneVM]:
    made: OneVM
    fake = FakeNetwork(fabric(), clock=lambda: made.now)
    made = OneVM(fake)
    await fake.start()
    address = vm_ip(1)
    assert isinstance(address, IPv4Address)
    made.controller.inventory.register_vms(
        [VM.with_one_nic("vm1", vm_mac(1), "server1", addresses=(address,))]
    )
    await made.plug(1)
    await made.says(1, EventKind.STARTED)
    yield made
    await fake.stop()


async def test_the_network_follows_a_move_typed_by_a_person(lab: OneVM) -> None:
    await lab.plug(2)
    assert not lab.migrations, "a port alone begins nothing"
    await lab.says(2, K.INCOMING)
    assert (lab.state, lab.at()) == (MigrationState.COPYING, [("edge1", True), ("edge2", False)])
    await lab.says(1, K.SUSPENDED)
    assert (lab.state, lab.at()) == (MigrationState.DIVERTED, [("edge1", False), ("edge2", True)])
    await lab.says(2, K.RESUMED)
    assert (lab.state, lab.at()) == (MigrationState.CONFIRMED, [("edge2", True)])
    await lab.says(1, K.DEPARTED)
    await lab.unplug(1)
    (migration,) = lab.migrations
    assert migration.state is MigrationState.DONE
    assert (migration.source, migration.target, migration.stopped_at, migration.resumed_at) == (
        "server1",
        "server2",
        1000.0,
        1000.0,
    )


@pytest.mark.parametrize("kind", EventKind)
async def test_only_a_vm_that_runs_elsewhere_or_is_to_run_there_begins_a_migration(
    lab: OneVM, kind: EventKind
) -> None:
    await lab.plug(2)
    await lab.unplug(1)
    await lab.says(2, kind)
    assert bool(lab.migrations) == (kind in (K.STARTED, K.RESUMED, K.INCOMING))


async def test_words_that_come_before_their_turn_wait(lab: OneVM) -> None:
    """A small VM is copied before the switches have confirmed that it is admitted."""
    gate = lab.fake.sessions["edge2"].hold = asyncio.Event()
    await lab.plug(2)
    for server, kind in ((2, K.INCOMING), (1, K.SUSPENDED), (2, K.RESUMED), (1, K.DEPARTED)):
        await lab.says(server, kind)
    assert lab.state is MigrationState.ADMITTING
    gate.set()
    await lab.fake.settle()
    assert (lab.state, lab.at()) == (MigrationState.CONFIRMED, [("edge2", True)])


def copies(lab: OneVM) -> bool:
    """Edge 2 sends edge 1 copies of what it hands to vm1's port."""
    return lab.controller.net.vms["vm1"].copied_to == "server1"


async def copied(lab: OneVM) -> None:
    """Every switch has confirmed that it does, and that the source forwards."""
    progress = lab.controller.orchestrator.get(lab.migrations[-1].id)[0].progress
    async with asyncio.timeout(60):
        await progress.is_confirmed(PlacementChange.FORWARDED).wait()
    assert copies(lab)


async def test_what_a_vm_has_left_in_its_taps_comes_to_it_at_the_target(lab: OneVM) -> None:
    """Nothing is copied to where the source's agent looks before it has seen what is there."""
    reports = lab.controller.orchestrator.reports
    left = [udp_frame(GATEWAY_MAC, vm_mac(1), OUTSIDE, vm_ip(number)) for number in (1, 2)]
    await lab.plug(2)
    await lab.says(2, K.INCOMING)
    asked = asyncio.create_task(reports.on_waited("migration-1", [], ["server1"], watching=True))
    await lab.fake.settle()
    assert not asked.done(), "the VM runs"
    with pytest.raises(MigrationError, match="what waits at server1 is for the VM there"):
        await reports.on_waited("migration-1", left, ["server1"])
    gate = lab.fake.sessions["spine1"].hold = asyncio.Event()
    await lab.says(1, K.SUSPENDED)
    assert not asked.done(), "spine1 may still send frames there"
    gate.set()
    await asked
    await asyncio.sleep(2 * CACHE_LAG)
    await lab.fake.settle()
    assert not copies(lab), "it looks for itself"
    with pytest.raises(MigrationError, match="what waits at server2 is for the VM there"):
        await reports.on_waited("migration-1", left, ["server2"])
    lab.fake.heard.clear()
    await reports.on_waited("migration-1", left, ["server1"])
    await copied(lab)
    assert lab.fake.heard == [("edge2", vm_port(1), left[0])], "and no other's"
    with pytest.raises(MigrationError, match="what comes to server1 now are copies"):
        await reports.on_waited("migration-1", [], ["server1"], watching=True)
    await lab.says(2, K.RESUMED)
    await reports.on_waited("migration-1", left, ["server1"])
    assert lab.controller.orchestrator.figures_of("migration-1")["handed_on"] == 2


async def test_a_controller_that_takes_over_lets_nobody_look_where_it_copies_to(lab: OneVM) -> None:
    """It does so as soon as it knows that the VM stands still, and all switches have led to the target."""
    await lab.plug(2)
    for server, kind in ((2, K.INCOMING), (1, K.SUSPENDED)):
        await lab.says(server, kind)
    context, (migration,) = lab.controller.context, lab.migrations
    assert migration.diverted
    await context.install(context.apply(VMPlaced(placement(context.net.vms["vm1"], migration))), ())
    assert copies(lab)
    with pytest.raises(MigrationError, match="what comes to server1 now are copies"):
        await lab.controller.orchestrator.reports.on_waited("migration-1", [], ["server1"], watching=True)


async def test_what_was_left_comes_to_the_source_when_the_move_has_failed(lab: OneVM) -> None:
    left = [udp_frame(GATEWAY_MAC, vm_mac(1), OUTSIDE, vm_ip(1))]
    await lab.plug(2)
    for server, kind in ((2, K.INCOMING), (1, K.SUSPENDED), (1, K.RESUMED)):
        await lab.says(server, kind)
    lab.fake.heard.clear()
    await lab.controller.orchestrator.reports.on_waited("migration-1", left, ["server1"])
    assert lab.fake.heard == [("edge1", vm_port(1), left[0])]


AFTER_INCOMING = [(1, K.SUSPENDED), (2, K.RESUMED), (1, K.DEPARTED)]


@pytest.mark.parametrize("order", list(permutations(AFTER_INCOMING)))
async def test_two_watchers_need_not_agree_on_the_order(
    lab: OneVM, order: list[tuple[int, EventKind]]
) -> None:
    await lab.plug(2)
    await lab.says(2, K.INCOMING)
    for server, kind in order:
        await lab.says(server, kind)
    await lab.unplug(1)
    assert (lab.state, lab.at()) == (MigrationState.DONE, [("edge2", True)])


@pytest.mark.parametrize("said", [[], [(1, K.SUSPENDED)]])
@pytest.mark.parametrize("end", [(2, K.FAILED), (2, K.STOPPED), (1, K.RESUMED)])
async def test_a_move_that_fails_leaves_the_network_as_before(
    lab: OneVM, said: list[tuple[int, EventKind]], end: tuple[int, EventKind]
) -> None:
    before, rows = lab.flows(), lab.at()
    await lab.plug(2)
    await lab.says(2, K.INCOMING)
    for server, kind in (*said, end):
        await lab.says(server, kind)
    await lab.unplug(2)
    assert (lab.state, lab.at()) == (MigrationState.UNDONE, rows)
    assert lab.flows() == before
    assert f"server{end[0]}" in lab.migrations[-1].reason
    await lab.plug(2)
    await lab.says(2, K.INCOMING)
    assert lab.state is MigrationState.COPYING, "it may be tried again"


async def test_in_a_move_of_ours_the_target_does_not_speak_for_the_source(lab: OneVM) -> None:
    """That it failed there says nothing of whether the VM runs at its source: the agent there tells."""
    orchestrator = lab.controller.orchestrator
    migration = orchestrator.start("vm1", target_server="server2")
    orchestrator.reports.on_report(migration.id, Report.TARGET_OPENED, 0.0, "", "192.0.2.4:7800")
    await lab.plug(2)
    orchestrator.reports.on_report(migration.id, Report.COPY_STARTED, 0.0, "")
    await lab.says(2, K.FAILED)
    failed = orchestrator.migrations[migration.id]
    assert (failed.state, failed.restored) == (MigrationState.ROLLING_BACK, False)
    assert (
        orchestrator.reports.on_report(migration.id, Report.ROLLED_BACK, 0.0, "").state
        is MigrationState.UNDONE
    )


async def test_a_server_that_claims_a_vm_does_not_get_it(lab: OneVM) -> None:
    """A port with the VM's id, and any words of its own, take nothing from a source that holds it."""
    await lab.plug(2)
    for kind in (K.STARTED, K.RESUMED):
        await lab.says(2, kind)
        told = recent(lab.controller.events, "vm.mismatch", 10)[-1].data
        assert (told["vm"], told["server"]) == ("vm1", "server2")
        assert told["reason"] == "server server2 reports that it runs VM vm1, which has its port at server1"
    assert not lab.migrations
    assert lab.controller.context.counters["VMs claimed by another server"] == 2
    await lab.says(2, K.INCOMING)
    for kind in (K.RESUMED, K.STARTED, K.DEPARTED, K.SUSPENDED):
        await lab.says(2, kind)
    assert lab.state is MigrationState.COPYING
    assert ("edge1", True) in lab.at(), "it is delivered where it was"
    await lab.says(3, K.SUSPENDED)
    assert lab.state is MigrationState.COPYING, "a third server has no say"


STAGES: dict[str, list[tuple[int, EventKind]]] = {
    "admitted": [],
    "incoming": [(2, K.INCOMING)],
    "suspended": [(2, K.INCOMING), (1, K.SUSPENDED)],
    "resumed": [(2, K.INCOMING), (1, K.SUSPENDED), (2, K.RESUMED)],
}


@pytest.mark.parametrize("kind", list(EventKind))
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("port", [False, True], ids=["", "with a port"])
async def test_a_third_server_has_no_say_in_a_move(
    lab: OneVM, kind: EventKind, stage: str, port: bool
) -> None:
    await lab.plug(2)
    migration = lab.controller.orchestrator.start("vm1", target_server="server2")
    for server, said in STAGES[stage]:
        await lab.says(server, said)
    if stage == "suspended":
        await copied(lab)
    if port:
        await lab.plug(3)
    before, flows = lab.migrations, lab.flows()
    await lab.says(3, kind)
    assert lab.migrations == before
    assert lab.flows() == flows
    assert lab.state is (MigrationState.MATCHED if stage == "admitted" else lab.state)
    assert lab.controller.orchestrator.migrations[migration.id].target == "server2"


@pytest.mark.parametrize("kind", list(EventKind))
@pytest.mark.parametrize("server", [1, 2, 3])
async def test_a_word_about_a_move_of_ours_that_says_nothing_to_it_is_no_error(
    lab: OneVM, server: int, kind: EventKind
) -> None:
    """The first that a watcher tells of a migration that agents make."""
    migration = lab.controller.orchestrator.start("vm1", target_server="server2")
    await lab.says(server, kind)
    assert lab.controller.orchestrator.migrations[migration.id].state in (
        MigrationState.MATCHED,
        MigrationState.ROLLING_BACK,
        MigrationState.UNDONE,
    )


async def test_that_the_vm_has_departed_says_that_it_runs_at_the_target(lab: OneVM) -> None:
    """The target's watcher is away; the source's tells, and the source's port has gone."""
    await lab.plug(2)
    for server, kind in ((2, K.INCOMING), (1, K.SUSPENDED), (1, K.DEPARTED)):
        await lab.says(server, kind)
    assert lab.state is MigrationState.CONFIRMED
    await lab.unplug(1)
    (migration,) = lab.migrations
    assert (migration.state, migration.resumed_at, lab.at()) == (
        MigrationState.DONE,
        1000.0,
        [("edge2", True)],
    )


@pytest.mark.parametrize("said", [[], [(1, K.SUSPENDED)]])
@pytest.mark.parametrize("end", [(2, K.FAILED), (2, K.STOPPED), (1, K.RESUMED)])
async def test_a_cancelled_move_is_undone_when_its_hypervisor_gives_up(
    lab: OneVM, said: list[tuple[int, EventKind]], end: tuple[int, EventKind]
) -> None:
    before, rows = lab.flows(), lab.at()
    await lab.plug(2)
    await lab.says(2, K.INCOMING)
    for server, kind in said:
        await lab.says(server, kind)
    lab.controller.orchestrator.cancel(lab.migrations[-1].id)
    await lab.fake.settle()
    assert lab.state is MigrationState.ROLLING_BACK
    await lab.says(*end)
    await lab.unplug(2)
    assert (lab.state, lab.at()) == (MigrationState.UNDONE, rows)
    assert lab.flows() == before
    assert "cancelled by the operator" in lab.migrations[-1].reason


async def test_a_vm_that_is_registered_anew_is_not_watched_by_who_watched_its_predecessor(lab: OneVM) -> None:
    address = vm_ip(1)
    assert isinstance(address, IPv4Address)
    lab.controller.inventory.register_vms([VM("vm2", (NIC(vm_mac(2), "vm2"),), "server1")])
    await lab.unplug(1)
    await lab.controller.inventory.remove_vm("vm1")
    await lab.says(1, K.STARTED, "vm2")
    lab.controller.inventory.register_vms([VM("vm1", (NIC(vm_mac(1), "vm1", (address,)),), "server1")])
    await lab.plug(1)
    await lab.says(2, K.INCOMING)
    assert not lab.migrations, "our own agent may run it now, and nobody but the target has spoken"
    await lab.says(1, K.STARTED)
    await lab.says(2, K.INCOMING)
    assert len(lab.migrations) == 1


async def test_a_server_does_not_have_a_vm_brought_to_it_that_our_own_agent_runs(lab: OneVM) -> None:
    """Where the source has no watcher, our agent would carry out a migration that the target begins."""
    address = vm_ip(2)
    assert isinstance(address, IPv4Address)
    lab.controller.inventory.register_vms(
        [VM.with_one_nic("vm2", vm_mac(2), "server1", addresses=(address,))]
    )
    lab.controller.inventory.power.on_report("vm2", VMReport.STARTED, "server1")
    for kind in (K.INCOMING, K.RESUMED, K.INCOMING):
        assert await lab.says(2, kind, "vm2") is None
    lab.controller.events.flush()  # What was told already is told again when a second is over.
    assert not lab.migrations
    told = recent(lab.controller.events, "vm.mismatch", 10)
    assert [(event.data["vm"], event.data["server"]) for event in told] == [("vm2", "server2")] * 2


async def test_a_move_without_its_sources_word_goes_on_when_the_source_has_no_port(lab: OneVM) -> None:
    await lab.plug(2)
    await lab.says(2, K.INCOMING)
    await lab.says(2, K.RESUMED)
    assert lab.state is MigrationState.COPYING
    await lab.unplug(1)
    assert (lab.state, lab.at()) == (MigrationState.DONE, [("edge2", True)])


async def test_a_move_nobody_told_of_is_found_afterwards(lab: OneVM) -> None:
    await lab.says(2, K.STARTED)
    assert not lab.migrations, "no port there"
    await lab.plug(2)
    await lab.unplug(1)
    await lab.says(2, K.STARTED)
    await lab.says(1, K.DEPARTED)
    await lab.says(1, K.STARTED)  # An old account of server1, late: it has no port there any more.
    assert (lab.state, len(lab.migrations), lab.at()) == (MigrationState.DONE, 1, [("edge2", True)])


async def test_what_starts_and_ends_where_it_is_registered_is_told_once(lab: OneVM) -> None:
    for kind in (K.STARTED, K.STARTED, K.STOPPED, K.STOPPED, K.STARTED):
        await lab.says(1, kind)
    told = [event.type for event in recent(lab.controller.events, "vm.", 100)]
    assert told[-3:] == ["vm.started", "vm.stopped", "vm.started"]
    assert lab.controller.context.state.vm_states["vm1"] is VMState.RUNNING
    assert not lab.migrations


@pytest.mark.parametrize("end", [K.STOPPED, K.FAILED])
async def test_a_vm_that_ends_where_it_is_registered_runs_no_more(lab: OneVM, end: EventKind) -> None:
    assert lab.controller.context.state.vm_states["vm1"] is VMState.RUNNING
    for server in (2, 3):
        await lab.says(server, end)
        assert lab.controller.context.state.vm_states["vm1"] is VMState.RUNNING
    await lab.says(1, end)
    assert lab.controller.context.state.vm_states["vm1"] is not VMState.RUNNING
    assert [event.type for event in recent(lab.controller.events, "vm.", 100)][-1] == "vm.stopped"


@pytest.mark.parametrize(("end", "state"), [(K.STOPPED, VMState.OFF), (K.FAILED, VMState.CRASHED)])
async def test_a_vm_that_ends_at_the_source_of_its_move_is_off_or_has_crashed(
    lab: OneVM, end: EventKind, state: VMState
) -> None:
    await lab.plug(2)
    await lab.says(2, K.INCOMING)
    await lab.says(1, end)
    assert lab.controller.inventory.state_of("vm1") is state
    await lab.says(2, K.FAILED)
    assert lab.controller.inventory.state_of("vm1") is state


async def test_what_a_hypervisor_tells_is_told_on_but_for_what_it_repeats(lab: OneVM) -> None:
    for kind in (K.SUSPENDED, K.STARTED, K.RESUMED):
        await lab.says(1, kind)
    told = [event.data for event in recent(lab.controller.events, "hypervisor.event", 10)]
    assert told == [
        {"vm": "vm1", "server": "server1", "kind": kind, "at": 1000.0} for kind in ("suspended", "resumed")
    ]


async def test_vms_of_others_are_none_of_our_business_and_unknown_servers_are_rejected(lab: OneVM) -> None:
    assert await lab.says(2, K.INCOMING, vm="theirs") is None
    with pytest.raises(ModelError, match="there is no server server9"):
        lab.controller.external_migrations.on_report("server9", "vm1", K.INCOMING, 1.0)


@pytest.mark.parametrize(
    ("server", "body", "status", "said"),
    [
        ("server2", '{"vm": "vm1", "kind": "incoming", "at": 1000.5}', 200, '"state":"matched"'),
        ("server1", '{"vm": "vm1", "kind": "started", "at": 1000.5}', 200, '"migration":""'),
        ("server1", '{"vm": "vm1", "kind": "exploded", "at": 1000.5}', 400, "kind"),
        ("server1", '{"vm": "vm1", "kind": "started", "at": 0}', 400, "at"),
        ("server1", '{"vm": "vm1", "kind": "started"}', 400, "at"),
        ("server1", "nonsense", 400, "body cannot be used"),
        ("dhcp", '{"vm": "vm1", "kind": "incoming", "at": 1.0}', 409, "no edge switch"),
        ("server9", '{"vm": "vm1", "kind": "incoming", "at": 1.0}', 409, "there is no server server9"),
    ],
)
async def test_reports_over_http(lab: OneVM, server: str, body: str, status: int, said: str) -> None:
    api = Api(lab.controller, dict)
    port = await api.start("127.0.0.1", 0)
    try:
        url = f"http://127.0.0.1:{port}/v1/servers/{server}/hypervisor-events"
        async with aiohttp.ClientSession() as http, http.post(url, data=body) as answer:
            assert answer.status == status
            assert said in (await answer.text()).replace(": ", ":")
    finally:
        await api.stop()


async def test_where_the_source_opens_the_target_it_is_told_to_begin(lab: OneVM) -> None:
    """Our own migration through libvirt: the target's agent waits, and its port comes by the source's
    doing."""
    orchestrator = lab.controller.orchestrator
    migration = orchestrator.start("vm1", target_server="server2")
    for _ in ("once", "once more"):
        orchestrator.reports.on_report(migration.id, Report.TARGET_OPENED, 1.0, "", "192.0.2.4:7800")
        (*_, begin) = recent(lab.controller.events, "migration.prepare_source", 9)
        assert (begin.data["migration"].memory_at, begin.data["vm"].id) == ("192.0.2.4:7800", "vm1")
    await lab.plug(2)
    assert (lab.state, lab.migrations[0].memory_at) == (MigrationState.PREPARED, "192.0.2.4:7800")
    # What libvirt says of it, too, changes nothing, least of all where the memory goes.
    await lab.says(2, K.INCOMING)
    assert (lab.state, lab.migrations[0].memory_at) == (MigrationState.COPYING, "192.0.2.4:7800")
    assert len(recent(lab.controller.events, "migration.prepare_source", 9)) == 2


async def test_libvirts_own_word_of_a_target_does_not_hide_where_its_memory_goes(lab: OneVM) -> None:
    orchestrator = lab.controller.orchestrator
    migration = orchestrator.start("vm1", target_server="server2")
    orchestrator.reports.on_report(migration.id, Report.TARGET_OPENED, 1.0, "", "192.0.2.4:7800")
    await lab.says(2, K.INCOMING)
    await lab.plug(2)
    assert lab.migrations[0].memory_at == "192.0.2.4:7800"


async def test_who_opens_the_target_by_itself_is_not_told_to_begin(lab: OneVM) -> None:
    migration = lab.controller.orchestrator.start("vm1", target_server="server2")
    await lab.plug(2)
    lab.controller.orchestrator.reports.on_report(
        migration.id, Report.TARGET_OPENED, 1.0, "", "192.0.2.4:7800"
    )
    assert recent(lab.controller.events, "migration.prepare_source", 9) == []
