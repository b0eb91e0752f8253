"""Gateway groups by REST: added and removed while all runs, and when a server may go into one."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from retinue.controller.app import Controller
from retinue.controller.config import Config
from retinue.controller.config_tables import GatewayGroupTable
from retinue.core.model import Allowed, GatewayGroup
from retinue.core.model.network import Owner
from retinue.protocol.errors import ErrorCode
from support.fabric.networks import GATEWAY_MAC, add_vm, fabric, server, vm_ip, vm_mac
from support.fakes.memory_store import MemoryStore
from support.recent_events import recent
from support.rest import call

RACK = {"id": "rack", "mac": "00:00:de:ad:00:07"}
SERVER = {"id": "server1", "mac": server(1).mac, "address": str(server(1).address), "edge": "edge1"}


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def controller(store: MemoryStore) -> AsyncIterator[Controller]:
    net = fabric()
    add_vm(net, 1, 1)
    controller = Controller(net, store, clock=lambda: 1000.0)
    await controller.start()
    yield controller
    await controller.stop()


async def groups(url: str) -> object:
    return await call(url, "GET", "/v1/gateway-groups")


async def test_a_group_comes_has_servers_and_goes(
    controller: Controller, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await groups(url) == (200, {"gateway_mac": GATEWAY_MAC, "groups": []})
    status, answer = await call(url, "POST", "/v1/gateway-groups", [RACK])
    assert (status, answer) == (
        201,
        {"groups": [{**RACK, "default": False, "servers": [], "configured": False}]},
    )
    # Leaves and spines are to take the MAC before an edge sends anything to it; none is connected here.
    into = {**SERVER, "gateway_group": "rack"}
    status, answer = await call(url, "POST", "/v1/servers", into)
    assert (status, answer["code"]) == (409, ErrorCode.PARTY_AWAY)
    assert "server1 cannot go into gateway group rack" in str(answer["error"])
    assert controller.net.servers["server1"].gateway_group == ""

    status, answer = await call(url, "DELETE", "/v1/gateway-groups/rack")
    assert (status, answer["code"]) == (409, ErrorCode.PARTY_AWAY)
    assert "edge1 has not confirmed that it sends nothing to its MAC" in str(answer["error"])

    spine = {"id": "spine9", "role": "spine", "dpid": "0x59"}
    assert (await call(url, "POST", "/v1/switches", spine))[0] == 201
    asked: list[Owner] = []

    def programmed(owner: Owner) -> bool:
        asked.append(owner)
        return True

    monkeypatch.setattr(controller.context, "is_programmed", programmed)
    assert (await call(url, "POST", "/v1/servers", into))[0] == 201
    fabric_switches = {Owner("switch", id) for id in ("leaf1", "leaf2", "spine1", "spine2")}
    assert fabric_switches <= set(asked)
    assert not {Owner("switch", "edge1"), Owner("switch", "edge2")} & set(asked)
    assert Owner("switch", "spine9") not in asked, "nothing comes there yet"
    assert (await groups(url)) == (
        200,
        {
            "gateway_mac": GATEWAY_MAC,
            "groups": [{**RACK, "default": False, "servers": ["server1"], "configured": False}],
        },
    )
    status, answer = await call(url, "DELETE", "/v1/gateway-groups/rack")
    assert (status, answer["error"]) == (409, "gateway group rack is in use by server server1")
    assert (await call(url, "POST", "/v1/servers", SERVER))[0] == 201
    assert await call(url, "DELETE", "/v1/gateway-groups/rack") == (200, {"removed": "rack"})
    assert await groups(url) == (200, {"gateway_mac": GATEWAY_MAC, "groups": []})
    told = [event.type for event in recent(controller.events, "gateway.")]
    assert told == ["gateway.registered", "gateway.removed"]


async def test_servers_in_no_group_are_in_the_one_that_is_said_to_be_theirs(
    controller: Controller, url: str, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, shelf = controller.net, {"id": "shelf", "mac": "00:00:de:ad:00:08"}
    await call(url, "POST", "/v1/gateway-groups", [RACK, shelf])
    status, answer = await call(url, "PUT", "/v1/gateway-groups/rack", {"default": True})
    assert (status, answer["code"]) == (409, ErrorCode.PARTY_AWAY), "leaves and spines first"
    assert net.gateway_mac_of(net.servers["server1"]) == GATEWAY_MAC

    monkeypatch.setattr(controller.context, "is_programmed", lambda owner: True)
    net.put_server(replace(server(2), gateway_group="shelf"))
    status, answer = await call(url, "PUT", "/v1/gateway-groups/rack", {"default": True})
    assert (status, answer) == (200, {**RACK, "default": True, "servers": [], "configured": False})
    assert [net.gateway_mac_of(net.servers[f"server{n}"]) for n in (1, 2)] == [RACK["mac"], shelf["mac"]]
    status, answer = await call(url, "DELETE", "/v1/gateway-groups/rack")
    said = "gateway group rack is in use by all servers that are in no other"
    assert (status, answer["error"]) == (409, said)

    # Another takes its place in one step; whoever has its own stays.
    assert (await call(url, "PUT", "/v1/gateway-groups/shelf", {"default": True}))[0] == 200
    assert net.gateway_mac_of(net.servers["server1"]) == shelf["mac"]
    kept = {one.id: one.default for one in store.load().gateway_groups}
    assert kept == {"rack": False, "shelf": True}
    assert (await call(url, "PUT", "/v1/gateway-groups/shelf", {"default": False}))[0] == 200
    assert net.gateway_mac_of(net.servers["server1"]) == GATEWAY_MAC
    assert await call(url, "DELETE", "/v1/gateway-groups/rack") == (200, {"removed": "rack"})
    assert (await call(url, "PUT", "/v1/gateway-groups/rack", {"default": True}))[0] == 404


async def test_whoever_leaves_a_group_or_stays_waits_for_no_switch(controller: Controller, url: str) -> None:
    net = controller.net
    net.put_gateway_group(GatewayGroup("rack", RACK["mac"]))
    net.put_server(replace(server(1), gateway_group="rack"))
    for group in ("rack", ""):
        assert (await call(url, "POST", "/v1/servers", {**SERVER, "gateway_group": group}))[0] == 201


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"id": "rack", "mac": GATEWAY_MAC}, "is the gateway's"),
        ({"id": "rack", "mac": "01:00:5e:00:00:01"}, "is a group address"),
        ({"id": "rack", "mac": vm_mac(1)}, "belongs to a VM already"),
        ({"id": "rack", "mac": server(2).mac}, "belongs to a server already"),
        ({"id": "rack", "mac": "no"}, "not a MAC address"),
        ({"id": "a b", "mac": RACK["mac"]}, "cannot be a gateway group's id"),
        ([RACK, RACK], "gateway group rack is given twice"),
        ([RACK, {**RACK, "id": "shelf"}], "is the gateway's"),
    ],
)
async def test_what_cannot_be_is_rejected_and_nothing_is_changed(
    controller: Controller, url: str, body: object, said: str
) -> None:
    status, answer = await call(url, "POST", "/v1/gateway-groups", body)
    assert status == 409
    assert said in str(answer["error"])
    assert not controller.net.gateway_groups


async def test_there_is_one_of_a_name_and_it_keeps_its_mac(controller: Controller, url: str) -> None:
    await call(url, "POST", "/v1/gateway-groups", RACK)
    for again in (RACK, {**RACK, "mac": "00:00:de:ad:00:08"}):
        status, answer = await call(url, "POST", "/v1/gateway-groups", again)
        assert (status, answer["error"]) == (409, "gateway group rack is there already")
    status, answer = await call(url, "DELETE", "/v1/gateway-groups/shelf")
    said = "there is no gateway group shelf; `retinue gateway list` shows those there are"
    assert (status, answer["error"], answer["code"]) == (404, said, ErrorCode.UNKNOWN_GATEWAY_GROUP)


async def test_a_mac_as_which_a_vm_may_speak_is_no_groups(controller: Controller, url: str) -> None:
    """It would be the gateway's, and the VM would be left out at the next start."""
    net = controller.net
    nic = net.vms["vm1"].nic
    net.change_nic("vm1", nic, replace(nic, allowed=(Allowed(vm_ip(9), RACK["mac"]),)))
    status, answer = await call(url, "POST", "/v1/gateway-groups", RACK)
    assert (status, answer["error"]) == (409, f"gateway group rack: VM vm1 may speak as MAC {RACK['mac']}")


async def test_there_are_so_many_at_most(
    controller: Controller, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinue.core.model.constraints.MOST_GATEWAY_GROUPS", 1)
    assert (await call(url, "POST", "/v1/gateway-groups", RACK))[0] == 201
    status, answer = await call(url, "POST", "/v1/gateway-groups", {"id": "b", "mac": "00:00:de:ad:00:08"})
    assert (status, answer["error"]) == (409, "gateway group b: there are 1 groups already")


def test_one_of_the_configuration_stays() -> None:
    config = Config(gateway_mac=GATEWAY_MAC, gateway_group=[GatewayGroupTable(**RACK)])
    net = config.network()
    assert net.configured >= {"gateway group rack"}
    with pytest.raises(Exception, match="gateway group rack stands in the configuration file"):
        net.remove_gateway_group("rack")
