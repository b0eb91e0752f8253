"""Names by zenoh, asked for by real sessions on loopback: the same rows as by REST, and only to be read."""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import zenoh

from retinue.config_file import ConfigError
from retinue.controller.app import Controller
from retinue.controller.counters import Count
from retinue.controller.zenoh_names import ZenohNames, ZenohTable
from retinue.core.model import VM
from retinue.core.model.disks import Disk
from retinue.core.placement import Entity, EntityKind, Profile
from support.fabric.networks import add_vm, fabric, vm_ip, vm_mac
from support.pki_files import Certificates

PATIENCE = 60.0
ROWS = ["dhcp", "router", "server1", "server2", "server3", "shop", "vm1", "vm2"]


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def config(at: str, **more: Any) -> zenoh.Config:
    made = zenoh.Config()
    settings = {
        "mode": "client",
        "connect/endpoints": [at],
        "connect/timeout_ms": 5000,
        "scouting/multicast/enabled": False,
        **more,
    }
    for key, value in settings.items():
        made.insert_json5(key, json.dumps(value))
    return made


@dataclass
class Peer:
    """A session of somebody else; what it has heard comes in the event loop."""

    session: zenoh.Session
    heard: "asyncio.Queue[tuple[str, dict[str, Any] | None]]" = field(default_factory=asyncio.Queue)

    async def get(self, key: str) -> dict[str, dict[str, Any]]:
        """By name: the rows that are answered; under "" an error."""

        def ask() -> dict[str, dict[str, Any]]:
            found: dict[str, dict[str, Any]] = {}
            for reply in self.session.get(key, timeout=PATIENCE):
                if reply.ok is not None:
                    assert str(reply.ok.encoding) == "application/json"
                    found[str(reply.ok.key_expr).rpartition("/")[2]] = json.loads(reply.ok.payload.to_bytes())
                elif reply.err is not None:
                    found[""] = {"error": reply.err.payload.to_string()}
            return found

        return await asyncio.to_thread(ask)

    async def listen(self, key: str) -> None:
        loop = asyncio.get_running_loop()

        def take(sample: zenoh.Sample) -> None:
            row = json.loads(sample.payload.to_bytes()) if sample.kind == zenoh.SampleKind.PUT else None
            loop.call_soon_threadsafe(self.heard.put_nowait, (str(sample.key_expr), row))

        await asyncio.to_thread(self.session.declare_subscriber, key, take)

    async def hear(self) -> tuple[str, dict[str, Any] | None]:
        async with asyncio.timeout(PATIENCE):
            return await self.heard.get()


@dataclass
class World:
    controller: Controller
    names: ZenohNames
    at: str
    counters: Counter[str]
    peers: list[Peer] = field(default_factory=list)

    async def peer(self, **more: Any) -> Peer:
        session = await asyncio.to_thread(zenoh.open, config(self.at, **more))
        self.peers.append(Peer(session))
        return self.peers[-1]


Make = Callable[..., Any]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Starts a controller's names; what it made ends with the test."""
    worlds: list[World] = []

    async def made(files: tuple[Path, Path, Path] | None = None) -> World:
        at = f"{'tls' if files else 'tcp'}/127.0.0.1:{free_port()}"
        table = ZenohTable("dc1", [at], plaintext=files is None).checked(tls=files is not None)
        controller = Controller(fabric(), clock=lambda: 1000.0)
        add_vm(controller.net, 1, at=1)
        add_vm(controller.net, 2, at=2)
        controller.entities.register([Entity("shop", EntityKind.SERVICE, Profile(served_by=("vm1",)))])
        counters: Counter[str] = Counter()
        world = World(controller, ZenohNames(table, files, controller.entities, counters), at, counters)
        await world.names.start()
        worlds.append(world)
        return world

    yield made
    for world in worlds:
        for peer in world.peers:
            await asyncio.to_thread(peer.session.close)
        await world.names.stop()


async def test_a_name_is_answered_with_the_row_that_rest_shows(make: Make) -> None:
    world: World = await make()
    peer = await world.peer()
    found = await peer.get("retinue/dc1/names/vm1")
    assert found == {"vm1": json.loads(json.dumps(world.controller.entities.shown("vm1")))}
    assert found["vm1"]["locator"]["addresses"] == [str(vm_ip(1))]
    assert (await peer.get("retinue/dc1/names/shop"))["shop"]["locator"]["vm"] == "vm1"
    world.controller.net.put_vm(VM.with_one_nic("vm1", vm_mac(1), "server3"))
    moved = await peer.get("retinue/dc1/names/vm1")
    assert moved["vm1"]["locator"]["server"] == "server3", "the name has stayed"
    assert world.counters == {Count.ZENOH_ASKED: 3}


async def test_all_names_are_answered_and_what_is_none_is_not(make: Make) -> None:
    world: World = await make()
    peer = await world.peer()
    assert sorted(await peer.get("retinue/dc1/names/*")) == ROWS
    assert sorted(await peer.get("retinue/dc1/names/server$*")) == ["server1", "server2", "server3"]
    more = ("retinue/dc2/names/vm1", "retinue/dc1/names/vm1/more", "retinue/**", "else")
    vm1 = world.controller.net.vms["vm1"]
    world.controller.net.put_vm(replace(vm1, disks=(Disk(size_mib=8),)))
    disk = "retinue/dc1/names/vm1:disk1"
    assert (await peer.get(disk))["vm1:disk1"]["locator"]["vm"] == "vm1"
    assert sorted(await peer.get("retinue/dc1/names/*")) == sorted([*ROWS, "vm1:disk1"])
    for nothing in ("retinue/dc1/names/vm9", "retinue/dc1/names/vm1:disk2", *more):
        assert await peer.get(nothing) == {}


async def test_who_listens_is_told_of_all_and_then_of_what_changes(make: Make) -> None:
    world: World = await make()
    net, peer = world.controller.net, await world.peer()
    await peer.listen("retinue/dc1/names/*")
    first = dict([await peer.hear() for _ in ROWS])
    assert sorted(first) == [f"retinue/dc1/names/{name}" for name in ROWS]
    net.put_vm(VM.with_one_nic("vm2", vm_mac(2), "server3"))
    key, row = await peer.hear()
    assert row is not None
    assert (key, row["locator"]["server"]) == ("retinue/dc1/names/vm2", "server3")
    net.remove_vm("vm2")
    assert await peer.hear() == ("retinue/dc1/names/vm2", None), "and of nothing between"
    assert peer.heard.empty()


async def test_who_listens_to_one_name_is_told_of_that_one(make: Make) -> None:
    world: World = await make()
    peer = await world.peer()
    await peer.listen("retinue/dc1/names/vm1")
    key, row = await peer.hear()
    assert key == "retinue/dc1/names/vm1" and row is not None
    world.controller.net.remove_vm("vm2")
    world.controller.net.remove_vm("vm1")
    assert await peer.hear() == ("retinue/dc1/names/vm1", None)


async def test_nobody_else_says_what_a_name_is_nor_speaks_through_the_controller(make: Make) -> None:
    world: World = await make()
    forger, peer = await world.peer(), await world.peer()
    await peer.listen("retinue/dc1/names/*")
    await peer.listen("other/**")
    for _ in ROWS:
        await peer.hear()

    def forge() -> None:
        forger.session.put("retinue/dc1/names/vm1", b"{}")
        forger.session.delete("retinue/dc1/names/vm1")
        forger.session.put("other/thing", b"{}")
        forger.session.declare_queryable(
            "retinue/dc1/names/vm1", lambda query: query.reply(query.key_expr, "{}")
        )

    await asyncio.to_thread(forge)
    assert (await forger.get("retinue/dc1/names/vm2"))["vm2"]["name"] == "vm2", "it is alive, and heard"
    asked = await peer.get("retinue/dc1/names/vm1")
    assert asked["vm1"]["kind"] == "vm" and len(asked) == 1
    world.controller.net.remove_vm("vm2")
    assert await peer.hear() == ("retinue/dc1/names/vm2", None), "and nothing of the forger's before"


async def test_too_many_questions_at_once_are_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    world: World = await make()
    peer = await world.peer()
    allowed = iter([True, False, True])
    monkeypatch.setattr(world.names._bucket, "take", lambda now: next(allowed))
    key = "retinue/dc1/names/vm1"
    assert list(await peer.get(key)) == ["vm1"]
    assert await peer.get(key) == {"": {"error": "too many questions at once: ask again"}}
    assert list(await peer.get(key)) == ["vm1"]
    assert world.counters == {Count.ZENOH_ASKED: 2, Count.ZENOH_TOO_MANY: 1}


async def test_over_tls_only_who_has_a_certificate_of_the_authority_is_let_in(
    make: Make, tmp_path: Path
) -> None:
    pki, other = Certificates(tmp_path / "pki"), Certificates(tmp_path / "other")
    world: World = await make((pki.authority.ca, *pki.files("controller/c1")))

    def shown(of: Certificates, party: str) -> dict[str, Any]:
        certificate, key = of.files(party)
        return {
            "transport/link/tls": {
                "root_ca_certificate": str(pki.authority.ca),
                "connect_certificate": str(certificate),
                "connect_private_key": str(key),
                "enable_mtls": True,
                "verify_name_on_connect": False,
            },
            "connect/timeout_ms": 1000,
        }

    peer = await world.peer(**shown(pki, "agent/server1"))
    assert list(await peer.get("retinue/dc1/names/vm1")) == ["vm1"]
    with pytest.raises(zenoh.ZError):
        await world.peer(**shown(other, "manager/eve"))
    without = {
        "transport/link/tls": {"root_ca_certificate": str(pki.authority.ca)},
        "connect/timeout_ms": 1000,
    }
    with pytest.raises(zenoh.ZError):
        await world.peer(**without)


async def test_where_it_cannot_listen_that_is_said(make: Make) -> None:
    world: World = await make()
    table = ZenohTable("dc1", [world.at], plaintext=True)
    second = ZenohNames(table, None, world.controller.entities, Counter())
    with pytest.raises(OSError, match="zenoh: "):
        await second.start()
    await second.stop()


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (ZenohTable(listen=["tls/127.0.0.1:7447"]), "domain is missing"),
        (ZenohTable("a/b", ["tls/127.0.0.1:7447"]), "cannot be part of a key"),
        (ZenohTable("dc1"), "say where peers connect"),
        (ZenohTable("dc1", ["127.0.0.1:7447"]), "is not tls/HOST:PORT"),
        (ZenohTable("dc1", ["udp/127.0.0.1:7447"]), "is not tls/HOST:PORT"),
        (ZenohTable("dc1", ["tls/127.0.0.1"]), "is not tls/HOST:PORT"),
        (ZenohTable("dc1", ["tls/127.0.0.1:7447#iface=lo"]), "is not tls/HOST:PORT"),
        (ZenohTable("dc1", connect=["tcp/127.0.0.1:7447"]), "is plain text"),
    ],
)
def test_a_table_that_cannot_be_is_refused_with_a_sentence(table: ZenohTable, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^zenoh.*{reason}"):
        table.checked(tls=True)


def test_without_certificates_there_is_no_tls() -> None:
    with pytest.raises(ConfigError, match="there are no certificates"):
        ZenohTable("dc1", ["tls/127.0.0.1:7447"]).checked(tls=False)
    assert ZenohTable().checked(tls=False) == ZenohTable(), "off, unless it is configured"
