"""Agents and a controller of two releases, in the middle of an upgrade: nothing that either knows is lost."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import msgspec.inspect
import pytest

from retinue import __version__
from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.protocol import (
    domains,
    events,
    hypervisor_events,
    images,
    migrations,
    mobility,
    rejections,
    renewals,
    vm_reports,
    vms,
)
from retinue.protocol.client import ControllerClient
from retinue.protocol.events import controller_event
from retinue.protocol.images import ChunkTimes, HeldImage, StoreUse, Upkeep
from retinue.protocol.records import known_part
from retinue.protocol.releases import AGENT_HEADER, is_newer, shown_release
from retinue.security.credentials import Credentials
from support.fabric.networks import add_vm, fabric

PATIENCE = 60.0
TOMORROW = {"of_tomorrow": {"a": [1]}}


@pytest.fixture
async def door() -> AsyncIterator[tuple[Controller, str]]:
    net = fabric()
    add_vm(net, 1, at=1)
    controller = Controller(net, clock=lambda: 1000.0)
    await controller.start()
    api = Api(controller, dict)
    port = await api.start("127.0.0.1", 0)
    yield controller, f"http://127.0.0.1:{port}"
    await api.stop()
    await controller.stop()


async def said(url: str, path: str, body: Any, release: str | None) -> tuple[int, dict[str, Any]]:
    headers = {} if release is None else {AGENT_HEADER: release}
    async with aiohttp.ClientSession(headers=headers) as http, http.post(url + path, json=body) as answer:
        return answer.status, await answer.json()


REPORTS: dict[str, dict[str, Any]] = {
    "/v1/servers/server1/profile": {"vms": [{"vm": "vm1", "memory_mib": 256}]},
    "/v1/vms/vm1/events": {"event": "started", "server": "server1"},
    "/v1/servers/server1/hypervisor-events": {"vm": "vm1", "kind": "started", "at": 5.0},
}


@pytest.mark.parametrize("path", REPORTS)
async def test_what_a_newer_agent_says_besides_is_left_out_and_the_rest_counts(
    door: tuple[Controller, str], path: str
) -> None:
    _, url = door
    of_today = await said(url, path, REPORTS[path], __version__)
    assert of_today[0] == 200, of_today
    assert await said(url, path, {**REPORTS[path], **TOMORROW}, "99.0") == of_today


@pytest.mark.parametrize("path", REPORTS)
async def test_of_people_and_their_programs_it_is_refused(door: tuple[Controller, str], path: str) -> None:
    _, url = door
    status, answer = await said(url, path, {**REPORTS[path], **TOMORROW}, None)
    assert (status, answer["code"]) == (400, "malformed_body")
    assert "of_tomorrow" in answer["error"]


class ImagesBodyOfBefore(msgspec.Struct, forbid_unknown_fields=True):
    """What a controller knows of a report of images that knows no images of other domains."""

    address: str
    images: list[HeldImage] = []
    store: StoreUse = StoreUse()
    upkeep: Upkeep = Upkeep()
    faults: dict[str, int] = {}
    fetched: ChunkTimes = ChunkTimes()

    @property
    def doors(self) -> dict[str, str]:
        return {}


async def test_a_controller_that_knows_no_images_of_other_domains_takes_an_agents_report_of_its_own(
    door: tuple[Controller, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `domain.images` an agent says where other domains' agents fetch from it."""
    controller, url = door
    monkeypatch.setattr("retinue.controller.api.routes.images.ImagesBody", ImagesBodyOfBefore)
    told = msgspec.to_builtins(images.ImagesBody("192.0.2.1:7800", doors={"west": "198.51.100.1:7801"}))
    assert await said(url, "/v1/servers/server1/images", told, __version__) == (200, {"ok": True})
    assert controller.images.holders.report("server1") is not None
    status, _ = await said(url, "/v1/servers/server1/images", told, None)
    assert status == 400


async def test_of_what_only_managers_ask_it_is_refused_whatever_is_said_of_a_release(
    door: tuple[Controller, str],
) -> None:
    """One that passes on what agents say passes their headers on, too."""
    controller, url = door
    vm9 = {"id": "vm9", "mac": "52:54:00:00:00:09", "server": "server1", "memory_mb": 512}
    status, answer = await said(url, "/v1/vms", vm9, "99.0")
    assert (status, "memory_mb" in answer["error"], "vm9" in controller.net.vms) == (400, True, False)


async def test_what_is_wrong_with_what_is_known_is_refused_of_an_agent_too(
    door: tuple[Controller, str],
) -> None:
    _, url = door
    status, _ = await said(url, "/v1/vms/vm1/events", {"event": "flies", **TOMORROW}, "99.0")
    assert status == 400


async def test_an_agent_says_its_release_and_listens_for_types_that_there_are_not(
    door: tuple[Controller, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be kept out of all that it does act on; and which release it is, its server shows."""
    _, url = door
    monkeypatch.setattr("retinue.protocol.client.ACTED_ON", {*events.ACTED_ON, "vm.of_tomorrow"})
    monkeypatch.setattr("retinue.protocol.client.__version__", "99.0")
    async with (
        asyncio.timeout(PATIENCE),
        ControllerClient(url, Credentials(), agent_of="server1") as agent,
        contextlib.aclosing(agent.events(None)) as stream,
    ):
        assert (await anext(stream)).type == "hello"
        shown = await agent.get("/v1/servers")
    (server,) = (one for one in shown["servers"] if one["id"] == "server1")
    assert (server["agent"], server["agent_release"]) == ("listening", "99.0")
    async with ControllerClient(url, Credentials()) as person:
        with pytest.raises(Exception, match="400"):
            await anext(person.events(None))


def test_an_agent_passes_over_what_a_newer_controller_tells_besides() -> None:
    migration = {"id": "migration-1", "vm": "vm1", "source": "server1", "target": "server2", **TOMORROW}
    told = {"type": "migration.start_copy", "id": 7, "migration": migration, **TOMORROW}
    event = controller_event("migration.start_copy", json.dumps(told).encode())
    assert event.migration is not None
    assert event.migration.target == "server2"


def test_what_is_left_out_is_what_a_record_does_not_have_at_any_depth() -> None:
    class Inner(msgspec.Struct, forbid_unknown_fields=True):
        a: int

    class Outer(msgspec.Struct, forbid_unknown_fields=True):
        one: Inner | None
        many: tuple[Inner, ...] = ()
        by_name: dict[str, list[Inner]] = {}

    told = {"one": {"a": 1, "b": 2}, "many": [{"a": 3, "b": 4}], "by_name": {"x": [{"a": 5, "b": 6}]}, "c": 7}
    known = {"one": {"a": 1}, "many": [{"a": 3}], "by_name": {"x": [{"a": 5}]}}
    assert known_part(told, Outer) == known
    assert known_part([told, told], Outer | list[Outer]) == [known, known]
    assert msgspec.convert(known_part(told, Outer), Outer).many == (Inner(3),)
    assert known_part({"one": None, "many": "no list"}, Outer) == {"one": None, "many": "no list"}


@pytest.mark.parametrize(
    ("release", "other", "newer"),
    [
        ("0.2.0", "0.1.0", True),
        ("0.1.0", "0.1.0", False),
        ("0.1.0", "0.2.0", False),
        ("0.10.0", "0.9.9", True),
        ("", "0.1.0", False),
        ("0.1.0", "", True),
        ("nonsense", "0.1.0", False),
        ("1..2", "0.1.0", False),
    ],
)
def test_which_release_is_newer(release: str, other: str, newer: bool) -> None:
    assert is_newer(release, other) is newer


def test_what_is_shown_of_a_release_is_short_and_acts_on_no_terminal() -> None:
    assert shown_release("\x1b[31m" + "9" * 100) == r"\x1b[31m" + "9" * 21 + "..."
    assert shown_release(None) == ""


NEEDED: dict[type[msgspec.Struct], set[str]] = {
    migrations.FarRecord: {"domain"},
    migrations.MigrationRecord: {"id", "vm", "source", "target"},
    migrations.ReportBody: {"event"},
    migrations.ReportAnswer: {"state"},
    hypervisor_events.HypervisorEvent: {"vm", "kind", "at"},
    vms.VMReportBody: {"event"},
    vms.VMRecord: {"id", "mac", "server"},
    vms.VMsRecord: {"vms"},
    renewals.RenewalReportBody: {"event"},
    mobility.VMSize: {"vm", "memory_mib"},
    mobility.ServerReport: set(),
    mobility.MobilityBody: {"reason"},
    mobility.AnswerBody: {"server", "report"},
    rejections.CountersBody: {"since", "rejected"},
    images.SignedManifest: {"name", "size", "list_digest", "published_at"},
    images.HeldImage: {"name", "list_digest", "state", "held"},
    images.StoreUse: set(),
    images.ImagesBody: {"address"},
    images.HolderRecord: {"server", "address"},
    images.ImageRecord: {"manifest", "origin"},
    vm_reports.ReportedVMBody: {"vm", "mac", "server_mac"},
    events.ControllerEvent: {"type"},
    domains.GuestAddress: {"ip"},
    domains.GuestLease6: {"server", "iaid"},
    domains.GuestLogin: {"mac", "forwarder"},
    domains.GuestNIC: {"mac", "port_id", "addresses"},
    domains.Guest: {"id", "nics", "is_home"},
    domains.Match: {"match", "vm"},
    domains.Offer: set(),
    domains.Prepare: {"migration", "vm", "source"},
    domains.Prepared: {"migration", "server"},
    domains.Word: {"said"},
    domains.Heard: {"state"},
    domains.Removed: {"vm"},
    domains.NamesAsked: {"zone"},
    domains.Names: {"version"},
}
"""Of each record that programs of two releases send each other: what the first release sends always. No more
may be needed, ever: whoever is older does not send it."""


@pytest.mark.parametrize("kind", NEEDED, ids=lambda kind: kind.__name__)
def test_what_a_message_has_got_since_may_be_left_out(kind: type[msgspec.Struct]) -> None:
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    assert {field.encode_name for field in info.fields if field.required} == NEEDED[kind]


SAID_BETWEEN_DOMAINS = (domains.Match, domains.Prepare, domains.Word, domains.NamesAsked, domains.Guest)


@pytest.mark.parametrize("kind", SAID_BETWEEN_DOMAINS, ids=lambda kind: kind.__name__)
def test_to_another_domain_only_what_is_used_is_said(kind: type[msgspec.Struct]) -> None:
    """Its controller may be older: it refuses what it does not know, for that may matter to the VM. So it is
    asked for that only where a VM has it."""
    assert kind.__struct_config__.omit_defaults
