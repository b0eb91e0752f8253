"""Names: unique over all kinds, for as long as what has them is there, and led to where it is."""

from dataclasses import replace

import pytest

from retinue.controller.app import Controller
from retinue.controller.migrations.requests import MigrationError
from retinue.controller.state import Stored
from retinue.core.model import VM, ModelError, PortStatus
from retinue.core.placement import Entity, EntityKind, Profile, Wish
from retinue.protocol.images import HeldImage, ImagesBody, ImageState, SignedManifest
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import add_vm, fabric, server, vm_ip, vm_mac, vm_port
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


def publish(controller: Controller, name: str) -> None:
    controller.images.holders.on_report("server1", ImagesBody("192.0.2.1:7800"))
    controller.images.publish(SignedManifest(name, 1, "ab" * 32, 1000), "server1")


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
