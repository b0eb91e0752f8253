"""Match messages between domains: each says which of its servers would be best, and the asking one compares.

What another domain offers is one more server of the snapshot, called DOMAIN/SERVER: filters and measures are
those of the domain that asks, and the decision is made, kept and explained as any other. Nothing is booked by
an offer; the migration books, and is refused then if the place has gone.
"""

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping

from retinue.controller.context import Context
from retinue.controller.domains.guests import described
from retinue.controller.domains.hearing import Hearing
from retinue.controller.domains.peer_client import PeerDoor
from retinue.controller.domains.refusals import for_peer
from retinue.controller.migrations.requests import MigrationError
from retinue.controller.mobility.manager import MobilityManager
from retinue.core.limits import ID, MOST_OFFERS
from retinue.core.model import VM, ModelError
from retinue.core.model.domains import check_may_leave
from retinue.core.placement import Need, ServerState
from retinue.core.placement.scores import FARTHEST
from retinue.core.text import cut
from retinue.protocol.domains import Match, Offer
from retinue.protocol.errors import ControllerError, ErrorCode
from retinue.protocol.events import EventType


class Matching:
    """Asks other domains, and answers them; `doors` as in Saying."""

    def __init__(
        self,
        context: Context,
        mobility: MobilityManager,
        hearing: Hearing,
        doors: Mapping[str, PeerDoor],
    ) -> None:
        self._context = context
        self._net = context.net
        self._mobility = mobility
        self._hearing = hearing
        self._doors = doors
        self._answering: Counter[str] = Counter()
        """By domain: its matches that are under way here."""
        mobility.deciding.elsewhere = self

    # ---- asking ----

    def wanted(self, vm: str) -> list[str]:
        """The domains that are to be asked, and to which the VM may go."""
        return sorted(id for id, peer in self._net.peers.items() if peer.match and self._may_go(vm, id))

    async def offers(self, match: str, need: Need, of: Collection[str]) -> list[ServerState]:
        """Of each of these domains its best server."""
        vm = self._net.vms[need.vm]
        found = await asyncio.gather(*(self._ask(domain, match, vm, need) for domain in of))
        return [one for one in found if one is not None]

    def _may_go(self, vm: str, domain: str) -> bool:
        try:
            check_may_leave(self._net, self._net.vms[vm], domain)
        except ModelError:
            return False
        return domain in self._doors

    async def _ask(self, domain: str, match: str, vm: VM, need: Need) -> ServerState | None:
        guest = described(self._net, vm, domain, need.memory_mib, self._context.clock())
        publish = self._context.events.publish
        publish(EventType.DOMAIN_SAID, domain=domain, vm=vm.id, migration_id="", said="match")
        try:
            offer = await self._doors[domain].match(Match(match, guest, need.cpus, need.bandwidth_mbps))
        except ControllerError as error:
            offer = Offer(reason=cut(str(error)))
        publish(EventType.MATCH_OFFER, match=match, domain=domain, server=offer.server, reason=offer.reason)
        return _state(domain, offer) if ID.fullmatch(offer.server) else None

    # ---- answering ----

    async def offer(self, peer: str, wanted: Match) -> Offer:
        """Raises ModelError: the VM may not come here; MigrationError: too much is asked at the same time."""
        try:
            vm = self._hearing.may_come(peer, wanted.vm)
        except ModelError as error:
            raise ModelError(for_peer(self._context.state, peer, wanted.vm, "", error)) from error
        if self._answering[peer] >= MOST_OFFERS:
            raise MigrationError(
                f"{MOST_OFFERS} matches of domain {peer} are under way here", ErrorCode.TOO_OFTEN
            )
        self._context.events.publish(
            EventType.DOMAIN_HEARD, domain=peer, vm=vm.id, migration_id="", said="match"
        )
        need = Need(vm.id, wanted.vm.memory_mib, wanted.cpus, bandwidth_mbps=wanted.bandwidth_mbps)
        self._answering[peer] += 1
        try:
            best = await self._mobility.offer(need)
        finally:
            self._answering[peer] -= 1
        if best is None:
            # Why, of each server with what it has left, is in our own event of the decision.
            return Offer(reason=f"no server here can take {vm.id}")
        return Offer(
            best.server, "", best.cpus, best.memory_mib, best.promised_cpus, best.promised_mib,
            best.unknown_vms, best.free_mib, best.bandwidth_mbps, best.bandwidth_used_mbps, best.cpu_used,
            best.cpu_pressure, best.memory_pressure, best.distance if wanted.vm.is_home else None,
        )  # fmt: skip


def _state(domain: str, offer: Offer) -> ServerState:
    """All that its clients send to a guest goes by its home, however near they are to it there."""
    return ServerState(
        f"{domain}/{offer.server}",
        cpus=offer.cpus,
        memory_mib=offer.memory_mib,
        promised_cpus=offer.promised_cpus,
        promised_mib=offer.promised_mib,
        unknown_vms=offer.unknown_vms,
        free_mib=offer.free_mib,
        bandwidth_mbps=offer.bandwidth_mbps,
        bandwidth_used_mbps=offer.bandwidth_used_mbps,
        cpu_used=offer.cpu_used,
        cpu_pressure=offer.cpu_pressure,
        memory_pressure=offer.memory_pressure,
        distance=FARTHEST if offer.distance is None else offer.distance,
    )
