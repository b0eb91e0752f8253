"""What a standby answers, and a controller that is just taking over, or has lost its database."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from support.fabric.networks import fabric
from support.rest import call


class Others:
    """The other controllers, as the test has them."""

    def __init__(self) -> None:
        self.active = False

    def report(self) -> dict[str, Any]:
        return {"role": "active" if self.active else "standby"}

    def speaks(self) -> bool:
        return self.active

    def who_speaks(self) -> str:
        return "the active one is c1 at https://192.0.2.1:8080"


@pytest.fixture
async def served() -> AsyncIterator[tuple[str, Others]]:
    others = Others()
    api = Api(Controller(fabric(), clock=lambda: 1000.0), dict, cluster=others)
    port = await api.start("127.0.0.1", 0)
    yield f"http://127.0.0.1:{port}", others
    await api.stop()


async def test_a_standby_says_that_it_is_one_and_answers_nothing_else(served: tuple[str, Others]) -> None:
    url, others = served
    assert await call(url, "GET", "/v1/cluster") == (200, {"role": "standby"})
    for method, path in (("GET", "/v1/status"), ("POST", "/v1/vms"), ("GET", "/v1/events")):
        status, said = await call(url, method, path)
        assert (status, said["code"]) == (503, "standby")
        assert said["error"] == "the active one is c1 at https://192.0.2.1:8080"
    others.active = True
    assert (await call(url, "GET", "/v1/status"))[0] == 200
    assert await call(url, "GET", "/v1/cluster") == (200, {"role": "active"})
    others.active = False  # As when its mandate is over.
    assert (await call(url, "POST", "/v1/vms", {"id": "web", "server": "s1"}))[0] == 503


async def test_a_standby_tells_prometheus_that_it_does_not_lead_and_of_no_network(
    served: tuple[str, Others],
) -> None:
    url, others = served
    standby = await scraped(url)
    assert standby["retinue_leader"] == 0
    assert "retinue_build_info" in standby
    assert not [name for name in standby if name in ("retinue_vms", "retinue_switches")]
    others.active = True
    active = await scraped(url)
    assert (active["retinue_leader"], active["retinue_switches"]) == (1, 7)


async def scraped(url: str) -> dict[str, float]:
    """By metric, the value of its last sample."""
    async with aiohttp.ClientSession() as client, client.get(f"{url}/metrics") as response:
        assert response.status == 200
        families = text_string_to_metric_families(await response.text())
    return {sample.name: sample.value for family in families for sample in family.samples}


async def test_one_that_is_alone_says_so() -> None:
    api = Api(Controller(fabric(), clock=lambda: 1000.0), dict)
    port = await api.start("127.0.0.1", 0)
    assert await call(f"http://127.0.0.1:{port}", "GET", "/v1/cluster") == (200, {"role": "alone"})
    await api.stop()
