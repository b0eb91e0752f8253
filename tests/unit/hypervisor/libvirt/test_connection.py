"""libvirt behind the hypervisor interface, with a libvirt in memory."""

import asyncio
import ctypes
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from retinue.core.migration.precopy import may_look_again
from retinue.host.errors import HostError
from retinue.hypervisor import DiskSpec, HypervisorError, RunState, Started, VMSpec, ignore
from retinue.hypervisor.interface import Event
from retinue.hypervisor.libvirt import connection
from retinue.hypervisor.libvirt.connection import LibvirtHost
from retinue.hypervisor.libvirt.directory import Folder
from retinue.hypervisor.libvirt.domain_xml import (
    QEMU_NAMESPACE,
    Consoles,
    domain_xml,
    hardware,
    interface_element,
    interface_id,
    interface_ids,
    taps,
    vlan_filters,
    without_checksums,
)
from retinue.hypervisor.libvirt.events import Lifecycle, kind_of
from retinue.hypervisor.libvirt.hypervisor import LibvirtHypervisor
from retinue.protocol.hypervisor_events import EventKind, HypervisorEvent
from retinue_lab.network import keepgroups
from support.fakes.libvirt import FakeConnection, FakeLibrary

VM = "00000000-0000-4000-8000-000000000001"
OTHER = "00000000-0000-4000-8000-000000000002"
FOLDER = Path("/run/libvirt/vms")
SHARED = Folder(FOLDER, FOLDER)
CONSOLES = Consoles(FOLDER / "a", FOLDER / "b")
LIMIT = 60.0


def spec(vm: str = VM) -> VMSpec:
    return VMSpec(vm, "52:54:00:00:00:01", "tap-1", Path("/k"), Path("/i"), "console=ttyS0 a=<&>")


@pytest.fixture
def library() -> FakeLibrary:
    return FakeLibrary()


@pytest.fixture
async def host(library: FakeLibrary) -> AsyncIterator[LibvirtHost]:
    made = LibvirtHost("server1", "test:///", library)
    yield made
    await made.close()


def server(library: FakeLibrary) -> FakeConnection:
    assert library.server is not None
    return library.server


# ---- XML ----


def test_the_domain_has_one_port_by_its_id_and_no_offload() -> None:
    domain = ElementTree.fromstring(domain_xml(spec(), CONSOLES))
    assert domain.get("type") == "qemu"
    assert domain.findtext("uuid") == domain.findtext("name") == VM
    assert domain.findtext("os/kernel") == "/k" and domain.findtext("os/initrd") == "/i"
    assert domain.findtext("os/cmdline") == "console=ttyS0 a=<&>"
    (interface,) = domain.findall("devices/interface")
    assert {key: interface.find(key).attrib for key in ("mac", "source", "target", "mtu", "model")} == {  # type: ignore[union-attr]
        "mac": {"address": "52:54:00:00:00:01"},
        "source": {"bridge": "br0"},
        "target": {"dev": "tap-1"},
        "mtu": {"size": "1500"},
        "model": {"type": "virtio"},
    }
    for side, count in (("host", 6), ("guest", 5)):
        switched = interface.find(f"driver/{side}")
        assert switched is not None and list(switched.attrib.values()) == ["off"] * count
    assert not domain.findall("devices/video") and not domain.findall("devices/graphics")
    assert [s.get("type") for s in domain.findall("devices/serial")] == ["file", "unix"]


def test_the_cards_of_a_domain_of_ours_do_not_filter_vlans() -> None:
    """QEMU forgets as it migrates which ones a guest wants; a NIC that is put in later has no such name."""
    domain = ElementTree.fromstring(domain_xml(spec(), CONSOLES))
    qemu = {"qemu": QEMU_NAMESPACE}
    (device,) = domain.findall("qemu:override/qemu:device", qemu)
    assert device.get("alias") == domain.find("devices/interface/alias").get("name")  # type: ignore[union-attr]
    (its,) = device.findall("qemu:frontend/qemu:property", qemu)
    assert its.attrib == {"name": "ctrl_vlan", "type": "bool", "value": "false"}
    assert interface_element(spec().nics[0], "br0").find("alias") is None


@pytest.mark.parametrize(
    ("change", "filters"),
    [
        (("", ""), False),
        (('value="false"', 'value="true"'), True),
        (("<alias name=", '<alias name="net0" was='), True),
        (("qemu:override", "qemu:other"), True),
        (('type="virtio"', 'type="e1000"'), False),
        (("<driver", '<driver name="vhost"'), False),
    ],
)
def test_which_cards_filter_vlans_is_read_from_anybodys_domain(
    change: tuple[str, str], filters: bool
) -> None:
    xml = domain_xml(spec(), CONSOLES).replace(*change)
    assert vlan_filters(xml) == ((VM,) if filters else ())
    other = domain_xml(spec(), CONSOLES, kind="kvm").replace("qemu:override", "qemu:other")
    assert vlan_filters(other) == (), "vhost moves its frames"
    assert vlan_filters(other.replace("<driver", '<driver name="qemu"')) == (VM,)
    assert vlan_filters("no XML") == ()


@pytest.mark.parametrize(
    ("change", "without"),
    [
        (("", ""), False),
        ((' csum="off"', ""), True),
        (("<host ", "<elsewhere "), True),
        (('<host csum="off"', '<host csum="on"'), True),
        (('type="virtio"', 'type="e1000"'), False),
    ],
)
def test_whose_guests_leave_checksums_to_the_card_is_read_from_anybodys_domain(
    change: tuple[str, str], without: bool
) -> None:
    xml = domain_xml(spec(), CONSOLES).replace(*change)
    assert without_checksums(xml) == ((VM,) if without else ())
    assert without_checksums(xml.replace('"virtio"', '"e1000"').replace("<host ", "<none ")) == ()
    assert without_checksums("no XML") == ()


async def test_what_runs_is_told_with_the_cards_that_filter_vlans(
    host: LibvirtHost, library: FakeLibrary
) -> None:
    xml = domain_xml(spec(), CONSOLES)
    server(library).createXML(xml, 0)
    assert [one.vlan_filters for one in await host.found()] == [()]
    server(library).createXML(domain_xml(spec(OTHER), CONSOLES).replace("qemu:override", "qemu:other"), 0)
    assert {one.vm: one.vlan_filters for one in await host.found()} == {VM: (), OTHER: (OTHER,)}


def test_the_memory_of_an_emulated_domain_of_ours_may_be_looked_at_more_than_once() -> None:
    emulated, accelerated = (hardware(domain_xml(spec(), CONSOLES, kind=kind)) for kind in ("qemu", "kvm"))
    size = spec().memory_mib << 20
    assert (emulated, accelerated) == (("tcg", size + (8 << 10)), ("kvm", size))
    assert may_look_again(emulated[0], (7, 2, 22), emulated[1])
    assert hardware("<domain type='kvm'><memory unit='KiB'>1024</memory></domain>") == ("kvm", 1 << 20)
    for xml in ("", "<domain/>", "<domain><memory unit='stone'>1</memory></domain>"):
        with pytest.raises(HypervisorError, match="as we do not know it"):
            hardware(xml)


def test_ids_and_taps_are_read_back_from_anybodys_domain() -> None:
    xml = domain_xml(spec(), CONSOLES)
    assert interface_ids(xml) == (VM,) and taps(xml) == ("tap-1",)
    assert interface_ids("<domain><devices><interface type='network'/></devices></domain>") == ()
    assert interface_ids("no xml") == () and taps("no xml") == ()


@pytest.mark.parametrize("id", ["vm1", VM.replace("-", ""), "AAAAAAAA-0000-4000-8000-000000000001", ""])
def test_an_id_that_is_no_uuid_is_rejected_with_a_way_out(id: str) -> None:
    with pytest.raises(HostError, match="UUID"):
        interface_id(id)


# ---- events ----


@pytest.mark.parametrize(
    ("event", "detail", "kind"),
    [
        (Lifecycle.STARTED, 0, EventKind.STARTED),
        (Lifecycle.STARTED, 1, EventKind.INCOMING),
        (Lifecycle.STARTED, 2, EventKind.STARTED),
        (Lifecycle.SUSPENDED, 0, None),
        (Lifecycle.SUSPENDED, 1, EventKind.SUSPENDED),
        (Lifecycle.SUSPENDED, 2, None),
        (Lifecycle.RESUMED, 0, EventKind.STARTED),
        (Lifecycle.RESUMED, 1, EventKind.RESUMED),
        (Lifecycle.SUSPENDED, 7, EventKind.SUSPENDED),
        (Lifecycle.SUSPENDED, 8, None),
        (Lifecycle.RESUMED, 3, EventKind.RESUMED),
        (Lifecycle.RESUMED, 4, None),
        (Lifecycle.STOPPED, 0, EventKind.STOPPED),
        (Lifecycle.STOPPED, 1, EventKind.STOPPED),
        (Lifecycle.STOPPED, 3, EventKind.DEPARTED),
        (Lifecycle.STOPPED, 5, EventKind.FAILED),
        (Lifecycle.DEFINED, 1, None),
        (Lifecycle.SHUTDOWN, 0, None),
        (99, 1, None),
    ],
)
def test_what_each_event_means(event: int, detail: int, kind: EventKind | None) -> None:
    assert kind_of(event, detail) is kind


# ---- the host ----


async def test_a_server_that_makes_no_disks_says_so(host: LibvirtHost, library: FakeLibrary) -> None:
    with_disks = replace(spec(), disks=(DiskSpec(1, Path("/d/overlay")),))
    with pytest.raises(HostError, match="has disks, and server server1 makes none"):
        await LibvirtHypervisor(host, SHARED).start(with_disks)
    assert server(library).domains_ == []


async def test_a_vm_is_plugged_paused_and_then_started(host: LibvirtHost, library: FakeLibrary) -> None:
    hypervisor = LibvirtHypervisor(host, Folder(FOLDER, Path("/seen/here")))
    machine = await hypervisor.plug(spec())
    assert await machine.state() is RunState.PAUSED
    again = await hypervisor.start(spec())
    assert await again.state() is RunState.RUNNING
    assert len(server(library).domains_) == 1, "plugging twice makes one domain"
    assert machine.files.serial_log == Path(f"/seen/here/{VM}.console")
    assert str(FOLDER / f"{VM}.shell") in server(library).domains_[0].xml
    await again.quit()
    await again.quit()  # What has ended may be ended again.
    assert await hypervisor.find(VM) is None
    with pytest.raises(HostError, match=f"server server1: libvirt has no VM {VM}"):
        await again.state()


class Heard:
    """What a watch tells, awaited one by one."""

    def __init__(self, host: LibvirtHost) -> None:
        self.times_back = 0
        self._happenings = host.watch(self._back)

    def _back(self) -> None:
        self.times_back += 1

    async def next(self) -> HypervisorEvent:
        async with asyncio.timeout(LIMIT):
            return await anext(self._happenings)

    async def close(self) -> None:
        await self._happenings.aclose()


async def watched(library: FakeLibrary) -> None:
    async with asyncio.timeout(LIMIT):
        while not (library.server is not None and library.server.watched()):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_vms_of_others_are_noticed_coming_and_going(host: LibvirtHost, library: FakeLibrary) -> None:
    there = server(library).createXML(domain_xml(spec(), CONSOLES), 0)
    heard = Heard(host)
    found = await heard.next()
    assert (found.vm, found.kind) == (VM, EventKind.STARTED)
    coming = asyncio.create_task(heard.next())
    other = server(library).createXML(domain_xml(spec(OTHER), CONSOLES), 1)
    assert (await coming).vm == OTHER
    server(library).tell(there, Lifecycle.SUSPENDED, 0)  # By hand: nothing to the network.
    server(library).tell(there, Lifecycle.SUSPENDED, 1)
    server(library).domains_.remove(there)
    server(library).tell(there, Lifecycle.STOPPED, 3)  # Its XML is not to be had any more.
    other.destroy()
    said = [await heard.next() for _ in range(3)]
    assert [(h.vm, h.kind) for h in said] == [
        (VM, EventKind.SUSPENDED),
        (VM, EventKind.DEPARTED),
        (OTHER, EventKind.STOPPED),
    ]
    await heard.close()
    assert not server(library).watched()


async def test_a_vm_that_a_person_resumes_is_told_apart_from_one_that_was_started(
    host: LibvirtHost, library: FakeLibrary
) -> None:
    """A migration has stopped it, which came to nothing: so that is told, once."""
    there = server(library).createXML(domain_xml(spec(), CONSOLES), 0)
    heard = Heard(host)
    await heard.next()
    coming = asyncio.create_task(heard.next())
    await watched(library)
    for event, detail in (
        *((Lifecycle.SUSPENDED, 1), (Lifecycle.RESUMED, 0), (Lifecycle.RESUMED, 0)),
        *((Lifecycle.SUSPENDED, 1), (Lifecycle.RESUMED, 1), (Lifecycle.RESUMED, 0)),
        *((Lifecycle.SUSPENDED, 1), (Lifecycle.STOPPED, 3), (Lifecycle.STARTED, 0)),
    ):
        server(library).tell(there, event, detail)
    server(library).tell(there, Lifecycle.SUSPENDED, 1)
    host.is_ours_to_resume(VM)  # By the agent, which tells itself what has come of it.
    server(library).tell(there, Lifecycle.RESUMED, 0)
    said = [(await coming).kind, *[(await heard.next()).kind for _ in range(10)]]
    assert said == [
        *(EventKind.SUSPENDED, EventKind.RESUMED, EventKind.STARTED),
        *(EventKind.SUSPENDED, EventKind.RESUMED, EventKind.STARTED),
        *(EventKind.SUSPENDED, EventKind.DEPARTED, EventKind.STARTED),
        *(EventKind.SUSPENDED, EventKind.STARTED),
    ]
    await heard.close()


async def test_a_vm_that_was_resumed_while_nobody_told_is_so_told_once(
    host: LibvirtHost, library: FakeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "AGAIN_SECONDS", 0.01)
    heard, first = Heard(host), server(library)
    there = first.createXML(domain_xml(spec(), CONSOLES), 0)
    await heard.next()
    coming = asyncio.create_task(heard.next())
    await watched(library)
    first.tell(there, Lifecycle.SUSPENDED, 1)
    assert (await coming).kind is EventKind.SUSPENDED
    library.server = back = FakeConnection()
    first.die()
    again = back.createXML(domain_xml(spec(), CONSOLES), 0)
    assert (await heard.next()).kind is EventKind.RESUMED
    coming = asyncio.create_task(heard.next())
    await watched(library)
    back.tell(again, Lifecycle.RESUMED, 0)  # It was paused by hand since: nothing to a migration.
    assert (await coming).kind is EventKind.STARTED
    await heard.close()


async def test_a_vm_whose_end_nobody_told_is_started_and_not_resumed(
    host: LibvirtHost, library: FakeLibrary
) -> None:
    there = server(library).createXML(domain_xml(spec(), CONSOLES), 0)
    heard = Heard(host)
    await heard.next()
    coming = asyncio.create_task(heard.next())
    await watched(library)
    server(library).tell(there, Lifecycle.SUSPENDED, 1)
    server(library).tell(there, Lifecycle.STARTED, 0)
    assert ((await coming).kind, (await heard.next()).kind) == (EventKind.SUSPENDED, EventKind.STARTED)
    await heard.close()


async def test_a_libvirtd_that_comes_back_is_watched_again(
    host: LibvirtHost, library: FakeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "AGAIN_SECONDS", 0.01)
    heard = Heard(host)
    first = server(library)
    coming = asyncio.create_task(heard.next())
    await watched(library)
    library.server = None
    first.die()
    async with asyncio.timeout(LIMIT):
        while len(library.opened) < 3:  # noqa: ASYNC110 - rejected at least once
            await asyncio.sleep(0.001)
    back = FakeConnection()
    back.createXML(domain_xml(spec(), CONSOLES), 0)
    library.server = back
    assert ((await coming).vm, coming.result().kind) == (VM, EventKind.STARTED)
    assert heard.times_back == 1
    await heard.close()


async def test_whoever_starts_or_takes_up_vms_finds_all_that_run(
    host: LibvirtHost, library: FakeLibrary
) -> None:
    hypervisor = LibvirtHypervisor(host, SHARED)
    started: list[Event] = []
    await hypervisor.start(spec(), started.append)
    assert [type(event) for event in started] == [Started]
    server(library).createXML(domain_xml(spec(OTHER), CONSOLES), 1)
    for state, found in (((3, 1), 1), ((1, 1), 2), ((3, 2), 1)):
        server(library).domains_[1].now = state
        adopted = (await hypervisor.adopt(lambda vm: ignore)).machines
        assert [machine.spec.id for machine in adopted] == [VM, OTHER][:found]
        assert adopted[0].spec.port == "tap-1"


async def test_a_vm_cannot_be_made_where_nothing_tells_how(host: LibvirtHost) -> None:
    with pytest.raises(HostError, match=r"\[vm\]"):
        await LibvirtHypervisor(host, SHARED).plug(VMSpec(VM, "", "tap-1", Path(), Path()))


# ---- what is known of a domain ----


async def hearing(host: LibvirtHost, libvirt: FakeConnection) -> Heard:
    """A watch that has told what was there, and tells from now on what happens."""
    there = libvirt.createXML(domain_xml(spec("00000000-0000-4000-8000-000000000003"), CONSOLES), 0)
    heard = Heard(host)
    assert (await heard.next()).vm == there.uuid
    return heard


async def test_ids_are_those_of_the_domain_that_runs(host: LibvirtHost, library: FakeLibrary) -> None:
    """One of the same UUID may have another interface each time it is started, or gets one while it runs."""
    libvirt = server(library)
    heard = await hearing(host, libvirt)
    first = domain_xml(spec(), CONSOLES)
    domain = libvirt.createXML(first, 0)
    domain.destroy()
    domain = libvirt.createXML(first.replace(f'interfaceid="{VM}"', f'interfaceid="{OTHER}"'), 0)
    assert host.ids(domain) == (OTHER,)
    assert await host.domain(OTHER) is domain and await host.domain(VM) is None
    told = [await heard.next() for _ in range(3)]
    assert [(event.vm, event.kind) for event in told] == [
        (VM, EventKind.STARTED),
        (VM, EventKind.STOPPED),
        (OTHER, EventKind.STARTED),
    ]
    libvirt.other_devices(domain, first)
    assert host.ids(domain) == (VM,)
    domain.destroy()
    assert host.ids(domain) == ()
    await heard.close()


async def test_a_migration_brings_the_ids_that_the_domain_has_now(
    host: LibvirtHost, library: FakeLibrary
) -> None:
    libvirt = server(library)
    heard = await hearing(host, libvirt)
    domain = libvirt.createXML(domain_xml(spec(), CONSOLES), 0)
    libvirt.domains_.remove(domain)  # It goes without a word.
    domain.xml = domain.xml.replace(f'interfaceid="{VM}"', f'interfaceid="{OTHER}"')
    libvirt.domains_.append(domain)
    libvirt.tell(domain, Lifecycle.STARTED, 1)
    assert (await heard.next()).vm == VM
    came = await heard.next()
    assert (came.vm, came.kind) == (OTHER, EventKind.INCOMING)
    await heard.close()


def test_a_guest_that_reboots_stays_and_one_that_crashes_as_was_asked_for() -> None:
    def actions(on_crash: bool = False) -> dict[str, str | None]:
        domain = ElementTree.fromstring(domain_xml(replace(spec(), restart_on_crash=on_crash), CONSOLES))
        return {tag: domain.findtext(tag) for tag in ("on_poweroff", "on_reboot", "on_crash")}

    assert actions() == {"on_poweroff": "destroy", "on_reboot": "restart", "on_crash": "destroy"}
    assert actions(on_crash=True)["on_crash"] == "restart"


# ---- setgroups ----


def test_the_filter_answers_one_call_and_lets_all_others_pass() -> None:
    machine, call = keepgroups.NUMBERS["x86_64"]
    code = [struct.unpack("=HBBI", piece) for piece in _pieces(keepgroups.program(machine, call))]

    def run(data: bytes) -> int:
        """The kernel's rules, for the three instructions there are."""
        accumulator, at = 0, 0
        while True:
            operation, yes, no, constant = code[at]
            at += 1
            if operation == keepgroups.LOAD_WORD:
                (accumulator,) = struct.unpack_from("=I", data, constant)
            elif operation == keepgroups.JUMP_IF_EQUAL:
                at += yes if accumulator == constant else no
            else:
                return int(constant)

    assert run(struct.pack("=II", call, machine)) == keepgroups.SUCCEED
    assert run(struct.pack("=II", call + 1, machine)) == keepgroups.ALLOW
    assert run(struct.pack("=II", call, machine + 1)) == keepgroups.ALLOW
    assert ctypes.sizeof(ctypes.c_void_p) == struct.calcsize("@P")


def _pieces(code: bytes) -> list[bytes]:
    return [code[at : at + 8] for at in range(0, len(code), 8)]


async def test_that_a_vm_was_lost_is_said_of_that_run_of_it_alone(
    host: LibvirtHost, library: FakeLibrary
) -> None:
    """Its end may come while libvirtd is away, and nobody tells of it."""
    libvirt = server(library)
    heard = await hearing(host, libvirt)
    host.lost.add(VM)
    domain = libvirt.createXML(domain_xml(spec(), CONSOLES), 0)
    domain.destroy()
    assert [(await heard.next()).kind for _ in range(2)] == [EventKind.STARTED, EventKind.STOPPED]
    await heard.close()
