"""The two managers beside controllers of a test, in memory: what is said goes through JSON, as between
processes."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from retinue.controller.app import Controller
from retinue.controller.mobility.managers import Managers
from retinue.managers.door import RefusedError
from retinue.managers.mobility import Mobility
from retinue.managers.resources import Resources
from retinue.protocol.errors import ControllerAwayError, RejectedError
from retinue.protocol.managers import Decided, Filled, Filling, MatchAsked, Matched, Request
from retinue.protocol.records import record
from support.fabric.two_controllers import TwoDomains

T = TypeVar("T")


@dataclass
class Beside:
    """One resource manager for all domains, and a mobility manager for each."""

    clock: Callable[[], float]
    offers_to: dict[str, list[str]]
    away: set[str] = field(default_factory=set)
    """Which of "mobility" and "resources" nobody reaches."""
    said: list[str] = field(default_factory=list)
    """Paths' last words, in order."""
    answer: Callable[[Decided], Decided] = field(default=lambda decided: decided)
    """What a mobility manager says instead."""

    def __post_init__(self) -> None:
        self.resources = Resources(self.offers_to, self.clock)

    def start_resources_again(self) -> None:
        self.resources = Resources(self.offers_to, self.clock)

    def join(self, domain: str, controller: Controller, domains: Collection[str] = ()) -> Managers:
        door = Door(self, domain)
        made = Managers(controller.context, controller.resources, door, f"run-of-{domain}", domains)
        controller.mobility.deciding.managers = made
        return made


class Door:
    def __init__(self, beside: Beside, domain: str) -> None:
        self._beside, self._domain = beside, domain
        self._mobility = Mobility(self._match, beside.clock)

    async def fill(self, filling: Filling) -> Filled:
        self._there("resources", "fill")
        try:
            return self._beside.resources.fill(self._domain, through_json(filling))
        except RefusedError as error:
            raise RejectedError(str(error), error.code) from error

    async def decide(self, request: Request) -> Decided:
        self._there("mobility", "decide")
        try:
            decided = await self._mobility.decide(through_json(request))
        except RefusedError as error:
            raise RejectedError(str(error), error.code) from error
        said = self._beside.answer(decided)
        return record(Decided, msgspec.json.decode(msgspec.json.encode(said)))

    async def present(self) -> None:
        self._there("mobility", "present")

    async def _match(self, asked: MatchAsked) -> Matched:
        self._there("resources", "match")
        try:
            return through_json(self._beside.resources.match(self._domain, through_json(asked)))
        except RefusedError as error:
            raise RejectedError(str(error), error.code) from error

    def _there(self, name: str, said: str) -> None:
        if name in self._beside.away:
            self._beside.said.append(f"{said}, in vain")
            raise ControllerAwayError(f"the {name} manager is away")
        self._beside.said.append(said)


def through_json(value: T) -> T:
    return msgspec.json.decode(msgspec.json.encode(value), type=type(value))


async def managers_beside(domains: TwoDomains) -> Beside:
    """Beside both domains, each of whose servers may be offered to the other, and filled."""
    made = Beside(domains.controller("a").context.clock, {"a": ["b"], "b": ["a"]})
    for domain, other in (("a", "b"), ("b", "a")):
        managers = made.join(domain, domains.controller(domain), [other])
        await managers.look()
        assert managers.there
    made.said.clear()
    return made
