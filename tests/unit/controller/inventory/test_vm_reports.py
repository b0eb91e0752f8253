"""What servers report of VMs that somebody made there, what of it is refused, and what a manager confirms."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, ip_address

import pytest

from retinue.controller.errors import RequestError
from retinue.controller.inventory.vm_reports import Report
from retinue.core.limits import MOST_REPORTED, MOST_REPORTS_A_SECOND
from retinue.core.model import IP, NIC, VM, BindingKind, ModelError, PortStatus
from retinue.protocol.errors import ErrorCode
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import GATEWAY_MAC, fabric, vm_ip, vm_mac, vm_port
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork
from support.recent_events import recent

REFUSED = "reports of VMs refused"
NOW = 1000.0


class Bench(FakeNetwork):
    now = NOW

    def __init__(self) -> None:
        self.store = MemoryStore()
        super().__init__(fabric(), lambda: self.now, self.store)

    async def say(self, report: Report, server: str = "server1") -> tuple[IP, ...]:
        found = await self.controller.inventory.reports.on_report(server, report)
        await self.settle()
        return found

    def held(self) -> list[IP]:
        return [one.ip for one in self.net.held_by("vm1")]

    def refused(self) -> int:
        return self.controller.context.counters[REFUSED]

    def port(self, *, gone: bool = False, tag: int = 0) -> None:
        port = BridgePort(0x31, "br0", "tap1", vm_port(1), PortStatus.UP, "vm1", vm_mac(1), tag=tag)
        self.controller.inventory.ports.changed([port] if gone else [], [] if gone else [port])


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def report(bench: Bench) -> Report:
    return Report("vm1", vm_mac(1), bench.net.servers["server1"].mac, (vm_ip(1),))


async def test_a_vm_is_registered_and_its_address_waits_until_a_manager_confirms_it(
    bench: Bench, report: Report
) -> None:
    """US 9,313,088: MAC, IP and physical MAC are enough for the VM's routes, when its port is there."""
    assert await bench.say(report) == (vm_ip(1),)
    vm = bench.net.vms["vm1"]
    assert (vm.reported, vm.server, vm.nic.mac, vm.nic.addresses) == (True, "server1", vm_mac(1), ())
    assert bench.held() == []
    told = recent(bench.controller.events, "vm.addresses_reported", 10)
    assert [(e.data["vm"].id, e.data["server"], e.data["addresses"]) for e in told] == [
        ("vm1", "server1", [str(vm_ip(1))])
    ]
    bench.port()
    await bench.settle()
    assert bench.held() == [], "a port does not make it true"
    confirmed = await bench.controller.inventory.reports.confirm("vm1", [vm_ip(1)])
    assert confirmed.nic.addresses == (vm_ip(1),)
    assert [(one.ip, one.kind) for one in bench.net.held_by("vm1")] == [(vm_ip(1), BindingKind.STATIC)]
    assert await bench.say(report) == (), "said again, it is true already"
    assert len(recent(bench.controller.events, "vm.addresses_reported", 10)) == 1


async def test_a_confirmed_vm_goes_with_its_port_as_it_came_and_outlives_the_controller(
    bench: Bench, report: Report
) -> None:
    await bench.say(report)
    bench.port()
    await bench.settle()
    await bench.controller.inventory.reports.confirm("vm1", [vm_ip(1)])
    store = bench.store
    stored = store.load()
    assert [(vm.id, vm.reported, vm.nic.addresses) for vm in stored.vms] == [("vm1", True, (vm_ip(1),))]
    assert [one.ip for one in stored.assignments] == [vm_ip(1)]
    bench.port(gone=True)
    await bench.settle()
    assert "vm1" not in bench.net.vms
    assert store.load().assignments == []


async def test_of_several_addresses_a_manager_may_confirm_some(bench: Bench, report: Report) -> None:
    three = tuple(IPv4Address(f"10.1.0.{n}") for n in (61, 62, 63))
    assert await bench.say(replace(report, addresses=three)) == three
    confirm = bench.controller.inventory.reports.confirm
    with pytest.raises(
        RequestError, match=r"nobody has reported 10\.1\.0\.99; what waits .* is 10\.1\.0\.61"
    ):
        await confirm("vm1", [ip_address("10.1.0.99")])
    assert (await confirm("vm1", three[1:2])).nic.addresses == three[1:2]
    assert await bench.say(replace(report, addresses=three)) == (three[0], three[2])
    with pytest.raises(
        RequestError, match=r"no address is named; what waits .* is 10\.1\.0\.61, 10\.1\.0\.63"
    ):
        await confirm("vm1", [])
    assert (await confirm("vm1", [three[0], three[2]])).nic.addresses == (three[1], three[0], three[2])
    with pytest.raises(RequestError, match="no reported address waits"):
        await confirm("vm1", [])
    with pytest.raises(RequestError, match="there is no VM vm9"):
        await confirm("vm9", three)


async def test_what_a_server_says_after_a_manager_has_looked_is_not_confirmed_with_the_rest(
    bench: Bench, report: Report
) -> None:
    seen = await bench.say(report)
    await bench.say(replace(report, addresses=(vm_ip(1), vm_ip(99))))
    confirmed = await bench.controller.inventory.reports.confirm("vm1", seen)
    assert (confirmed.nic.addresses, bench.held()) == ((vm_ip(1),), [vm_ip(1)])


async def test_what_is_reported_anew_takes_the_place_of_what_was(bench: Bench, report: Report) -> None:
    other = IPv4Address("10.1.0.77")
    await bench.say(report)
    assert await bench.say(replace(report, addresses=(other,))) == (other,)
    assert await bench.say(replace(report, addresses=())) == ()
    with pytest.raises(RequestError, match="no reported address waits"):
        await bench.controller.inventory.reports.confirm("vm1", [vm_ip(1)])


async def test_addresses_of_a_registered_vm_are_held_too(bench: Bench, report: Report) -> None:
    bench.controller.inventory.register_vms([VM.with_one_nic("vm1", vm_mac(1), "server1")])
    assert await bench.say(report) == (vm_ip(1),)
    assert (await bench.controller.inventory.reports.confirm("vm1", [vm_ip(1)])).reported is False
    assert bench.held() == [vm_ip(1)]


async def test_what_cannot_be_so_is_refused_counted_and_told(bench: Bench, report: Report) -> None:
    """Each of these changes nothing: neither what is registered, nor what is held."""
    server2 = bench.net.servers["server2"]
    static = VM.with_one_nic("vm2", vm_mac(2), "server2", addresses=(vm_ip(2),))
    bench.controller.inventory.register_vms([static])
    await bench.settle()
    gateway = next(iter(bench.net.subnets.values())).gateway
    bad = {
        "another's server MAC": (replace(report, server_mac=server2.mac), "is no MAC of server server1"),
        "no server's MAC": (replace(report, server_mac="02:00:00:00:77:77"), "is no MAC of server server1"),
        "the gateway's MAC": (replace(report, mac=GATEWAY_MAC), "is the gateway's"),
        "a group's MAC": (replace(report, mac="01:00:5e:00:00:01"), "is a group address"),
        "a server's MAC": (replace(report, mac=server2.mac), "server2"),
        "another VM's MAC": (replace(report, mac=vm_mac(2)), "already belongs to VM vm2"),
        "another VM's address": (replace(report, addresses=(vm_ip(2),)), "is held by VM vm2"),
        "the gateway's address": (replace(report, addresses=(gateway,)), "is the gateway of subnet"),
        "a group of IPv6": (replace(report, addresses=(ip_address("ff02::1"),)), "is no host's"),
        "a VM elsewhere": (replace(report, vm="vm2", mac=vm_mac(2)), "VM vm2 is at server server2"),
        "gone, elsewhere": (replace(report, vm="vm2", mac=vm_mac(2), gone=True), "VM vm2 is at server"),
    }
    for number, (why, (wrong, sentence)) in enumerate(bad.items(), 1):
        with pytest.raises(ModelError, match=sentence):
            await bench.say(wrong)
        assert (why, bench.refused()) == (why, number)
        assert (why, sorted(bench.net.vms)) == (why, ["vm2"])
    told = recent(bench.controller.events, "vm.report_refused", 20)
    assert {e.data["server"] for e in told} == {"server1"}
    assert len(told) == len(bad) - 1, "the last says the same as the one before"
    assert bench.net.vms["vm2"].nic.addresses == (vm_ip(2),)


async def test_of_a_vm_on_its_way_it_is_said_that_it_is_so_for_now(
    bench: Bench, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.controller.inventory.register_vms([VM.with_one_nic("vm1", vm_mac(1), "server2")])
    for migrates, code in ((False, ErrorCode.CONFLICT), (True, ErrorCode.MIGRATION_UNDER_WAY)):
        monkeypatch.setattr(bench.controller.inventory.ports, "migrates", lambda vm, is_so=migrates: is_so)
        with pytest.raises(RequestError, match="is at server server2") as refused:
            await bench.say(report)
        assert refused.value.code is code


async def test_a_vm_that_is_there_is_not_given_another_mac(bench: Bench, report: Report) -> None:
    await bench.say(report)
    with pytest.raises(RequestError, match=f"VM vm1 has MAC {vm_mac(1)}, not {vm_mac(3)}"):
        await bench.say(replace(report, mac=vm_mac(3), addresses=(vm_ip(3),)))
    vm1 = bench.net.vms["vm1"]
    assert bench.controller.inventory.reports.waiting(vm1, vm1.nic) == (vm_ip(1),)


async def test_an_address_that_another_has_got_meanwhile_cannot_be_confirmed(
    bench: Bench, report: Report
) -> None:
    await bench.say(report)
    late = VM.with_one_nic("vm2", vm_mac(2), "server2", addresses=(vm_ip(1),))
    bench.controller.inventory.register_vms([late])
    with pytest.raises(ModelError, match="is held by VM vm2"):
        await bench.controller.inventory.reports.confirm("vm1", [vm_ip(1)])
    assert bench.net.vms["vm1"].nic.addresses == ()
    assert bench.held() == []


async def test_a_vm_that_is_gone_goes_unless_its_port_or_a_manager_says_otherwise(
    bench: Bench, report: Report
) -> None:
    gone = replace(report, gone=True)
    bench.controller.inventory.ports.edge_read([0x31])
    await bench.say(report)
    await bench.say(gone)
    assert "vm1" not in bench.net.vms
    assert await bench.say(gone) == (), "said twice"
    await bench.say(report)
    bench.port()
    await bench.settle()
    await bench.say(gone)
    assert "vm1" in bench.net.vms
    vm1 = bench.net.vms["vm1"]
    assert bench.controller.inventory.reports.waiting(vm1, vm1.nic) == ()


async def test_gone_is_of_the_mac_that_it_says_and_waits_until_the_switch_has_been_read(
    bench: Bench, report: Report
) -> None:
    """After a start of the controller a port that stands is not known yet: nothing that is kept is lost."""
    gone = replace(report, gone=True)
    await bench.say(report)
    await bench.controller.inventory.reports.confirm("vm1", [vm_ip(1)])
    assert await bench.say(gone) == ()
    assert bench.held() == [vm_ip(1)], "the switch's ports have not been read"
    bench.controller.inventory.ports.edge_read([0x31], ["vm1"])
    with pytest.raises(RequestError, match=f"VM vm1 has MAC {vm_mac(1)}, not {vm_mac(3)}"):
        await bench.say(replace(gone, mac=vm_mac(3)))
    assert bench.held() == [vm_ip(1)]
    await bench.say(gone)
    assert "vm1" not in bench.net.vms


@pytest.mark.parametrize(
    "other",
    [{"server": "server2"}, {"mac": vm_mac(3)}],
    ids=["the VM has left the server that said it", "the NIC has another MAC"],
)
async def test_what_was_said_of_another_place_or_mac_cannot_be_confirmed(
    bench: Bench, report: Report, other: dict[str, str]
) -> None:
    await bench.say(report)
    vm = bench.net.vms["vm1"]
    moved = replace(vm, nics=(replace(vm.nic, mac=other.get("mac", vm.nic.mac)),))
    bench.net.put_vm(replace(moved, server=other.get("server", "server1")))
    with pytest.raises(RequestError, match="no reported address waits"):
        await bench.controller.inventory.reports.confirm("vm1", [vm_ip(1)])
    assert (bench.net.vms["vm1"].nic.addresses, bench.held()) == ((), [])


async def test_what_was_said_of_a_nic_goes_with_it(bench: Bench, report: Report) -> None:
    nics = bench.controller.inventory.nics
    bench.controller.inventory.register_vms([VM.with_one_nic("vm1", vm_mac(1), "server1")])
    second = NIC(vm_mac(3), "vm1-2", slot=1)
    for _ in range(2):
        vm = nics.add("vm1", second)
        assert bench.controller.inventory.reports.waiting(vm, second) == ()
        await bench.say(replace(report, mac=second.mac))
        assert bench.controller.inventory.reports.waiting(vm, second) == (vm_ip(1),)
        nics.remove("vm1", "vm1-2")


async def test_what_a_manager_removed_does_not_come_back_by_a_servers_word(
    bench: Bench, report: Report
) -> None:
    """The port stands, and its server says once more what it said: it is a manager's to register it again."""
    bench.port()
    await bench.settle()
    await bench.controller.inventory.remove_vm("vm1")
    for _ in range(2):
        with pytest.raises(ModelError, match="VM vm1 was removed, and a port of it may still stand"):
            await bench.say(report)
        assert ("vm1" in bench.net.vms, bench.held()) == (False, [])
        assert bench.controller.inventory.ports.removed_vms() == ["vm1"]
    assert bench.refused() == 2
    bench.port(gone=True)
    await bench.settle()
    bench.controller.inventory.ports.edge_read([0x31])
    assert await bench.say(report) == (vm_ip(1),), "made anew, it is another VM"


async def test_a_flood_of_reports_is_refused_until_a_second_has_passed(bench: Bench, report: Report) -> None:
    for _ in range(MOST_REPORTS_A_SECOND):
        await bench.say(report)
    with pytest.raises(RequestError, match="more than 100 VMs a second") as refused:
        await bench.say(report)
    assert refused.value.code is ErrorCode.TOO_OFTEN
    mac2 = bench.net.servers["server2"].mac
    await bench.say(Report("vm2", vm_mac(2), mac2), "server2")
    bench.now += 1.0
    await bench.say(report)
    assert bench.refused() == 1


async def test_a_server_reports_so_many_vms_and_no_more(bench: Bench, report: Report) -> None:
    for number in range(MOST_REPORTED):
        bench.now += 0.1
        mac = f"52:54:00:77:{number >> 8:02x}:{number & 255:02x}"
        await bench.controller.inventory.reports.on_report(
            "server1", replace(report, vm=f"v{number}", mac=mac, addresses=())
        )
    bench.now += 1.0
    with pytest.raises(ModelError, match=f"has {MOST_REPORTED} VMs that nobody registered"):
        await bench.say(report)


async def test_where_its_port_is_no_vms_a_report_makes_none_of_it(bench: Bench, report: Report) -> None:
    """libvirt's domain names a VLAN that is no vnet's: its port was refused, and its XML says no more."""
    bench.port(tag=42)
    await bench.settle()
    with pytest.raises(ModelError, match="VLAN tag is 42, which is no vnet's"):
        await bench.say(report)
    assert "vm1" not in bench.net.vms
