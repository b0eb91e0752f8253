"""The decision: who is best, who would have been, what told the two apart, and who was refused and why."""

from dataclasses import dataclass
from enum import StrEnum

from retinue.core.placement.filters import Check, checks
from retinue.core.placement.scores import Measure, Score, meaningful, scores, total
from retinue.core.placement.snapshot import Reason, ServerState, Snapshot, percent

ONLY_ONE, NAMED, BY_NAME = "the only one", "named", "name"
"""What decided, where it was no measure."""


class Outcome(StrEnum):
    CHOSEN = "chosen"
    NO_SERVER = "no server"
    """Every server is refused by a filter."""
    BELOW_MARGIN = "below margin"
    """The best server is not better than the source by the margin."""
    RESTING = "resting"
    """The VM has migrated lately."""
    PINNED = "pinned"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one server."""

    server: str
    refused: tuple[Check, ...]
    """The filters that refuse it; empty: it may take the VM."""
    scores: tuple[Score, ...]
    total: int
    """0 to 10,000: shown as 0 to 100."""


@dataclass(frozen=True, slots=True)
class Decision:
    outcome: Outcome
    target: str
    """Empty unless the outcome is CHOSEN."""
    runner_up: str
    decided_by: str
    """The measure by which the target gains most on the runner-up; "the only one", "named", or "name" where
    both have as many points."""
    gain: int
    """By how much the best server's total is above the source's, in hundredths of a point."""
    ranked: tuple[Verdict, ...]
    """Servers that may take the VM, the best first."""
    refused: tuple[Verdict, ...]
    """Those that may not, by name."""
    text: str
    """All of it in a sentence or two."""


def decide(snapshot: Snapshot) -> Decision:
    """The same for the same snapshot, in whatever order its servers come."""
    wanted = meaningful(snapshot)
    judged = [_verdict(server, snapshot, wanted) for server in snapshot.servers]
    refused = tuple(sorted((one for one in judged if one.refused), key=lambda one: one.server))
    ranked = tuple(
        sorted((one for one in judged if not one.refused), key=lambda one: (-one.total, one.server))
    )
    source = next((one.total for one in judged if one.server == snapshot.source), 0)
    gain = ranked[0].total - source if ranked else 0
    outcome = _outcome(snapshot, ranked, gain)
    chosen = outcome is Outcome.CHOSEN
    target = ranked[0].server if chosen else ""
    runner_up = ranked[1].server if chosen and len(ranked) > 1 else ""
    decided_by = _decided_by(snapshot, ranked) if chosen else ""
    text = _text(snapshot, outcome, ranked, refused, decided_by, gain)
    return Decision(outcome, target, runner_up, decided_by, gain, ranked, refused, text)


def _verdict(server: ServerState, snapshot: Snapshot, wanted: frozenset[Measure]) -> Verdict:
    found = scores(server, snapshot, wanted)
    no = tuple(check for check in checks(server, snapshot) if not check.ok)
    return Verdict(server.server, no, found, total(found))


def _outcome(snapshot: Snapshot, ranked: tuple[Verdict, ...], gain: int) -> Outcome:
    """What the manager asks for itself is done if it can be; what others wish must be worth it."""
    need, policy = snapshot.need, snapshot.policy
    by_manager = snapshot.wish.reason is Reason.OPERATOR
    if need.pinned and not (by_manager and snapshot.named):
        return Outcome.PINNED
    if not by_manager and need.moved_ago is not None and need.moved_ago < policy.rest_seconds:
        return Outcome.RESTING
    if not ranked:
        return Outcome.NO_SERVER
    if not by_manager and not snapshot.named and gain < policy.margin:
        return Outcome.BELOW_MARGIN
    return Outcome.CHOSEN


def _decided_by(snapshot: Snapshot, ranked: tuple[Verdict, ...]) -> str:
    if snapshot.named:
        return NAMED
    if len(ranked) == 1:
        return ONLY_ONE
    best, second = ranked[0], ranked[1]
    gains = [(one.counts - other.counts, one) for one, other in zip(best.scores, second.scores, strict=True)]
    most = max((gain for gain, _ in gains), default=0)
    if best.total == second.total or most <= 0:
        return BY_NAME
    return str(next(score.measure for gain, score in gains if gain == most))


def _text(
    snapshot: Snapshot,
    outcome: Outcome,
    ranked: tuple[Verdict, ...],
    refused: tuple[Verdict, ...],
    decided_by: str,
    gain: int,
) -> str:
    vm = snapshot.need.vm
    match outcome:
        case Outcome.PINNED:
            return f"{vm} is pinned to {snapshot.source}: it moves only to a server that the manager names"
        case Outcome.RESTING:
            ago, rest = snapshot.need.moved_ago, snapshot.policy.rest_seconds
            return f"{vm} has migrated {ago} s ago, and rests for {rest} s"
        case Outcome.NO_SERVER:
            why = "; ".join(f"{one.server}: {one.refused[0].text}" for one in refused)
            return f"no server can take {vm}" + (f" ({why})" if why else "")
        case Outcome.BELOW_MARGIN:
            margin = percent(snapshot.policy.margin)
            name = ranked[0].server
            return f"{name} would be better than {snapshot.source} by {percent(gain)} only, of {margin}"
    best = ranked[0]
    if decided_by in (NAMED, ONLY_ONE):
        which = "the one that was named" if decided_by == NAMED else "the only server that can take it"
        return f"{best.server} is {which}"
    second = ranked[1]
    if decided_by == BY_NAME:
        return (
            f"{best.server} and {second.server} have {points(best.total)} points each; {best.server} by name"
        )
    one, other = (
        next(score.points for score in found.scores if score.measure == decided_by)
        for found in (best, second)
    )
    return (
        f"{best.server} has {points(best.total)} points, {second.server} has {points(second.total)}; "
        f"{decided_by} decides: {points(one)} against {points(other)}"
    )


def points(hundredths: int) -> str:
    """ "71.25"."""
    return percent(hundredths).removesuffix(" %")
