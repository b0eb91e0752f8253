"""Spreading the VMs of a domain: which moves, one after the other, and what each is good for.

Rules come first: VMs that must be apart are brought apart, with as few moves as that takes. Then the load is
spread, by one metric, which is shown, chosen by, and measured by. Each move is made in thought before the
next is looked for, and passes every filter. What does not relieve the fuller of the two servers by the margin
is not moved; nothing is moved where servers differ by less than the threshold.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from retinue.core.placement.filters import checks
from retinue.core.placement.snapshot import Need, Policy, Reason, ServerState, Snapshot, Wish, percent, share

MOST_STEPS = 100
"""Moves of one plan."""
LOOKED_AT = 32
"""Of many servers: so many of the fullest are relieved, and so many of the emptiest looked at for a VM."""


class Metric(StrEnum):
    """What a server's load is: the share that its VMs are promised."""

    MEMORY = "memory"
    CPU = "cpu"


class Rule(StrEnum):
    """Why a step is in a plan: a closed list."""

    APART = "apart"
    SPREAD = "spread"


@dataclass(frozen=True, slots=True)
class Step:
    """One move of a plan; loads in hundredths of a per cent."""

    vm: str
    source: str
    target: str
    rule: Rule
    source_before: int
    source_after: int
    target_before: int
    target_after: int
    text: str

    @property
    def gain(self) -> int:
        """By how much the fuller of the two servers is relieved."""
        return max(self.source_before, self.target_before) - max(self.source_after, self.target_after)


@dataclass(frozen=True, slots=True)
class Plan:
    metric: Metric
    steps: tuple[Step, ...]
    before: Mapping[str, int]
    """By server: its load."""
    after: Mapping[str, int]
    left: tuple[str, ...] = ()
    """What the plan could not mend, in sentences."""

    @property
    def imbalance_before(self) -> int:
        return imbalance(self.before)

    @property
    def imbalance_after(self) -> int:
        return imbalance(self.after)


def imbalance(loads: Mapping[str, int]) -> int:
    """How far the fullest server is above the emptiest, in hundredths of a per cent."""
    return max(loads.values(), default=0) - min(loads.values(), default=0)


class _Domain:
    """The servers and where the VMs are, as they would be after the steps so far."""

    def __init__(
        self,
        servers: Mapping[str, ServerState],
        at: Mapping[str, str],
        needs: Mapping[str, Need],
        policy: Policy,
        metric: Metric,
    ) -> None:
        self.servers, self.at, self.needs = dict(servers), dict(at), needs
        self.policy, self.metric = policy, metric
        self.on: dict[str, set[str]] = {name: set() for name in servers}
        for vm, server in at.items():
            self.on[server].add(vm)
        self.moved: set[str] = set()

    def load_of(self, one: ServerState) -> int:
        if self.metric is Metric.MEMORY:
            return share(one.promised_mib, one.memory_mib * self.policy.memory_percent // 100)
        return share(one.promised_cpus, one.cpus * self.policy.cpu_percent // 100)

    def loads(self) -> dict[str, int]:
        """Of servers that count: those that could take VMs, or give some."""
        return {name: self.load_of(one) for name, one in sorted(self.servers.items()) if _takes_part(one)}

    def may_move(self, vm: str) -> bool:
        need = self.needs[vm]
        rests = need.moved_ago is not None and need.moved_ago < self.policy.rest_seconds
        return vm not in self.moved and not need.pinned and not rests and need.memory_mib > 0

    def may_take(self, target: str, vm: str) -> bool:
        snapshot = Snapshot(self.needs[vm], self.at[vm], (), Wish(Reason.UTILISATION), self.policy)
        return all(check.ok for check in checks(self.servers[target], snapshot))

    def step(self, vm: str, target: str, rule: Rule) -> Step:
        """The move, with the loads it would bring about."""
        source = self.at[vm]
        before = (self.load_of(self.servers[source]), self.load_of(self.servers[target]))
        one, other = self._shifted(vm, target)
        after = (self.load_of(one), self.load_of(other))
        text = (
            f"{source} {percent(before[0])} -> {percent(after[0])}, "
            f"{target} {percent(before[1])} -> {percent(after[1])}"
        )
        return Step(vm, source, target, rule, before[0], after[0], before[1], after[1], text)

    def make(self, step: Step) -> None:
        self.servers[step.source], self.servers[step.target] = self._shifted(step.vm, step.target)
        self.on[step.source].discard(step.vm)
        self.on[step.target].add(step.vm)
        self.at[step.vm] = step.target
        self.moved.add(step.vm)

    def _shifted(self, vm: str, target: str) -> tuple[ServerState, ServerState]:
        """Source and target when the VM's share has gone from one to the other, at once and in full."""
        need, source = self.needs[vm], self.at[vm]
        one, other = self.servers[source], self.servers[target]
        left = {self.needs[each].apart for each in self.on[source] if each != vm}
        gives = replace(
            one,
            promised_mib=one.promised_mib - need.memory_mib,
            promised_cpus=one.promised_cpus - need.cpus,
            free_mib=None if one.free_mib is None else one.free_mib + need.memory_mib,
            groups=tuple(sorted(left - {""})),
        )
        takes = replace(
            other,
            promised_mib=other.promised_mib + need.memory_mib,
            promised_cpus=other.promised_cpus + need.cpus,
            free_mib=None if other.free_mib is None else other.free_mib - need.memory_mib,
            disk_free_mib=None if other.disk_free_mib is None else other.disk_free_mib - need.disk_mib,
            bandwidth_used_mbps=other.bandwidth_used_mbps + need.bandwidth_mbps,
            groups=tuple(sorted({*other.groups, need.apart} - {""})),
        )
        return gives, takes


def plan(
    servers: Mapping[str, ServerState],
    at: Mapping[str, str],
    needs: Mapping[str, Need],
    policy: Policy,
    metric: Metric = Metric.MEMORY,
    threshold: int = 0,
) -> Plan:
    """The moves that spread the VMs (`at`: where each is). `threshold`: the imbalance, in hundredths of a per
    cent, that is none."""
    domain = _Domain(servers, at, needs, policy, metric)
    before = domain.loads()
    steps: list[Step] = []
    left: list[str] = []
    for vm in _to_be_apart(domain):
        found = _best(domain, [vm], Rule.APART) if len(steps) < MOST_STEPS else None
        if found is None:
            left.append(f"{vm} should be apart from others on {domain.at[vm]}, and no server can take it")
        else:
            domain.make(found)
            steps.append(found)
    while len(steps) < MOST_STEPS and imbalance(domain.loads()) > threshold:
        found = _relief(domain)
        if found is None:
            break
        domain.make(found)
        steps.append(found)
    return Plan(metric, tuple(steps), before, domain.loads(), tuple(left))


def _to_be_apart(domain: _Domain) -> list[str]:
    """VMs that must be apart from another one on their server, but for the first of each such group: of that
    which cannot be moved, or else by name."""
    seen: set[tuple[str, str]] = set()
    found: list[str] = []
    for vm in sorted(domain.at, key=lambda vm: (domain.may_move(vm), vm)):
        word, server = domain.needs[vm].apart, domain.at[vm]
        if word and (server, word) in seen:
            found.append(vm)
        seen.add((server, word))
    return found


def _relief(domain: _Domain) -> Step | None:
    """The best move off the fullest server that has one worth the margin; None: there is none.

    A server that is not fuller than the emptiest by the margin has none.
    """
    worth, loads = max(domain.policy.margin, 1), domain.loads()
    emptiest = min(loads.values(), default=0)
    fullest = sorted(loads, key=lambda name: (-loads[name], name))[:LOOKED_AT]
    for name in fullest:
        if loads[name] - emptiest < worth:
            return None
        found = _best(domain, sorted(domain.on[name]), Rule.SPREAD)
        if found is not None and found.gain >= worth:
            return found
    return None


def _best(domain: _Domain, vms: list[str], rule: Rule) -> Step | None:
    """The move of one of these VMs that relieves most; of equal ones the first by VM and target."""
    loads = domain.loads()
    emptiest = sorted(loads, key=lambda name: (loads[name], name))[:LOOKED_AT]
    found = [
        domain.step(vm, target, rule)
        for vm in vms
        if domain.may_move(vm)
        for target in emptiest
        if domain.may_take(target, vm)
    ]
    return min(found, key=lambda step: (-step.gain, step.vm, step.target), default=None)


def _takes_part(server: ServerState) -> bool:
    return server.memory_mib > 0 and not server.fenced and not server.drained and server.attached
