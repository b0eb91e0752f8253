"""Rules of the snooping table: what DHCP messages and time do to bindings, and what is forgery."""

from retinue.bindings.forgery import Forgery, ForgeryBook, ForgeryKind, interpret
from retinue.bindings.snooping import (
    Bind,
    ClientMessage,
    Effect,
    Recorded,
    Refused,
    Release,
    ServerMessage,
    Snooper,
    Suspect,
    ToAgent,
    ToServers,
    ToVM,
)

__all__ = [
    "Bind",
    "ClientMessage",
    "Effect",
    "Forgery",
    "ForgeryBook",
    "ForgeryKind",
    "Recorded",
    "Refused",
    "Release",
    "ServerMessage",
    "Snooper",
    "Suspect",
    "ToAgent",
    "ToServers",
    "ToVM",
    "interpret",
]
