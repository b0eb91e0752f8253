"""The manager's interface over HTTP: what is answered, what is rejected, what is streamed."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import aiohttp
import pytest

from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.controller.events import QUEUE, RING, EventBus
from retinue.core.model.network import Owner
from retinue.core.pipeline.entry import Change
from retinue.protocol import openapi
from retinue.protocol.events import EventType
from support.fabric.networks import GATEWAY_MAC, UPLINK, add_vm, fabric, vm_ip, vm_mac, vm_port
from support.fabric.world import OUTSIDE, udp_frame
from support.fakes.session import FakeNetwork
from support.rest import call


@pytest.fixture
async def api() -> AsyncIterator[tuple[Api, str]]:
    controller = Controller(fabric(), clock=lambda: 1000.0)
    await controller.start()
    api = Api(controller, lambda: {"openflow": {"garbage": 3}})
    port = await api.start("127.0.0.1", 0)
    yield api, f"http://127.0.0.1:{port}"
    await api.stop()
    await controller.stop()


Served = tuple[Api, str]
VM = {"id": "vm1", "mac": vm_mac(1), "server": "server1"}


def two_nics(second: dict[str, object]) -> dict[str, object]:
    return {"id": "vm1", "server": "server1", "nics": [{"mac": vm_mac(1)}, second]}


async def test_vms_are_registered_shown_and_removed(api: Served) -> None:
    _, url = api
    status, _ = await call(url, "POST", "/v1/vms", [{**VM, "addresses": ["10.1.0.5"]}])
    assert status == 201
    status, vm = await call(url, "GET", "/v1/vms/vm1")
    assert (vm["state"], vm["switch"], vm["holds"]) == ("registered", "edge1", ["10.1.0.5"])
    assert vm["missing"]
    assert (await call(url, "DELETE", "/v1/vms/vm1"))[0] == 200
    status, error = await call(url, "GET", "/v1/vms/vm1")
    assert status == 404
    assert "there is no VM vm1" in str(error["error"])


async def test_the_mac_table_of_an_edge_has_its_vms_and_the_shared_mac() -> None:
    """The table of figure 5: no row of a VM that is elsewhere, and none that was learned."""
    fake = FakeNetwork(fabric(), clock=lambda: 1000.0)
    for number, at in ((1, 1), (2, 2), (4, 1)):
        add_vm(fake.net, number, at)
    await fake.start()
    api = Api(fake.controller, dict)
    url = f"http://127.0.0.1:{await api.start('127.0.0.1', 0)}"
    table: Any
    _, table = await call(url, "GET", "/v1/switches/edge1/mac-table")
    rows = [(row["mac"], row["port"], row["vm"], row["shared"], row["confirmed"]) for row in table["rows"]]
    assert rows == [
        (vm_mac(1), vm_port(1), "vm1", False, True),
        (vm_mac(4), vm_port(4), "vm4", False, True),
        (GATEWAY_MAC, UPLINK, "", True, True),
    ]
    assert (await call(url, "GET", "/v1/switches/leaf1/mac-table"))[0] == 404
    await api.stop()
    await fake.stop()


async def test_rows_of_a_switchs_own_are_judged_one_by_one(api: Served) -> None:
    _, url = api
    row = {"mac": vm_mac(1), "ip": "10.1.0.5", "port": "tap1", "seconds_left": 300}
    status, said = await call(url, "POST", "/v1/switches/edge1/rows", {"rows": [row]})
    assert (status, said["rows"]) == (
        200,
        [{"mac": vm_mac(1), "ip": "10.1.0.5", "rejected": f"no VM has MAC {vm_mac(1)}"}],
    )
    assert (await call(url, "POST", "/v1/switches/edge9/rows", {"rows": []}))[0] == 404
    for wrong in ({"mac": "x"}, {"ip": "x"}, {"seconds_left": -1}):
        status, _ = await call(url, "POST", "/v1/switches/edge1/rows", {"rows": [row | wrong]})
        assert status in (400, 409)


def rows_of(server: str, shown: Any) -> list[dict[str, Any]]:
    return [row for row in shown["servers"] if row["id"] == server]


async def test_a_router_comes_with_its_prefixes_and_keeps_them(api: Served) -> None:
    """Beside the one of the configuration, which is better."""
    _, url = api
    body: dict[str, object] = {
        "id": "router2",
        "mac": "02:00:00:00:02:01",
        "address": "10.0.0.2",
        "services": ["router"],
    }
    leads: dict[str, object] = {"routes": ["0.0.0.0/0", "198.51.100.0/24"], "metric": 10}
    assert (await call(url, "POST", "/v1/servers", body | leads))[0] == 201
    assert (await call(url, "POST", "/v1/servers", body | {"at": "leaf1:p9"}))[0] == 201
    _, shown = await call(url, "GET", "/v1/servers")
    (router,) = rows_of("router2", shown)
    assert {name: router[name] for name in ("routes", "metric", "at")} == leads | {"at": "leaf1:p9"}
    assert (router["ways"], router["lost"]) == (["198.51.100.0/24"], "")
    status, error = await call(url, "POST", "/v1/servers", body | {"routes": ["10.1.0.0/24"]})
    assert status == 409 and "is subnet blue" in str(error["error"])
    assert (await call(url, "POST", "/v1/servers", body | {"routes": []}))[0] == 201
    _, shown = await call(url, "GET", "/v1/servers")
    assert [row["routes"] for row in rows_of("router2", shown)] == [[]]


async def test_a_vm_is_registered_with_several_nics(api: Served) -> None:
    _, url = api
    body = two_nics({"mac": vm_mac(2), "addresses": ["10.1.0.5"], "vnet": "default", "enabled": False})
    assert (await call(url, "POST", "/v1/vms", body))[0] == 201
    _, vm = await call(url, "GET", "/v1/vms/vm1")
    assert (vm["mac"], vm["addresses"]) == (vm_mac(1), [])
    assert vm["holds"] == ["10.1.0.5"] and vm["subnets"] == {}
    bare = {"vnet": "", "addresses": [], "enabled": True, "slot": 1, "port": None, "holds": []}
    bare |= {"trusted": False, "rate": 0, "allowed": [], "prefixes": [], "mtu": 1500, "subnets": {}}
    bare |= {
        "trunk": "",
        "vlan": 0,
        "mac_changes": False,
        "initial_mac": "",
        "mirror": "",
        "anycast": [],
        "load": 0,
    }
    static = {
        "vnet": "default",
        "addresses": ["10.1.0.5"],
        "enabled": False,
        "holds": ["10.1.0.5"],
        "slot": 2,
        "subnets": {"10.1.0.5": {"prefixlen": 24, "gateway": "10.1.0.254"}},
    }
    assert vm["nics"] == [
        {**bare, "id": "vm1", "mac": vm_mac(1)},
        {**bare, **static, "id": "vm1-2", "mac": vm_mac(2)},
    ]
    taken = [{"mac": vm_mac(3)}, {"mac": vm_mac(4), "id": "vm1-2"}]
    clash = {"id": "vm2", "server": "server2", "nics": taken}
    status, answer = await call(url, "POST", "/v1/vms", clash)
    assert status == 409 and "iface-id vm1-2 already belongs to VM vm1" in str(answer["error"])


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "body cannot be used"),
        (b"\xff\xfe", 400, "body cannot be used"),
        (b'{"id": "\xff"}', 400, "body cannot be used"),
        ({"id": "x"}, 400, "say its server, by `server` or by `server_mac`"),
        ({"id": "x", "server": "server1"}, 409, "`mac` is missing, or `nics`"),
        ({**VM, "nics": [{"mac": vm_mac(1)}]}, 409, "stand in `nics`"),
        (two_nics({"mac": vm_mac(1)}), 409, f"MAC {vm_mac(1)} is given twice"),
        (two_nics({"mac": vm_mac(2), "id": "a/b"}), 409, "cannot be a NIC's id"),
        (two_nics({"mac": vm_mac(2), "id": "vm1"}), 409, "NIC id vm1 is given twice"),
        (two_nics({"mac": vm_mac(2), "vnet": "-"}), 409, "cannot be a vnet's id"),
        (two_nics({"mac": vm_mac(2), "speed": 1}), 400, "speed"),
        (two_nics({"mac": vm_mac(2), "enabled": "no"}), 400, "nics[1].enabled"),
        (two_nics({"mac": vm_mac(2), "addresses": ["10.9.9.9"]}), 409, "in no subnet"),
        (two_nics({"mac": GATEWAY_MAC}), 409, "is the gateway's"),
        ({"id": "vm1", "server": "server1", "nics": [{"mac": vm_mac(1), "id": "vm9"}]}, 409, "the VM's own"),
        ({"id": "vm1", "server": "server1", "nics": [{"mac": vm_mac(1)}] * 41}, 400, "nics"),
        (two_nics({"mac": vm_mac(2), "trunk": "vm1"}), 409, "by the VLAN of its vnet, and it is in no vnet"),
        (two_nics({"mac": vm_mac(2), "trunk": "a/b"}), 409, "cannot be a NIC's id"),
        ({**VM, "colour": "red"}, 400, "colour"),
        ({**VM, "mac": "nonsense"}, 409, "not a MAC address"),
        ({**VM, "mac": "01:00:5e:00:00:01"}, 409, "cannot be a VM's"),
        ({**VM, "server": "server9"}, 409, "there is no server server9"),
        ({**VM, "server": "dhcp"}, 409, "cannot run VMs"),
        ({**VM, "addresses": ["10.9.9.9"]}, 409, "in no subnet"),
        ({**VM, "addresses": ["ten"]}, 409, "not an IP address"),
        ({**VM, "id": ""}, 409, "needs an id"),
    ],
)
async def test_bad_bodies_are_rejected_in_words_and_counted(
    api: Served, body: object, status: int, said: str
) -> None:
    served, url = api
    got, answer = await call(url, "POST", "/v1/vms", body)
    assert got == status
    assert said in str(answer["error"])
    assert sum(served.rejected.values()) == 1
    assert (await call(url, "GET", "/v1/vms"))[1] == {"vms": [], "removed": [], "fenced": []}


async def test_move_messages_are_rejected_in_words(api: Served) -> None:
    _, url = api
    await call(url, "POST", "/v1/vms", VM)
    for body, said in (
        ({"vm": "vm9", "target_server": "server2"}, "there is no VM vm9"),
        ({"vm": "vm1", "target_server": "server2", "target_switch": "edge3"}, "name the target once"),
        ({"vm": "vm1", "target_server": "server2", "ip": "10.1.0.9"}, "does not hold"),
    ):
        status, answer = await call(url, "POST", "/v1/migrations", body)
        assert status == 409
        assert said in str(answer["error"])
    status, migration = await call(url, "POST", "/v1/migrations", {"vm": "vm1", "target_switch": "edge2"})
    assert (status, migration["target"], migration["state"]) == (201, "server2", "matched")
    status, answer = await call(url, "POST", "/v1/migrations/migration-1/events", {"event": "resumed"})
    assert status == 409
    assert "needs its time" in str(answer["error"])
    status, answer = await call(
        url, "POST", "/v1/migrations/migration-1/events", {"event": "resumed", "at": 5.0}
    )
    assert status == 409
    assert "does not fit" in str(answer["error"])


async def test_every_list_is_shown(api: Served) -> None:
    _, url = api
    await call(url, "POST", "/v1/vms", VM)
    for path in ("status", "switches", "servers", "vms", "bindings", "spoof-attempts", "migrations", "flows"):
        assert (await call(url, "GET", f"/v1/{path}"))[0] == 200
    _, flows = await call(url, "GET", "/v1/flows?switch=edge1")
    assert flows["flows"]
    assert (await call(url, "GET", "/v1/flows?switch=nope"))[0] == 404
    _, status = await call(url, "GET", "/v1/status")
    assert status["rejected"] == {"openflow": {"garbage": 3}, "rest": {"unknown_switch": 1}}
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as answer:
        assert 'retinue_rejected_total{listener="openflow",reason="garbage"} 3.0' in await answer.text()
    async with aiohttp.ClientSession() as http, http.head(f"{url}/v1/status") as answer:
        assert answer.status == 200


async def test_flows_of_one_vm_are_all_of_its_and_no_others(api: Served) -> None:
    """Those that would go with the VM: by what the network holds without it."""
    served, url = api
    net = served._controller.net
    add_vm(net, 2, at=1)
    await served._controller.context.install(net.everything())
    _, before = await call(url, "GET", "/v1/flows")
    add_vm(net, 1, at=1)
    await served._controller.context.install([Owner("vm", "vm1")])
    _, after = await call(url, "GET", "/v1/flows")
    _, its = await call(url, "GET", "/v1/flows?vm=vm1")
    added = [row for row in rows(after) if row not in rows(before)]
    assert rows(its) == added
    assert {row["switch"] for row in added} == {"edge1", "leaf1", "spine1", "spine2"}
    _, there = await call(url, "GET", "/v1/flows?vm=vm1&switch=leaf1")
    assert rows(there) == [row for row in added if row["switch"] == "leaf1"] != []
    assert (await call(url, "GET", "/v1/flows?vm=vm9"))[0] == 404


def rows(answer: dict[str, object]) -> list[dict[str, object]]:
    found = answer["flows"]
    assert isinstance(found, list)
    return found


async def test_an_audit_tells_what_was_found() -> None:
    fake = FakeNetwork(fabric(), lambda: 1000.0)
    await fake.start()
    api = Api(fake.controller, dict)
    url = f"http://127.0.0.1:{await api.start('127.0.0.1', 0)}"
    try:
        lost = next(iter(fake.fabric["leaf1"].flows.values()))
        fake.fabric["leaf1"].apply(Change(remove=(lost,)))
        status, found = await call(url, "POST", "/v1/switches/leaf1/audit")
        assert status == 200
        assert found == {
            "switch": "leaf1", "entries": found["entries"],
            "missing": 1, "changed": 0, "foreign": 0, "mended": True,
        }  # fmt: skip
        assert lost.key in fake.fabric["leaf1"].flows
        status, again = await call(url, "POST", "/v1/switches/leaf1/audit")
        assert (again["entries"], again["missing"]) == (int(str(found["entries"])) + 1, 0)
        assert (await call(url, "POST", "/v1/switches/nope/audit"))[0] == 404
        fake.sessions["leaf1"].close("gone")
        status, rejected = await call(url, "POST", "/v1/switches/leaf1/audit")
        assert (status, rejected["error"]) == (409, "switch leaf1 cannot be audited: it is not connected")
    finally:
        await api.stop()
        await fake.stop()


async def test_a_vm_may_stop_when_its_old_switch_sends_on_what_comes_late() -> None:
    """The answer to `converged`: steering alone is not enough."""
    fake = FakeNetwork(fabric(), lambda: 1000.0)
    add_vm(fake.net, 1, at=1, ports_on=(2,))
    await fake.start()
    api = Api(fake.controller, dict)
    url = f"http://127.0.0.1:{await api.start('127.0.0.1', 0)}"
    try:
        await call(url, "POST", "/v1/migrations", {"vm": "vm1", "target_server": "server2"})
        events = "/v1/migrations/migration-1/events"
        prepared = {"image_ms": 1200, "machine_ms": 80}
        for word in ({"event": "target_opened", **prepared}, {"event": "copy_started"}):
            assert (await call(url, "POST", events, word))[0] == 200
            await fake.settle()
        _, shown = await call(url, "GET", "/v1/migrations/migration-1")
        figures: Any = shown["figures"]
        assert figures | prepared == figures
        status, answer = await call(url, "POST", events, {"event": "converged"})
        assert (status, answer) == (
            200,
            {"state": "diverted", "copies_from": fake.net.servers["server2"].mac},
        )
        late = udp_frame(GATEWAY_MAC, fake.net.servers["server1"].mac, OUTSIDE, vm_ip(1))
        for way in fake.fabric.all_paths("edge1", UPLINK, late):
            assert [(switch, port) for switch, port, _ in way.arrivals] == [("edge2", vm_port(1))]
    finally:
        await api.stop()
        await fake.stop()


async def test_what_is_not_http_is_counted_and_disturbs_nobody(api: Served) -> None:
    served, url = api
    host, port = url.removeprefix("http://").split(":")
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00", b"BLAH\r\n\r\n", b"\x00" * 64 + b"\r\n\r\n"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(garbage + b"\r\n\r\n")
        await reader.read()
        writer.close()
    assert served.rejected["malformed"] == 3
    assert (await call(url, "GET", "/v1/vms"))[0] == 200


async def test_events_are_streamed_and_a_late_listener_catches_up(api: Served) -> None:
    _, url = api
    async with aiohttp.ClientSession() as http, http.get(f"{url}/v1/events") as stream:
        lines = await read_until(stream, "hello")
        assert json.loads(lines[-1].removeprefix("data: "))["type"] == "hello"
        await call(url, "POST", "/v1/vms", VM)
        lines = await read_until(stream, "vm.registered")
        event = json.loads(lines[-1].removeprefix("data: "))
        assert (event["vm"]["id"], event["edge"]) == ("vm1", "edge1")
    async with aiohttp.ClientSession() as http, http.get(f"{url}/v1/events?since=0") as stream:
        assert await read_until(stream, "vm.registered")


async def test_a_server_is_a_member_of_a_service_until_it_is_registered_without(api: Served) -> None:
    """What is left out stays; what cannot be is refused with a sentence, and nothing is changed."""
    served, url = api
    net = served._controller.net
    box = {"id": "box", "mac": "02:00:00:00:02:01", "address": "10.0.0.201", "at": "leaf1:spare"}
    service = {"anycast": ["10.9.9.9"], "load": 3}
    assert (await call(url, "POST", "/v1/servers", {**box, **service}))[0] == 201
    assert (await call(url, "POST", "/v1/servers", {**box, "mac": "02:00:00:00:02:02"}))[0] == 201
    rows: Any = (await call(url, "GET", "/v1/servers"))[1]["servers"]
    assert [(row["anycast"], row["load"]) for row in rows if row["id"] == "box"] == [(["10.9.9.9"], 3)]
    for wrong, status, said in (
        ({"anycast": ["10.1.0.77"]}, 409, "it is of subnet blue"),
        ({"anycast": ["ten"]}, 409, "not an IP address"),
        ({"load": -1}, 400, "load"),
    ):
        got, answer = await call(url, "POST", "/v1/servers", {**box, **wrong})
        assert (got, said in str(answer["error"])) == (status, True), answer
    other = {**box, "id": "other", "mac": "02:00:00:00:02:03", "address": "10.0.0.202", "at": "leaf1:spare2"}
    both = [{**other, "anycast": ["10.9.9.8"]}, {**box, "anycast": ["10.1.0.77"]}]
    assert (await call(url, "POST", "/v1/servers", both))[0] == 409
    assert not net.is_anycast(ip_address("10.9.9.8"))
    got, answer = await call(url, "DELETE", "/v1/servers/box")
    assert (got, "its anycast address" in str(answer["error"])) == (409, True)
    assert list(net.serving(ip_address("10.9.9.9"))) == ["box"]
    assert (await call(url, "POST", "/v1/servers", {**box, "anycast": []}))[0] == 201
    assert (await call(url, "DELETE", "/v1/servers/box"))[0] == 200
    assert not net.is_anycast(ip_address("10.9.9.9"))


async def test_a_server_may_be_given_by_its_chassis_id_alone(api: Served) -> None:
    """Its MAC is not shown before it is known; what is known of it stays where it is given anew without."""
    served, url = api
    net = served._controller.net
    new = {"id": "new", "address": "10.0.0.77"}
    status, refused = await call(url, "POST", "/v1/servers", new)
    assert status == 409
    assert "give its MAC, or the LLDP chassis id" in str(refused)
    assert (await call(url, "POST", "/v1/servers", {**new, "chassis": "rack7"}))[0] == 201
    rows: Any = (await call(url, "GET", "/v1/servers"))[1]["servers"]
    assert [row["mac"] for row in rows if row["id"] == "new"] == [""]
    mac = "02:00:00:00:00:77"
    net.put_server(replace(net.servers["new"], mac=mac))
    assert (await call(url, "POST", "/v1/servers", {**new, "metric": 3}))[0] == 201
    assert (net.servers["new"].mac, net.servers["new"].metric) == (mac, 3)


async def test_an_agent_that_was_there_before_its_server_is_known_as_its_agent(api: Served) -> None:
    """Its stream ends when the server is given; it comes again, and is that server's then."""
    served, url = api
    agents = served._controller.context.agents
    of_new = f"{url}/v1/events?server=new"
    async with aiohttp.ClientSession() as http:
        async with http.get(of_new) as stream:
            await read_until(stream, "hello")
            assert not agents.listens("new")
            given = {"id": "new", "mac": "02:00:00:00:00:77", "address": "10.0.0.77"}
            assert (await call(url, "POST", "/v1/servers", given))[0] == 201
            async with asyncio.timeout(60):
                await stream.read()
        async with http.get(of_new) as stream:
            await read_until(stream, "hello")
            assert agents.listens("new")
            await call(url, "POST", "/v1/servers/new/fence")
            async with asyncio.timeout(60):
                assert await read_until(stream, "server.fenced"), "it has not ended once more"


async def test_a_listener_that_does_not_read_is_let_go_without_a_gap() -> None:
    bus = EventBus(lambda: 1000.0)
    slow = bus.listen()
    for _ in range(QUEUE + 5):
        bus.publish(EventType.VM_READY)
    heard = [event.id async for event in slow]
    assert heard == list(range(1, QUEUE + 1))
    again = bus.listen(since=heard[-1])
    assert [(await anext(again)).id for _ in range(5)] == list(range(QUEUE + 1, QUEUE + 6))


async def test_a_listener_from_before_the_ring_is_told_what_it_lost() -> None:
    bus = EventBus(lambda: 1000.0)
    for _ in range(RING + 10):
        bus.publish(EventType.VM_READY)
    late = bus.listen(since=3)
    first, second = await anext(late), await anext(late)
    assert (first.type, first.data) == ("events.lost", {"since": 3})
    assert second.id == 11


async def read_until(stream: aiohttp.ClientResponse, kind: str) -> list[str]:
    lines: list[str] = []
    while not (len(lines) > 1 and lines[-2] == f"event: {kind}"):
        lines.append((await stream.content.readline()).decode().rstrip("\n"))
    return lines


async def test_a_vm_is_switched_on_and_off(api: Served) -> None:
    _, url = api
    assert (await call(url, "POST", "/v1/vms", {**VM, "restart": "on-crash"}))[0] == 201
    status, vm = await call(url, "POST", "/v1/vms/vm1/stop")
    assert (status, vm["power"], vm["state"], vm["restart"]) == (200, "off", "off", "on-crash")
    status, vm = await call(url, "POST", "/v1/vms/vm1/start")
    assert (status, vm["power"], vm["state"]) == (200, "running", "registered")
    started = {"event": "started", "server": "server1"}
    assert (await call(url, "POST", "/v1/vms/vm1/events", started))[0] == 200
    for path, body in (("reboot", {"seconds": 5}), ("reboot", None), ("reset", None)):
        assert (await call(url, "POST", f"/v1/vms/vm1/{path}", body))[0] == 200
    ended = {"event": "stopped", "server": "server1", "how": "crashed", "reason": "its QEMU has ended"}
    await call(url, "POST", "/v1/vms/vm1/events", {**ended, "how": "off", "reason": ""})
    _, vm = await call(url, "GET", "/v1/vms/vm1")
    assert (vm["state"], vm["power_reason"]) == (
        "off",
        "it was switched off from inside, or at its hypervisor",
    )


async def test_a_vm_is_changed(api: Served) -> None:
    _, url = api
    assert (await call(url, "POST", "/v1/vms", {**VM, "memory_mib": 64, "addresses": ["10.1.0.5"]}))[0] == 201
    status, vm = await call(url, "PATCH", "/v1/vms/vm1", {"addresses": ["10.1.0.6"], "restart": "on-crash"})
    assert (status, vm["holds"], vm["restart"], vm["memory_mib"]) == (200, ["10.1.0.6"], "on-crash", 64)
    await call(url, "POST", "/v1/vms/vm1/stop")
    status, vm = await call(url, "PATCH", "/v1/vms/vm1", {"memory_mib": 256, "addresses": None})
    assert (status, vm["holds"], vm["memory_mib"]) == (200, ["10.1.0.6"], 256)


async def test_rejections_carry_a_code_for_programs(api: Served) -> None:
    _, url = api
    assert (await call(url, "POST", "/v1/vms", {**VM, "addresses": ["10.1.0.5"]}))[0] == 201
    move = {"vm": "vm1", "target_server": "server2"}
    entity = {"name": "vm1", "kind": "vm"}
    for method, path, body, status, code in (
        ("GET", "/v1/vms/vm9", None, 404, "unknown_vm"),
        ("GET", "/v1/migrations/migration-9", None, 404, "unknown_migration"),
        ("GET", "/v1/flows?switch=leaf9", None, 404, "unknown_switch"),
        ("GET", "/v1/nothing", None, 404, "no_such_path"),
        ("GET", "/v1/events?since=x", None, 400, "malformed_request"),
        ("PUT", "/v1/vms", {}, 405, "method_not_allowed"),
        ("POST", "/v1/vms", b"{", 400, "malformed_body"),
        ("POST", "/v1/vms", VM, 409, "already_registered"),
        ("POST", "/v1/vms", {**VM, "id": "vm2"}, 409, "conflict"),
        ("DELETE", "/v1/vms/vm9", None, 409, "unknown_vm"),
        ("POST", "/v1/vms/vm9/events", {"event": "started"}, 409, "unknown_vm"),
        ("POST", "/v1/vms/vm9/start", None, 409, "unknown_vm"),
        ("POST", "/v1/vms/vm1/reset", None, 409, "not_running"),
        ("PATCH", "/v1/vms/vm1", {"memory_mib": 256}, 409, "running"),
        ("PATCH", "/v1/vms/vm1", {"memory_mib": -1}, 400, "malformed_body"),
        ("PATCH", "/v1/vms/vm1", {"memory_mib": (1 << 24) + 1}, 400, "malformed_body"),
        ("PATCH", "/v1/vms/vm1", {"id": "vm2"}, 400, "malformed_body"),
        ("PATCH", "/v1/vms/vm1", {"mac": vm_mac(2)}, 409, "conflict"),
        ("PATCH", "/v1/vms/vm9", {}, 409, "unknown_vm"),
        ("POST", "/v1/vms/vm1/stop", {"seconds": -1}, 400, "malformed_body"),
        ("POST", "/v1/vms/vm1/stop", {"seconds": 3601}, 400, "malformed_body"),
        ("POST", "/v1/vms/vm1/reboot", {"hard": True}, 400, "malformed_body"),
        ("POST", "/v1/vms/vm9/renewals", {}, 409, "unknown_vm"),
        ("POST", "/v1/vms/vm1/renewals", {}, 409, "not_renewable"),
        ("GET", "/v1/renewals/renewal-9", None, 409, "unknown_renewal"),
        ("POST", "/v1/migrations", {**move, "vm": "vm9"}, 409, "unknown_vm"),
        ("POST", "/v1/migrations", {**move, "target_server": "server9"}, 409, "unknown_server"),
        ("POST", "/v1/migrations", {**move, "target_switch": "edge3"}, 409, "not_a_target"),
        ("POST", "/v1/migrations", {"vm": "vm1"}, 409, "no_match"),
        ("POST", "/v1/migrations", {"vm": "vm9"}, 409, "unknown_vm"),
        ("POST", "/v1/migrations", {**move, "reason": "boredom"}, 400, "malformed_body"),
        ("GET", "/v1/entities/nobody", None, 404, "unknown_entity"),
        ("GET", "/v1/entities?kind=ship", None, 400, "malformed_request"),
        ("DELETE", "/v1/entities/vm1", None, 409, "unknown_entity"),
        ("POST", "/v1/entities", {"name": "server1", "kind": "service"}, 409, "conflict"),
        ("POST", "/v1/entities", {"name": "vm9", "kind": "vm"}, 409, "unknown_vm"),
        ("POST", "/v1/entities", {"name": "a b", "kind": "image"}, 409, "conflict"),
        ("POST", "/v1/entities", {"name": "vm1", "kind": "image"}, 409, "name_taken"),
        ("POST", "/v1/entities", {**entity, "profile": {"cpus": -1}}, 400, "malformed_body"),
        ("POST", "/v1/entities", {**entity, "profile": {"clients": ["x"]}}, 409, "conflict"),
        ("POST", "/v1/entities", {**entity, "profile": {"clients": ["::1"] * 65}}, 400, "malformed_body"),
        ("POST", "/v1/entities", {**entity, "profile": {"served_by": ["vm2"]}}, 409, "conflict"),
        ("POST", "/v1/servers/server9/profile", {}, 409, "unknown_server"),
        ("POST", "/v1/servers/server1/profile", {"cpu_used": 10_001}, 400, "malformed_body"),
        ("POST", "/v1/matches/match-9/answers", {"server": "server1", "report": {}}, 409, "unknown_match"),
        ("POST", "/v1/vms/vm9/profile-queries", None, 409, "unknown_vm"),
        ("POST", "/v1/vms/vm9/migration-requests", {"reason": "memory"}, 409, "unknown_vm"),
        ("GET", "/v1/migrations/migration-9/placement", None, 404, "unknown_migration"),
        ("GET", "/v1/domain/plan?metric=luck", None, 400, "malformed_request"),
        ("GET", "/v1/domain/plan?threshold=101", None, 400, "malformed_request"),
        ("POST", "/v1/migrations", {**move, "target_server": "server1"}, 409, "already_there"),
        ("POST", "/v1/migrations", {**move, "source_server": "server3"}, 409, "contradiction"),
        ("POST", "/v1/migrations", move, 201, None),
        ("GET", "/v1/migrations/migration-1/placement", None, 409, "unknown_match"),
        ("POST", "/v1/migrations", {"vm": "vm1"}, 409, "migration_under_way"),
        ("POST", "/v1/migrations", move, 409, "migration_under_way"),
        ("DELETE", "/v1/vms/vm1", None, 409, "migration_under_way"),
        ("POST", "/v1/migrations/migration-1/events", {"event": "source_freed"}, 409, "out_of_step"),
        ("POST", "/v1/migrations/migration-9/cancel", None, 409, "unknown_migration"),
        ("POST", "/v1/switches/leaf1/audit", None, 409, "not_audited"),
        ("POST", "/v1/servers/server9/counters", {"since": 1, "rejected": {}}, 409, "unknown_server"),
    ):
        got, answer = await call(url, method, path, body)
        assert (got, answer.get("code")) == (status, code), (method, path, body)
        assert code is None or len(str(answer["error"])) > 8


async def test_a_whole_number_may_be_written_as_a_fraction(api: Served) -> None:
    """JSON has one kind of number: RFC 8259, 6."""
    url = api[1]
    wanted = b'{"id": "vm1", "server": "server1", "mac": "52:54:00:00:00:01", "memory_mib": 256.0}'
    status, answer = await call(url, "POST", "/v1/vms", wanted)
    assert status == 201 and answer["vms"][0]["memory_mib"] == 256  # type: ignore[index]
    status, answer = await call(url, "POST", "/v1/vms", wanted.replace(b"256.0", b"256.5"))
    assert status == 400 and "memory_mib" in str(answer["error"])


async def test_what_the_interface_is_can_be_asked(api: Served) -> None:
    status, answer = await call(api[1], "GET", "/v1/openapi.json")
    assert status == 200 and answer == openapi.description()
