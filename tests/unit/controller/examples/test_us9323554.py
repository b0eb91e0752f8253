"""The examples of US 9,323,554: two physical hosts and three VMs (figure 2), and the tables' parameters.

A controller over fake switches; hosts, switches and VMs are called as in figure 2: VMs 610 and 620 on host 60
with switch 40, VM 710 on host 70 with switch 50. Who tells of the migration is the manager.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from retinue.controller.errors import RequestError
from retinue.controller.migrations.requests import MigrationError
from retinue.core.migration.new_addresses import NewAddresses
from retinue.core.model import (
    VM,
    Binding,
    BindingKind,
    Link,
    ModelError,
    Network,
    Origin,
    PortRef,
    PortStatus,
    Role,
    Server,
    Service,
    Subnet,
    Switch,
    Trust,
    Vnet,
)
from retinue.core.packets import (
    BROADCAST,
    MessageType,
    ack,
    dhcp_frame,
    discover,
    offer,
    parse_dhcp_frame,
    request,
)
from retinue.core.pipeline.entry import Field
from retinue.core.snooping.switch_rows import SwitchRow
from retinue.protocol.migrations import Report
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import GATEWAY_MAC, UPLINK
from support.fabric.world import udp_frame
from support.fakes.session import FakeNetwork
from support.recent_events import recent

MACS = {"610": "52:54:00:00:06:10", "620": "52:54:00:00:06:20", "710": "52:54:00:00:07:10"}
IPS = {"610": IPv4Address("10.1.0.10"), "620": IPv4Address("10.1.0.20"), "710": IPv4Address("10.1.0.71")}
PORTS = {"610": 11, "620": 12, "710": 13}
DPIDS = {"40": 0x40, "50": 0x50}
SWITCH_OF = {"60": "40", "70": "50"}
DHCP_SERVER, LEASE = IPv4Address("10.1.0.2"), 600
NOBODY, EVERYBODY = IPv4Address(0), IPv4Address("255.255.255.255")


def figure_2() -> Network:
    """Hosts 60 and 70 at one leaf, with a DHCP server; nothing is said of their VMs."""
    net = Network(GATEWAY_MAC)
    net.put_vnet(Vnet("shop", vlan=42))
    net.add_subnet(Subnet("blue", IPv4Network("10.1.0.0/25"), IPv4Address("10.1.0.126"), vnet="shop"))
    net.add_subnet(Subnet("red", IPv4Network("10.1.0.128/25"), IPv4Address("10.1.0.254")))
    net.add_switch(Switch("leaf", Role.LEAF, 0x10))
    net.add_switch(Switch("spine", Role.SPINE, 0x20))
    net.add_link(Link(PortRef("leaf", "up"), PortRef("spine", "down")))
    net.set_ports("spine", {"down": 1})
    net.set_ports("leaf", {"up": 1, "to60": 60, "to70": 70, "dhcp": 90})
    for host, edge in SWITCH_OF.items():
        net.add_switch(Switch(edge, Role.EDGE, DPIDS[edge], uplink="up0"))
        net.set_ports(edge, {"up0": UPLINK})
        net.put_server(Server(host, f"02:00:00:00:00:{host}", edge=edge))
        net.detect(host, PortRef("leaf", f"to{host}"))
    net.put_server(
        Server(
            "dhcp", "02:00:00:00:01:02", DHCP_SERVER, services=frozenset({Service.DHCP}),
            given_at=PortRef("leaf", "dhcp"),
        )
    )  # fmt: skip
    return net


@dataclass
class Figure2:
    fake: FakeNetwork
    now: float = 1000.0
    order: list[str] = field(default_factory=list)
    """What happened, in its order, with the time of each by the controller's clock."""

    def tick(self) -> float:
        self.now += 1
        return self.now

    @property
    def net(self) -> Network:
        return self.fake.net

    async def add(self, vm: str, host: str, *static: IPv4Address) -> None:
        registered = VM.with_one_nic(vm, MACS[vm], host, addresses=static)
        self.fake.controller.inventory.register_vms([registered])
        await self.plug(vm, host)

    async def plug(self, vm: str, host: str, status: PortStatus = PortStatus.UP) -> None:
        port = BridgePort(
            dpid=DPIDS[SWITCH_OF[host]], bridge="br0", name=f"tap{vm}", number=PORTS[vm], status=status,
            iface_id=vm, attached_mac=MACS[vm],
        )  # fmt: skip
        self.fake.controller.inventory.ports.changed([], [port])
        await self.fake.settle()

    async def boot(self, vm: str, host: str) -> None:
        """By DHCP."""
        for message in (discover(MACS[vm], 7), request(MACS[vm], 7, IPS[vm], DHCP_SERVER)):
            asked = dhcp_frame(message, MACS[vm], BROADCAST, NOBODY, EVERYBODY, 68, 67)
            self.fake.send(SWITCH_OF[host], PORTS[vm], asked)
            await self.fake.settle()

    def serve(self, frame: bytes) -> None:
        _, _, asked = parse_dhcp_frame(frame)
        by_mac = {mac: vm for vm, mac in MACS.items()}
        answer = offer if asked.message_type is MessageType.DISCOVER else ack
        reply = answer(asked, IPS[by_mac[asked.chaddr]], DHCP_SERVER, LEASE)
        server = self.net.servers["dhcp"].mac
        self.order.append(f"S105 response of {by_mac[asked.chaddr]}")
        frame = dhcp_frame(reply, server, asked.chaddr, DHCP_SERVER, reply.yiaddr, 67, 68)
        self.fake.send("leaf", 90, frame)

    async def migrate(self, vm: str, **message: Any) -> None:
        """One message of the manager, and what the hypervisor's side reports by itself."""
        await self.carry_on(self.fake.controller.orchestrator.start(vm, **message).id, vm)

    async def carry_on(self, id: str, vm: str) -> None:
        orchestrator = self.fake.controller.orchestrator
        await self.plug(vm, "70")
        for report in (
            *(Report.TARGET_OPENED, Report.COPY_STARTED, Report.CONVERGED),
            *(Report.STOPPED, Report.RESUMED, Report.SOURCE_FREED),
        ):
            orchestrator.reports.on_report(id, report, self.tick(), "")
            await self.fake.settle()
        assert str(orchestrator.migrations[id].state) == "done", orchestrator.migrations[id]

    def rows(self, switch: str = "") -> set[tuple[str, str]]:
        """VM and switch of the active rows."""
        found = {(row.vm, row.switch) for row in self.net.bindings() if row.active}
        return {row for row in found if switch in ("", row[1])}

    def stored(self, switch: str) -> set[str]:
        """The VMs of which a switch has any entry: its MAC, its address or its port."""
        program = self.fake.fabric[switch].flows.values()
        values = {(f, value) for flow in program for f, value, _ in flow.match}
        return {
            vm
            for vm in MACS
            if (Field.ETH_SRC, int(MACS[vm].replace(":", ""), 16)) in values
            or (Field.IPV4_SRC, int(IPS[vm])) in values
            or (Field.IN_PORT, PORTS[vm]) in values
        }

    def row_of(self, vm: str) -> Binding:
        (row,) = (row for row in self.net.bindings() if row.vm == vm)
        return row

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event.data for event in recent(self.fake.controller.events, kind, 1000)]


@pytest.fixture
async def figure() -> AsyncIterator[Figure2]:
    made: Figure2
    fake = FakeNetwork(figure_2(), clock=lambda: made.now)
    made = Figure2(fake)
    fake.hosts["leaf", 90] = made.serve
    await fake.start()
    yield made
    await fake.stop()


@pytest.fixture
async def running(figure: Figure2) -> Figure2:
    """All three run, with leases."""
    for vm, host in (("610", "60"), ("620", "60"), ("710", "70")):
        await figure.add(vm, host)
        await figure.boot(vm, host)
    return figure


@pytest.mark.parametrize("target", [{"target_server": "70"}, {"target_switch": "50"}])
async def test_figure_2_vm_610_goes_from_host_60_to_host_70(running: Figure2, target: dict[str, str]) -> None:
    """The message names the target host, or the target switch; the tables have the source and the rest."""
    assert running.stored("40") == {"610", "620"}
    assert running.stored("50") == {"710"}
    await running.migrate("610", **target)
    assert running.stored("50") == {"610", "710"}, "the second forwarding switch stores it"
    assert running.stored("40") == {"620"}, "and the first has deleted it"
    assert running.rows() == {("610", "50"), ("620", "40"), ("710", "50")}


async def test_to_save_memory_the_source_has_as_many_entries_as_before_the_vm_came(figure: Figure2) -> None:
    await figure.add("620", "60")
    await figure.boot("620", "60")
    before = set(figure.fake.fabric["40"].flows)
    await figure.add("610", "60")
    await figure.boot("610", "60")
    assert set(figure.fake.fabric["40"].flows) > before
    await figure.migrate("610", target_server="70")
    assert set(figure.fake.fabric["40"].flows) == before


async def test_figure_3_s100_to_s140_in_this_order(figure: Figure2) -> None:
    """The row is on the first switch before the VM hears its address; on the second before that goes."""
    await figure.add("610", "60")
    heard: list[str] = []

    def hears(frame: bytes) -> None:
        _, _, told = parse_dhcp_frame(frame)
        assert told.message_type is not None
        stored = IPS["610"] in {row.ip for row in figure.net.bindings()}
        on_switch = (Field.IPV4_SRC, int(IPS["610"]), None) in {
            term for flow in figure.fake.fabric["40"].flows.values() for term in flow.match
        }
        heard.append(f"{told.message_type.name} row={stored} switch={on_switch}")

    figure.fake.hosts["40", PORTS["610"]] = hears
    await figure.boot("610", "60")
    assert heard == ["OFFER row=False switch=False", "ACK row=True switch=True"]
    assert figure.order == ["S105 response of 610"] * 2

    first = {name: len(session.applied) for name, session in figure.fake.sessions.items()}
    at_source: list[bool] = []
    target = figure.fake.sessions["50"]
    apply = target.apply

    async def stored_at_target(change: Any, now: float) -> None:
        at_source.append("610" in figure.stored("40"))
        await apply(change, now)

    target.apply = stored_at_target  # type: ignore[method-assign]
    await figure.migrate("610", target_server="70")
    assert at_source and at_source[0], "S135 stores at the second switch what the first still has"
    assert "610" not in figure.stored("40"), "S140"
    assert len(figure.fake.sessions["40"].applied) > first["40"]
    steps = [step for event in figure.events("migration.step") for step in event["migration"].steps]
    times = [at for _, at in dict.fromkeys(steps)]
    assert times == sorted(times)


async def test_figure_4_s200_to_s230_the_switch_makes_the_row_and_reports_it(figure: Figure2) -> None:
    """S205 it makes the row, S210 sends it to the controller; S225 the second switch has it, S230 the first
    has deleted it."""
    await figure.add("610", "60")
    assert figure.stored("40") == {"610"} and figure.rows() == set()
    made = SwitchRow(MACS["610"], IPS["610"], "tap610", figure.now + LEASE)
    assert await figure.fake.controller.switch_rows.reported("40", [made]) == [""]
    row = figure.row_of("610")
    assert (row.origin, row.switch, row.port) == (Origin.SWITCH, "40", PORTS["610"])
    await figure.migrate("610", target_switch="50")
    row = figure.row_of("610")
    assert (row.origin, row.switch, row.ip) == (Origin.SWITCH, "50", IPS["610"])
    assert (figure.stored("40"), figure.stored("50")) == (set(), {"610"})
    assert await figure.fake.controller.switch_rows.reported("40", []) == []
    assert figure.rows() == {("610", "50")}, "what the first one has no more ends nothing at the second"


async def test_figure_5_s325_to_s350_with_updated_configuration(figure: Figure2) -> None:
    """S330 the manager's update; S335 the second switch stores it; S340 the first deletes the old; S345 and
    S350, the VM is online at the second and offline from the first."""
    await figure.add("610", "60", IPS["610"])
    assert ("610", "40") in figure.rows()
    updated = NewAddresses("", mac="52:54:00:00:06:99", vnet="", addresses=("10.1.0.200",))
    await figure.migrate("610", target_server="70", new_addresses=[updated])
    row = figure.row_of("610")
    assert (row.mac, str(row.ip), row.vlan) == ("52:54:00:00:06:99", "10.1.0.200", 0)
    assert (row.vm, row.switch) == ("610", "50"), "the VM keeps its id"
    assert figure.stored("40") == set()
    old = udp_frame(MACS["610"], GATEWAY_MAC, IPS["610"], IPS["710"])
    assert not figure.fake.send("50", PORTS["610"], old).arrivals
    told = [event.type for event in recent(figure.fake.controller.events, "vm.o", 1000)]
    assert told == ["vm.online", "vm.offline"]


@pytest.mark.parametrize(
    ("updated", "why"),
    [
        ({"mac": "52:54:00:00:06:20"}, "already belongs to VM 620"),
        ({"mac": GATEWAY_MAC}, "is the gateway's"),
        ({"addresses": ("10.1.0.20",)}, "is held by VM 620"),
        ({"addresses": ("10.9.0.20",)}, "in no subnet"),
        ({"vnet": "none"}, "there is no vnet none"),
        ({"vnet": "shop", "addresses": ("10.1.0.200",)}, "in no subnet of vnet shop"),
        ({"nic": "611", "mac": "52:54:00:00:06:99"}, "has no NIC 611"),
    ],
)
async def test_an_update_that_cannot_be_is_rejected_and_changes_nothing(
    running: Figure2, updated: dict[str, Any], why: str
) -> None:
    before, vm = running.rows(), running.net.vms["610"]
    wanted = [NewAddresses(**{"nic": "", **updated})]
    with pytest.raises((ModelError, MigrationError, RequestError), match=why):
        await running.migrate("610", target_server="70", new_addresses=wanted)
    assert (running.rows(), running.net.vms["610"]) == (before, vm)
    assert not running.fake.controller.orchestrator.migrations


async def test_an_update_that_somebody_else_has_by_then_is_not_given(running: Figure2) -> None:
    """The VM has migrated, and goes on with what it had; its manager is told."""
    orchestrator, mac = running.fake.controller.orchestrator, "52:54:00:00:06:99"
    id = orchestrator.start("610", target_server="70", new_addresses=[NewAddresses("", mac=mac)]).id
    other = VM.with_one_nic("630", mac, "60")
    running.fake.controller.inventory.register_vms([other])
    await running.carry_on(id, "610")
    (told,) = running.events("migration.addresses_kept")
    assert (told["vm"], mac in told["reason"]) == ("610", True)
    row = running.row_of("610")
    assert (row.mac, row.switch) == (MACS["610"], "50")


async def test_a_lease_of_a_vnet_that_is_left_is_not_taken_along(running: Figure2) -> None:
    """From vnet shop to one of its own: what DHCP gave there means nothing here, and is told to have gone."""
    running.net.put_vnet(Vnet("office", vlan=43))
    subnet = Subnet("green", IPv4Network("10.3.0.0/24"), IPv4Address("10.3.0.254"), vnet="office")
    running.net.add_subnet(subnet)
    updated = NewAddresses("", vnet="office", addresses=("10.3.0.9",))
    await running.migrate("610", target_server="70", new_addresses=[updated])
    row = running.row_of("610")
    assert (str(row.ip), row.vlan, row.kind) == ("10.3.0.9", 43, BindingKind.STATIC)
    assert [str(event["ip"]) for event in running.events("binding.removed")] == [str(IPS["610"])]


async def test_table_1_every_parameter_in_one_row_with_two_values_each(running: Figure2) -> None:
    await running.migrate("610", target_server="70")
    await running.plug("620", "60", PortStatus.DOWN)
    one, two = running.row_of("610"), running.row_of("620")
    assert (one.mac, two.mac) == ("52:54:00:00:06:10", "52:54:00:00:06:20"), "MAC address"
    assert (str(one.ip), str(two.ip)) == ("10.1.0.10", "10.1.0.20"), "IP address"
    assert (one.vm, two.vm) == ("610", "620"), "VM ID"
    assert (one.switch, two.switch) == ("50", "40"), "Forwarding switch ID"
    assert (one.port, two.port) == (PORTS["610"], PORTS["620"]), "Port"
    assert (one.port_status, two.port_status) == (PortStatus.UP, PortStatus.DOWN), "Port status"
    assert {one.kind} == {BindingKind.DYNAMIC}, "Type"
    assert one.lease_end is not None and one.lease_end > running.now, "Lease"
    assert (one.vlan, one.trust) == (42, Trust.UNTRUST), "VLAN, Port security"

    other = VM.with_one_nic("720", "52:54:00:00:07:20", "70", addresses=(IPv4Address("10.1.0.200"),))
    running.fake.controller.inventory.register_vms([other])
    port = BridgePort(
        dpid=DPIDS["50"], bridge="br0", name="tap720", number=14, status=PortStatus.UP, iface_id="720",
        attached_mac="52:54:00:00:07:20",
    )  # fmt: skip
    running.fake.controller.inventory.ports.changed([], [port])
    await running.fake.settle()
    nic = running.net.vms["720"].nic
    touched = running.net.change_nic("720", nic, replace(nic, enabled=False, trusted=True))
    await running.fake.controller.context.install(touched)
    static = running.row_of("720")
    assert (static.kind, static.lease_end) == (BindingKind.STATIC, None), "Type and Lease of another kind"
    assert (static.vlan, static.trust) == (0, Trust.TRUST), "another VLAN, TRUST"
    assert static.port_status is PortStatus.DISABLED, "DISABLE"


@pytest.mark.parametrize(
    ("mac", "ip", "kind"), [("52:54:00:00:06:20", "610", "mac"), (MACS["610"], "620", "ip")]
)
async def test_table_1_what_does_not_agree_with_a_row_is_spoofing(
    running: Figure2, mac: str, ip: str, kind: str
) -> None:
    """ "If it is inconsistent with a received packet on a network, [...] spoofing is identified." """
    sent = running.fake.send("40", PORTS["610"], udp_frame(mac, GATEWAY_MAC, IPS[ip], IPS["710"]))
    assert not sent.arrivals
    (row,) = running.fake.controller.context.spoof_attempts.rows()
    assert (str(row.kind), row.vm, row.switch, row.claimed_mac) == (kind, "610", "40", mac)
    assert row.claimed_ip == str(IPS[ip])


async def test_table_1_a_row_is_deleted_in_the_case_of_timeout(running: Figure2) -> None:
    assert ("610", "40") in running.rows()
    running.now += LEASE + 1
    for switch in running.fake.fabric.switches.values():
        switch.expire(running.now)
    await running.fake.controller.dhcp.expire()
    await running.fake.settle()
    assert running.rows() == set()
    assert not running.fake.send(
        "40", PORTS["610"], udp_frame(MACS["610"], GATEWAY_MAC, IPS["610"], IPS["710"])
    ).arrivals


@pytest.mark.parametrize("vm", ["610", "620"])
async def test_table_2_every_parameter_of_the_message_is_checked(running: Figure2, vm: str) -> None:
    """A message whose MAC, IP address or source is not the row's is rejected, and changes nothing."""
    start = running.fake.controller.orchestrator.start
    before = running.rows()
    right: dict[str, Any] = {"source_server": "60", "mac": MACS[vm], "ip": IPS[vm]}
    for wrong in ({"source_server": "70"}, {"mac": MACS["710"]}, {"ip": IPS["710"]}):
        with pytest.raises(MigrationError, match=vm):
            start(vm, target_server="70", **{**right, **wrong})
    assert running.rows() == before
    migration = start(vm, target_server="70", **right)
    assert (migration.vm, migration.source, migration.target) == (vm, "60", "70")
