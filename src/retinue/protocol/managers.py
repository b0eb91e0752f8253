"""What controllers say to a mobility manager and a resource manager that are processes of their own.

    who to whom                            how                            answer
    controller to resource manager         POST /managers/v1/fillings     Filling  ->  Filled
    controller to mobility manager         POST /managers/v1/requests     Request  ->  Decided
    mobility manager to resource manager   POST /managers/v1/matches      MatchAsked  ->  Matched
    controller to mobility manager         POST /managers/v1/presences    {}  ->  {}

Each manager has a door for each domain, which lets in who has a certificate of that domain's authority, of a
controller or a mobility manager: the door says of which domain is spoken. `retinue.managers` are the
processes; docs/mobility.md says who asks what when.
"""

from typing import Annotated, Any

import msgspec

from retinue.core.limits import (
    ID,
    LARGEST_COUNT,
    LONGEST_ID,
    MOST_BOOKINGS_OF_A_SERVER,
    MOST_FAR,
    MOST_IMAGES,
    MOST_LISTED,
    MOST_SERVERS_ASKED,
    MOST_SERVERS_FILLED,
)
from retinue.core.placement import Outcome, Policy, Presence, Reason, Weights, Wish
from retinue.core.placement.facts import Hosted, ServerFacts
from retinue.core.placement.scores import FARTHEST
from retinue.core.placement.snapshot import Need, ServerState
from retinue.protocol.domains import Id, IdOrNone
from retinue.protocol.mobility import Name, Share, Size

FILLINGS_PATH = "/managers/v1/fillings"
REQUESTS_PATH = "/managers/v1/requests"
MATCHES_PATH = "/managers/v1/matches"
PRESENCES_PATH = "/managers/v1/presences"
THE_MOBILITY, THE_RESOURCE = "the mobility manager", "the resource manager"
"""As errors call the two."""
LARGEST_ANSWER = 8 << 20
"""Bytes: the states of MOST_SERVERS_ASKED servers."""

Word = Annotated[str, msgspec.Meta(max_length=LONGEST_ID)]
ServerName = Annotated[
    str, msgspec.Meta(max_length=2 * LONGEST_ID + 1, pattern=rf"^({ID.pattern}(/{ID.pattern})?)?\Z")
]
"""Of another domain's: DOMAIN/SERVER."""
Distance = Annotated[int, msgspec.Meta(ge=0, le=FARTHEST)]
Percent = Annotated[int, msgspec.Meta(ge=0, le=100)]


class NeedSaid(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """core.placement.Need."""

    vm: Id
    memory_mib: Size = 0
    cpus: Size = 0
    disk_mib: Size = 0
    bandwidth_mbps: Size = 0
    apart: Word = ""
    image: Name = ""
    pinned: bool = False
    moved_ago: Size | None = None

    def plain(self) -> Need:
        return Need(**_fields(self))


class HostedSaid(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    need: NeedSaid
    lives: bool = True


class BookedSaid(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    vm: Name
    memory_mib: Size = 0
    cpus: Size = 0


class Sizes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What facts and states have in common; see core.placement.ServerState."""

    presence: Presence = Presence.ANSWERED
    drained: bool = False
    fenced: bool = False
    attached: bool = True
    cpus: Size = 0
    memory_mib: Size = 0
    free_mib: Size | None = None
    disk_free_mib: Size | None = None
    bandwidth_mbps: Size = 0
    bandwidth_used_mbps: Size = 0
    cpu_used: Share | None = None
    cpu_pressure: Share = 0
    memory_pressure: Share = 0
    images: Annotated[tuple[Name, ...], msgspec.Meta(max_length=MOST_IMAGES)] = ()


class FactsSaid(Sizes, frozen=True, kw_only=True):
    server: Id
    hosted: Annotated[list[HostedSaid], msgspec.Meta(max_length=MOST_LISTED)] = []
    booked: Annotated[list[BookedSaid], msgspec.Meta(max_length=MOST_BOOKINGS_OF_A_SERVER)] = []

    def plain(self) -> ServerFacts:
        hosted = tuple(Hosted(one.need.plain(), one.lives) for one in self.hosted)
        booked = tuple((one.vm, one.memory_mib, one.cpus) for one in self.booked)
        return ServerFacts(**_fields(self) | {"hosted": hosted, "booked": booked})


class StateSaid(Sizes, frozen=True, kw_only=True):
    server: ServerName
    promised_cpus: Size = 0
    promised_mib: Size = 0
    unknown_vms: Size = 0
    distance: Distance | None = None
    groups: Annotated[tuple[Word, ...], msgspec.Meta(max_length=MOST_LISTED)] = ()

    def plain(self) -> ServerState:
        return ServerState(**_fields(self))


class PolicySaid(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """core.placement.Policy; of the weights in the order that they have there."""

    memory_percent: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    cpu_percent: Annotated[int, msgspec.Meta(ge=1, le=6400)]
    weights: tuple[Percent, Percent, Percent, Percent, Percent]
    margin: Share
    rest_seconds: Size

    def plain(self) -> Policy:
        return Policy(**_fields(self) | {"weights": Weights(*self.weights)})


class Filling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What there is in the domain, or what has changed since the filling before."""

    instance: Id
    number: Annotated[int, msgspec.Meta(ge=0, le=LARGEST_COUNT)]
    policy: PolicySaid
    servers: Annotated[list[FactsSaid], msgspec.Meta(max_length=MOST_SERVERS_FILLED)] = []
    gone: Annotated[list[Id], msgspec.Meta(max_length=MOST_SERVERS_ASKED)] = []
    whole: bool = False


class Filled(msgspec.Struct, frozen=True):
    number: Size
    """Of the next one."""


class WishSaid(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    reason: Reason
    measured: Size = 0
    threshold: Size = 0
    seconds: Size = 0

    def plain(self) -> Wish:
        return Wish(**_fields(self))


class MatchAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What does the VM need, and what have servers left for it?"""

    vm: Id
    distances: Annotated[dict[Id, Distance], msgspec.Meta(max_length=MOST_SERVERS_ASKED)] = {}
    """By server, of those that are there: to the VM's clients."""
    domains: Annotated[list[Id], msgspec.Meta(max_length=MOST_FAR)] = []
    """Other domains where it may go."""


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The wish that a VM should go: which server is best?"""

    match: Id
    asked: MatchAsked
    source: Id
    wish: WishSaid
    named: IdOrNone = ""
    moved_ago: Size | None = None
    waited_ms: Size = 0
    offers: Annotated[list[StateSaid], msgspec.Meta(max_length=MOST_FAR)] = []
    """Of domains that were asked otherwise."""


class Matched(msgspec.Struct, frozen=True, omit_defaults=True):
    need: NeedSaid
    policy: PolicySaid
    servers: Annotated[list[StateSaid], msgspec.Meta(max_length=MOST_SERVERS_ASKED)] = []
    offers: Annotated[list[StateSaid], msgspec.Meta(max_length=MOST_FAR)] = []
    """The best of each other domain that has one."""


class Decided(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was decided, and all it was decided by: who asked makes the decision once more of that."""

    need: NeedSaid
    servers: Annotated[list[StateSaid], msgspec.Meta(max_length=MOST_SERVERS_ASKED)]
    outcome: Outcome
    target: ServerName = ""
    offered: Annotated[list[ServerName], msgspec.Meta(max_length=MOST_FAR)] = []
    """Those of the servers that the resource manager offers of other domains."""


def need_said(need: Need) -> NeedSaid:
    return NeedSaid(**_fields(need))


def facts_said(facts: ServerFacts) -> FactsSaid:
    hosted = [HostedSaid(need_said(one.need), one.lives) for one in facts.hosted]
    booked = [BookedSaid(*one) for one in facts.booked]
    return FactsSaid(**_fields(facts) | {"hosted": hosted, "booked": booked})


def state_said(state: ServerState) -> StateSaid:
    return StateSaid(**_fields(state))


def policy_said(policy: Policy) -> PolicySaid:
    return PolicySaid(**_fields(policy) | {"weights": tuple(_fields(policy.weights).values())})


def wish_said(wish: Wish) -> WishSaid:
    return WishSaid(**_fields(wish))


def _fields(record: Any) -> dict[str, Any]:
    """By name; a field of a record here is called as in the core."""
    is_said = isinstance(record, msgspec.Struct)
    names = record.__struct_fields__ if is_said else record.__dataclass_fields__
    return {name: getattr(record, name) for name in names}
