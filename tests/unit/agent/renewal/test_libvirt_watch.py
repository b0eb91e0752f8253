"""The VMs of a libvirt, as an agent without a controller follows them: who is here, who arrives, who goes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from retinue.agent.renewal.standalone.libvirt_watch import LibvirtWatch, nics_of
from retinue.agent.renewal.standalone.qemu_watch import ForeignNIC
from retinue.hypervisor.libvirt import connection
from retinue.hypervisor.libvirt.connection import LibvirtHost
from retinue.hypervisor.libvirt.domain_xml import uuids
from support.fakes.libvirt import FakeConnection, FakeDomain, FakeLibrary

LIMIT = 60.0
UUID = "00000000-0000-4000-8000-000000000009"
MAC, TAP = "52:54:00:00:09:01", "vnet0"
XML = f"""<domain type='kvm'><name>web</name><uuid>{UUID}</uuid><devices>
  <interface type='bridge'><mac address='{MAC}'/><source bridge='virbr0'/><target dev='{TAP}'/></interface>
  <interface type='user'><mac address='52:54:00:00:09:02'/></interface>
  <interface type='ethernet'><mac address='nonsense'/><target dev='vnet1'/></interface>
  <interface type='ethernet'>
    <mac address='52:54:00:00:09:03'/><target dev='longer-than-names-are'/>
  </interface>
</devices></domain>"""
NICS = (ForeignNIC(MAC, TAP),)


class Watched:
    def __init__(self) -> None:
        self.library = FakeLibrary()
        self.told: list[tuple[object, ...]] = []
        host = LibvirtHost("swa", "test:///", self.library, ids_of=uuids)
        self.watch = LibvirtWatch(
            host, lambda *said: self.told.append(said), lambda vm: self.told.append((vm,))
        )

    @property
    def server(self) -> FakeConnection:
        assert self.library.server is not None
        return self.library.server

    async def until(self, *said: tuple[object, ...]) -> None:
        async with asyncio.timeout(LIMIT):
            while self.told != list(said):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        self.told.clear()


@pytest.fixture
async def watched(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    monkeypatch.setattr(connection, "AGAIN_SECONDS", 0.01)
    made = Watched()
    made.server.createXML(XML, 0)
    running = asyncio.create_task(made.watch.run())
    await made.until(("web", NICS, False))
    async with asyncio.timeout(LIMIT):
        while not made.server.watched():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_interfaces_at_taps_whatever_they_are_plugged_into() -> None:
    assert nics_of(XML) == NICS
    assert nics_of("no XML") == ()
    assert uuids("no XML") == ()


async def test_who_is_here_who_leaves_and_who_arrives(watched: Watched) -> None:
    (domain,) = watched.server.domains_
    watched.server.domains_.remove(domain)
    watched.server.tell(domain, 5, 3)
    await watched.until(("web",))
    came = FakeDomain(watched.server, XML, (3, 2))
    watched.server.domains_.append(came)
    watched.server.tell(came, 2, 1)
    came.now = (1, 2)
    watched.server.tell(came, 4, 1)
    await watched.until(("web", NICS, True))


async def test_who_has_ended_while_libvirtd_was_away_is_gone(watched: Watched) -> None:
    server = watched.server
    watched.library.server = None
    server.die()
    await asyncio.sleep(0.05)
    server.domains_.clear()
    server.alive, watched.library.server = True, server
    await watched.until(("web",))


def test_a_domain_without_an_id_is_nobodys() -> None:
    assert uuids("<domain/>") == ()


async def test_who_starts_while_it_is_looked_who_has_gone_stays(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, other = watched.watch._host, UUID.replace("9", "8")
    domains = host.domains

    async def found_before_it_started() -> Any:
        found = await domains()
        watched.watch._names[other] = "other"
        return found

    monkeypatch.setattr(host, "domains", found_before_it_started)
    await watched.watch._look()
    assert (watched.told, set(watched.watch._names.values())) == ([], {"web", "other"})
