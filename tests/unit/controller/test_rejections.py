"""What agents rejected, at the controller: sums that never go down, by server, shown to the operator."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from retinue.agent.controller_link.rejections import Rejections
from retinue.agent.migration.peer import Transfer
from retinue.controller.agent_rejections import AgentRejections
from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.core.limits import LARGEST_COUNT as MOST
from retinue.core.model import ModelError
from retinue.protocol.client import ControllerClient
from retinue.security.credentials import Credentials
from retinue.security.listener.rejections import Rejection
from support.fabric.networks import fabric

TLS, TIMEOUT = Rejection.TLS, Rejection.TIMEOUT


@pytest.fixture
def kept() -> AgentRejections:
    return AgentRejections(fabric())


def test_totals_of_one_life_are_as_the_agent_tells_them(kept: AgentRejections) -> None:
    kept.on_report("server3", 5.0, {TLS: 0})
    assert kept.totals() == {}
    kept.on_report("server2", 5.0, {TLS: 3})
    kept.on_report("server1", 7.0, {TIMEOUT: 1})
    kept.on_report("server2", 5.0, {TLS: 4, TIMEOUT: 1})
    assert kept.totals() == {"server1": {"timeout": 1}, "server2": {"timeout": 1, "tls": 4}}


def test_told_again_or_late_they_count_once(kept: AgentRejections) -> None:
    for rejected in ({TLS: 3}, {TLS: 3}, {TLS: 2}, {}):
        kept.on_report("server1", 5.0, rejected)
    assert kept.totals() == {"server1": {"tls": 3}}


@pytest.mark.parametrize("next_life", [9.0, 4.0], ids=["later", "by a clock that was set back"])
def test_an_agent_that_starts_again_goes_on_from_the_sum(kept: AgentRejections, next_life: float) -> None:
    kept.on_report("server1", 5.0, {TLS: 3, TIMEOUT: 1})
    kept.on_report("server1", next_life, {})
    assert kept.totals() == {"server1": {"timeout": 1, "tls": 3}}
    kept.on_report("server1", next_life, {TLS: 1})
    kept.on_report("server1", next_life, {TLS: 2})
    assert kept.totals() == {"server1": {"timeout": 1, "tls": 5}}


def test_nothing_is_kept_of_a_server_that_is_not_there() -> None:
    net = fabric()
    kept = AgentRejections(net)
    with pytest.raises(ModelError, match="there is no server server9"):
        kept.on_report("server9", 5.0, {TLS: 1})
    kept.on_report("server3", 5.0, {TLS: 1})
    gone = net.servers["server3"]
    net.remove_server("server3")
    assert kept.totals() == {}
    kept.on_report("server1", 5.0, {TLS: 2})
    net.put_server(gone)
    assert kept.totals() == {"server1": {"tls": 2}}, "a server of the same id is another one"


def test_no_agent_makes_a_sum_that_cannot_be_shown(kept: AgentRejections) -> None:
    for life in range(1, 5000):
        kept.on_report("server1", float(life), {TLS: MOST})
    assert kept.totals() == {"server1": {"tls": MOST}}


# ---- over HTTP ----


@pytest.fixture
async def url() -> AsyncIterator[str]:
    controller = Controller(fabric(), clock=lambda: 1000.0)
    api = Api(controller, dict)
    yield f"http://127.0.0.1:{await api.start('127.0.0.1', 0)}"
    await api.stop()
    await controller.stop()


async def call(url: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
    method, data = ("GET", None) if body is None else ("POST", json.dumps(body))
    async with aiohttp.ClientSession() as http, http.request(method, url + path, data=data) as answer:
        return answer.status, await answer.json()


async def test_they_are_shown_by_server_in_the_status_and_the_metrics(url: str) -> None:
    assert (await call(url, "/v1/status"))[1]["rejected_by_agents"] == {}
    for server, rejected in (("server1", {"tls": 3, "wrong_server": 1}), ("server2", {"crowded": 9})):
        answer = await call(url, f"/v1/servers/{server}/counters", {"since": 5.5, "rejected": rejected})
        assert answer == (200, {"ok": True})
    shown = (await call(url, "/v1/status"))[1]
    assert shown["rejected_by_agents"] == {
        "server1": {"tls": 3, "wrong_server": 1},
        "server2": {"crowded": 9},
    }
    assert shown["rejected"] == {"rest": {}}, "the controller's own are its own"
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as answer_:
        lines = [line for line in (await answer_.text()).splitlines() if "rejected_by_agents_total" in line]
    assert [line for line in lines if not line.startswith("#")] == [
        'retinue_rejected_by_agents_total{reason="tls",server="server1"} 3.0',
        'retinue_rejected_by_agents_total{reason="wrong_server",server="server1"} 1.0',
        'retinue_rejected_by_agents_total{reason="crowded",server="server2"} 9.0',
    ]


@pytest.mark.parametrize(
    ("server", "body", "status", "said"),
    [
        ("server1", {"since": 5.0, "rejected": {"because": 1}}, 400, "Invalid enum value 'because'"),
        ("server1", {"since": 5.0, "rejected": {"tls": -1}}, 400, ">= 0"),
        ("server1", {"since": 5.0, "rejected": {"tls": MOST + 1}}, 400, f"<= {MOST}"),
        ("server1", {"since": 5.0, "rejected": {"tls": 1.5}}, 400, "Expected `int`"),
        ("server1", {"since": 5.0, "rejected": [["tls", 1]]}, 400, "Expected `object`"),
        ("server1", {"since": 0, "rejected": {}}, 400, "> 0"),
        ("server1", {"since": "5", "rejected": {}}, 400, "Expected `float`"),
        ("server1", {"rejected": {"tls": 1}}, 400, "since"),
        ("server1", {"since": 5.0}, 400, "rejected"),
        ("server1", {"since": 5.0, "rejected": {}, "packets": {}}, 400, "packets"),
        ("server9", {"since": 5.0, "rejected": {"tls": 1}}, 409, "there is no server server9"),
    ],
)
async def test_a_report_that_is_not_as_agreed_is_rejected_in_words(
    url: str, server: str, body: object, status: int, said: str
) -> None:
    got, answer = await call(url, f"/v1/servers/{server}/counters", body)
    assert got == status
    assert said in answer["error"]
    assert (await call(url, "/v1/status"))[1]["rejected_by_agents"] == {}


async def test_from_an_agents_door_to_the_operator(url: str) -> None:
    """All the parts between, real: the door that counts, the telling, the interface."""
    door, rest = Transfer("server2"), ControllerClient(url, Credentials())
    await door.start("127.0.0.1")
    telling = asyncio.create_task(Rejections("server2", door.rejected, rest, 5.0).run())
    host, _, port = door.address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    try:
        async with asyncio.timeout(60):
            while not (shown := (await call(url, "/v1/status"))[1]["rejected_by_agents"]):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert shown == {"server2": {"malformed": 1}}
    finally:
        writer.close()
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
        await rest.close()
        await door.close()
