"""The manager's interface over HTTP: what is answered, what is refused, what is streamed."""

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest

from fake_session import FakeNetwork
from networks import GATEWAY_MAC, UPLINK, add_vm, fabric, vm_ip, vm_mac, vm_port
from retinue.api.server import Api
from retinue.controller.controller import Controller
from retinue.controller.events import QUEUE, RING, EventBus
from retinue.flows.change import Change
from retinue.model.network import Owner
from world import OUTSIDE, udp_frame


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


async def call(url: str, method: str, path: str, body: object = None) -> tuple[int, dict[str, object]]:
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    async with aiohttp.ClientSession() as http, http.request(method, url + path, data=data) as answer:
        return answer.status, await answer.json()


async def test_vms_are_booked_shown_and_removed(api: Served) -> None:
    _, url = api
    status, _ = await call(url, "POST", "/v1/vms", [{**VM, "addresses": ["10.1.0.5"]}])
    assert status == 201
    status, vm = await call(url, "GET", "/v1/vms/vm1")
    assert (vm["state"], vm["switch"], vm["holds"]) == ("booked", "edge1", ["10.1.0.5"])
    assert vm["missing"]
    assert (await call(url, "DELETE", "/v1/vms/vm1"))[0] == 200
    status, error = await call(url, "GET", "/v1/vms/vm1")
    assert status == 404
    assert "there is no VM vm1" in str(error["error"])


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "body cannot be used"),
        (b"\xff\xfe", 400, "body cannot be used"),
        (b'{"id": "\xff"}', 400, "body cannot be used"),
        ({"id": "x"}, 400, "mac"),
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
async def test_bad_bodies_are_refused_in_words_and_counted(
    api: Served, body: object, status: int, said: str
) -> None:
    served, url = api
    got, answer = await call(url, "POST", "/v1/vms", body)
    assert got == status
    assert said in str(answer["error"])
    assert sum(served.refused.values()) == 1
    assert (await call(url, "GET", "/v1/vms"))[1] == {"vms": []}


async def test_move_messages_are_refused_in_words(api: Served) -> None:
    _, url = api
    await call(url, "POST", "/v1/vms", VM)
    for body, said in (
        ({"vm": "vm9", "target_server": "server2"}, "there is no VM vm9"),
        ({"vm": "vm1"}, "name the target once"),
        ({"vm": "vm1", "target_server": "server2", "ip": "10.1.0.9"}, "does not hold"),
    ):
        status, answer = await call(url, "POST", "/v1/moves", body)
        assert status == 409
        assert said in str(answer["error"])
    status, move = await call(url, "POST", "/v1/moves", {"vm": "vm1", "target_switch": "edge2"})
    assert (status, move["target"], move["state"]) == (201, "server2", "matched")
    status, answer = await call(url, "POST", "/v1/moves/move-1/events", {"event": "resumed"})
    assert status == 409
    assert "needs its time" in str(answer["error"])
    status, answer = await call(url, "POST", "/v1/moves/move-1/events", {"event": "resumed", "at": 5.0})
    assert status == 409
    assert "does not fit" in str(answer["error"])


async def test_every_list_is_shown(api: Served) -> None:
    _, url = api
    await call(url, "POST", "/v1/vms", VM)
    for path in ("status", "switches", "servers", "vms", "bindings", "forgeries", "moves", "flows"):
        assert (await call(url, "GET", f"/v1/{path}"))[0] == 200
    _, flows = await call(url, "GET", "/v1/flows?switch=edge1")
    assert flows["flows"]
    assert (await call(url, "GET", "/v1/flows?switch=nope"))[0] == 404
    _, status = await call(url, "GET", "/v1/status")
    assert status["refused"] == {"openflow": {"garbage": 3}, "rest": {"not found": 1}}
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as answer:
        assert 'retinue_refused_total{listener="openflow",reason="garbage"} 3.0' in await answer.text()


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
        status, refused = await call(url, "POST", "/v1/switches/leaf1/audit")
        assert (status, refused["error"]) == (409, "switch leaf1 cannot be audited: it is not connected")
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
        await call(url, "POST", "/v1/moves", {"vm": "vm1", "target_server": "server2"})
        events = "/v1/moves/move-1/events"
        for word in ("target_open", "copying"):
            assert (await call(url, "POST", events, {"event": word}))[0] == 200
            await fake.settle()
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
    assert served.refused["not HTTP"] == 3
    assert (await call(url, "GET", "/v1/vms"))[0] == 200


async def test_events_are_streamed_and_a_late_listener_catches_up(api: Served) -> None:
    _, url = api
    async with aiohttp.ClientSession() as http, http.get(f"{url}/v1/events") as stream:
        lines = await read_until(stream, "hello")
        assert json.loads(lines[-1].removeprefix("data: "))["type"] == "hello"
        await call(url, "POST", "/v1/vms", VM)
        lines = await read_until(stream, "vm.booked")
        event = json.loads(lines[-1].removeprefix("data: "))
        assert (event["vm"]["id"], event["edge"]) == ("vm1", "edge1")
    async with aiohttp.ClientSession() as http, http.get(f"{url}/v1/events?since=0") as stream:
        assert await read_until(stream, "vm.booked")


async def test_a_listener_that_does_not_read_is_let_go_without_a_gap() -> None:
    bus = EventBus(lambda: 1000.0)
    slow = bus.listen()
    for _ in range(QUEUE + 5):
        bus.publish("tick")
    heard = [event.id async for event in slow]
    assert heard == list(range(1, QUEUE + 1))
    again = bus.listen(since=heard[-1])
    assert [(await anext(again)).id for _ in range(5)] == list(range(QUEUE + 1, QUEUE + 6))


async def test_a_listener_from_before_the_ring_is_told_what_it_lost() -> None:
    bus = EventBus(lambda: 1000.0)
    for _ in range(RING + 10):
        bus.publish("tick")
    late = bus.listen(since=3)
    first, second = await anext(late), await anext(late)
    assert (first.type, first.data) == ("events.lost", {"since": 3})
    assert second.id == 11


async def read_until(stream: aiohttp.ClientResponse, kind: str) -> list[str]:
    lines: list[str] = []
    while not (len(lines) > 1 and lines[-2] == f"event: {kind}"):
        lines.append((await stream.content.readline()).decode().rstrip("\n"))
    return lines
