"""By what a match is decided once the agents have answered: offers of other domains, and who decides.

The managers that are processes of their own, if there are any and they can be gone by; else the controller.
What comes is a snapshot, of which the decision is made here in any case: so it is explained, and made again,
as any.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from retinue.controller.context import Context
from retinue.controller.migrations.requests import MigrationError
from retinue.controller.mobility.managers import MOBILITY, Asked, Managers
from retinue.controller.mobility.resources import ResourceManager
from retinue.core.placement import Need, Presence, ServerState, Snapshot, Wish, decide
from retinue.protocol.errors import ErrorCode

CONTROLLER = "controller"
"""Who decides, where no mobility manager of its own does."""


class Elsewhere(Protocol):
    """Other domains, as they are asked in a match."""

    def wanted(self, vm: str) -> list[str]:
        """Those that are to be asked, and to which the VM may go."""
        ...

    async def offers(self, match: str, need: Need, of: Collection[str]) -> list[ServerState]:
        """The best server of each of these that has one."""
        ...


class NowhereElse:
    """Of a domain that knows no other."""

    def wanted(self, vm: str) -> list[str]:
        return []

    async def offers(self, match: str, need: Need, of: Collection[str]) -> list[ServerState]:
        return []


@dataclass(frozen=True, slots=True)
class Matched:
    """A match whose agents have answered, or have had their time."""

    id: str
    vm: str
    wish: Wish
    named: str
    waited_ms: int
    presences: Callable[[], Mapping[str, Presence]]
    """As they are now."""


class Deciding:
    """Finds what a match is decided by."""

    def __init__(
        self, context: Context, resources: ResourceManager, before_deciding: Callable[[], None]
    ) -> None:
        self._net = context.net
        self._resources = resources
        self._before_deciding = before_deciding
        self.elsewhere: Elsewhere = NowhereElse()
        self.managers: Managers | None = None
        """Processes of their own that decide in our place, if there are any."""

    async def snapshot(self, match: Matched, elsewhere: Elsewhere) -> tuple[Snapshot, str]:
        """And who decided. Nothing is awaited after what our own servers are judged by has been looked at.
        Raises MigrationError: the VM is gone."""
        wanted = elsewhere.wanted(match.vm) if match.vm in self._net.vms else []
        theirs = self._of_resource_manager(match.vm, wanted)
        offers = await self._offers(match, elsewhere, set(wanted) - theirs)
        found = await self._of_managers(match, elsewhere, theirs, offers)
        if found is not None:
            return found, MOBILITY
        offers += await self._offers(match, elsewhere, theirs)
        if match.vm not in self._net.vms:
            raise MigrationError(f"VM {match.vm} was removed meanwhile", ErrorCode.UNKNOWN_VM)
        self._before_deciding()
        here = self._resources.snapshot(match.vm, match.wish, match.presences(), match.named, match.waited_ms)
        return replace(here, servers=(*here.servers, *_as_far(offers, here))), CONTROLLER

    def _of_resource_manager(self, vm: str, wanted: Collection[str]) -> set[str]:
        """The domains whose offers it makes. A VM's home alone knows how near the VM's clients are."""
        if self.managers is None or not self.managers.there or vm not in self._net.vms:
            return set()
        return set(wanted) & self.managers.domains - {self._net.vms[vm].home}

    async def _offers(self, match: Matched, elsewhere: Elsewhere, of: Collection[str]) -> list[ServerState]:
        if not of or match.vm not in self._net.vms:
            return []
        return await elsewhere.offers(match.id, self._resources.need(match.vm), sorted(of))

    async def _of_managers(
        self, match: Matched, elsewhere: Elsewhere, theirs: Collection[str], offers: Sequence[ServerState]
    ) -> Snapshot | None:
        """What the managers decided by; None: decide ourselves. Another domain's server that they choose is
        that domain's to offer: it is asked, and what it says counts."""
        if self.managers is None or match.vm not in self._net.vms:
            return None
        self._before_deciding()
        need = self._resources.need(match.vm)
        asked = Asked(
            match.id, need, match.wish, match.named, match.presences(), match.waited_ms, theirs, offers
        )
        snapshot = await self.managers.snapshot(asked)
        if snapshot is None:
            return None
        domain, _, server = decide(snapshot).target.partition("/")
        if not server or domain not in theirs:  # A server of ours may be called as another domain is.
            return snapshot
        confirmed = await self._offers(match, elsewhere, [domain])
        others = [one for one in snapshot.servers if not one.server.startswith(f"{domain}/")]
        snapshot = replace(snapshot, servers=(*others, *_as_far(confirmed, snapshot)))
        return snapshot if decide(snapshot).target.startswith(f"{domain}/") else None


def _as_far(offers: Sequence[ServerState], here: Snapshot) -> list[ServerState]:
    """A VM that has no clients is far from nobody."""
    if any(one.distance is not None for one in here.servers if "/" not in one.server):
        return list(offers)
    return [replace(one, distance=None) for one in offers]
