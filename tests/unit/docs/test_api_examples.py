"""The answers that docs/api.md shows have the fields of those that the controller gives."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.core.snooping.spoofing import SpoofingKind
from support.fabric.networks import add_vm, fabric, vm_mac, vm_port
from support.pages import fenced, section

PAGE = "docs/api.md"


def shown(heading: str) -> Any:
    """The JSON of the section's first block, without the dots that stand for what was left out."""
    return json.loads(re.sub(r"\.\.\.(, )?", "", fenced(section(PAGE, heading))[0]))


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """A controller with a bound VM, a VM in a migration, and a spoofing attempt."""
    net = fabric()
    controller = Controller(net, clock=lambda: 1000.0)
    await controller.start()
    add_vm(net, 1, at=1)
    add_vm(net, 2, at=1)
    await controller.context.install(net.everything())
    controller.orchestrator.start("vm2", target_server="server2")
    log = controller.context.spoof_attempts
    log.note(SpoofingKind.IP, "edge1", vm_port(1), "vm1", (vm_mac(1), "10.1.0.77"), 1000.0)
    api = Api(controller, lambda: {"openflow": {}, "ovsdb": {}})
    yield f"http://127.0.0.1:{await api.start('127.0.0.1', 0)}"
    await api.stop()
    await controller.stop()


async def call(url: str, method: str, path: str, body: object = None) -> Any:
    async with (
        asyncio.timeout(60),
        aiohttp.ClientSession() as http,
        http.request(method, url + path, json=body) as answer,
    ):
        assert answer.status in (200, 201), await answer.text()
        return await answer.json()


LISTS = {
    "GET /v1/bindings, GET /v1/bindings?vm=ID": "/v1/bindings",
    "GET /v1/spoof-attempts": "/v1/spoof-attempts",
    "GET /v1/vrfs": "/v1/vrfs",
    "GET /v1/vnets": "/v1/vnets",
    "GET /v1/subnets": "/v1/subnets",
    "GET /v1/servers": "/v1/servers",
    "GET /v1/switches": "/v1/switches",
    "GET /v1/flows, GET /v1/flows?switch=ID, GET /v1/flows?vm=ID": "/v1/flows?vm=vm1",
}


@pytest.mark.parametrize(("heading", "path"), LISTS.items())
async def test_a_list_is_shown_with_its_fields(url: str, heading: str, path: str) -> None:
    real, page = await call(url, "GET", path), shown(heading)
    assert page.keys() == real.keys()
    name = next(iter(page))
    assert page[name][0].keys() == real[name][0].keys()


async def test_a_vm_is_shown_with_its_fields(url: str) -> None:
    """The answer stands in the section's second block, behind the request's."""
    (_, block, *_) = fenced(section(PAGE, "POST /v1/vms"))
    vm = {"id": "web", "mac": "52:54:00:00:00:50", "server": "server2", "addresses": ["10.1.0.50"]}
    real = await call(url, "POST", "/v1/vms", vm)
    page = json.loads(block)
    assert page["vms"][0].keys() == real["vms"][0].keys()
    assert page["vms"][0]["subnets"] == real["vms"][0]["subnets"]
    assert page["vms"][0]["state"] == real["vms"][0]["state"]


async def test_a_migration_is_shown_with_its_fields(url: str) -> None:
    page = shown("GET /v1/migrations, GET /v1/migrations/{id}")
    real = await call(url, "GET", "/v1/migrations/migration-1")
    assert page.keys() == real.keys()
    assert page["id"] == real["id"]
    assert page["steps"][0].keys() == real["steps"][0].keys()


async def test_the_status_is_shown_with_its_fields(url: str) -> None:
    page, real = shown("GET /v1/status"), await call(url, "GET", "/v1/status")
    assert page.keys() == real.keys()
    for name in ("switches", "servers", "rejected"):
        assert page[name].keys() == real[name].keys()
