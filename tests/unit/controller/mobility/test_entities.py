"""Names: unique over all kinds, for as long as what has them is there, and led to where it is."""

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from retinue.controller.app import Controller
from retinue.controller.migrations.requests import MigrationError
from retinue.controller.state import Stored
from retinue.core.content import CHUNK_BYTES
from retinue.core.model import VM, ModelError, PortStatus, VMPort
from retinue.core.model.disks import Disk
from retinue.core.pipeline.entry import Field, Output
from retinue.core.pipeline.priorities import Deliver
from retinue.core.pipeline.tables import Table
from retinue.core.placement import Entity, EntityKind, Profile, Wish
from retinue.protocol.images import HeldImage, ImagesBody, ImageState, SignedManifest
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import add_vm, fabric, server, vm_ip, vm_mac, vm_port
from support.fakes.session import FakeNetwork
from support.recent_events import recent


@pytest.fixture
def controller() -> Controller:
    made = Controller(fabric(), clock=lambda: 1000.0)
    add_vm(made.net, 1, at=1)
    add_vm(made.net, 2, at=2)
    return made


SHOP = Entity("shop", EntityKind.SERVICE, Profile(served_by=("vm9", "vm1", "vm2")))


async def test_a_service_leads_to_the_first_of_its_vms_that_is_there(controller: Controller) -> None:
    controller.entities.register([SHOP])
    locator = {"server": "server1", "switch": "edge1", "port": vm_port(1), "addresses": [str(vm_ip(1))]}
    shown = controller.entities.shown("shop")
    assert shown is not None
    assert shown["locator"] == {"vm": "vm1", "vms": ["vm1", "vm2"], **locator}
    of_vm = controller.entities.shown("vm1")
    assert of_vm is not None and of_vm["locator"] == locator
    await controller.inventory.remove_vm("vm1")
    shown = controller.entities.shown("shop")
    assert shown is not None
    assert (shown["locator"]["vm"], shown["locator"]["server"]) == ("vm2", "server2")


async def test_the_locator_is_where_the_vm_is_now_and_the_name_stays(controller: Controller) -> None:
    before = controller.entities.shown("vm1")
    controller.net.put_vm(VM.with_one_nic("vm1", vm_mac(1), "server3"))
    after = controller.entities.shown("vm1")
    assert before is not None and after is not None
    assert (before["name"], before["locator"]["server"]) == ("vm1", "server1")
    assert (after["name"], after["locator"]["server"]) == ("vm1", "server3")


def test_what_is_measured_of_each_kind(controller: Controller) -> None:
    controller.entities.register([SHOP, Entity("vm1", EntityKind.VM, Profile(memory_mib=256, cpus=2))])
    publish(controller, "debian")
    shown = {name: controller.entities.shown(name) for name in ("vm1", "vm2", "server1", "shop", "debian")}
    measured = {name: row and row["measured"] for name, row in shown.items()}
    assert measured == {
        "vm1": {"memory_mib": 256, "cpus": 2},
        "vm2": {"memory_mib": 0, "cpus": 0},
        "server1": None,  # its agent has said nothing yet
        "shop": None,
        "debian": None,
    }


def test_a_name_is_given_once(controller: Controller) -> None:
    controller.entities.register([SHOP])
    for name, kind in (("vm1", EntityKind.IMAGE), ("server1", EntityKind.IMAGE), ("shop", EntityKind.IMAGE)):
        with pytest.raises(ModelError, match="names are unique"):
            controller.entities.register([Entity(name, kind)])
    with pytest.raises(ModelError, match="shop is the name of a service"):
        controller.inventory.register_vms([VM.with_one_nic("shop", vm_mac(7), "server1")])
    with pytest.raises(ModelError, match="server2 is the name of a server"):
        controller.inventory.register_vms([VM.with_one_nic("server2", vm_mac(7), "server1")])
    with pytest.raises(ModelError, match="is given twice"):
        controller.entities.register([SHOP, SHOP])
    assert controller.entities.names(EntityKind.SERVICE) == ["shop"]


def publish(controller: Controller, name: str, size: int = 1) -> None:
    controller.images.holders.on_report("server1", ImagesBody("192.0.2.1:7800"))
    controller.images.publish(SignedManifest(name, size, "ab" * 32, 1000), "server1")


@pytest.mark.parametrize(("name", "kind"), [("vm1", "vm"), ("server1", "server"), ("shop", "service")])
def test_an_image_is_not_published_under_anothers_name(controller: Controller, name: str, kind: str) -> None:
    controller.entities.register([SHOP])
    with pytest.raises(ModelError, match=f"{name} is the name of a {kind}: names are unique"):
        publish(controller, name)
    assert not controller.images.published


async def test_what_an_image_is_published_under_is_nobody_elses_name(controller: Controller) -> None:
    publish(controller, "debian")
    taken = "debian is the name of an image"
    with pytest.raises(ModelError, match=taken):
        controller.inventory.register_vms([VM.with_one_nic("debian", vm_mac(7), "server1")])
    with pytest.raises(ModelError, match=taken):
        await controller.inventory.put_servers([replace(controller.net.servers["server1"], id="debian")])
    with pytest.raises(ModelError, match=taken):
        controller.entities.register([replace(SHOP, name="debian")])
    assert controller.entities.names(EntityKind.IMAGE) == ["debian"]
    shown = controller.entities.shown("debian")
    assert shown is not None and (shown["kind"], shown["locator"]) == ("image", {"servers": []})
    said = Entity("debian", EntityKind.IMAGE, Profile(os="debian"))
    controller.entities.register([said])
    controller.entities.remove("debian")
    assert controller.entities.names(EntityKind.IMAGE) == ["debian"], "it is still published"
    controller.images.remove("debian")
    assert controller.entities.kind_of("debian") is None
    controller.entities.register([said])
    publish(controller, "debian")
    assert controller.images.get("debian").name == "debian", "what was described before it was published"


async def test_a_server_does_not_take_the_name_of_another_thing(controller: Controller) -> None:
    from dataclasses import replace

    new = replace(server(1), id="vm1", mac="02:00:00:00:00:77", address=None, edge="")
    with pytest.raises(ModelError, match="vm1 is the name of a vm"):
        await controller.inventory.put_servers([new])


def test_all_or_none(controller: Controller) -> None:
    with pytest.raises(ModelError, match="there is no vm vm9"):
        controller.entities.register([SHOP, Entity("vm9", EntityKind.VM)])
    assert controller.entities.names(EntityKind.SERVICE) == []
    assert recent(controller.events, "entity.") == []


async def test_what_is_said_of_a_vm_ends_with_it(controller: Controller) -> None:
    controller.entities.register([Entity("vm1", EntityKind.VM, Profile(os="debian"))])
    await controller.inventory.remove_vm("vm1")
    assert controller.context.state.entities == {}
    assert [event.type for event in recent(controller.events, "entity.")] == [
        "entity.registered", "entity.removed",
    ]  # fmt: skip


def test_after_a_restart_nothing_is_said_of_what_is_no_more(controller: Controller) -> None:
    gone, still = (Entity(name, EntityKind.VM, Profile(os="debian")) for name in ("vm9", "vm1"))
    again = Controller(fabric(), clock=lambda: 1000.0)
    again.restore(Stored(vms=[controller.net.vms["vm1"]], entities=[gone, still, SHOP]))
    assert set(again.context.state.entities) == {"vm1", "shop"}


def test_an_image_is_where_agents_say_they_hold_it(controller: Controller) -> None:
    controller.entities.register([Entity("debian", EntityKind.IMAGE, Profile(version="12"))])
    for name in ("server3", "server1"):
        held = HeldImage("debian", "ab" * 32, ImageState.HELD, 1)
        controller.images.holders.on_report(name, ImagesBody("192.0.2.3:7800", [held]))
    shown = controller.entities.shown("debian")
    assert shown is not None and shown["locator"] == {"servers": ["server1", "server3"]}
    controller.entities.remove("debian")
    assert controller.entities.shown("debian") is None


PHONE = Entity("phone1", EntityKind.CLIENT, Profile(os="lineage"))


def attached(controller: Controller, at: str) -> None:
    """The port of the client that an attachment point has made is reported by its switch."""
    switch = controller.net.switches[controller.net.servers[at].edge]
    port = BridgePort(switch.dpid, "br0", "tap-phone1", 77, PortStatus.UP, "phone1", vm_mac(77))
    controller.inventory.ports.changed([], [port])


async def test_a_client_is_where_its_attachment_point_reports_its_port(controller: Controller) -> None:
    """Its name is there before it is, and after it has gone; and it is nobody's VM meanwhile."""
    controller.entities.register([PHONE])
    nowhere = {"server": "", "addresses": []}
    shown = controller.entities.shown("phone1")
    assert shown is not None and shown["locator"] == nowhere
    with pytest.raises(ModelError, match="phone1 is the name of a client"):
        controller.inventory.register_vms([VM.with_one_nic("phone1", vm_mac(7), "server1")])
    attached(controller, "server2")
    shown = controller.entities.shown("phone1")
    assert shown is not None
    assert (shown["kind"], shown["locator"]["server"], shown["locator"]["port"]) == ("client", "server2", 77)
    assert controller.entities.names(EntityKind.CLIENT) == ["phone1"]
    assert "phone1" not in controller.entities.names(EntityKind.VM)
    await controller.inventory.remove_vm("phone1")
    shown = controller.entities.shown("phone1")
    assert shown is not None and shown["locator"] == nowhere
    controller.entities.restored()
    assert controller.entities.kind_of("phone1") is EntityKind.CLIENT


async def test_nobody_places_a_client_and_nothing_is_promised_to_it(controller: Controller) -> None:
    controller.entities.register([PHONE])
    attached(controller, "server2")
    with pytest.raises(MigrationError, match="phone1 is a client: it is where the attachment point is"):
        await controller.mobility.migrate("phone1", Wish())
    with pytest.raises(MigrationError, match="phone1 is a client"):
        controller.orchestrator.start("phone1", target_server="server1")
    moved = controller.orchestrator.start("phone1", target_server="server1", under_way=True)
    assert moved.target == "server1", "but it goes by itself"
    state = next(one for one in controller.resources.facts({}) if one.server == "server2")
    assert [one.need.vm for one in state.hosted] == ["vm2"]
    assert "phone1" not in controller.resources.domain()[1]


BASE_SIZE = 3 * CHUNK_BYTES + 5
DISKS = (Disk(image="debian"), Disk(size_mib=64), Disk(shared="/srv/vm1.raw"))


async def with_parts(controller: Controller) -> None:
    publish(controller, "debian", BASE_SIZE)
    whole = HeldImage("debian", "ab" * 32, ImageState.HELD, BASE_SIZE)
    with controller.context.agents.listening("server2"):
        controller.images.holders.on_report("server2", ImagesBody("192.0.2.2:7800", [whole]))
    vm = controller.net.vms["vm1"]
    controller.net.put_vm(replace(vm, disks=DISKS))


async def test_a_disk_is_called_after_its_vm_and_goes_where_that_goes(controller: Controller) -> None:
    await with_parts(controller)
    assert controller.entities.names(EntityKind.DISK) == ["vm1:disk1", "vm1:disk2", "vm1:disk3"]
    rows = [controller.entities.shown(name) for name in controller.entities.names(EntityKind.DISK)]
    assert [row and row["kind"] for row in rows] == ["disk"] * 3
    assert [row and row["measured"] for row in rows] == [
        {"size_mib": 0, "made_of": "debian"},
        {"size_mib": 64, "made_of": ""},
        {"size_mib": 0, "made_of": ""},
    ]
    private = {"vm": "vm1", "server": "server1", "path": ""}
    shared = {"vm": "vm1", "server": "", "path": "/srv/vm1.raw"}
    assert [row and row["locator"] for row in rows] == [private, private, shared]
    controller.net.put_vm(replace(controller.net.vms["vm1"], server="server3"))
    moved = controller.entities.shown("vm1:disk2")
    assert moved is not None and moved["locator"] == {**private, "server": "server3"}
    controller.net.remove_vm("vm1")
    assert controller.entities.shown("vm1:disk1") is None


@pytest.mark.parametrize(
    ("name", "bytes", "chunks"),
    [
        ("debian:0", CHUNK_BYTES, 1),
        ("debian:3", 5, 1),
        ("debian:1-2", 2 * CHUNK_BYTES, 2),
        ("debian:0-3", BASE_SIZE, 4),
    ],
)
async def test_a_segment_is_found_by_its_images_name_and_where_that_is(
    controller: Controller, name: str, bytes: int, chunks: int
) -> None:
    await with_parts(controller)
    row = controller.entities.shown(name)
    assert row is not None
    assert (row["kind"], row["measured"]) == ("segment", {"bytes": bytes, "chunks": chunks})
    assert row["locator"] == {"image": "debian", "servers": ["server2"]}
    assert name not in controller.entities.names(), "any first and last chunk make one"


@pytest.mark.parametrize(
    "name",
    [
        *("vm1:disk0", "vm1:disk4", "vm1:disk01", "vm9:disk1", "vm1:", "vm1:1", "debian:disk1", "debian:4"),
        *("debian:2-1", "debian:0-4", "debian:-1", "debian:1-", "debian:0-1-2", "none:0", ":0", "a b:0"),
        *("debian:00", "debian:01", "debian:0-03", "debian:0\n", "debian:\u0661", "debian:" + "9" * 400),
    ],
)
async def test_what_is_no_part_has_no_name(controller: Controller, name: str) -> None:
    await with_parts(controller)
    assert controller.entities.shown(name) is None


async def test_nobody_gives_a_part_a_name(controller: Controller) -> None:
    """Nor something else one that looks like it."""
    await with_parts(controller)
    for kind in EntityKind:
        served = Profile(served_by=("vm1",)) if kind is EntityKind.SERVICE else Profile()
        with pytest.raises(ModelError, match="vm1:disk1"):
            controller.entities.register([Entity("vm1:disk1", kind, served)])
    for kind in (EntityKind.DISK, EntityKind.SEGMENT):
        with pytest.raises(ModelError, match=f"there is no {kind} x; it comes by its"):
            controller.entities.register([Entity("x", kind)])
    assert not controller.context.state.entities


async def test_flows_lead_where_the_table_says() -> None:
    """Each row's place and addresses, and the entries that switches hold, are of the same VM: one is changed
    by nothing that does not change the other."""
    fake = FakeNetwork(fabric(), asyncio.get_running_loop().time)
    for number, at in ((1, 1), (2, 2), (3, 1)):
        add_vm(fake.net, number, at)
    await fake.start()
    controller = fake.controller
    controller.entities.register([SHOP])

    def leads() -> None:
        every = {}
        for edge in ("edge1", "edge2", "edge3"):
            for flow in fake.fabric[edge].flows.values():
                if (flow.table, flow.priority) == (Table.DELIVER, Deliver.VM):
                    (ip,) = (value for name, value, _ in flow.match if name is Field.IPV4_DST)
                    (port,) = (one.port for one in flow.actions if isinstance(one, Output))
                    every[str(IPv4Address(ip))] = edge, port
        rows = [controller.entities.shown(name) for name in controller.entities.names()]
        said = {}
        for kind, locator in ((row["kind"], row["locator"]) for row in rows if row):
            if kind in ("vm", "service"):
                said.update(dict.fromkeys(locator["addresses"], (locator["switch"], locator["port"])))
        assert said == every

    leads()
    shop = controller.entities.shown("shop")
    assert shop is not None and shop["locator"]["vm"] == "vm1"
    fake.net.set_vm_port("vm1", "edge3", VMPort(vm_port(1), "tap1"))
    await controller.context.install(fake.net.put_vm(replace(fake.net.vms["vm1"], server="server3")))
    leads()
    moved = controller.entities.shown("shop")
    assert moved is not None and moved["locator"]["switch"] == "edge3" != shop["locator"]["switch"]
    await controller.inventory.remove_vm("vm1")
    await fake.settle()
    leads()
    left = controller.entities.shown("shop")
    assert left is not None and left["locator"]["vm"] == "vm2"
    await controller.stop()
