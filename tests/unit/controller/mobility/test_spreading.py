"""The domain moves VMs unasked while its servers' loads are too far apart, if the operator wants that."""

from collections.abc import AsyncIterator

import pytest

from retinue.core.placement import Entity, EntityKind, Profile, Reason, Wish
from retinue.protocol.mobility import ServerReport, VMSize
from support.fabric.networks import add_vm, fabric, moved
from support.fakes.session import FakeNetwork
from support.recent_events import recent


class Site:
    """Three servers of 8 GiB, vm1 of 3 and vm2 of 1 GiB on the first: 50 per cent, and nothing."""

    def __init__(self, percent: int) -> None:
        self.now = 1000.0
        self.fake = FakeNetwork(fabric(), clock=lambda: self.now, spread=(percent, 300))
        self.controller = self.fake.controller
        sizes = [VMSize("vm1", 3072), VMSize("vm2", 1024)]
        for vm in (1, 2):
            add_vm(self.fake.net, vm, at=1)
        for name in ("server1", "server2", "server3"):
            self.controller.mobility.on_report(name, ServerReport(8, 8192, cpu_used=0, vms=sizes))

    async def look(self, *times: float) -> list[str]:
        """Where VMs have gone so far."""
        for now in times:
            self.now = now
            if (looking := self.controller.spread_watch.look()) is not None:
                await looking
        migrations = self.controller.orchestrator.migrations.values()
        return [f"{migration.vm} to {migration.target}" for migration in migrations]


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site(20)
    await made.fake.start()
    yield made
    await made.fake.stop()


async def test_a_full_server_gives_a_vm_after_a_while_and_it_is_kept_why(site: Site) -> None:
    assert await site.look(1000.0, 1299.0) == []
    assert await site.look(1300.0) == ["vm1 to server2"]
    kept, again = site.controller.mobility.explain("migration-1")
    assert (kept.by, kept.snapshot.wish) == ("domain", Wish(Reason.UTILISATION, 5000, 2000, 300))
    assert kept.decision == again
    assert await site.look(1400.0, 2000.0) == ["vm1 to server2"], "one at a time"


async def test_what_was_mended_in_time_moves_nobody(site: Site) -> None:
    assert await site.look(1000.0) == []
    site.fake.net.put_vm(moved(site.fake.net.vms["vm1"], "server2"))
    site.fake.net.put_vm(moved(site.fake.net.vms["vm2"], "server3"))
    for name in ("server1", "server2", "server3"):
        site.controller.entities.register([Entity(name, EntityKind.SERVER, Profile(memory_mib=32_768))])
    assert await site.look(1200.0) == []
    site.fake.net.put_vm(moved(site.fake.net.vms["vm1"], "server1"))
    assert await site.look(1300.0, 1599.0) == []


async def test_a_vm_that_is_pinned_stays_and_nothing_goes_where_it_is_not_wanted() -> None:
    for site, went in ((Site(0), 0), (Site(60), 0), (Site(50), 0), (Site(49), 1)):
        await site.fake.start()
        assert len(await site.look(1000.0, 1300.0)) == went
        await site.fake.stop()
    site = Site(20)
    await site.fake.start()
    pinned = [Entity(vm, EntityKind.VM, Profile(pinned=True)) for vm in ("vm1", "vm2")]
    site.controller.entities.register(pinned)
    assert await site.look(1000.0, 1300.0, 2000.0) == []
    assert not recent(site.controller.events, "mobility.message", 10)
    await site.fake.stop()


async def test_where_loads_are_near_enough_nobody_moves_though_two_should_be_apart() -> None:
    """What the operator has said is how far loads may be apart, and no more."""
    for percent, went in ((60, 0), (49, 1)):
        site = Site(percent)
        await site.fake.start()
        apart = [Entity(vm, EntityKind.VM, Profile(apart="db")) for vm in ("vm1", "vm2")]
        site.controller.entities.register(apart)
        assert len(await site.look(1000.0, 1300.0)) == went
        await site.fake.stop()
