"""Names of two domains in one zone: each controller answers for all of it, and asks the other for its part.

Asked is every few seconds, and answered with all names only where they are not what was heard last. What
another domain says counts so far: a name that something of ours has stays ours, whatever the other says, and
an address is believed where it is granted to that domain (`Peer.prefixes`). So no domain can point a name of
another elsewhere, nor any name to what is not its own. A name that both have is told in the log: each answers
its own until one is renamed.

While a domain has said nothing yet, of a name that is not ours nobody can say that there is none.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import structlog

from retinue.controller.context import Context
from retinue.controller.domains.peer_client import PeerDoor
from retinue.controller.parsing import address
from retinue.core.model import IP, ModelError
from retinue.protocol.domains import MOST_NAMES, DomainName, Names, NamesAsked
from retinue.protocol.errors import ControllerError

log = structlog.get_logger()

LOOK_SECONDS = 5.0
AT_ONCE = 200
"""Names that are looked at before the controller's other work has its turn."""

Own = Callable[[], Iterator[tuple[str, tuple[IP, ...]]]]


@dataclass(frozen=True, slots=True)
class Heard:
    """What a domain has said last."""

    version: str
    names: Mapping[str, tuple[IP, ...]]


class SharedNames:
    """Asks other domains for their names, and tells ours; `doors` as in Saying."""

    def __init__(self, context: Context, doors: Mapping[str, PeerDoor]) -> None:
        self._context = context
        self._net = context.net
        self._doors = doors
        self._heard: dict[str, Heard] = {}
        self.zone = ""
        """Of which the names are; "": this controller answers for none."""
        self.own: Own = lambda: iter(())
        """The names of this domain, each with its addresses."""

    # ---- for the zone ----

    @property
    def missing(self) -> list[str]:
        """Domains that have part in the zone, and have not been heard."""
        return [id for id in self._with_names() if id not in self._heard]

    def addresses(self, name: str) -> tuple[IP, ...] | None:
        """Of another domain's name; None: none of them has it."""
        found = (self._heard[id].names.get(name) for id in self._with_names() if id in self._heard)
        return next((its for its in found if its is not None), None)

    def names(self) -> set[str]:
        return {name for id in self._with_names() if id in self._heard for name in self._heard[id].names}

    def _with_names(self) -> list[str]:
        return sorted(id for id, peer in self._net.peers.items() if peer.names)

    # ---- asking ----

    async def look(self) -> None:
        if self.zone:
            await asyncio.gather(*(self._ask(id) for id in self._with_names() if id in self._doors))

    async def _ask(self, domain: str) -> None:
        before = self._heard.get(domain)
        try:
            asked = NamesAsked(self.zone, "" if before is None else before.version)
            said = await self._doors[domain].names(asked)
            if said.names is not None:
                self._heard[domain] = Heard(said.version, dict(self._judged(domain, said.names)))
        except (ControllerError, ModelError) as error:
            # What was heard before goes on, as with any secondary server.
            log.warning("domain.names_not_heard", domain=domain, reason=str(error))

    def _judged(self, domain: str, names: list[DomainName]) -> Iterator[tuple[str, tuple[IP, ...]]]:
        granted, ours = self._net.peers[domain].prefixes, dict(self.own())
        for one in names:
            if one.name in ours:  # Which are looked up first.
                log.warning("domain.name_twice", domain=domain, name=one.name)
            found = tuple(map(address, one.addresses))
            its = tuple(ip for ip in found if any(ip in prefix for prefix in granted))
            if its != found:
                log.warning("domain.name_not_granted", domain=domain, name=one.name)
            if its:
                yield one.name, its

    # ---- answering ----

    async def answer(self, peer: str, asked: NamesAsked) -> Names:
        """Raises ModelError where that domain has no part in our zone."""
        if not self.zone or not self._net.peers[peer].names:
            raise ModelError(f"names of domain {peer} are in no zone of ours: `names` is not set for it here")
        if asked.zone.casefold() != self.zone.casefold():
            raise ModelError(f"our zone is {self.zone}, not {asked.zone}")
        found: list[DomainName] = []
        version = 0
        for number, (name, addresses) in enumerate(self.own()):
            version ^= hash((name, addresses))
            found.append(DomainName(name, list(map(str, addresses))))
            if number % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
        if len(found) > MOST_NAMES:
            raise ModelError(f"there are {len(found)} names here; more than {MOST_NAMES} are not told")
        text = f"{version & (1 << 64) - 1:016x}"
        return Names(text, None if text == asked.known else found)
