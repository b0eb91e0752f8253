"""Figures 4 to 9 and 11 of US 9,477,506; figure 10, storage, is in tests/unit/controller/test_fip.py."""

import pytest

from retinue.controller.errors import RequestError
from retinue.core.migration import MigrationState as S
from retinue.core.pipeline.entry import Field
from retinue.core.placement import Entity, EntityKind, Profile
from retinue.protocol.migrations import Order, Report
from support.fabric.domains import gateway_of, server_of
from support.fabric.figure_8 import CLIENT, Figure8
from support.fabric.networks import GATEWAY_MAC, vm_ip, vm_mac, vm_port
from support.fabric.two_controllers import VM_ID, TwoDomains
from support.fabric.world import udp_frame


async def test_figure_4_the_home_hears_of_another_domain_and_of_no_move_inside_it(
    domains: TwoDomains,
) -> None:
    """The mobile node is a VM here: its home routes to the domain's gateway, which is the anchor inside."""
    await domains.move("a", "b", server_of("b", 1))
    a, b = (domains.controller(domain) for domain in "ab")
    said = [list(door.said) for door in domains.doors.values()]
    b.orchestrator.start(VM_ID, target_server=server_of("b", 2))
    await domains.until("b", S.DONE)
    assert [list(door.said) for door in domains.doors.values()] == said
    assert a.net.vms[VM_ID].server == gateway_of("a")
    assert b.net.vms[VM_ID].server == server_of("b", 2)


async def test_figure_5_a_generic_vm_first_and_then_what_makes_it_this_one(figure: Figure8) -> None:
    """510, 530 before 520, 540: the source is told nothing until the target has said that it waits."""
    migration = await figure.request()
    orders = figure.told("migration.open_target", "migration.prepare_source", "migration.start_copy")
    assert orders == [Order.OPEN_TARGET]
    taken = figure.fake.controller.orchestrator.reports
    taken.on_prepared(migration.id, 1200, 80)
    await figure.says(migration, Report.TARGET_OPENED)
    orders = figure.told("migration.open_target", "migration.prepare_source", "migration.start_copy")
    assert orders == [Order.OPEN_TARGET, Order.START_COPY]
    figures = figure.fake.controller.orchestrator.figures_of(migration.id)
    assert (figures["image_ms"], figures["machine_ms"]) == (1200, 80)


async def test_figure_6_no_switch_is_provisioned_by_hand_and_none_learns(figure: Figure8) -> None:
    """What the figure shows as the other way: here the first packet of the VM at its new place changes
    nothing, and the entries of the two places change by the migration alone."""
    migration = await figure.request()
    await figure.to_its_end(migration)
    before = {name: dict(switch.flows) for name, switch in figure.fake.fabric.switches.items()}
    figure.fake.send("edge2", vm_port(1), udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), CLIENT))
    await figure.fake.settle()
    assert {name: dict(switch.flows) for name, switch in figure.fake.fabric.switches.items()} == before


async def test_figure_7_every_named_entity_has_its_profile_and_place_in_one_table(figure: Figure8) -> None:
    entities = figure.fake.controller.entities
    entities.register([Entity("shop", EntityKind.SERVICE, Profile(served_by=("vm1",)))])
    await figure.to_its_end(await figure.request())
    rows = {name: entities.shown(name) for name in ("vm1", "server2", "shop")}
    assert all(row is not None and row["name"] == name for name, row in rows.items())
    places = {name: row["locator"] for name, row in rows.items() if row is not None}
    assert places["shop"]["server"] == places["vm1"]["server"] == "server2"
    assert places["server2"]["at"] == "leaf2:p2"


async def test_figure_8_a_proxy_releases_a_booking_and_books_one(figure: Figure8) -> None:
    bookings = figure.fake.controller.bookings
    bookings.book("vm7", "server2", 512, 1, 60, by=("server2",))
    with pytest.raises(RequestError, match="nothing is booked"):
        bookings.release("vm7", "server3")
    bookings.release("vm7", "server2")
    assert figure.told("mobility.book") == ["mobility.booked", "mobility.booking_ended"]


async def test_figure_9_910_to_980_in_this_order(figure: Figure8) -> None:
    figure.manager.profile_query("vm1", "server1")
    migration = await figure.request()
    await figure.to_its_end(migration)
    assert figure.told("mobility.", "migration.open", "migration.start", "migration.free") == [
        *("mobility.profile_query", "mobility.message"),  # 910
        *("mobility.request", "mobility.match", *["mobility.answer"] * 3),  # 920
        "mobility.decision",  # 930
        *("mobility.initiation", "mobility.booked", "migration.open_target"),  # 940
        "migration.start_copy",  # 950, 960
        *("mobility.ready", "mobility.registered", "mobility.profile_updated"),  # 970, 980
        *("mobility.double_delivery_ended", "mobility.deregistered"),
        *("migration.free_source", "mobility.released", "mobility.booking_ended"),
    ]


async def test_figure_11_a_nodes_table_is_updated_by_the_profiles_place(figure: Figure8) -> None:
    """Before and after, the switches on the ways to the VM's place have entries for what names it."""

    def entries() -> set[str]:
        to_vm1 = (Field.IPV4_DST, int(vm_ip(1)), None)
        switches = figure.fake.fabric.switches.items()
        return {name for name, s in switches if any(to_vm1 in flow.match for flow in s.flows.values())}

    assert entries() == {"edge1", "leaf1", "spine1", "spine2"}
    await figure.to_its_end(await figure.request())
    assert entries() == {"edge2", "leaf2", "spine1", "spine2"}
