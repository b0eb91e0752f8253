"""Rules of the snooping table: what DHCP messages and time do to bindings, and what is spoofing."""

from retinue.core.snooping.dhcp_rules import Snooper
from retinue.core.snooping.messages import (
    Bind,
    ClientMessage,
    Disagreement,
    Effect,
    Recorded,
    Rejected,
    Release,
    ServerMessage,
    Suspicious,
    ToAgent,
    ToServers,
    ToVM,
)
from retinue.core.snooping.spoofing import SpoofAttempt, SpoofingKind, SpoofingLog, interpret

__all__ = [
    "Bind",
    "ClientMessage",
    "Disagreement",
    "Effect",
    "SpoofAttempt",
    "SpoofingLog",
    "SpoofingKind",
    "Recorded",
    "Rejected",
    "Release",
    "ServerMessage",
    "Snooper",
    "Suspicious",
    "ToAgent",
    "ToServers",
    "ToVM",
    "interpret",
]
