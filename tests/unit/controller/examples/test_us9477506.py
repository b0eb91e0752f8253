"""The claims of US 9,477,506: VMs migrate by name, arranged by mobility managers and VM proxies.

The mobility manager is the controller of a domain over fake switches, the VM proxy is each server's agent.
VM "vm1" serves a client in one domain; the claims of two are told of VM "vm-a1", whose home is domain a.
Claims 8 and 9 are of the agents that hold content. Of claim 17, storage between two domains, nothing is here:
FCoE goes by the same tables inside a domain, and not between two.
"""

from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from retinue.controller.errors import RequestError
from retinue.core.content import CHUNK_BYTES
from retinue.core.migration import MigrationState as S
from retinue.core.model import VM
from retinue.core.model.disks import Disk
from retinue.core.placement import Entity, EntityKind, Profile, Wish
from retinue.protocol.images import ImageState
from retinue.protocol.migrations import Order, Report
from support.agents.content import ImageAgents
from support.content import some_bytes
from support.fabric.domains import TUNNEL, gateway_of, nic, server_of
from support.fabric.figure_8 import CLIENT, Figure8
from support.fabric.networks import UPLINK, vm_ip
from support.fabric.two_controllers import VM_ID, TwoDomains
from support.fabric.world import udp_frame
from support.recent_events import recent

# ---- claims 1 to 9: the mobility manager ----


async def test_claim_1_a_proxys_request_brings_the_vm_to_a_second_server_under_its_name(
    figure: Figure8,
) -> None:
    """Claim 18 is the same as a method."""
    before = figure.locator()
    assert (before["server"], before["switch"]) == ("server1", "edge1")
    migration = await figure.request()
    asked = figure.event("mobility.request")
    assert (asked["vm"], asked["by"]) == ("vm1", "server1"), "name, and the proxy whose server it is on"
    assert (migration.target, figure.event("mobility.initiation")["server"]) == ("server2", "server2")
    assert figure.event(Order.OPEN_TARGET)["migration"].target == "server2", "its proxy is instructed"
    await figure.to_its_end(migration)
    after = figure.locator()
    assert (after["server"], after["switch"]) == ("server2", "edge2"), "the current address is the second's"
    assert after["addresses"] == before["addresses"] == [str(vm_ip(1))], "and what names it is as it was"
    assert figure.from_client() == {"edge2"}, "by the identifier alone"


async def test_claim_2_the_address_changes_by_the_registration_of_the_second_servers_proxy(
    figure: Figure8,
) -> None:
    """Claim 19 is the same as a method."""
    migration = await figure.request()
    await figure.says(migration, Report.TARGET_OPENED, Report.COPY_STARTED, Report.CONVERGED, Report.STOPPED)
    assert figure.locator()["server"] == "server1"
    assert "mobility.registered" not in figure.told()
    await figure.says(migration, Report.RESUMED)
    assert figure.locator()["server"] == "server2"
    assert figure.event("mobility.profile_updated")["locator"] == figure.locator()


async def test_claim_3_the_first_servers_proxy_is_told_to_remove_what_is_there(figure: Figure8) -> None:
    """Claim 20 is the same as a method."""
    migration = await figure.request()
    await figure.says(migration, Report.TARGET_OPENED, Report.COPY_STARTED, Report.CONVERGED, Report.STOPPED)
    assert Order.FREE_SOURCE not in figure.told("migration.")
    await figure.says(migration, Report.RESUMED)
    assert figure.event(Order.FREE_SOURCE)["migration"].source == "server1", "in response to the registration"
    assert "mobility.released" not in figure.told()
    await figure.says(migration, Report.SOURCE_FREED)
    assert figure.told("mobility.")[-7:] == [
        "mobility.ready", "mobility.registered", "mobility.profile_updated",
        "mobility.double_delivery_ended", "mobility.deregistered", "mobility.released",
        "mobility.booking_ended",
    ]  # fmt: skip


async def test_claim_4_the_clients_of_the_request_are_served_all_the_while(figure: Figure8) -> None:
    served = Entity("vm1", EntityKind.VM, Profile(clients=(str(CLIENT),)))
    figure.fake.controller.entities.register([served])
    migration = await figure.request()
    assert figure.event("mobility.request")["profile"]["clients"] == (str(CLIENT),)
    runs_at = "edge1"
    for report in (
        *(Report.TARGET_OPENED, Report.COPY_STARTED, Report.CONVERGED),
        *(Report.STOPPED, Report.RESUMED, Report.SOURCE_FREED),
    ):
        assert figure.from_client(), f"before {report} nothing comes to the VM"
        await figure.says(migration, report)
        runs_at = "edge2" if report is Report.RESUMED else runs_at
        if report not in (Report.CONVERGED, Report.STOPPED):  # There it waits at the second.
            assert runs_at in figure.from_client(), report


async def test_claims_5_and_6_client_packets_go_to_both_and_then_no_longer_to_the_first(
    figure: Figure8,
) -> None:
    migration = await figure.request()
    await figure.says(migration, Report.TARGET_OPENED, Report.COPY_STARTED, Report.CONVERGED, Report.STOPPED)
    assert figure.from_client() == {"edge1", "edge2"}
    assert Order.FREE_SOURCE not in figure.told("migration.")
    await figure.says(migration, Report.RESUMED)
    assert Order.FREE_SOURCE in figure.told("migration.")
    assert figure.from_client() == {"edge2"}


async def test_claim_7_the_request_says_what_is_shareable_and_what_is_the_vms_own(figure: Figure8) -> None:
    net = figure.fake.net
    net.put_vm(replace(net.vms["vm1"], disks=(Disk(size_mib=64, image="debian"),)))
    await figure.request()
    profile = figure.event("mobility.request")["profile"]
    assert (profile["shareable"], profile["private"]) == (["debian"], ["memory", "disk1"])
    assert figure.event("mobility.initiation")["profile"] == profile, "and the second server is told"


async def test_claims_8_and_9_shareable_content_comes_in_packets_from_several_origins(
    tmp_path: Path,
) -> None:
    """It is no VM's, and held by servers and by a cache beside the second server."""
    agents = ImageAgents(tmp_path)
    try:
        for server in ("server1", "server3", "server2"):
            await agents.start(server)
        await agents.start("cache1", cache=True)
        data = some_bytes(48)
        await agents.publish("server1", "debian", data)
        agents.order("server3", "debian")
        await agents.controller.until("server3", "debian")
        agents.services["server2"]._patience = None  # Nobody is avoided on a slow machine.
        agents.order("server2", "debian")
        held = await agents.controller.until("server2", "debian", ImageState.HELD)
        assert len([origin for origin, bytes in held["origins"].items() if bytes >= CHUNK_BYTES]) > 1
        assert sum(held["origins"].values()) == len(data)
    finally:
        await agents.close()


# ---- claims 10 to 17: the server with its proxy ----


async def test_claims_10_to_12_the_match_goes_to_proxies_here_and_to_the_other_domains_manager(
    domains: TwoDomains,
) -> None:
    a, b = (domains.controller(domain) for domain in "ab")
    domains.room = {server_of("a", 2): 100}
    a.mobility.profile_query(VM_ID, server_of("a", 1))
    migration = await a.mobility.migrate(VM_ID, Wish(), server_of("a", 1))
    told = recent(a.events, "mobility.", 100)
    assert [event.type for event in told][:6] == [
        "mobility.profile_query", "mobility.message", "mobility.request", "mobility.match",
        "mobility.answer", "mobility.answer",
    ]  # fmt: skip
    query, message, request, match, *answers = told[:6]
    assert message.data["vm"] == request.data["vm"] == VM_ID
    assert query.data["profile"] == request.data["profile"] == match.data["profile"]
    assert set(match.data["servers"]) == {server_of("a", 1), server_of("a", 2)}, "claim 11"
    assert {one.data["server"] for one in answers} == set(match.data["servers"]), "claim 12"
    (there,) = recent(b.events, "mobility.match", 10)
    assert there.data["profile"]["memory_mib"] == match.data["profile"]["memory_mib"]
    assert migration.far is not None and migration.far.domain == "b", "whose server was the best"


async def test_claim_13_the_name_stays_over_domains_while_the_address_changes(domains: TwoDomains) -> None:
    a, b = (domains.controller(domain) for domain in "ab")
    before = a.entities.shown(VM_ID)
    await domains.move("a", "b", server_of("b", 2))
    here, there = a.entities.shown(VM_ID), b.entities.shown(VM_ID)
    assert before is not None and here is not None and there is not None
    assert before["name"] == here["name"] == there["name"] == VM_ID
    assert before["locator"]["addresses"] == here["locator"]["addresses"] == there["locator"]["addresses"]
    where = [shown["locator"]["server"] for shown in (before, here, there)]
    assert where == [server_of("a", 1), gateway_of("a"), server_of("b", 2)]
    own = replace(nic("b", 1), port_id="other")
    with pytest.raises(RequestError):
        b.inventory.register_vms([VM(VM_ID, (own,), server_of("b", 1))])


async def test_claim_14_a_profile_has_clients_and_content(figure: Figure8) -> None:
    served = Entity("vm1", EntityKind.VM, Profile(clients=(str(CLIENT),), image="debian"))
    figure.fake.controller.entities.register([served])
    shown = figure.manager.profile_query("vm1", "server1")
    assert (shown["clients"], shown["shareable"]) == ((str(CLIENT),), ["debian"])
    assert shown["private"] == ["memory"]


async def test_claim_15_both_managers_set_up_the_connection_for_what_is_the_vms_own(
    domains: TwoDomains,
) -> None:
    """The other domain's manager says where its server takes the memory in, and ours tells our server."""
    domains.begin(server=server_of("b", 2))
    await domains.until("a", S.DONE)
    (order,) = recent(domains.controller("a").events, Order.START_COPY, 10)
    (there,) = recent(domains.controller("b").events, Order.OPEN_TARGET, 10)
    assert order.data["migration"].memory_at
    assert order.data["migration"].far.server == there.data["migration"].target == server_of("b", 2)
    assert domains.doors["a"].said[0] == "opened"
    await domains.until("b", S.DONE)


async def test_claim_16_packets_go_on_to_the_other_domain_while_the_vm_is_installed_there(
    domains: TwoDomains,
) -> None:
    """From when its domain diverts until it runs there, what still comes to the first server is sent on."""
    a = domains.fakes["a"]
    came: list[tuple[str, str]] = []

    def look() -> None:
        vm = a.net.vms.get(VM_ID)
        if vm is not None and vm.forwarded_from and not came:
            mac = a.net.servers[server_of("a", 1)].mac
            late = udp_frame(a.net.gateway_mac, mac, CLIENT, IPv4Address(nic("a", 1).addresses[0]))
            for way in a.fabric.all_paths("a-edge1", UPLINK, late):
                came.extend(
                    (switch, "tunnel" if number == TUNNEL else "") for switch, number, _ in way.arrivals
                )

    a.confirms = look
    domains.begin(server=server_of("b", 2))
    await domains.until("a", S.DONE)
    await domains.until("b", S.DONE)
    assert set(came) == {("a-edge3", "tunnel")}, "by the gateway, and nowhere else"
