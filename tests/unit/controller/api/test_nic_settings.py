"""POST /v1/vms/{id}/nics/set: what is no setting of a NIC is rejected in words, and changes nothing."""

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from retinue.controller.app import Controller
from retinue.core.limits import MOST_ALLOWED, MOST_PREFIXES, MOST_RATE
from support.fabric.networks import GATEWAY_MAC, add_vm, fabric, vm_mac


@pytest.fixture
async def controller() -> AsyncIterator[Controller]:
    net = fabric()
    for number in (1, 2):
        add_vm(net, number, number)
    controller = Controller(net, clock=lambda: 1000.0)
    await controller.start()
    yield controller
    await controller.stop()


async def set_(url: str, vm: str, body: object) -> tuple[int, dict[str, object]]:
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/v1/vms/{vm}/nics/set", data=json.dumps(body).encode()) as answer,
    ):
        return answer.status, await answer.json()


def allowed(address: object, **more: object) -> dict[str, object]:
    return {"allowed": [{"address": address, **more}]}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"enabled": "no"}, 400, "enabled"),
        ({"colour": "red"}, 400, "colour"),
        ({"rate": -1}, 400, "rate"),
        ({"rate": MOST_RATE + 1}, 400, "rate"),
        ({"rate": 1.5}, 400, "rate"),
        ({"nic": "vm2", "enabled": False}, 409, "VM vm1 has no NIC vm2"),
        ({"mac": "nonsense"}, 409, "not a MAC address"),
        ({"mac": vm_mac(9)}, 409, "retinue move start vm1 --mac"),
        ({"allowed": [{"address": "10.1.0.200"}] * (MOST_ALLOWED + 1)}, 400, "allowed"),
        ({"allowed": [{"address": "10.1.0.200"}] * 2}, 409, "an address is allowed twice"),
        (allowed("ten"), 409, "not an IP address"),
        (allowed("10.1.0.200", colour="red"), 400, "colour"),
        (allowed("10.1.0.200", mac="x"), 409, "not a MAC address"),
        (allowed("10.1.0.200", mac=GATEWAY_MAC), 409, "is the gateway's"),
        (allowed("10.1.0.102"), 409, "10.1.0.102 is held by VM vm2, and cannot be allowed"),
        (allowed("10.1.0.254"), 409, "is the gateway of subnet blue"),
        (allowed("10.9.0.1"), 409, "10.9.0.1 is in no subnet, and cannot be allowed"),
        ({"prefixes": ["10.9.0.0/28"] * (MOST_PREFIXES + 1)}, 400, "prefixes"),
        ({"mirror": "up0"}, 409, "takes no copies"),
        ({"mirror": 5}, 400, "mirror"),
        ({"prefixes": ["10.9.0.1/28"]}, 409, "not an IP prefix"),
        ({"prefixes": "10.9.0.0/28"}, 400, "prefixes"),
        ({"prefixes": ["10.9.0.0/28", "10.9.0.0/24"]}, 409, "10.9.0.0/28 is routed to it already"),
        ({"anycast": ["10.1.0.200"]}, 409, "it is of subnet blue, 10.1.0.0/24"),
        ({"anycast": ["ten"]}, 409, "not an IP address"),
        ({"load": -1}, 400, "load"),
        ({"prefixes": ["10.1.0.0/28"]}, 409, "it has addresses of subnet blue, 10.1.0.0/24"),
    ],
)
async def test_what_is_no_setting_is_rejected_and_changes_nothing(
    controller: Controller, url: str, body: object, status: int, said: str
) -> None:
    before = dict(controller.net.vms), controller.events.last_id
    got, answer = await set_(url, "vm1", body)
    assert (got, said in str(answer["error"])) == (status, True), answer
    assert (dict(controller.net.vms), controller.events.last_id) == before


async def test_a_setting_is_shown(url: str) -> None:
    assert (await set_(url, "vm9", {}))[0] == 409
    status, answer = await set_(
        url,
        "vm1",
        {"enabled": False, "rate": 7, "prefixes": ["10.9.0.0/28"], "mirror": "mirror1"}
        | {"anycast": ["10.9.9.9"], "load": 30},
    )
    assert status == 200
    nics: Any = answer["nics"]
    assert [(nic["enabled"], nic["rate"], nic["prefixes"], nic["mirror"]) for nic in nics] == [
        (False, 7, ["10.9.0.0/28"], "mirror1")
    ]
    assert [(nic["anycast"], nic["load"]) for nic in nics] == [(["10.9.9.9"], 30)]
