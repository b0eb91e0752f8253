"""A mobility manager and a resource manager that are processes of their own, as the controller speaks to
them.

The resource manager is told what there is: all of it when it is first reached, and what has changed since
then. Nothing of what it was told before counts after it, or we, have been away. In a match, once the agents
have answered, it is told what that has brought, and then the mobility manager is asked, which asks it.

Where one of the two is away, or what comes cannot be gone by, the controller decides by itself as it does
without them. A manager that is silent costs its limit once: it is not asked again before it has answered a
question that nobody waits for.
"""

import asyncio
import ssl
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec

from retinue.controller.context import Context
from retinue.controller.mobility.resources import ResourceManager
from retinue.core.limits import MOST_SERVERS_FILLED, MOST_VMS_FILLED
from retinue.core.placement import Need, Presence, ServerState, Snapshot, Wish, checks, decide
from retinue.core.placement.facts import ServerFacts, needs_match
from retinue.patience import patience
from retinue.protocol.client import ControllerClient, lasting
from retinue.protocol.errors import ControllerAwayError, ControllerError, ErrorCode, RejectedError
from retinue.protocol.events import EventType
from retinue.protocol.managers import (
    FILLINGS_PATH,
    LARGEST_ANSWER,
    PRESENCES_PATH,
    REQUESTS_PATH,
    THE_MOBILITY,
    THE_RESOURCE,
    Decided,
    Filled,
    Filling,
    MatchAsked,
    Request,
    facts_said,
    policy_said,
    state_said,
    wish_said,
)
from retinue.protocol.records import record
from retinue.security.credentials import Credentials

LOOK_SECONDS = 2.0
"""So often the resource manager is told what has changed, and managers that are away are looked for."""
DECIDE_LIMIT, FILL_LIMIT = 2.0, 1.5
"""Seconds for an answer."""
LONGEST_REST = 60.0
"""Seconds for which a manager that fell silent again and again is not asked; at first it is LOOK_SECONDS."""
SLICE = 20
"""Servers that are looked at before others have their turn."""
MOBILITY, RESOURCES = "mobility", "resources"


class _SilentJustNowError(Exception):
    """Somebody else has waited for it in vain."""


class ManagerDoor(Protocol):
    """What can be said to the two. Raises ControllerError."""

    async def fill(self, filling: Filling) -> Filled: ...
    async def decide(self, request: Request) -> Decided: ...
    async def present(self) -> None: ...


class ManagerClients:
    """Speaks to the doors that they have for us. Close it after use."""

    def __init__(self, mobility: str, resources: str, context: ssl.SSLContext) -> None:
        self._mobility, self._resources = (
            ControllerClient(url, Credentials(), lasting(context), largest=LARGEST_ANSWER, whom=whom)
            for url, whom in ((mobility, THE_MOBILITY), (resources, THE_RESOURCE))
        )

    async def fill(self, filling: Filling) -> Filled:
        return record(Filled, await _post(self._resources, FILLINGS_PATH, filling, FILL_LIMIT), THE_RESOURCE)

    async def decide(self, request: Request) -> Decided:
        said = await _post(self._mobility, REQUESTS_PATH, request, DECIDE_LIMIT)
        return record(Decided, said, THE_MOBILITY)

    async def present(self) -> None:
        await self._mobility.request("POST", PRESENCES_PATH, {}, DECIDE_LIMIT)

    async def close(self) -> None:
        await self._mobility.close()
        await self._resources.close()


async def _post(client: ControllerClient, path: str, body: msgspec.Struct, limit: float) -> dict[str, Any]:
    return await client.request("POST", path, msgspec.to_builtins(body), limit)


@dataclass
class _Manager:
    """How one of the two was found last."""

    there: bool | None = None
    """None: it has not been looked for."""
    failures: int = 0
    """Since it last did what it is for."""
    not_before: float = 0.0
    state: str = "not looked for yet"
    reason: str = ""
    """Of one that is away."""
    since: float | None = None
    trouble: str = ""
    """Why its last answer that could not be gone by was none, and `troubled`: when."""
    troubled: float | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """One match, as the mobility manager is asked in it."""

    match: str
    need: Need
    wish: Wish
    named: str
    presences: Mapping[str, Presence]
    waited_ms: int
    domains: Collection[str]
    """Others, whose offers are the resource manager's to make."""
    offers: Sequence[ServerState]
    """Of the rest."""


class Managers:
    """The two, for one domain."""

    def __init__(
        self,
        context: Context,
        resources: ResourceManager,
        door: ManagerDoor,
        instance: str,
        domains: Collection[str] = (),
    ) -> None:
        """`instance`: of this run, which no other has. `domains`: others that the resource manager serves."""
        self._context = context
        self._resources = resources
        self._door = door
        self._run = instance
        self._beginnings = 0
        """How often all was to be told."""
        self.domains = frozenset(domains)
        self._found = {MOBILITY: _Manager(), RESOURCES: _Manager()}
        self._told: dict[str, ServerFacts] = {}
        self._number = 0
        self._filling = asyncio.Lock()
        self._begun = self._taken = 0
        """Fillings, by number: the last that was begun, and the last that was taken; 0: none that counts."""
        self._taken_with: Mapping[str, Presence] = {}
        self._closed = False

    @property
    def there(self) -> bool:
        """Both are, as far as is known."""
        return not self._closed and all(one.there for one in self._found.values())

    def shown(self) -> dict[str, dict[str, Any]]:
        """How the two are, by name."""
        shown = ("state", "reason", "since", "trouble", "troubled")
        return {name: {key: getattr(one, key) for key in shown} for name, one in self._found.items()}

    def close(self) -> None:
        """Nobody is spoken to any more."""
        self._closed = True

    async def look(self) -> None:
        """Every LOOK_SECONDS: fill the one, find the other."""
        if self._closed:
            return
        await self._try(RESOURCES, self._fill)
        if not self._found[MOBILITY].there:
            await self._try(MOBILITY, self._door.present)

    async def snapshot(self, asked: Asked) -> Snapshot | None:
        """What the managers' decision went by, which makes the same one again; None: they have made none that
        counts, and an event has said why."""
        if not self.there:
            return None
        try:
            async with patience(FILL_LIMIT):  # However much there is to be told, and whoever tells it.
                filled = await self._try(RESOURCES, lambda: self._fill(asked.presences))
        except TimeoutError:
            self._lost(RESOURCES, f"{THE_RESOURCE} does not take what it is told within {FILL_LIMIT:g} s")
            return None
        if not filled or asked.need.vm not in self._context.net.vms:
            return None
        source = self._context.net.vms[asked.need.vm].server
        distances = self._resources.distances(asked.need.vm)
        request = Request(
            asked.match,
            MatchAsked(asked.need.vm, distances, sorted(asked.domains)),
            source,
            wish_said(asked.wish),
            asked.named,
            asked.need.moved_ago,
            asked.waited_ms,
            [state_said(one) for one in asked.offers],
        )
        try:
            answer = await self._door.decide(request)
        except ControllerAwayError as error:
            self._lost(MOBILITY, str(error))
            return None
        except ControllerError as error:
            self._tell(MOBILITY, "refuses", str(error))
            return None
        self._found[MOBILITY].failures = 0
        return self._believed(asked, answer)

    # ---- what it answers ----

    def _believed(self, asked: Asked, answer: Decided) -> Snapshot | None:
        """Looked at as what a stranger says: the decision follows from what it was made of, that is about
        this VM, and its server can take it as we see it ourselves."""
        vm = asked.need.vm
        if vm not in self._context.net.vms:
            return None
        now = self._resources.snapshot(vm, asked.wish, asked.presences, asked.named, asked.waited_ms)
        servers = tuple(one.plain() for one in answer.servers)
        need = replace(answer.need.plain(), moved_ago=asked.need.moved_ago)
        said = replace(now, need=need, servers=servers)
        decision = decide(said)
        wrong = ""
        domain, _, there = answer.target.partition("/")
        ours = next((one for one in now.servers if one.server == answer.target), None)
        if not needs_match(said.need, now.need):
            wrong = f"it goes by another profile of {vm}"
        elif (decision.outcome, decision.target) != (answer.outcome, answer.target):
            wrong = f"its answer {answer.target or answer.outcome} does not follow from what it goes by"
        elif there and answer.target not in {one.server for one in asked.offers}:
            if domain not in asked.domains or answer.target not in answer.offered:
                wrong = f"it names {answer.target}, where {vm} may not go"
        elif answer.target and not there and ours is None:
            wrong = f"it names {answer.target}, which is no server of ours"
        elif ours is not None and (no := next((one for one in checks(ours, now) if not one.ok), None)):
            wrong = f"it names {answer.target}, which cannot take {vm}: {no.text}"
        if wrong:
            self._tell(MOBILITY, "not believed", wrong)
            return None
        return said

    # ---- filling ----

    async def _fill(self, presences: Mapping[str, Presence] | None = None) -> None:
        """Tell what has changed; all of it, where that does not follow what was told. Raises
        ControllerError."""
        before = self._begun
        async with self._filling:
            if presences is not None and not self._found[RESOURCES].there:
                raise _SilentJustNowError  # While we waited for our turn.
            if presences is not None and self._taken > before and self._taken_with == presences:
                return  # Another that waited has told what we would, of a look that began after we came.
            self._begun += 1
            now = await self._facts(presences or {})
            try:
                await self._tell_changes(now)
            except RejectedError as error:  # It has been started anew, or has missed something.
                if error.code != ErrorCode.OUT_OF_STEP:
                    raise
                await self._tell_changes(now)
            self._taken, self._taken_with = self._begun, presences or {}

    async def _facts(self, presences: Mapping[str, Presence]) -> dict[str, ServerFacts]:
        """What was told already and is so still is kept as it was: of thousands of VMs nothing is left to be
        collected, nor to be compared in one go."""
        found: dict[str, ServerFacts] = {}
        for number, facts in enumerate(self._resources.facts(presences)):
            told = self._told.get(facts.server)
            found[facts.server] = told if told == facts else facts
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        return found

    async def _tell_changes(self, now: dict[str, ServerFacts]) -> None:
        changed = [facts for name, facts in now.items() if self._told.get(name) is not facts]
        gone = sorted(self._told.keys() - now.keys())
        parts = _parts(changed)
        policy = policy_said(self._resources.policy)
        try:
            for index, part in enumerate(parts):
                last = index == len(parts) - 1
                said = [facts_said(facts) for facts in part]
                filling = Filling(self._instance(), self._number, policy, said, gone if last else [], last)
                self._number = (await self._door.fill(filling)).number
        except BaseException:
            self._forget()  # Whether it was heard is not known.
            raise
        self._told = now

    def _forget(self) -> None:
        self._told, self._number, self._taken = {}, 0, 0
        self._beginnings += 1

    def _instance(self) -> str:
        """Each beginning's own: one that nobody waited for any more, and that comes after all, begins anew
        there, and what follows another does not follow it."""
        return f"{self._run}-{self._beginnings}"

    # ---- whether they are there ----

    async def _try(self, name: str, ask: Callable[[], Any]) -> bool:
        one = self._found[name]
        if not one.there and self._context.clock() < one.not_before:
            return False
        try:
            await ask()
        except _SilentJustNowError:
            return False
        except ControllerError as error:
            self._lost(name, str(error))
            return False
        if not one.there:
            one.there = True
            self._tell(name, "there", "")
        if name == RESOURCES:
            one.failures = 0
        return True

    def _lost(self, name: str, reason: str) -> None:
        one = self._found[name]
        one.failures += 1
        rest = min(LONGEST_REST, LOOK_SECONDS * 2 ** min(one.failures - 1, 5))
        one.not_before = self._context.clock() + (rest if one.failures > 1 else 0.0)
        if one.there is not False:
            one.there = False
            self._tell(name, "away", f"{reason}; the controller decides by itself")

    def _tell(self, name: str, state: str, reason: str) -> None:
        one, now = self._found[name], self._context.clock()
        if state in ("there", "away"):
            one.state, one.reason, one.since = state, reason, now
        else:
            one.trouble, one.troubled = f"{state}: {reason}", now
        self._context.events.publish(EventType.MANAGER, manager=name, state=state, reason=reason)


def _parts(changed: Sequence[ServerFacts]) -> list[list[ServerFacts]]:
    """What one message holds; at least one, which says that we are there."""
    parts: list[list[ServerFacts]] = [[]]
    vms = 0
    for facts in changed:
        vms += len(facts.hosted) + len(facts.booked)
        if parts[-1] and (len(parts[-1]) == MOST_SERVERS_FILLED or vms > MOST_VMS_FILLED):
            parts.append([])
            vms = len(facts.hosted) + len(facts.booked)
        parts[-1].append(facts)
    return parts
