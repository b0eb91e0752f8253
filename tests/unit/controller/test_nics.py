"""A VM with two NICs before the controller: its ports, its leases, its migration in one step for both."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from retinue.controller.errors import RequestError
from retinue.controller.leases.renewal_orders import RenewalError
from retinue.controller.migrations.requests import MigrationError
from retinue.controller.nic_changes import AddressTaken
from retinue.controller.store.rows import to_row
from retinue.core.migration import MigrationState
from retinue.core.model import NIC, VM, Allowed, Assignment, BindingKind, ModelError, Origin, PortStatus
from retinue.core.packets import EtherType, parse
from retinue.protocol.migrations import Report
from retinue.protocol.renewals import OrderState
from retinue.protocol.vms import VMReport, VMState
from retinue.southbound.ovsdb import BridgePort
from support.fabric.dhcp_lab import SERVER_AT, DhcpLab
from support.fabric.networks import (
    GATEWAY_MAC,
    add_vm,
    fabric,
    nic_numbers,
    vm_ip,
    vm_mac,
    vm_port,
)
from support.fabric.world import OUTSIDE, udp_frame
from support.fakes.session import FakeNetwork

FIRST, SECOND = 1, 17
"""The numbers of vm1's NICs."""
PORT_ID = {FIRST: "vm1", SECOND: "vm1-2"}


def port(nic: int, at: int) -> BridgePort:
    return BridgePort(
        dpid=0x30 + at, bridge="br0", name=f"tap{nic}", number=vm_port(nic), status=PortStatus.UP,
        iface_id=PORT_ID[nic], attached_mac=vm_mac(nic),
    )  # fmt: skip


class TwoNics(DhcpLab):
    """vm1 at server1, with two NICs that ask a DHCP server each."""

    def vm(self) -> VM:
        return self.fake.net.vms["vm1"]

    def state(self) -> VMState:
        return self.controller.inventory.state_of("vm1")

    async def plug_in(self, nic: int, at: int) -> None:
        self.controller.inventory.ports.changed([], [port(nic, at)])
        await self.fake.settle()

    async def unplug(self, nic: int, at: int) -> None:
        self.controller.inventory.ports.changed([port(nic, at)], [])
        await self.fake.settle()

    async def start(self) -> None:
        vm = add_vm(fabric(), 1, at=1, bound=False, nics=2)
        self.controller.inventory.register_vms([vm])
        for nic in (FIRST, SECOND):
            await self.plug_in(nic, 1)
        self.controller.inventory.power.on_report("vm1", VMReport.STARTED, "server1")
        for nic in (FIRST, SECOND):
            await self.boot(nic, at=1)

    async def say_of(self, migration: str, *words: Report) -> None:
        for word in words:
            self.controller.orchestrator.reports.on_report(migration, word, self.now)
            await self.fake.settle()

    def places(self) -> list[set[str]]:
        """By NIC, where a packet from outside comes."""
        router = self.fake.net.servers["router"].mac
        return [
            {
                switch
                for way in self.fake.fabric.all_paths(
                    "leaf2", 91, udp_frame(router, GATEWAY_MAC, OUTSIDE, vm_ip(nic))
                )
                for switch, _, _ in way.arrivals
            }
            for nic in (FIRST, SECOND)
        ]


@pytest.fixture
async def lab() -> AsyncIterator[TwoNics]:
    fake = FakeNetwork(fabric(), lambda: found.now)
    found = TwoNics(fake)
    fake.hosts[SERVER_AT] = found.serve
    await fake.start()
    yield found
    await fake.stop()


async def test_a_vm_is_ready_when_every_nic_has_its_port(lab: TwoNics) -> None:
    lab.controller.inventory.register_vms([add_vm(fabric(), 1, at=1, bound=False, nics=2)])
    await lab.plug_in(FIRST, 1)
    assert lab.state() is VMState.REGISTERED
    assert lab.controller.inventory.missing_for(lab.vm()) == ["switch edge1 has no port with iface-id vm1-2"]
    await lab.plug_in(SECOND, 1)
    assert lab.state() is VMState.READY


async def test_a_port_with_the_other_nics_mac_is_no_nics(lab: TwoNics) -> None:
    lab.controller.inventory.register_vms([add_vm(fabric(), 1, at=1, bound=False, nics=2)])
    crossed = BridgePort(
        dpid=0x31, bridge="br0", name="tap17", number=26, status=PortStatus.UP,
        iface_id="vm1-2", attached_mac=vm_mac(FIRST),
    )  # fmt: skip
    lab.controller.inventory.ports.changed([], [crossed])
    await lab.fake.settle()
    (rejected,) = lab.controller.inventory.ports.rejected.values()
    assert rejected.reason == f"attached-mac is {vm_mac(FIRST)}, vm1 is registered with {vm_mac(SECOND)}"


async def test_each_nic_gets_its_own_answers_at_its_own_port(lab: TwoNics) -> None:
    await lab.start()
    assert {held.ip: held.mac for held in lab.fake.net.held_by("vm1")} == {
        vm_ip(FIRST): vm_mac(FIRST),
        vm_ip(SECOND): vm_mac(SECOND),
    }
    for nic in (FIRST, SECOND):
        assert [dhcp.chaddr for _, _, dhcp in lab.heard_by(nic, at=1)] == [vm_mac(nic)] * 2
        assert {ethernet.dst for ethernet, _, _ in lab.heard_by(nic, at=1)} == {vm_mac(nic)}


async def test_a_migration_waits_for_the_port_of_every_nic_and_wakes_each(lab: TwoNics) -> None:
    await lab.start()
    orchestrator = lab.controller.orchestrator
    migration = orchestrator.start("vm1", target_server="server2").id
    await lab.plug_in(FIRST, 2)
    await lab.say_of(migration, Report.TARGET_OPENED)
    assert orchestrator.migrations[migration].state is MigrationState.MATCHED
    await lab.plug_in(SECOND, 2)
    assert orchestrator.migrations[migration].state is MigrationState.PREPARED
    woken = {
        (switch, number): parse(frame).dst
        for switch, number, frame in lab.fake.heard
        if parse(frame).ethertype == EtherType.EXPERIMENT
    }
    assert woken == {("edge2", vm_port(nic)): vm_mac(nic) for nic in (FIRST, SECOND)}


async def test_both_nics_are_diverted_in_one_change_of_each_switch(lab: TwoNics) -> None:
    """No switch ever has one of them here and the other there, whatever it has been told so far."""
    await lab.start()
    migration = lab.controller.orchestrator.start("vm1", target_server="server2").id
    for nic in (FIRST, SECOND):
        await lab.plug_in(nic, 2)
    await lab.say_of(migration, Report.TARGET_OPENED, Report.COPY_STARTED)
    for session in lab.fake.sessions.values():
        session.applied.clear()
    seen = [lab.places()]
    apply = lab.fake.fabric["edge1"].__class__.apply

    def watched(switch: object, change: object) -> None:
        apply(switch, change)  # type: ignore[arg-type]
        seen.append(lab.places())

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lab.fake.fabric["edge1"].__class__, "apply", watched)
        await lab.say_of(migration, Report.CONVERGED, Report.STOPPED, Report.RESUMED)
    assert all(first == second for first, second in seen), seen
    assert seen[0][0] == {"edge1"} and seen[-1][0] == {"edge2"}


async def test_the_lease_of_each_nic_is_renewed_after_a_migration(lab: TwoNics) -> None:
    await lab.start()
    migration = lab.controller.orchestrator.start("vm1", target_server="server2").id
    for nic in (FIRST, SECOND):
        await lab.plug_in(nic, 2)
    await lab.say_of(
        migration, Report.TARGET_OPENED, Report.COPY_STARTED, Report.CONVERGED, Report.STOPPED, Report.RESUMED
    )
    orders = [event["renewal"] for event in lab.events("vm.renew")]
    assert {(order.mac, order.ip, order.port_number) for order in orders} == {
        (vm_mac(nic), vm_ip(nic), vm_port(nic)) for nic in (FIRST, SECOND)
    }
    assert lab.controller.context.state.pending_renewals == set(PORT_ID.values())
    assert {order.state for order in orders} == {OrderState.ORDERED}, "neither takes the other's place"


async def test_the_lease_of_a_nic_is_renewed_by_its_id(lab: TwoNics) -> None:
    await lab.start()
    renewals = lab.controller.renewals
    assert renewals.renew("vm1").mac == vm_mac(FIRST), "the first that has one"
    second = renewals.renew("vm1", nic="vm1-2")
    assert (second.mac, second.ip) == (vm_mac(SECOND), vm_ip(SECOND))
    assert len(renewals.under_way("vm1")) == 2
    assert renewals.renew("vm1", nic="vm1-2").id != second.id
    assert len(renewals.under_way("vm1")) == 2, "it takes the place of its own NIC's"
    with pytest.raises(RenewalError, match="VM vm1 has no NIC vm1-9"):
        renewals.renew("vm1", nic="vm1-9")


async def test_what_is_removed_with_the_vm_is_each_nics_port_and_lease(lab: TwoNics) -> None:
    await lab.start()
    served = len(lab.served)
    await lab.controller.inventory.remove_vm("vm1")
    await lab.fake.settle()
    given_back = {dhcp.chaddr for _, _, dhcp in lab.served[served:]}
    assert given_back == {vm_mac(FIRST), vm_mac(SECOND)}
    assert set(lab.controller.context.state.left_ports) == set(PORT_ID.values())
    await lab.unplug(SECOND, 1)
    assert lab.controller.inventory.ports.removed_vms() == ["vm1"]
    await lab.unplug(FIRST, 1)
    assert lab.controller.inventory.ports.removed_vms() == []


async def test_the_second_nics_lease_that_ran_out_is_kept_beside_the_firsts(lab: TwoNics) -> None:
    await lab.start()
    lab.now += 10_000
    await lab.controller.dhcp.expire()
    ended = lab.controller.context.state.ended_leases
    assert {mac: lease.ip for mac, lease in ended.items()} == {
        vm_mac(nic): vm_ip(nic) for nic in nic_numbers(lab.vm())
    }
    assert to_row(lab.vm())["nics"] != ["map", []]


# ---- put in and taken out of a VM that runs ----

THIRD = NIC(vm_mac(33), "vm1-3", (), slot=3)


async def test_a_nic_is_put_in_and_the_agent_told_what_the_vm_is_to_have(lab: TwoNics) -> None:
    await lab.start()
    nics = lab.controller.inventory.nics
    assert nics.free_slot("vm1") == 3
    nics.add("vm1", replace(THIRD, addresses=(vm_ip(50),)))
    await lab.fake.settle()
    (told,) = lab.events("vm.nics")
    assert (told["server"], [nic.port_id for nic in told["vm"].nics]) == (
        "server1",
        ["vm1", "vm1-2", "vm1-3"],
    )
    assert {held.ip for held in lab.fake.net.held_by("vm1")} == {vm_ip(1), vm_ip(17), vm_ip(50)}
    assert lab.state() is VMState.RUNNING


async def test_a_nic_that_is_taken_out_gives_its_lease_back_and_has_no_entries(lab: TwoNics) -> None:
    await lab.start()
    served = len(lab.served)
    lab.controller.inventory.nics.remove("vm1", "vm1-2")
    await lab.fake.settle()
    assert [dhcp.chaddr for _, _, dhcp in lab.served[served:]] == [vm_mac(SECOND)]
    assert [held.ip for held in lab.fake.net.held_by("vm1")] == [vm_ip(FIRST)]
    frame = udp_frame(vm_mac(SECOND), GATEWAY_MAC, vm_ip(SECOND), OUTSIDE)
    assert not lab.fake.fabric.send("edge1", vm_port(SECOND), frame).arrivals
    assert lab.places()[1] == set()
    assert set(lab.controller.context.state.left_ports) == {"vm1-2"}, "its port, seen again, is no VM's"
    with pytest.raises(MigrationError, match="NIC vm1-2 was taken out of VM vm1, whose guest"):
        lab.controller.orchestrator.start("vm1", target_server="server2")
    await lab.unplug(SECOND, 1)
    assert lab.controller.orchestrator.start("vm1", target_server="server2").vm == "vm1"
    assert lab.controller.context.state.left_ports == {}
    assert lab.controller.inventory.missing_for(lab.vm()) == []


async def test_a_nics_static_addresses_are_changed_and_what_goes_is_free(lab: TwoNics) -> None:
    await lab.start()
    nics = lab.controller.nics
    await nics.change("vm1", "vm1-2", addresses=(vm_ip(50), vm_ip(51)))
    await nics.change("vm1", "vm1-2", addresses=(vm_ip(51), vm_ip(52)), vnet="default", rate=7)
    await lab.fake.settle()
    assert lab.vm().nics[1] == NIC(vm_mac(SECOND), "vm1-2", (vm_ip(51), vm_ip(52)), "default", slot=2, rate=7)
    assert len(lab.events("vm.changed")) == 2
    assert lab.events("vm.nics") == [], "there is nothing to be put in or taken out"
    assert [told["ip"] for told in lab.events("binding.removed")] == [vm_ip(50)]
    assert {held.ip for held in lab.fake.net.held_by("vm1")} == {vm_ip(n) for n in (1, 17, 51, 52)}


async def test_a_mistake_in_one_of_a_nics_settings_leaves_all_as_they_were(lab: TwoNics) -> None:
    """Its lease, a static address and one it was allowed and took: none is lost on the way back."""
    await lab.start()
    nics, net = lab.controller.nics, lab.fake.net
    may = (Allowed(vm_ip(60)),)
    await nics.change("vm1", "vm1-2", addresses=(vm_ip(50),), allowed=may)
    taken = Assignment(vm_ip(60), vm_mac(SECOND), "vm1", BindingKind.ALLOWED, Origin.CONTROLLER)
    await lab.controller.context.commit(AddressTaken(taken, "vm1-2", ""))
    before, held = lab.vm(), set(net.held_by("vm1"))
    assert taken in held
    told = len(lab.events("vm.changed"))
    with pytest.raises(ModelError, match="is in no subnet"):
        await nics.change("vm1", "vm1-2", addresses=(vm_ip(51), OUTSIDE), allowed=(), rate=7)
    assert (lab.vm(), set(net.held_by("vm1"))) == (before, held)
    assert len(lab.events("vm.changed")) == told


async def test_addresses_of_a_vm_that_nobody_registered_are_not_the_managers(lab: TwoNics) -> None:
    await lab.start()
    lab.fake.net.put_vm(replace(lab.vm(), reported=True))
    for wanted in ({"addresses": (vm_ip(50),)}, {"vnet": "default"}):
        with pytest.raises(RequestError, match="was made by its server's own manager"):
            await lab.controller.nics.change("vm1", "vm1-2", **wanted)
    await lab.controller.nics.change("vm1", "vm1-2", rate=7)
    assert lab.vm().nics[1].rate == 7, "how the port stands is"


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (replace(THIRD, mac=vm_mac(FIRST)), f"MAC {vm_mac(FIRST)} is given twice"),
        (replace(THIRD, port_id="vm1-2"), "NIC id vm1-2 is given twice"),
        (replace(THIRD, addresses=(vm_ip(SECOND),)), "is held by VM vm1's NIC"),
        (replace(THIRD, addresses=(OUTSIDE,)), "is in no subnet"),
        (replace(THIRD, addresses=(vm_ip(50), OUTSIDE)), "is in no subnet"),
    ],
)
async def test_a_nic_that_clashes_is_not_put_in_and_nothing_has_changed(
    lab: TwoNics, wanted: NIC, reason: str
) -> None:
    await lab.start()
    before, held = lab.vm(), lab.fake.net.held_by("vm1")
    with pytest.raises(ModelError, match=reason):
        lab.controller.inventory.nics.add("vm1", wanted)
    assert (lab.vm(), lab.fake.net.held_by("vm1")) == (before, held)
    assert lab.events("vm.nics") == []


async def test_what_may_not_be_changed_is_refused_with_a_reason(lab: TwoNics) -> None:
    await lab.start()
    nics = lab.controller.inventory.nics
    for reason, vm, nic in (
        ("there is no VM vm9", "vm9", "vm9"),
        ("VM vm1 has no NIC vm1-9, but vm1, vm1-2", "vm1", "vm1-9"),
        ("VM vm1 is known by its first NIC", "vm1", "vm1"),
    ):
        with pytest.raises(RequestError, match=reason):
            nics.remove(vm, nic)
    lab.controller.orchestrator.start("vm1", target_server="server2")
    reason = r"is being migrated: .* its NICs stay as they are until that"
    with pytest.raises(RequestError, match=reason):
        nics.add("vm1", THIRD)
    with pytest.raises(RequestError, match=reason):
        await lab.controller.nics.change("vm1", "vm1-2", vnet="blue")
    with pytest.raises(RequestError, match=reason):
        await lab.controller.nics.change("vm1", addresses=())
    with pytest.raises(RequestError, match=reason):
        nics.remove("vm1", "vm1-2")
    full = VM("vm2", tuple(NIC(vm_mac(60 + n), f"n{n}", slot=n) for n in range(1, 9)), "server2")
    lab.controller.inventory.register_vms([full])
    with pytest.raises(RequestError, match="has 8 NICs already"):
        nics.free_slot("vm2")
