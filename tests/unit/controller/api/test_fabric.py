"""Switches and links by REST: added, changed, removed; and what is rejected, with nothing changed."""

from collections.abc import AsyncIterator

import pytest

from retinue.controller.app import Controller
from support.fabric.networks import add_vm, fabric
from support.fakes.memory_store import MemoryStore
from support.recent_events import recent
from support.rest import call


@pytest.fixture
async def controller() -> AsyncIterator[Controller]:
    net = fabric()
    net.configured |= {"switch spine2", "link leaf2:s1 - spine1:l2"}
    add_vm(net, 1, 1)
    controller = Controller(net, MemoryStore(), clock=lambda: 1000.0)
    await controller.start()
    yield controller
    await controller.stop()


SPINE = {"id": "spine9", "role": "spine", "dpid": "0x59"}
LINK = {"lower": "leaf1:to-spine9", "upper": "spine9:to-leaf1"}


async def test_they_are_added_changed_and_removed_while_all_runs(controller: Controller, url: str) -> None:
    status, answer = await call(url, "POST", "/v1/switches", SPINE)
    assert isinstance(answer["switches"], list)
    [shown] = answer["switches"]
    assert (status, SPINE.items() <= shown.items(), shown["configured"]) == (201, True, False)
    status, answer = await call(url, "POST", "/v1/links", [LINK])
    idle = {"state": "idle", "reason": "switch leaf1 is not connected", "carries": False, "configured": False}
    assert (status, answer["links"]) == (201, [{**LINK, **idle}])
    status, answer = await call(url, "PUT", "/v1/switches/spine9", {"dpid": "63"})
    assert (status, answer["dpid"], controller.net.by_dpid[0x63]) == (200, "0x63", "spine9")
    assert 0x59 not in controller.net.by_dpid
    assert (await call(url, "PUT", "/v1/switches/leaf1", {"dpid": "11", "places": "given"}))[0] == 409
    assert (await call(url, "DELETE", "/v1/links/leaf1%3Ato-spine9"))[1] == {"removed": "leaf1:to-spine9"}
    assert (await call(url, "DELETE", "/v1/switches/spine9"))[1] == {"removed": "spine9"}
    said = {"name": "server3", "kind": "server", "profile": {"cpus": 4}}
    assert (await call(url, "POST", "/v1/entities", said))[0] == 201
    assert (await call(url, "DELETE", "/v1/servers/server3"))[1] == {"removed": "server3"}
    assert not controller.context.state.entities, "what was said of it is no more"
    told = [event.type for event in recent(controller.events) if event.type.startswith(("switch", "link"))]
    assert told == [
        "switch.registered", "link.registered", "switch.registered", "link.removed", "switch.removed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/v1/switches", {**SPINE, "role": "router"}, 400, "role"),
        ("POST", "/v1/switches", {**SPINE, "dpid": "x"}, 400, "dpid"),
        ("POST", "/v1/switches", {**SPINE, "dpid": "0"}, 409, "datapath id 0 is not between"),
        ("POST", "/v1/switches", {**SPINE, "router": ["sh"]}, 400, "router"),
        ("POST", "/v1/switches", {**SPINE, "id": "a b"}, 409, "cannot be a switch's id"),
        ("POST", "/v1/switches", {**SPINE, "dpid": "51"}, 409, "have the same datapath id 0x51"),
        ("POST", "/v1/switches", {**SPINE, "id": "spine1"}, 409, "switch spine1 is there already"),
        ("POST", "/v1/switches", [SPINE, SPINE], 409, "switch spine9 is given twice"),
        ("POST", "/v1/switches", [SPINE, {**SPINE, "id": "x", "dpid": "51"}], 409, "same datapath id"),
        ("POST", "/v1/switches", {**SPINE, "role": "edge"}, 409, "the name of its uplink port is missing"),
        ("POST", "/v1/switches", {**SPINE, "role": "edge", "uplink": "a" * 65}, 400, "uplink"),
        ("POST", "/v1/switches", {**SPINE, "tunnel": "x", "endpoint": "10.0.0.1"}, 409, "tunnels join"),
        (
            "POST", "/v1/switches", {**SPINE, "role": "leaf", "tunnel": "x", "endpoint": "10.0.0.1"},
            409, "each leaf here is joined by spines, and has none",
        ),
        ("POST", "/v1/switches", {**SPINE, "role": "leaf", "gateway_group": "x"}, 409, "no gateway group x"),
        ("PUT", "/v1/switches/spine9", {"dpid": "59"}, 404, "there is no switch spine9"),
        ("PUT", "/v1/switches/leaf1", {"dpid": "11", "places": "given"}, 409, "server1 was found there"),
        ("PUT", "/v1/switches/edge1", {"dpid": "31", "uplink": "x"}, 409, "its uplinks may be others once"),
        ("DELETE", "/v1/switches/spine9", None, 404, "there is no switch spine9"),
        ("DELETE", "/v1/switches/spine1", None, 409, "spine1 is in use by link leaf1:s1, link leaf2:s1"),
        ("DELETE", "/v1/switches/edge1", None, 409, "edge1 is in use by server server1"),
        ("DELETE", "/v1/servers/x", None, 404, "there is no server x"),
        ("DELETE", "/v1/servers/server1", None, 409, "server1 is in use by VM vm1"),
        ("POST", "/v1/links", LINK, 409, "spine9 is not a known spine switch"),
        ("POST", "/v1/links", {"lower": "leaf1", "upper": "spine1:x"}, 409, "not a port"),
        ("POST", "/v1/links", {"lower": "leaf1:" + "x" * 123, "upper": "spine1:x"}, 400, "lower"),
        ("POST", "/v1/links", {"lower": "leaf1:x", "upper": "spine1:a b"}, 400, "upper"),
        ("POST", "/v1/links", {"lower": "leaf1:s1", "upper": "spine1:x"}, 409, "leaf1:s1 is that of"),
        ("POST", "/v1/links", {"lower": "leaf1:x", "upper": "spine1:l2"}, 409, "spine1:l2 is that of"),
        ("POST", "/v1/links", {"lower": "leaf1:p1", "upper": "spine1:x"}, 409, "server1 is at leaf1:p1"),
        ("POST", "/v1/links", {"lower": "spine1:x", "upper": "leaf1:x"}, 409, "leaf1 is not a known core"),
        ("POST", "/v1/links", {"lower": "edge1:x", "upper": "spine1:x"}, 409, "edge1 is not a known leaf"),
        ("DELETE", "/v1/links/leaf1%3Ax", None, 404, "there is no link at leaf1:x"),
        ("DELETE", "/v1/links/leaf1", None, 409, "not a port"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_rejected_and_changes_nothing(
    controller: Controller, url: str, method: str, path: str, body: object, status: int, said: str
) -> None:
    net = controller.net
    before = dict(net.switches), net.links, dict(net.by_dpid), controller.events.last_id
    got, answer = await call(url, method, path, body)
    assert (got, said in str(answer["error"])) == (status, True), answer
    assert (dict(net.switches), net.links, dict(net.by_dpid), controller.events.last_id) == before
