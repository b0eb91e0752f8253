"""A VM follows its clients, if the operator wants it, when they have been nearer elsewhere for a while."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from retinue.core.placement import Entity, EntityKind, Policy, Profile, Wish
from retinue.protocol.mobility import ServerReport, VMSize
from support.fabric.networks import add_vm, fabric, moved, vm_ip
from support.fakes.session import FakeNetwork
from support.recent_events import recent


class Site:
    """vm1 serves vm2, both on server1; then vm2 is on server2, four switches away."""

    def __init__(self, switches: int, policy: Policy | None = None) -> None:
        self.now = 1000.0
        self.fake = FakeNetwork(
            fabric(), clock=lambda: self.now, follow_clients=(switches, 60), policy=policy or Policy()
        )
        self.controller = self.fake.controller
        for vm in (1, 2):
            add_vm(self.fake.net, vm, at=1)
        sizes = [VMSize("vm1", 1024), VMSize("vm2", 1024)]
        for name in ("server1", "server2", "server3"):
            self.controller.mobility.on_report(name, ServerReport(8, 8192, cpu_used=0, vms=sizes))
        self.says()

    def says(self, **more: object) -> None:
        profile = Profile(clients=(str(vm_ip(2)),), **more)  # type: ignore[arg-type]
        self.controller.entities.register([Entity("vm1", EntityKind.VM, profile)])

    def client_goes(self) -> None:
        vm2 = self.fake.net.vms["vm2"]
        self.fake.net.put_vm(moved(vm2, "server2"))

    async def look(self, now: float) -> None:
        self.now = now
        await asyncio.gather(*self.controller.client_watch.look())

    def went(self) -> list[str]:
        return [migration.target for migration in self.controller.orchestrator.migrations.values()]


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site(4)
    await made.fake.start()
    yield made
    await made.fake.stop()


async def test_a_vm_follows_its_client_after_a_while_and_it_is_kept_why(site: Site) -> None:
    for now in (1000.0, 1060.0):
        await site.look(now)
    assert site.went() == [], "it is where its client is"
    site.client_goes()
    for now in (1100.0, 1159.0):
        await site.look(now)
        assert site.went() == []
    await site.look(1160.0)
    assert site.went() == ["server2"]
    kept = site.controller.mobility.explain("migration-1")[0]
    assert (kept.by, kept.snapshot.wish) == ("domain", Wish(kept.snapshot.wish.reason, 400, 400, 60))
    assert (kept.snapshot.wish.reason, kept.decision.decided_by) == ("clients", "distance")


async def test_a_client_that_comes_back_in_time_moves_nobody(site: Site) -> None:
    site.client_goes()
    await site.look(1000.0)
    site.fake.net.put_vm(moved(site.fake.net.vms["vm2"], "server1"))
    await site.look(1059.0)
    site.client_goes()
    await site.look(1060.0)
    assert site.went() == []


async def test_a_pinned_vm_does_not_follow_and_no_vm_does_unless_the_operator_says_so(site: Site) -> None:
    site.says(pinned=True)
    site.client_goes()
    for now in (1000.0, 1100.0):
        await site.look(now)
    assert site.went() == []
    for other, count in ((Site(0), 0), (Site(3), 1)):
        await other.fake.start()
        other.client_goes()
        for now in (1000.0, 1100.0):
            await other.look(now)
        assert len(other.went()) == count
        await other.fake.stop()


async def test_where_it_is_not_worth_a_move_it_stays_and_that_is_said() -> None:
    site = Site(4, Policy(margin=9000))
    await site.fake.start()
    site.client_goes()
    for now in (1000.0, 1060.0):
        await site.look(now)
    assert site.went() == []
    (told,) = recent(site.controller.events, "mobility.unmatched")
    assert "would be better than server1" in told.data["reason"]
    await site.fake.stop()
