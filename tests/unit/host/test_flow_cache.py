"""How far a switch follows its tables: how its flow cache is asked for, and read."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retinue.host.errors import HostError
from retinue.host.flow_cache import FlowCache, leads_to
from support import virtual_time

TO_IT = (
    "recirc_id(0),in_port(up0),packet_type(ns=0,id=0),eth(dst=02:00:00:00:00:01),eth_type(0x0800),"
    "ipv4(dst=10.1.0.100,frag=no), packets:3, bytes:318, used:0.001s, "
    "actions:set(eth(dst=52:54:00:00:00:01)),{}"
)
COPY = (
    "recirc_id(0),in_port(up0),packet_type(ns=0,id=0),eth(src=02:00:00:00:00:02,dst=02:00:00:00:00:01),"
    "eth_type(0x0800),ipv4(dst=10.1.0.100,frag=no), packets:3, bytes:318, used:8.633s, "
    "actions:set(eth(src=00:00:de:ad:be:ef,dst=52:54:00:00:00:01)),tap-vm1"
)


@pytest.mark.parametrize(
    ("flow", "leads"),
    [
        (TO_IT.format("tap-vm1"), True),
        (TO_IT.format("tap-vm1,up0"), True),
        (TO_IT.format("clone(tap-vm1),up0"), True),
        (TO_IT.format("tap-vm10"), False),
        (TO_IT.format("my-tap-vm1"), False),
        (TO_IT.format("up0"), False),
        (TO_IT.format("drop"), False),
        (COPY, False),
        (COPY.replace("02:00:00:00:00:02", "02:00:00:00:00:03"), True),
        # What answers the VM's own question comes only when it asks.
        ("recirc_id(0),in_port(tap-vm1),eth(src=52:54:00:00:00:01), actions:tap-vm1", False),
        ("recirc_id(0),in_port(tap-vm1),eth(src=52:54:00:00:00:01), actions:up0", False),
        ("flow-dump from the main thread:", False),
        (
            "recirc_id(0),in_port(up0),packet_type(ns=0,id=0),eth(src=02:00:00:00:0f:01,dst=0e:fc:00:01:01:01),"
            "eth_type(0x8906), packets:399, bytes:49476, used:1.203s, actions:tap-vm1",
            False,
        ),
    ],
)
def test_a_cached_flow_leads_to_a_port_when_its_actions_name_it(flow: str, leads: bool) -> None:
    assert leads_to(["tap-vm1"], flow, "02:00:00:00:00:02") is leads


class Daemon:
    """Answers on the control socket as ovs-vswitchd does; `caches` is what each look finds, the last one
    again and again."""

    def __init__(self, folder: Path, caches: list[list[str]]) -> None:
        self._folder, self.caches = folder, caches
        self.asked: list[list[str]] = []
        self.many = False
        """It has several datapaths."""
        self.answer: Callable[[str, int], dict[str, Any]] = self._answer

    async def __aenter__(self) -> "Daemon":
        (self._folder / "ovs-vswitchd.pid").write_text("7\n")
        self._server = await asyncio.start_unix_server(self._serve, self._folder / "ovs-vswitchd.7.ctl")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder, text = json.JSONDecoder(), ""
        while data := await reader.read(65536):
            text += data.decode()
            while text:
                request, end = decoder.raw_decode(text)
                text = text[end:]
                self.asked.append([request["method"], *request["params"]])
                writer.write(json.dumps(self.answer(request["method"], request["id"])).encode())
        writer.close()

    def _answer(self, method: str, id: int) -> dict[str, Any]:
        if method == "dpctl/dump-dps":
            return {"id": id, "result": "netdev@ovs-netdev\nsystem@ovs-system\n", "error": None}
        if self.many and self.asked[-1][-1] == "--names":
            return {"id": id, "result": None, "error": "multiple datapaths exist; specify one explicitly"}
        found = self.caches.pop(0) if len(self.caches) > 1 else self.caches[0]
        return {"id": id, "result": "\n".join(["flow-dump from the main thread:", *found]), "error": None}


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("ovs")


async def test_it_waits_until_no_cached_flow_leads_there(folder: Path) -> None:
    late, followed = [TO_IT.format("tap-vm1")], [TO_IT.format("up0")]
    async with Daemon(folder, [late, late, followed]) as daemon:
        assert await FlowCache(folder).until_bypassed(["tap-vm1"], limit=60)
    assert daemon.asked == [["dpctl/dump-flows", "--names"]] * 3


async def test_of_several_datapaths_each_is_looked_into(folder: Path) -> None:
    async with Daemon(folder, [[], [TO_IT.format("tap-vm1")], []]) as daemon:
        daemon.many = True
        assert await FlowCache(folder).until_bypassed(["tap-vm1"], limit=60)
    look = ["dpctl/dump-flows", "--names"]
    both = [[*look, "netdev@ovs-netdev"], [*look, "system@ovs-system"]]
    assert daemon.asked == [look, ["dpctl/dump-dps"], *both, *both]


async def test_a_cache_that_never_follows_is_an_error_that_shows_the_flow(folder: Path) -> None:
    async with Daemon(folder, [[TO_IT.format("tap-vm1")]]) as daemon:

        def answer(method: str, id: int) -> dict[str, Any]:
            if len(daemon.asked) == 3:
                virtual_time.pass_over(61)
            return daemon._answer(method, id)

        daemon.answer = answer
        with pytest.raises(HostError, match=r"too late: 60 s after.*by recirc_id.*,tap-vm1$"):
            await FlowCache(folder).until_bypassed(["tap-vm1"], limit=60)


async def test_a_switch_that_cannot_be_asked_leaves_it_unknown(folder: Path) -> None:
    assert not await FlowCache(folder).until_bypassed(["tap-vm1"], limit=60)
    (folder / "ovs-vswitchd.pid").write_text("8\n")
    assert not await FlowCache(folder).until_bypassed(["tap-vm1"], limit=60)


@pytest.mark.parametrize(
    "answer",
    [
        {"result": None, "error": '"dpctl/dump-dps" is not a valid command'},
        {"result": ["netdev@ovs-netdev"], "error": None},
        {"result": 7, "error": None},
    ],
)
async def test_an_answer_that_tells_nothing_leaves_it_unknown(folder: Path, answer: dict[str, Any]) -> None:
    async with Daemon(folder, [[]]) as daemon:
        daemon.answer = lambda method, id: {"id": id, **answer}
        assert not await FlowCache(folder).until_bypassed(["tap-vm1"], limit=60)


async def test_a_daemon_that_does_not_answer_leaves_it_unknown(folder: Path) -> None:
    async with Daemon(folder, [[]]) as daemon:
        daemon.answer = lambda method, id: {"method": "echo", "params": [], "id": None}
        assert not await FlowCache(folder).until_bypassed(["tap-vm1"], limit=0.05)


# ---- at the target: all of the cache was looked at ----


async def test_it_waits_until_all_of_the_cache_was_looked_at(folder: Path) -> None:
    async with Daemon(folder, [[]]) as daemon:
        await FlowCache(folder).until_followed(limit=60)
    assert daemon.asked == [["revalidator/wait"]]


async def test_a_cache_that_is_not_looked_at_in_time_is_an_error(folder: Path) -> None:
    async with Daemon(folder, [[]]) as daemon:
        daemon.answer = lambda method, id: {"method": "echo", "params": [], "id": None}
        with pytest.raises(HostError, match=r"too late: 0.05 s after they had changed not all flows"):
            await FlowCache(folder).until_followed(limit=0.05)


async def test_for_a_switch_that_cannot_be_asked_it_is_not_waited(folder: Path) -> None:
    await FlowCache(folder).until_followed(limit=60)
    async with Daemon(folder, [[]]) as daemon:
        daemon.answer = lambda method, id: {"id": id, "result": None, "error": "not a valid command"}
        await FlowCache(folder).until_followed(limit=60)


# ---- what it has given so far ----


async def test_it_tells_what_has_come_by_the_flows_that_lead_there(folder: Path) -> None:
    """Another answer when more has come, or by other flows; the same when time alone has passed."""
    first = [TO_IT.format("tap-vm1"), TO_IT.format("tap-vm2")]
    later = [line.replace("used:0.001s", "used:0.105s").replace(", packets:7", "") for line in first]
    more = [later[0].replace("packets:3, bytes:318", "packets:4, bytes:424"), later[1]]
    other = [TO_IT.format("tap-vm1").replace("frag=no", "tos=0,frag=no"), later[1]]
    others_more = [later[0], later[1].replace("packets:3", "packets:5")]
    async with Daemon(folder, [first, later, others_more, more, other, [later[1]]]):
        cache = FlowCache(folder)
        found = [await cache.given(["tap-vm1"]) for _ in range(6)]
    assert found[0] == found[1] == found[2]
    assert found[0]
    assert found[3] != found[0]
    assert found[4] not in (found[0], found[3])
    assert found[5] == {}


async def test_of_a_daemon_that_does_not_answer_nobody_can_tell_what_it_gave(folder: Path) -> None:
    async with Daemon(folder, [[]]) as daemon:
        daemon.answer = lambda method, id: {"method": "echo", "params": [], "id": None}
        assert await FlowCache(folder).given(["tap-vm1"], limit=0.05) is None
    assert await FlowCache(folder / "none").given(["tap-vm1"]) is None
