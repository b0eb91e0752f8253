"""Choosing the server that a VM should be on: filters, scores, the decision, and why.

Everything that a decision goes by is in its snapshot, so that it can be made again at any time and by
anybody, with the same result. All numbers are integers; what is equal is told apart by name.
"""

from retinue.core.placement.decision import Decision, Outcome, Verdict, decide
from retinue.core.placement.filters import Check, Filter, checks
from retinue.core.placement.pressure import Measured, Pressure, PressureRule, pressed
from retinue.core.placement.profiles import Entity, EntityKind, Placement, Profile
from retinue.core.placement.rebalance import Metric, Plan, Rule, Step, plan
from retinue.core.placement.scores import Measure, Score, scores
from retinue.core.placement.snapshot import (
    Need,
    Policy,
    Presence,
    Reason,
    ServerState,
    Snapshot,
    Weights,
    Wish,
)

__all__ = [
    "Check",
    "Decision",
    "Entity",
    "EntityKind",
    "Filter",
    "Measure",
    "Measured",
    "Metric",
    "Need",
    "Outcome",
    "Placement",
    "Plan",
    "Policy",
    "Presence",
    "Pressure",
    "PressureRule",
    "Profile",
    "Reason",
    "Rule",
    "Score",
    "ServerState",
    "Snapshot",
    "Step",
    "Verdict",
    "Weights",
    "Wish",
    "checks",
    "decide",
    "plan",
    "pressed",
    "scores",
]
