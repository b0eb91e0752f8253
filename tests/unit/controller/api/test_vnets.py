"""Vnets and subnets by REST: added, changed, removed; and what is rejected, with nothing changed."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from retinue.controller.app import Controller
from retinue.controller.errors import RequestError
from retinue.core.model import VMPort, Vnet
from retinue.core.packets import ArpOp, EtherType
from retinue.core.pipeline.entry import match
from retinue.core.pipeline.priorities import Arp
from retinue.core.pipeline.tables import Table
from retinue.protocol.errors import ErrorCode
from support.fabric.networks import add_vm, fabric, vm_ip, vm_mac, vm_port
from support.fakes.memory_store import MemoryStore
from support.recent_events import recent
from support.rest import call


@pytest.fixture
async def controller() -> AsyncIterator[Controller]:
    net = fabric()
    add_vm(net, 1, 1)
    controller = Controller(net, MemoryStore(), clock=lambda: 1000.0)
    await controller.start()
    yield controller
    await controller.stop()


GREEN = {"id": "green", "prefix": "10.2.0.0/24", "gateway": "10.2.0.254", "vnet": "shop"}
BANK = {"id": "bank", "vlan": 50, "isolated": True}


async def test_they_are_added_changed_and_removed_while_all_runs(controller: Controller, url: str) -> None:
    status, answer = await call(url, "POST", "/v1/vnets", {"id": "shop", "vlan": 42})
    assert (status, answer["vnets"]) == (
        201,
        [
            {
                "id": "shop",
                "vlan": 42,
                "mtu": 0,
                "vrf": "default",
                "isolated": False,
                "flood": "dropped",
                "flooded": {"frames": 0, "dropped": 0},
                "subnets": [],
                "configured": False,
            }
        ],
    )
    status, answer = await call(url, "POST", "/v1/subnets", [GREEN])
    shown = {
        "vlan": 42,
        "dhcp": [],
        "dhcp_pools": [],
        "slaac": False,
        "dhcp6": False,
        "used": 0,
        "configured": False,
    }
    green = {**GREEN, **shown}
    assert (status, answer["subnets"]) == (201, [green])
    gateway = match(eth_type=EtherType.ARP, arp_op=ArpOp.REQUEST, arp_tpa=IPv4Address("10.2.0.254"))
    assert (Table.ARP, Arp.GATEWAY, gateway) in controller.context.compiler.program("edge1")
    values = {name: value for name, value in GREEN.items() if name != "id"}
    assert (await call(url, "PUT", "/v1/subnets/green", {**values, "prefix": "10.2.0.0/23"}))[0] == 200
    assert (await call(url, "PUT", "/v1/vnets/shop", {"mtu": 1400}))[1]["vlan"] == 0
    assert [s["id"] for s in (await call(url, "GET", "/v1/subnets"))[1]["subnets"]] == [  # type: ignore[attr-defined]
        "servers", "blue", "green",
    ]  # fmt: skip
    assert (await call(url, "DELETE", "/v1/subnets/green"))[1] == {"removed": "green"}
    assert (await call(url, "DELETE", "/v1/vnets/shop"))[1] == {"removed": "shop"}
    told = [event.type for event in recent(controller.events) if event.type.startswith(("vnet", "subnet"))]
    assert told == [
        "vnet.registered", "subnet.registered", "subnet.registered", "vnet.registered",
        "subnet.removed", "vnet.removed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/v1/vnets", {"id": "shop", "vlan": 4095}, 400, "vlan"),
        ("POST", "/v1/vnets", {"id": "shop", "mtu": 70000}, 400, "mtu"),
        ("POST", "/v1/vnets", {"id": "shop", "mtu": 9000}, 409, "MTU 9000 is more than the 1500 that"),
        ("PUT", "/v1/vnets/default", {"mtu": 1501}, 409, "MTU 1501 is more than the 1500 that switches take"),
        ("POST", "/v1/vnets", {"id": "shop", "mtu": 500}, 409, "MTU 500 is not between 1280 and 9216"),
        ("POST", "/v1/vnets", {"id": "shop", "flood": "yes"}, 400, "flood"),
        ("POST", "/v1/vnets", {"id": "shop", "flood": "controlled"}, 409, "flooding needs a VLAN"),
        ("POST", "/v1/vnets", {"id": "shop", "colour": "red"}, 400, "colour"),
        ("POST", "/v1/vnets", {"id": "a b"}, 409, "cannot be a vnet's id"),
        ("POST", "/v1/vnets", {"id": "default"}, 409, "is there already"),
        ("POST", "/v1/vnets", [{"id": "x"}, {"id": "x"}], 409, "vnet x is given twice"),
        ("POST", "/v1/vnets", [{"id": "x", "vlan": 7}, {"id": "y", "vlan": 7}], 409, "VLAN 7 is vnet x's"),
        ("POST", "/v1/vnets", {"id": "shop", "isolated": True}, 409, "to be isolated it needs a VLAN"),
        ("POST", "/v1/vnets", {"id": "shop", "vlan": 7, "isolated": "yes"}, 400, "isolated"),
        ("POST", "/v1/vnets", {**BANK, "id": "shop", "vrf": "red"}, 409, "VRF of its own"),
        ("PUT", "/v1/vnets/default", {"vlan": 7, "isolated": True}, 409, "default is not isolated"),
        (
            "POST", "/v1/vnets", [{"id": "x", "vlan": 7, "isolated": True}, {"id": "y", "vrf": "x"}],
            409, "VRF x is that of vnet x alone",
        ),
        (
            "POST", "/v1/vnets", [{"id": "x", "vlan": 7, "isolated": True}, {"id": "y", "vlan": 7}],
            409, "VLAN 7 is vnet x's",
        ),
        ("PUT", "/v1/vnets/shop", {}, 404, "there is no vnet shop"),
        ("DELETE", "/v1/vnets/shop", None, 404, "there is no vnet shop"),
        ("DELETE", "/v1/vnets/default", None, 409, "vnet default stays"),
        ("POST", "/v1/vrfs", {"id": "red", "tag": 4095}, 400, "tag"),
        ("POST", "/v1/vrfs", {"id": "red", "colour": 1}, 400, "colour"),
        ("POST", "/v1/vrfs", {"id": "a%b"}, 409, "cannot be a VRF's id"),
        ("POST", "/v1/vrfs", {"id": "default"}, 409, "VRF default is there already"),
        ("POST", "/v1/vrfs", [{"id": "x"}, {"id": "x"}], 409, "a VRF is given twice"),
        ("POST", "/v1/vrfs", [{"id": "x", "tag": 7}, {"id": "y", "tag": 7}], 409, "tag 7 is VRF x's"),
        ("DELETE", "/v1/vrfs/red", None, 404, "there is no VRF red"),
        ("DELETE", "/v1/vrfs/default", None, 409, "VRF default stays"),
        ("POST", "/v1/vnets", {"id": "reds", "vrf": "red"}, 409, "there is no VRF red"),
        ("PUT", "/v1/vnets/default", {"vrf": "red"}, 409, "there is no VRF red"),
        ("POST", "/v1/subnets", GREEN, 409, "there is no vnet shop"),
        ("POST", "/v1/subnets", {**GREEN, "vnet": "default", "prefix": "ten"}, 409, "not an IP prefix"),
        ("POST", "/v1/subnets", {**GREEN, "vnet": "default", "prefix": "10.2.0.7/24"}, 409, "IP prefix"),
        ("POST", "/v1/subnets", {**GREEN, "vnet": "default", "gateway": "10.3.0.1"}, 409, "is not inside"),
        ("POST", "/v1/subnets", {**GREEN, "vnet": "default", "dhcp": ["fd00::1"]}, 409, "by its IPv4"),
        ("POST", "/v1/subnets", {**GREEN, "dhcp": ["10.1.0.2"] * 17}, 400, "dhcp"),
        ("POST", "/v1/subnets", {**GREEN, "id": "blue", "vnet": "default"}, 409, "is there already"),
        (
            "POST", "/v1/subnets",
            [{**GREEN, "vnet": "default"},
             {**GREEN, "id": "red", "vnet": "default", "prefix": "10.2.0.0/16", "gateway": "10.2.0.1"}],
            409, "subnets green and red overlap",
        ),
        (
            "PUT", "/v1/subnets/blue", {"prefix": "10.1.0.192/26", "gateway": "10.1.0.254"},
            409, "subnet blue cannot become 10.1.0.192/26",
        ),
        ("PUT", "/v1/subnets/green", {"prefix": "10.2.0.0/24", "gateway": "10.2.0.1"}, 404, "no subnet"),
        ("DELETE", "/v1/subnets/green", None, 404, "there is no subnet green"),
        ("DELETE", "/v1/subnets/blue", None, 409, "subnet blue is in use: VM vm1 has 10.1.0.101"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_rejected_and_changes_nothing(
    controller: Controller, url: str, method: str, path: str, body: object, status: int, said: str
) -> None:
    net = controller.net
    before = dict(net.vrfs), dict(net.vnets), dict(net.subnets), controller.events.last_id
    got, answer = await call(url, method, path, body)
    assert (got, said in str(answer["error"])) == (status, True), answer
    assert (dict(net.vrfs), dict(net.vnets), dict(net.subnets), controller.events.last_id) == before


async def test_vrfs_have_tags_of_their_own_and_the_same_addresses(controller: Controller, url: str) -> None:
    status, answer = await call(url, "POST", "/v1/vrfs", [{"id": "red"}, {"id": "green", "tag": 1}])
    shown = {"vnets": [], "routers": [], "used": 0, "configured": False}
    assert (status, answer["vrfs"]) == (
        201,
        [{"id": "red", "tag": 2, **shown}, {"id": "green", "tag": 1, **shown}],
    )
    assert (await call(url, "POST", "/v1/vnets", {"id": "reds", "vrf": "red"}))[0] == 201
    blue = {"prefix": "10.1.0.0/24", "gateway": "10.1.0.254"}
    assert (await call(url, "POST", "/v1/subnets", {"id": "red1", "vnet": "reds", **blue}))[0] == 201
    nic = {"mac": vm_mac(7), "vnet": "reds", "addresses": ["10.1.0.101"]}
    assert (await call(url, "POST", "/v1/vms", {"id": "twin", "server": "server1", "nics": [nic]}))[0] == 201
    rows = {(held.vrf, held.vm) for held in controller.net.assignments.values() if held.ip == vm_ip(1)}
    assert rows == {("default", "vm1"), ("red", "twin")}
    status, answer = await call(
        url, "POST", "/v1/vms", {"id": "third", "server": "server2", "nics": [{**nic, "mac": vm_mac(8)}]}
    )
    assert (status, "10.1.0.101 is held by VM twin" in str(answer["error"])) == (409, True)
    assert (await call(url, "DELETE", "/v1/vrfs/green"))[1] == {"removed": "green"}
    told = [event.type for event in recent(controller.events) if event.type.startswith("vrf")]
    assert told == ["vrf.registered", "vrf.registered", "vrf.removed"]


async def test_an_isolated_vnet_is_alone_in_a_vrf_whose_tag_is_its_vlan(
    controller: Controller, url: str
) -> None:
    """It has the addresses of the default VRF once more; where they are set and taken off is VLAN 50."""
    status, answer = await call(url, "POST", "/v1/vnets", BANK)
    rows: Any = answer["vnets"]
    assert [(status, row["vrf"], row["isolated"]) for row in rows] == [(201, "bank", True)]
    assert controller.net.vrfs["bank"].tag == 50
    blue = {"prefix": "10.1.0.0/24", "gateway": "10.1.0.254"}
    assert (await call(url, "POST", "/v1/subnets", {"id": "bank1", "vnet": "bank", **blue}))[0] == 201
    nic = {"mac": vm_mac(7), "vnet": "bank", "addresses": ["10.1.0.101"]}
    assert (await call(url, "POST", "/v1/vms", {"id": "twin", "server": "server1", "nics": [nic]}))[0] == 201
    controller.net.set_vm_port("twin", "edge1", VMPort(vm_port(7), "tap7"))
    status, answer = await call(url, "GET", "/v1/bindings")
    rows = {(row["vlan"], row["vm"]) for row in answer["bindings"] if row["ip"] == "10.1.0.101"}  # type: ignore[attr-defined]
    assert rows == {(0, "vm1"), (50, "twin")}
    for method, path, body, said in (
        ("POST", "/v1/vnets", {"id": "till", "vrf": "bank"}, "VRF bank is that of vnet bank alone"),
        ("PUT", "/v1/vnets/bank", {"vlan": 51, "isolated": True}, "its frames have VLAN 50"),
        ("PUT", "/v1/vnets/bank", {"vlan": 50}, "vnet bank cannot leave VRF bank: it is in use"),
        ("POST", "/v1/vrfs", {"id": "red", "tag": 50}, "tag 50 is VRF bank's"),
        ("DELETE", "/v1/vrfs/bank", None, "VRF bank is in use by vnet bank"),
        ("DELETE", "/v1/vnets/bank", None, "vnet bank is in use by subnet bank1"),
    ):
        status, answer = await call(url, method, path, body)
        assert (status, said in str(answer["error"])) == (409, True), answer
    assert controller.net.is_isolated("bank")
    for path in ("vms/twin", "subnets/bank1", "vnets/bank"):
        assert (await call(url, "DELETE", f"/v1/{path}"))[0] == 200
    assert list(controller.net.vrfs) == ["default"]


async def test_a_vnet_becomes_isolated_and_routed_again_while_nobody_uses_it(
    controller: Controller, url: str
) -> None:
    await call(url, "POST", "/v1/vnets", {"id": "bank", "vlan": 50})
    assert (await call(url, "PUT", "/v1/vnets/bank", {"vlan": 50, "isolated": True}))[1]["vrf"] == "bank"
    assert (await call(url, "PUT", "/v1/vnets/bank", {"vlan": 50, "mtu": 1400, "isolated": True}))[0] == 200
    assert (await call(url, "PUT", "/v1/vnets/bank", {"vlan": 50}))[1]["vrf"] == "default"
    assert list(controller.net.vrfs) == ["default"]
    await call(url, "POST", "/v1/vrfs", {"id": "red", "tag": 50})
    status, answer = await call(url, "PUT", "/v1/vnets/bank", {"vlan": 50, "isolated": True})
    assert (status, "VRF bank: tag 50 is VRF red's" in str(answer["error"])) == (409, True)
    assert (list(controller.net.vrfs), controller.net.vnets["bank"].vrf) == (["default", "red"], "default")


async def test_an_isolated_vnet_that_has_a_way_out_stays_whole_until_that_is_gone(
    controller: Controller, url: str
) -> None:
    await call(url, "POST", "/v1/vnets", BANK)
    router = {"id": "border", "mac": "02:00:00:00:09:01", "services": ["router"], "at": "leaf1:border"}
    way = {"vrf": "bank", "vlan": 50, "routes": ["0.0.0.0/0"]}
    assert (await call(url, "POST", "/v1/servers", {**router, "subinterfaces": [way]}))[0] == 201
    last = controller.events.last_id
    for method, body in (("DELETE", None), ("PUT", {"vlan": 50})):
        status, answer = await call(url, method, "/v1/vnets/bank", body)
        assert (status, "VRF bank is in use by router border" in str(answer["error"])) == (409, True), answer
    assert (controller.net.is_isolated("bank"), controller.events.last_id) == (True, last)
    assert (await call(url, "POST", "/v1/servers", {**router, "subinterfaces": []}))[0] == 201
    assert (await call(url, "DELETE", "/v1/vnets/bank"))[0] == 200
    assert list(controller.net.vrfs) == ["default"]


async def test_a_vrf_of_several_vnets_is_nobodys_alone(controller: Controller, url: str) -> None:
    """One that a manager has made stays as it was, though a vnet in it has its name and tag."""
    await call(url, "POST", "/v1/vrfs", {"id": "red", "tag": 7})
    both = [{"id": "red", "vlan": 7, "vrf": "red"}, {"id": "blues", "vrf": "red"}]
    status, answer = await call(url, "POST", "/v1/vnets", both)
    assert (status, [row["isolated"] for row in answer["vnets"]]) == (201, [False, False])  # type: ignore[attr-defined]
    status, answer = await call(url, "PUT", "/v1/vnets/red", {"vlan": 7, "vrf": "red", "isolated": True})
    assert (status, "vnet blues is in VRF red, too" in str(answer["error"])) == (409, True)
    assert (await call(url, "DELETE", "/v1/vnets/red"))[0] == 200
    assert "red" in controller.net.vrfs


async def test_a_vrf_that_the_file_has_stays_when_its_vnet_goes(controller: Controller, url: str) -> None:
    """A vnet of its name and tag was added to it while all ran, and nothing of the file's is taken out."""
    await call(url, "POST", "/v1/vrfs", {"id": "bank", "tag": 50})
    controller.net.configured = frozenset({"vrf bank"})
    assert (await call(url, "POST", "/v1/vnets", {"id": "bank", "vlan": 50, "vrf": "bank"}))[0] == 201
    assert (await call(url, "PUT", "/v1/vnets/bank", {"vlan": 50}))[0] == 200
    assert (await call(url, "PUT", "/v1/vnets/bank", {"vlan": 50, "isolated": True}))[0] == 200
    assert (await call(url, "DELETE", "/v1/vnets/bank"))[0] == 200
    assert (list(controller.net.vrfs), "bank" in controller.net.vnets) == (["default", "bank"], False)


async def test_what_the_file_has_is_removed_there(controller: Controller, url: str) -> None:
    controller.net.configured = frozenset({"subnet blue"})
    status, answer = await call(url, "DELETE", "/v1/subnets/blue")
    assert status == 409
    assert "stands in the configuration file" in str(answer["error"])


async def test_one_that_has_gone_meanwhile_is_not_made_by_a_change(controller: Controller) -> None:
    vnets, blue = controller.vnets, controller.net.subnets["blue"]
    with pytest.raises(RequestError, match="there is no vnet gone"):
        await vnets.set_vnet(Vnet("gone"))
    with pytest.raises(RequestError, match="there is no vnet gone"):
        await vnets.remove_vnet("gone")
    with pytest.raises(RequestError, match="there is no subnet gone") as caught:
        await vnets.set_subnet(replace(blue, id="gone"))
    assert caught.value.code is ErrorCode.UNKNOWN_SUBNET
    with pytest.raises(RequestError, match="there is no subnet gone") as caught:
        await vnets.remove_subnet("gone")
    assert caught.value.code is ErrorCode.UNKNOWN_SUBNET
    assert "gone" not in controller.net.subnets
