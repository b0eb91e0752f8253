"""Who holds what of which image: the table that agents fill, and that is empty after a restart until they do.

A server that was ordered to fetch counts as a holder at once: those that fetch with it then find each other
from the first chunk on. What it said before it had the order is old: until it says that it has, it fetches.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from msgspec.structs import replace

from retinue.controller.context import Context
from retinue.controller.errors import no_server
from retinue.core.limits import ID
from retinue.core.model import Service
from retinue.protocol.events import EventType
from retinue.protocol.images import HeldImage, HolderRecord, ImagesBody, ImageState

SCRUB_AGAIN_SECONDS = 600.0
"""Between two orders to scrub that follow from what others say of a holder."""
FETCHING = ImageState.FETCHING
ORDER_SECONDS = 60.0
"""By which an agent that has an order has said so; one that has not has missed it."""


@dataclass(frozen=True, slots=True)
class _Order:
    id: int
    at: float


class ImageHolders:
    """The last report of each server's agent."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._reports: dict[str, ImagesBody] = {}
        self._held: dict[str, dict[str, HeldImage]] = {}
        """By image, and by server: what the reports say. Who asks for an image is not told of all servers."""
        self._ordered: dict[str, dict[str, _Order]] = {}
        """By image: servers that were ordered to fetch it, and have not said yet what is there to fetch."""
        self._faults: dict[str, Counter[str]] = {}
        """By server that told, and by holder: chunks that were not what they should be."""
        self._scrubbed: dict[str, float] = {}
        """By holder: when it was ordered to scrub, since others had rejected its chunks."""

    def on_report(self, server: str, report: ImagesBody) -> None:
        """All that a server holds. Raises RequestError for a server that is not there."""
        if server not in self._context.net.servers:
            raise no_server(server)
        before = {held.name: held for held in self._images_of(server)}
        self._reports[server] = report
        for name in before.keys() - {held.name for held in report.images}:
            del self._held[name][server]
            if not self._held[name]:
                del self._held[name]
        for held in report.images:
            self._held.setdefault(held.name, {})[server] = held
            order = self._ordered.get(held.name, {}).get(server)
            if order and order.id == held.order and (held.list_digest or held.state is ImageState.FAILED):
                del self._ordered[held.name][server]
            old = before.get(held.name)
            if old is not None and (old.state, old.reason) == (held.state, held.reason):
                continue
            if held.name in self._context.state.images:
                self._tell(server, held)
        self._count_faults(server, report)

    def _tell(self, server: str, held: HeldImage) -> None:
        events = self._context.events
        if held.state is ImageState.HELD:
            events.publish(EventType.IMAGE_HELD, image=held.name, server=server)
        elif held.state is ImageState.FAILED:
            events.publish(EventType.IMAGE_FAILED, image=held.name, server=server, reason=held.reason)

    def _count_faults(self, server: str, report: ImagesBody) -> None:
        known = self._faults.setdefault(server, Counter())
        for holder, count in report.faults.items():
            if self._may_hold(holder) and count > known[holder]:
                more = count - known[holder]
                self._context.events.tell(
                    (server,), EventType.IMAGE_REJECTED, server=server, holder=holder, chunks=more
                )
                self._have_scrubbed(holder)
        self._faults[server] = Counter(
            {holder: n for holder, n in report.faults.items() if self._may_hold(holder)}
        )

    def _may_hold(self, holder: str) -> bool:
        """A server of ours, or one of a domain whose images are fetched here."""
        domain, _, server = holder.partition("/")
        peer = self._context.net.peers.get(domain)
        is_there = peer is not None and peer.images and ID.fullmatch(server) is not None
        return holder in self._context.net.servers or is_there

    def _have_scrubbed(self, holder: str) -> None:
        """What it sends is bad: it is to look what else is, and to fetch it again."""
        now = self._context.clock()
        last = self._scrubbed.get(holder)
        if self._is_here(holder) and (last is None or now - last >= SCRUB_AGAIN_SECONDS):
            self._scrubbed[holder] = now
            self._context.events.publish(EventType.IMAGE_SCRUB, server=holder)

    def expect(self, name: str, servers: Collection[str], order: int) -> None:
        """These will fetch the image from now on, by the order of this number."""
        now = self._context.clock()
        made = {server: _Order(order, now) for server in servers}
        self._ordered.setdefault(name, {}).update(made)

    def forget(self, name: str) -> None:
        """The image is published no more."""
        self._ordered.pop(name, None)

    # ---- what is asked ----

    def servers(self) -> set[str]:
        """Servers whose agent is here, and has said where others fetch from it."""
        return {server for server in self._reports if self._is_here(server)}

    def _is_here(self, server: str) -> bool:
        """Whether it is one of the `servers`."""
        net, known = self._context.net, server in self._reports and server in self._context.net.servers
        return known and server not in net.fenced and not self._context.agents.is_away(server)

    def of(self, name: str) -> dict[str, HeldImage]:
        """What each server has of an image, as it said last; one that was ordered since fetches it."""
        known = self._context.net.servers
        said = {server: held for server, held in self._held.get(name, {}).items() if server in known}
        for server in filter(self._is_here, self._ordered.get(name, {})):
            order, last = self._ordered[name][server], said.get(server, HeldImage(name, "", FETCHING, 0))
            if last.order != order.id and self._context.clock() - order.at < ORDER_SECONDS:
                said[server] = replace(last, state=FETCHING, reason="")
        return dict(sorted(said.items()))

    def whole_at(self, server: str) -> list[str]:
        """Names of the images that a server has all of."""
        return sorted(held.name for held in self._images_of(server) if held.state is ImageState.HELD)

    def who(self, name: str, list_digest: str, origin: str, asker: str = "") -> list[HolderRecord]:
        """Those that may be asked for chunks now: they hold some, or will soon; by a server that asks for
        itself also caches, which fetch what they lack, but not by a cache."""
        ordered = {origin, *self._ordered.get(name, {})}
        having = {
            server
            for server, held in self.of(name).items()
            if held.list_digest == list_digest and (held.held or held.state is FETCHING)
        }
        caches = self.caches()
        if asker and asker not in caches:
            having |= caches
        return [
            HolderRecord(server, self._reports[server].address, self._near(asker, server))
            for server in sorted(filter(self._is_here, having | ordered))
        ]

    def for_domain(self, domain: str, name: str, list_digest: str) -> list[tuple[str, str]]:
        """Those of which that domain's agents may take the image's chunks, and where: caches, which fetch
        what they lack, and after them who holds some."""
        caches = self.caches()
        having = {one for one, held in self.of(name).items() if held.list_digest == list_digest and held.held}
        found = [
            (server not in caches, server, self._reports[server].doors[domain])
            for server in filter(self._is_here, having | caches)
            if domain in self._reports[server].doors
        ]
        return [(server, address) for _, server, address in sorted(found)]

    def caches(self) -> set[str]:
        """Servers that are caches, whether they are here or not."""
        return {server.id for server in self._context.net.servers_with(Service.CACHE)}

    def _near(self, asker: str, server: str) -> bool:
        """Whether they are at the same leaf, as far as it is known where they are."""
        net = self._context.net
        if asker not in net.servers:
            return False
        one, other = net.location(asker), net.location(server)
        return one is not None and other is not None and one.switch == other.switch

    def used(self, server: str) -> int:
        return self._reports[server].store.used

    def report(self, server: str) -> ImagesBody | None:
        return self._reports.get(server)

    def faults(self) -> dict[str, int]:
        """By holder: chunks that others rejected, as far as agents that run now tell."""
        total: Counter[str] = Counter()
        for counts in self._faults.values():
            total.update(counts)
        return dict(sorted(total.items()))

    def _images_of(self, server: str) -> list[HeldImage]:
        return self._reports[server].images if server in self._reports else []
