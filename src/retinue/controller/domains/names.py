"""Names of two domains in one zone: each controller answers for all of it, and asks the other for its part.

Asked is every few seconds, and answered with all names only where they are not what was heard last. What
another domain says counts so far: a name that something of ours has stays ours, whatever the other says, and
an address is believed where it is granted to that domain (`Peer.prefixes`). So no domain can point a name of
ours elsewhere, nor any name to what is not its own. A name that both have is told in the log: each answers
its own until one is renamed; of two others that have it the first by id counts. The log has a line for all of
a kind, and again when they are others: a domain may say what it likes as often as it is asked.

While a domain has said nothing yet, of a name that is not ours nobody can say that there is none.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import structlog

from retinue.controller.context import Context
from retinue.controller.domains.peer_client import PeerDoor
from retinue.controller.migrations.requests import MigrationError
from retinue.controller.parsing import address
from retinue.core.model import IP, ModelError
from retinue.protocol.domains import MOST_ADDRESSES_OF_A_NAME, MOST_NAMES, DomainName, Names, NamesAsked
from retinue.protocol.errors import ControllerError, ErrorCode

log = structlog.get_logger()

LOOK_SECONDS = 5.0
AT_ONCE = 200
"""Names, or addresses, that are looked at before the controller's other work has its turn."""
TOLD = 10
"""Names that one line of the log has."""

Own = Callable[[], Iterator[tuple[str, tuple[IP, ...]]]]


@dataclass(frozen=True, slots=True)
class Heard:
    """What a domain has said last."""

    version: str
    names: Mapping[str, tuple[IP, ...]]
    twice: tuple[str, ...] = ()
    """Names that are ours; and `not_granted`: names with an address that is not that domain's to give."""
    not_granted: tuple[str, ...] = ()


class SharedNames:
    """Asks other domains for their names, and tells ours; `doors` as in Saying."""

    def __init__(self, context: Context, doors: Mapping[str, PeerDoor]) -> None:
        self._context = context
        self._net = context.net
        self._doors = doors
        self._heard: dict[str, Heard] = {}
        self._not_heard: dict[str, str] = {}
        """Domains that were not heard when they were asked last, and why."""
        self._answering: set[str] = set()
        """Domains that are being answered."""
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
                heard = await self._judged(domain, said.version, said.names)
                _tell(domain, before or Heard("", {}), heard)
                self._heard[domain] = heard
        except (ControllerError, ModelError) as error:
            # What was heard before goes on, as with any secondary server.
            reason = str(error)
            if self._not_heard.get(domain) != reason:  # It may be away for days.
                log.warning("domain.names_not_heard", domain=domain, reason=reason)
            self._not_heard[domain] = reason
        else:
            self._not_heard.pop(domain, None)

    async def _judged(self, domain: str, version: str, names: list[DomainName]) -> Heard:
        granted, ours = self._net.peers[domain].prefixes, await self._ours()
        believed: dict[str, tuple[IP, ...]] = {}
        twice: list[str] = []
        not_granted: list[str] = []
        looked_at = 0
        for one in names:
            found = tuple(map(address, one.addresses))
            its = tuple(ip for ip in found if any(ip in prefix for prefix in granted))
            if one.name in ours:  # Which are looked up first.
                twice.append(one.name)
            if its != found:
                not_granted.append(one.name)
            if its:
                believed[one.name] = its
            looked_at += 1 + len(found)
            if looked_at >= AT_ONCE:
                looked_at = 0
                await asyncio.sleep(0)
        return Heard(version, believed, tuple(twice), tuple(not_granted))

    # ---- answering ----

    async def answer(self, peer: str, asked: NamesAsked) -> Names:
        """Raises ModelError where that domain has no part in our zone, MigrationError where it asks twice at
        the same time."""
        if not self.zone or not self._net.peers[peer].names:
            raise ModelError(f"names of domain {peer} are in no zone of ours: `names` is not set for it here")
        if asked.zone.casefold() != self.zone.casefold():
            raise ModelError(f"our zone is {self.zone}, not {asked.zone}")
        if peer in self._answering:
            raise MigrationError(f"domain {peer} is being answered already", ErrorCode.TOO_OFTEN)
        self._answering.add(peer)
        try:
            return await self._answer(asked)
        finally:
            self._answering.discard(peer)

    async def _answer(self, asked: NamesAsked) -> Names:
        ours = await self._ours()
        if len(ours) > MOST_NAMES:
            raise ModelError(f"there are {len(ours)} names here; more than {MOST_NAMES} are not told")
        version = 0
        for row in ours.items():
            version ^= hash(row)
        text = f"{version & (1 << 64) - 1:016x}"
        if text == asked.known:
            return Names(text)
        told = ((name, its[:MOST_ADDRESSES_OF_A_NAME]) for name, its in ours.items())
        return Names(text, [DomainName(name, list(map(str, its))) for name, its in told])

    async def _ours(self) -> dict[str, tuple[IP, ...]]:
        found: dict[str, tuple[IP, ...]] = {}
        for number, (name, addresses) in enumerate(self.own()):
            found[name] = addresses
            if number % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
        return found


def _tell(domain: str, before: Heard, now: Heard) -> None:
    """What of its names does not count, where that is not what it was."""
    if now.twice and now.twice != before.twice:
        log.warning("domain.name_twice", domain=domain, names=now.twice[:TOLD], all=len(now.twice))
    if now.not_granted and now.not_granted != before.not_granted:
        log.warning(
            "domain.name_not_granted", domain=domain, names=now.not_granted[:TOLD], all=len(now.not_granted)
        )
