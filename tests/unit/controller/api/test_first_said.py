"""Two managers at once: of contradicting words the later is rejected, with who was first."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from retinue.controller.api.access import Access
from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.controller.state import Word
from retinue.core.migration import MigrationState, PlacementChange
from retinue.core.migration.events import Confirmed, RolledBack, TargetClosed
from retinue.core.model import VM, PortStatus
from retinue.security.tokens import Tokens
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import add_vm, fabric, vm_mac, vm_port
from support.fakes.memory_store import MemoryStore

ANNA, BERT = "a" * 43, "b" * 43
FIRST = "manager anna was first, at 1970-01-01 00:16:40Z"
SERVER = {"id": "box", "mac": "02:00:00:00:77:01", "address": "10.0.0.77"}


class Managed:
    def __init__(self, folder: Path, store: MemoryStore) -> None:
        file = folder / "tokens.toml"
        file.touch(0o600)
        file.write_text(
            f'[[token]]\nname = "anna"\nrole = "manager"\ntoken = "{ANNA}"\n'
            f'[[token]]\nname = "bert"\nrole = "manager"\ntoken = "{BERT}"\n'
        )
        self.store = store
        self.controller = Controller(fabric(), store, clock=lambda: 1000.0)
        self.controller.restore(store.load())
        self.api = Api(self.controller, dict, Access(self.controller, Tokens(file), open=False))
        self.url = ""

    async def start(self) -> None:
        await self.controller.start()
        self.url = f"http://127.0.0.1:{await self.api.start('127.0.0.1', 0)}"

    async def stop(self) -> None:
        await self.api.stop()
        await self.controller.stop()

    async def say(self, who: str, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
        shown = {"Authorization": f"Bearer {who}"}
        url = f"{self.url}/v1/{path}"
        async with (
            aiohttp.ClientSession(headers=shown) as http,
            http.request(method, url, json=body) as answer,
        ):
            return answer.status, await answer.json()


@pytest.fixture
async def managed(tmp_path: Path) -> AsyncIterator[Managed]:
    made = Managed(tmp_path, MemoryStore())
    await made.start()
    yield made
    await made.stop()


@pytest.mark.parametrize(
    ("path", "first", "later"),
    [
        (
            "vms",
            {"id": "web", "server": "server1", "mac": vm_mac(1)},
            {"id": "web", "server": "server2", "mac": vm_mac(2)},
        ),
        ("vrfs", {"id": "red", "tag": 7}, {"id": "red", "tag": 8}),
        ("vnets", {"id": "shop", "vlan": 7}, {"id": "shop", "vlan": 8}),
        (
            "subnets",
            {"id": "green", "prefix": "10.2.0.0/24", "gateway": "10.2.0.254"},
            {"id": "green", "prefix": "10.3.0.0/24", "gateway": "10.3.0.254"},
        ),
    ],
)
async def test_the_later_is_told_who_was_first(
    managed: Managed, tmp_path: Path, path: str, first: dict[str, object], later: dict[str, object]
) -> None:
    """Also by the next controller; and when the thing is gone the later may say it."""
    assert (await managed.say(ANNA, "POST", path, first))[0] == 201
    for who in (BERT, ANNA):
        status, answer = await managed.say(who, "POST", path, later)
        assert (status, answer["code"]) == (409, "already_registered")
        assert str(answer["error"]).endswith(f"; {FIRST}")
    status, answer = await managed.say(BERT, "POST", path, [{**later, "id": "other"}, later])
    assert status == 409 and FIRST in str(answer["error"])
    assert (
        set(Managed(tmp_path, managed.store).controller.context.state.words)
        == set(managed.controller.context.state.words)
        and len(managed.controller.context.state.words) == 1
    )
    assert (await managed.say(ANNA, "DELETE", f"{path}/{first['id']}"))[0] == 200
    assert (await managed.say(BERT, "POST", path, later))[0] == 201
    status, answer = await managed.say(ANNA, "POST", path, first)
    assert status == 409 and "manager bert was first" in str(answer["error"])


async def test_a_server_is_given_by_one_manager(managed: Managed) -> None:
    assert (await managed.say(ANNA, "POST", "servers", SERVER))[0] == 201
    assert (await managed.say(BERT, "POST", "servers", SERVER))[0] == 201, "the same is no contradiction"
    other = {**SERVER, "mac": "02:00:00:00:77:02"}
    status, answer = await managed.say(
        BERT, "POST", "servers", [{**SERVER, "id": "x", "mac": vm_mac(9)}, other]
    )
    assert (status, answer["code"]) == (409, "conflict")
    assert answer["error"] == f"server box was given otherwise (mac); {FIRST}, and can change it"
    assert managed.controller.net.servers["box"].mac == SERVER["mac"]
    assert "x" not in managed.controller.net.servers, "all or none"
    assert (await managed.say(ANNA, "POST", "servers", other))[0] == 201
    assert managed.controller.net.servers["box"].mac == other["mac"]


async def test_of_two_migrations_of_a_vm_the_later_is_told(managed: Managed) -> None:
    add_vm(managed.controller.net, 1, at=1)
    managed.controller.context.is_away = lambda switch: False  # type: ignore[method-assign]
    assert (await managed.say(ANNA, "POST", "migrations", {"vm": "vm1", "target_server": "server2"}))[
        0
    ] == 201
    status, answer = await managed.say(BERT, "POST", "migrations", {"vm": "vm1", "target_server": "server3"})
    assert (status, answer["code"]) == (409, "migration_under_way")
    assert str(answer["error"]).endswith(f"; {FIRST}")


WEST = {"vm": "vm1", "target_server": "server2"}


async def annas_migration(managed: Managed) -> str:
    managed.controller.context.is_away = lambda switch: False  # type: ignore[method-assign]
    status, answer = await managed.say(ANNA, "POST", "migrations", WEST)
    assert status == 201 and list(managed.controller.context.state.words) == ["migration of vm1"]
    return str(answer["id"])


async def test_who_began_a_migration_is_forgotten_when_it_has_ended(managed: Managed) -> None:
    """The next may be nobody's word, such as an agent's: it is not said to be the first one's."""
    add_vm(managed.controller.net, 1, at=1)
    orchestrator = managed.controller.orchestrator
    id = await annas_migration(managed)
    orchestrator.cancel(id)
    assert managed.controller.words.first("migration of", ["vm1"]) == FIRST, "it rolls back"
    orchestrator.step(id, TargetClosed())
    orchestrator.step(id, RolledBack())
    orchestrator.step(id, Confirmed(PlacementChange.TARGET_CLOSED))
    assert orchestrator.migrations[id].state is MigrationState.UNDONE
    assert managed.controller.context.state.words == {} and managed.store.load().words == []
    orchestrator.start("vm1", target_server="server2")
    status, answer = await managed.say(BERT, "POST", "migrations", WEST)
    assert (status, answer["code"]) == (409, "migration_under_way")
    assert "was first" not in str(answer["error"])


async def test_who_began_a_migration_that_has_ended_is_forgotten_by_the_next_controller(
    managed: Managed, tmp_path: Path
) -> None:
    """That it was to be forgotten was not stored any more; of one under way it is kept."""
    managed.controller.inventory.register_vms([VM.with_one_nic("vm1", vm_mac(1), "server1")])
    await annas_migration(managed)
    managed.store.put(Word("migration of vm2", "manager anna", 1000.0))
    again = Managed(tmp_path, managed.store).controller
    assert set(again.context.state.words) == {"migration of vm1"}
    assert [word.about for word in managed.store.load().words] == ["migration of vm1"]


async def test_of_a_reported_vm_that_goes_by_itself_no_word_is_left(managed: Managed) -> None:
    port = BridgePort(0x31, "br0", "tap1", vm_port(1), PortStatus.UP, "vm1", vm_mac(1))
    managed.controller.inventory.ports.changed([], [port])
    await annas_migration(managed)
    managed.controller.inventory.ports.changed([port], [])
    assert "vm1" not in managed.controller.net.vms
    assert managed.controller.context.state.words == {} and managed.store.load().words == []


async def test_what_was_never_anybodys_word_is_rejected_as_ever(managed: Managed) -> None:
    add_vm(managed.controller.net, 1, at=1)
    status, answer = await managed.say(
        BERT, "POST", "vms", {"id": "vm1", "server": "server1", "mac": vm_mac(1)}
    )
    assert status == 409 and "was first" not in str(answer["error"])
    status, answer = await managed.say(BERT, "POST", "servers", {**SERVER, "id": "server1"})
    assert status in (201, 409) and "was first" not in str(answer)
