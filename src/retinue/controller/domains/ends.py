"""Which end of a migration between domains is ours, and what is said of its steps to the other domain.

here our gateway is    we are            what our own agent's reports become
the target             the source's      CopyStarted, SourceStopped, SourceFreed: told at once
the source             the target's      Resumed, TargetClosed: told at once
"""

from enum import StrEnum

from retinue.core import migration as fsm
from retinue.core.migration import Migration
from retinue.core.model.view import NetworkView
from retinue.protocol.domains import Said, Word


class End(StrEnum):
    """Which of the two domains this one is, in a migration."""

    SOURCE = "source"
    TARGET = "target"


def end_of(net: NetworkView, migration: Migration) -> End | None:
    """None for a migration inside this domain."""
    if migration.far is None:
        return None
    peer = net.peer_at(migration.target)
    return End.SOURCE if peer is not None and peer.id == migration.far.domain else End.TARGET


def gateway_of(end: End, migration: Migration) -> str:
    return migration.target if end is End.SOURCE else migration.source


def told_of(end: End, event: fsm.Event) -> Word | None:
    """What the other domain is told of a step that our end has made; None: it need not know."""
    match end, event:
        case End.SOURCE, fsm.CopyStarted():
            return Word(Said.COPY_STARTED)
        case End.SOURCE, fsm.SourceStopped(at):
            return Word(Said.STOPPED, at)
        case End.SOURCE, fsm.SourceFreed():
            return Word(Said.SOURCE_FREED)
        case End.TARGET, fsm.Resumed(at):
            return Word(Said.RESUMED, at)
        case End.TARGET, fsm.TargetClosed():
            return Word(Said.TARGET_CLOSED)
    return None
