"""What is known of a server whoever the VM is that looks for one, and what comes of it for one VM.

Facts are what a resource manager is told and keeps; a server's state for a VM, by which is decided, is made
of them when somebody asks. `Holding` is what one domain has told, as a state machine: a filling begins anew
or follows the one before, and whatever is not known to be whole and fresh is not gone by.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace

from retinue.core.placement.decision import decide
from retinue.core.placement.scores import FARTHEST
from retinue.core.placement.snapshot import Need, Policy, Presence, ServerSizes, ServerState, Snapshot

HELD = 10.0
"""Seconds without a filling after which what a domain has told is not gone by."""


@dataclass(frozen=True, slots=True)
class Hosted:
    """A VM that is on a server, or on its way there or from there."""

    need: Need
    """Its profile, in so far as it is gone by; `moved_ago` is not in it."""
    lives: bool
    """It runs there: not only on its way."""


@dataclass(frozen=True, slots=True)
class ServerFacts(ServerSizes):
    """With the VMs and bookings there, of which comes what is promised."""

    hosted: tuple[Hosted, ...] = ()
    """Sorted by the VM's name."""
    booked: tuple[tuple[str, int, int], ...] = ()
    """VM, memory, processors."""

    def state_for(self, vm: str, distance: int | None = None) -> ServerState:
        """For this VM: what is promised to itself does not count but where it lives."""
        others = [one for one in self.hosted if one.need.vm != vm]
        at_source = any(one.lives for one in self.hosted if one.need.vm == vm)
        counted = self.hosted if at_source else others
        booked = [(memory, cpus) for by, memory, cpus in self.booked if by != vm]
        sizes = [(one.need.memory_mib, one.need.cpus) for one in counted]
        return ServerState(
            **{name: getattr(self, name) for name in _SIZES},
            promised_cpus=sum(cpus for _, cpus in (*sizes, *booked)),
            promised_mib=sum(memory for memory, _ in (*sizes, *booked)),
            unknown_vms=sum(not memory for memory, _ in sizes),
            distance=distance,
            groups=tuple(sorted({one.need.apart for one in others} - {""})),
        )


_SIZES = tuple(one.name for one in fields(ServerSizes))


class OutOfStepError(Exception):
    """A filling that follows none that is held: whoever fills begins anew."""


@dataclass(slots=True)
class Holding:
    """What one domain's controller has told of it."""

    instance: str = ""
    """Which run of the controller has told it, and which time that it began anew."""
    number: int = 0
    """How many fillings it has taken of this instance."""
    whole: bool = False
    """All there is has been told once."""
    heard_at: float = 0.0
    policy: Policy = field(default_factory=Policy)
    servers: dict[str, ServerFacts] = field(default_factory=dict)

    def fill(
        self,
        instance: str,
        number: int,
        policy: Policy,
        servers: Iterable[ServerFacts],
        gone: Iterable[str],
        now: float,
        *,
        whole: bool,
    ) -> None:
        """`number`: how many came before; 0: this one begins anew. `whole`: nothing is left to be told.
        Raises OutOfStepError, and nothing has changed."""
        if number == 0:
            self.instance, self.number, self.whole, self.servers = instance, 0, False, {}
        elif (instance, number) != (self.instance, self.number):
            raise OutOfStepError
        self.number += 1
        self.policy, self.heard_at = policy, now
        self.servers |= {one.server: one for one in servers}
        for name in gone:
            self.servers.pop(name, None)
        self.whole = self.whole or whole

    def counts(self, now: float) -> bool:
        """Whether it is gone by: all of it has been told, and not too long ago."""
        return self.whole and now - self.heard_at <= HELD

    def need_of(self, vm: str) -> Need | None:
        """The profile of a VM that lives here."""
        every = (one for facts in self.servers.values() for one in facts.hosted)
        return next((one.need for one in every if one.lives and one.need.vm == vm), None)

    def states_for(self, vm: str, distances: dict[str, int]) -> tuple[ServerState, ...]:
        names = sorted(self.servers)
        return tuple(self.servers[name].state_for(vm, distances.get(name)) for name in names)

    def offer(self, domain: str, need: Need) -> ServerState | None:
        """The best server here for a VM of another domain, by the policy of this one; None: there is none.

        As one more server of whoever asks: all that its clients send goes by its home, however near they are.
        """
        asked = Need(need.vm, need.memory_mib, need.cpus, bandwidth_mbps=need.bandwidth_mbps)
        decision = decide(Snapshot(asked, "", self.states_for(need.vm, {}), policy=self.policy))
        best = self.servers.get(decision.target)
        if best is None:
            return None
        state = replace(best.state_for(need.vm, FARTHEST), server=f"{domain}/{best.server}")
        return replace(state, presence=Presence.ANSWERED, disk_free_mib=None, groups=(), images=())


def needs_match(one: Need, other: Need) -> bool:
    """The same profile; since when it last moved is no part of that."""
    return replace(one, moved_ago=None) == replace(other, moved_ago=None)
