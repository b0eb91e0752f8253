"""The pool of pairs by REST: given, taken by VMs, over a restart of the controller."""

from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.controller.config import load
from support.fabric.networks import fabric
from support.fakes.memory_store import MemoryStore

PAIRS = [{"mac": f"52:54:00:00:01:{n:02x}", "ip": f"10.1.0.{50 + n}"} for n in (1, 2, 3)]


class Running:
    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.controller = Controller(fabric(), store, clock=lambda: 1000.0)
        self.controller.restore(store.load())
        self.api = Api(self.controller, dict)
        self.url = ""

    async def start(self) -> None:
        await self.controller.start()
        self.url = f"http://127.0.0.1:{await self.api.start('127.0.0.1', 0)}"

    async def stop(self) -> None:
        await self.api.stop()
        await self.controller.stop()

    async def call(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
        async with (
            aiohttp.ClientSession() as http,
            http.request(method, self.url + path, json=body) as answer,
        ):
            return answer.status, await answer.json()

    async def users(self) -> list[str]:
        _, answer = await self.call("GET", "/v1/pairs")
        rows = answer["pairs"]
        assert isinstance(rows, list)
        return [row["vm"] for row in rows]


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    made = Running(MemoryStore())
    await made.start()
    yield made
    await made.stop()


async def test_each_vm_without_mac_and_address_takes_the_next(running: Running) -> None:
    status, answer = await running.call("POST", "/v1/pairs", PAIRS)
    assert status == 201
    assert answer["pairs"] == [{**pair, "number": n, "vm": ""} for n, pair in enumerate(PAIRS, 1)]
    vms = [{"id": f"vm{n}", "server": "server1"} for n in (1, 2)]
    status, answer = await running.call("POST", "/v1/vms", vms)
    assert status == 201
    assert [(vm["mac"], vm["addresses"]) for vm in answer["vms"]] == [
        (pair["mac"], [pair["ip"]]) for pair in PAIRS[:2]
    ]
    assert await running.users() == ["vm1", "vm2", ""]
    await running.call("DELETE", "/v1/vms/vm1")
    status, answer = await running.call("POST", "/v1/vms", {"id": "vm3", "server": "server2"})
    assert answer["vms"][0]["mac"] == PAIRS[0]["mac"]
    assert await running.users() == ["vm3", "vm2", ""]


async def test_a_bulk_that_finds_not_enough_takes_none(running: Running) -> None:
    await running.call("POST", "/v1/pairs", PAIRS[:1])
    status, answer = await running.call(
        "POST", "/v1/vms", [{"id": "vm1", "server": "server1"}, {"id": "vm2", "server": "server1"}]
    )
    assert (status, answer["code"]) == (409, "no_pair")
    assert "VM vm2: `mac` is missing, or `nics`, and all pairs are taken" in str(answer["error"])
    assert await running.users() == [""] and running.controller.net.vms == {}


async def test_pairs_that_cannot_be_taken_now_are_no_longer_free(running: Running) -> None:
    await running.call("POST", "/v1/pairs", PAIRS[:1])
    server = {"id": "box", "mac": "02:00:00:00:77:01", "address": PAIRS[0]["ip"]}
    assert (await running.call("POST", "/v1/servers", server))[0] == 201
    status, answer = await running.call("POST", "/v1/vms", {"id": "vm1", "server": "server1"})
    assert (status, answer["code"]) == (409, "no_pair")
    assert "of the pairs that are left none can be a VM's now" in str(answer["error"])
    await running.call("POST", "/v1/pairs", PAIRS[1:2])
    status, answer = await running.call("POST", "/v1/vms", {"id": "vm1", "server": "server1"})
    assert (status, answer["vms"][0]["mac"]) == (201, PAIRS[1]["mac"])


async def test_what_cannot_be_changes_nothing(running: Running) -> None:
    await running.call("POST", "/v1/pairs", PAIRS[:1])
    for body in (PAIRS[1] | {"ip": "x"}, PAIRS[1] | {"mac": "x"}, PAIRS[1] | {"ip": PAIRS[0]["ip"]}):
        status, _ = await running.call("POST", "/v1/pairs", [PAIRS[2], body])
        assert status in (400, 409)
    assert await running.users() == [""]
    status, answer = await running.call("DELETE", f"/v1/pairs/{PAIRS[1]['mac']}")
    assert (status, answer["code"]) == (409, "unknown_pair")


async def test_the_pool_outlives_the_controller(running: Running) -> None:
    await running.call("POST", "/v1/pairs", PAIRS)
    await running.call("POST", "/v1/vms", {"id": "vm1", "server": "server1"})
    await running.call("DELETE", f"/v1/pairs/{PAIRS[1]['mac']}")
    again = Running(running.store)
    mac, ip = PAIRS[0]["mac"], ip_address(PAIRS[2]["ip"])
    again.controller.pairs.configured([(mac, ip), ("52:54:00:00:01:09", ip_address("10.1.0.59"))])
    rows = list(again.controller.pairs.shown())
    assert [(row["ip"], row["number"], row["vm"]) for row in rows] == [
        ("10.1.0.51", 1, "vm1"), ("10.1.0.53", 3, ""), ("10.1.0.59", 4, ""),
    ], "the database has precedence over the file"  # fmt: skip


def test_the_file_has_pairs(tmp_path: Path) -> None:
    file = tmp_path / "controller.toml"
    file.write_text(
        'gateway_mac = "00:00:de:ad:be:ef"\n[listen]\nplaintext = ["rest", "openflow", "ovsdb"]\n'
        '[[pair]]\nmac = "52:54:00:00:01:01"\nip = "10.1.0.51"\n'
    )
    assert load(file).pairs() == [("52:54:00:00:01:01", ip_address("10.1.0.51"))]
