"""Domains beside this one: the parts that speak to them and hear them, for the rest of the controller."""

from collections.abc import Callable
from typing import Any

from retinue.controller.content.images import Images
from retinue.controller.context import Context
from retinue.controller.domains.anchors import Anchors
from retinue.controller.domains.hearing import Hearing
from retinue.controller.domains.images import SharedImages
from retinue.controller.domains.matching import Matching
from retinue.controller.domains.names import SharedNames
from retinue.controller.domains.removals import Removals
from retinue.controller.domains.saying import Saying
from retinue.controller.migrations.orchestrator import MigrationOrchestrator
from retinue.controller.mobility.manager import MobilityManager
from retinue.core import migration as fsm
from retinue.core.migration import Migration
from retinue.core.model import VM
from retinue.core.model.domains import places
from retinue.core.model.network import Touched
from retinue.core.placement import EntityKind
from retinue.protocol.migrations import Report


class Domains:
    """What the orchestrator tells of migrations with a far end goes to the peers; see `FarEnds`."""

    def __init__(
        self,
        context: Context,
        orchestrator: MigrationOrchestrator,
        mobility: MobilityManager,
        images: Images,
        name_free: Callable[[str, EntityKind], None],
        forget: Callable[[VM], Touched],
        give_back: Callable[[VM], None],
        on_size: Callable[[str, int], None],
    ) -> None:
        """`name_free` and all after that: see Hearing."""
        self._context = context
        self.saying = Saying(context, orchestrator, mobility.memory_of)
        self.removals = Removals(context, self.saying.doors)
        self.hearing = Hearing(
            context, orchestrator, mobility, self.saying, self.removals,
            name_free, forget, give_back, on_size,
        )  # fmt: skip
        self.matching = Matching(context, mobility, self.hearing, self.saying.doors)
        self.names = SharedNames(context, self.saying.doors)
        self.images = SharedImages(context, images, self.saying.doors)
        self.anchors = Anchors(context, orchestrator)

    def start(self) -> None:
        """After a restart: what was to be forgotten, or said, and is not yet."""
        self.hearing.forget_the_gone()
        self.removals.tell()

    def ordered(self, migration: Migration, effect: fsm.Effect) -> None:
        if migration.far is not None:
            self.saying.ordered(migration, effect)

    def stepped(self, event: fsm.Event, after: Migration) -> None:
        if after.far is not None:
            self.saying.stepped(event, after)
        if after.state.ended and after.far is not None:
            self.saying.ended(after)
            self._context.spawn(self._forget(after.vm), f"{after.id}: has ended")

    async def before_report(self, id: str, report: Report, reason: str) -> Migration | None:
        return await self.saying.before_report(id, report, reason)

    async def _forget(self, vm: str) -> None:
        self.hearing.forget_if_gone(vm)
        self.anchors.look_at(vm)

    def shown(self) -> dict[str, Any]:
        """The peers, and which VMs are away or guests."""
        net = self._context.net
        table = list(places(net))
        return {
            "domains": [
                {
                    "id": peer.id,
                    "gateway": peer.gateway,
                    "tunnel": peer.tunnel,
                    "prefixes": [str(prefix) for prefix in peer.prefixes],
                    "away": sum(row.domain == peer.id and not row.home for row in table),
                    "guests": sum(row.home == peer.id for row in table),
                }
                for peer in net.peers.values()
            ],
            "vms": [
                {
                    "vm": row.vm,
                    "addresses": [str(ip) for ip in row.addresses],
                    "home": row.home,
                    "domain": row.domain,
                    "server": row.server,
                }
                for row in table
            ],
        }
