"""What an agent knows of one VM on its server, as a state machine: (presence, event) -> (presence, effects).

`states` is the controller's half of a migration; this is the half of each of the two agents. An event is an
order of the controller, or a fact: what came of an effect, or what the hypervisor tells.

    presence              what is here of the VM                      may it be started here?
    Absent                nothing                                     yes
    Plugged               its port; it does not run                   yes
    Running               it runs                                     it runs already
    Outgoing              it runs, and its memory is, or is about     no (`exited`: its machine has ended, and
                          to be, copied to the target                 whether it was handed over is not known)
    HandedOver            at most a paused past of it: it may run     no: only the target's word gives it back
                          at the target
    Incoming              a machine that waits for its memory         no: it runs at the source
    IncomingFailed        its port, if that: its memory did not come  no: it may run at the source

    order                 Absent    Plugged   Running   Outgoing   HandedOver   Incoming   IncomingFailed
    Register              port      -         -         -          -            -          -
    Start                 start     start     again     again (1)  -            -          -
    Remove                all of it ends, whatever is here: Absent
    Stop                  off       off       stop      stop         -            -          -
    Reboot, Reset         -         -         do it     do it        -            -          -
    OpenTarget            open      open      resumed   resumed    open         again (2)  open
    PrepareSource         reject    reject    prepare   again (2)  reject       reject     reject
    StartCopy             reject    reject    copy (3)  again      -            -          reject
    FreeSource            freed     free      illegal   illegal    free (7)     free       free
    RollBackAtSource      - (4)     resume    resume    resume     - (5)        resume     resume
    ReturnToSource        lost      resume    resume    resume     resume       resume     resume
    RollBackAtTarget      closed    close     resumed   resumed    closed (6)   close      close

    (1) unless its machine has exited: then nothing, until its migration has ended
    (2) the same migration; Incoming of another one is called off and opened anew, Outgoing of another rejects
    (3) a source that must be prepared rejects it, and an Outgoing that was prepared may copy from then on
    (4) whether it was handed over before this agent started only the target knows
    (5) the target may run it
    (6) of this migration nothing is here, and the past of another is not this order's to end
    (7) when all of its memory has gone over: an agent before this one may have begun with that

Each order is answered again when it is given again, since answers and orders may be lost. Before some orders
are decided a transfer that is under way has to end, or to be called off (`settle_first`): it may be over,
one way or the other, by then. The facts of a transfer name its migration; what another one tells is old, and
changes nothing. A fact or an order that does not fit raises IllegalEventError; the presence is as it was.

So a VM runs at one server at most: nothing but RanHere, FoundRunning, TakenBack and Started lead to Running;
these are the word of the hypervisor, of the target's agent, and an effect that is asked for only where the
VM can be nowhere else.
"""

from dataclasses import replace
from enum import Enum, auto

from retinue.core.migration.endpoint_effects import (
    AllowCopy,
    CountFrames,
    Effect,
    EndMachine,
    HandBack,
    KeepAtSource,
    MakePort,
    OpenMachine,
    RebootMachine,
    ReceiveMemory,
    Reject,
    RemovePort,
    Report,
    ReportLost,
    ReportStarted,
    ReportStopped,
    ResetMachine,
    ResumeAtSource,
    SendMemory,
    SendRest,
    StartMachine,
    StopMachine,
    Why,
)
from retinue.core.migration.endpoint_events import (
    Departed,
    Event,
    Exited,
    FoundIncoming,
    FoundRunning,
    FreeSource,
    GivenAway,
    NotArrived,
    NotFound,
    NotOpened,
    NotStarted,
    NotTakenBack,
    Opened,
    OpenTarget,
    Order,
    PortMade,
    PrepareSource,
    RanAndEnded,
    RanHere,
    Reboot,
    Register,
    Remove,
    Reset,
    ReturnToSource,
    RollBackAtSource,
    RollBackAtTarget,
    Start,
    StartCopy,
    Started,
    Stays,
    Stop,
    TakenBack,
)
from retinue.core.migration.events import (
    CopyStarted,
    Failed,
    Resumed,
    RolledBack,
    SourceFreed,
    TargetClosed,
    TargetOpened,
)
from retinue.core.migration.presence import (
    Absent,
    HandedOver,
    Incoming,
    IncomingFailed,
    Outgoing,
    Plugged,
    Presence,
    Running,
)
from retinue.core.migration.states import IllegalEventError
from retinue.core.model import Ending

After = tuple[Presence, tuple[Effect, ...]]


# ---- the machine ----


class Settle(Enum):
    """What becomes of a transfer that is under way before an order is decided."""

    NOTHING = auto()
    WAIT = auto()
    """It comes to its end."""
    CALL_OFF = auto()


def settle_first(presence: Presence, order: Order) -> Settle:
    """Do this before `step`. A transfer that is called off may still have come to its end."""
    match order, presence:
        case ((Remove() | RollBackAtSource()), _):
            return Settle.CALL_OFF
        case RollBackAtTarget(), Incoming() | IncomingFailed():
            return Settle.CALL_OFF
        case OpenTarget(migration), Incoming(other) if other != migration:
            return Settle.CALL_OFF
        case FreeSource(), _:
            return Settle.WAIT
    return Settle.NOTHING


def step(presence: Presence, event: Event) -> After:
    """What is known after the event, and what is to be done. Raises IllegalEventError."""
    match event:
        case Register() | Start() | Remove():
            return _registered(presence, event)
        case Stop() | Reboot() | Reset():
            return _power(presence, event)
        case OpenTarget() | RollBackAtTarget():
            return _target(presence, event)
        case PrepareSource() | StartCopy() | FreeSource() | RollBackAtSource() | ReturnToSource():
            return _source(presence, event)
        case PortMade() | Started() | NotStarted() | Exited():
            return _machine(presence, event)
        case Opened() | NotOpened() | RanHere() | NotArrived() | RanAndEnded():
            return _arrival(presence, event)
        case Stays() | GivenAway() | TakenBack() | NotTakenBack():
            return _departure(presence, event)
        case FoundRunning() | FoundIncoming() | Departed() | NotFound():
            return _found(presence, event)


def _registered(presence: Presence, order: Register | Start | Remove) -> After:
    match order, presence:
        case Register(), Absent():
            return presence, (MakePort(),)
        case Start(), Absent() | Plugged():
            return presence, (StartMachine(),)
        case Start(), Running() | Outgoing(exited=False):
            return presence, (ReportStarted(),)
        case Remove(), _:
            return Absent(), (EndMachine(), RemovePort())
    return presence, ()


def _power(presence: Presence, order: Stop | Reboot | Reset) -> After:
    match order, presence:
        case Stop(), Absent() | Plugged():
            return presence, (ReportStopped(how=Ending.OFF),)
        case Stop(hard, seconds), Running() | Outgoing(exited=False):
            return presence, (StopMachine(hard, seconds),)
        case Reboot(seconds), Running() | Outgoing(exited=False):
            return presence, (RebootMachine(seconds),)
        case Reset(), Running() | Outgoing(exited=False):
            return presence, (ResetMachine(),)
    return presence, ()


def _target(presence: Presence, order: OpenTarget | RollBackAtTarget) -> After:
    migration = order.migration
    match order, presence:
        case _, Running(since) | Outgoing(since=since):
            # What the VM has done here must not be undone: the migration goes forward.
            return presence, (Report(migration, Resumed(since)),)
        case OpenTarget(), Incoming(present) if present == migration:
            return presence, (Report(migration, TargetOpened()),)
        case OpenTarget(), _:
            return Incoming(migration), (EndMachine(), OpenMachine(migration, _has_port(presence)))
        case RollBackAtTarget(), Absent() | HandedOver():
            return presence, (Report(migration, TargetClosed()),)
        case _:
            # The port stands until nothing comes there any more, and what has come is on its way back.
            clear = (CountFrames(), EndMachine(), HandBack(migration), RemovePort())
            return Absent(), (*clear, Report(migration, TargetClosed()))


def _source(
    presence: Presence, order: PrepareSource | StartCopy | FreeSource | RollBackAtSource | ReturnToSource
) -> After:
    migration = order.migration
    match order, presence:
        case PrepareSource(running=True), Running(since):
            return Outgoing(migration, since, copying=False), (SendMemory(migration),)
        case PrepareSource(), Outgoing(present) if present == migration:
            return presence, ()
        case PrepareSource(), Outgoing() | Incoming():
            return presence, (Reject(migration, Why.BUSY),)
        case PrepareSource(), _:
            return presence, (Reject(migration, Why.NOT_RUNNING),)
        case StartCopy(prepared=True), _:
            return _start_prepared(presence, migration)
        case StartCopy(), Running(since):
            return Outgoing(migration, since), (Report(migration, CopyStarted()), SendMemory(migration))
        case StartCopy(), Absent() | Plugged() | IncomingFailed():
            return presence, (Reject(migration, Why.NOT_RUNNING),)
        case FreeSource(), Running() | Outgoing():
            raise IllegalEventError(f"{migration}: the VM to be freed still runs here")
        case FreeSource(), Absent():
            return presence, (Report(migration, SourceFreed()),)
        case FreeSource(), HandedOver():
            cleared = (EndMachine(), RemovePort(), Report(migration, SourceFreed()))
            return Absent(), (SendRest(migration), *cleared)
        case FreeSource(), _:
            return Absent(), (EndMachine(), RemovePort(), Report(migration, SourceFreed()))
        case RollBackAtSource(), Absent() | HandedOver():
            return presence, ()
        case RollBackAtSource(), _:
            return presence, (KeepAtSource(migration),)
        case ReturnToSource(), Absent():
            return presence, (ReportLost(), Report(migration, RolledBack()))
        case ReturnToSource(), _:
            return presence, (ResumeAtSource(migration),)
    return presence, ()  # StartCopy: copied already, or the target will tell how it went.


def _start_prepared(presence: Presence, migration: str) -> After:
    match presence:
        case Outgoing(present, copying=False) if present == migration:
            return replace(presence, copying=True), (Report(migration, CopyStarted()), AllowCopy())
        case Outgoing(present) if present == migration:
            return presence, ()
        case HandedOver():
            return presence, ()
    return presence, (Reject(migration, Why.NOT_PREPARED),)


def _machine(presence: Presence, fact: PortMade | Started | NotStarted | Exited) -> After:
    match fact, presence:
        case PortMade(), Absent():
            return Plugged(), ()
        case Started(at), Absent() | Plugged():
            return Running(at), (ReportStarted(),)
        case Started(), _:
            raise IllegalEventError(f"a VM was started beside one that is {_name(presence)}")
        case NotStarted(reason), _:
            return presence, (ReportStopped(reason),)
        case Exited(how, reason), Running() | Plugged():
            return Plugged(), (ReportStopped(reason, how),)
        case Exited(how, reason), Outgoing(exited=False):
            return replace(presence, exited=True), (ReportStopped(reason, how),)
    return presence, ()  # Of a VM that is not this server's its end is no news: the other server tells.


def _arrival(presence: Presence, fact: Opened | NotOpened | RanHere | NotArrived | RanAndEnded) -> After:
    if presence != Incoming(fact.migration):
        if isinstance(fact, RanHere | RanAndEnded):
            raise IllegalEventError(f"{fact.migration}: the VM has run, and is {_name(presence)} here")
        return presence, ()
    migration = fact.migration
    match fact:
        case Opened():
            return presence, (ReceiveMemory(migration), Report(migration, TargetOpened()))
        case NotOpened(reason=reason, plugged=plugged):
            return IncomingFailed(migration, plugged), (Report(migration, Failed(reason)),)
        case RanHere(at=at):
            return Running(at), (Report(migration, Resumed(at)), ReportStarted())
        case NotArrived(reason=reason):
            return IncomingFailed(migration), (Report(migration, Failed(reason)),)
        case RanAndEnded(at=at, reason=reason):
            return Plugged(), (Report(migration, Resumed(at)), ReportStopped(reason))


def _departure(presence: Presence, fact: Stays | GivenAway | TakenBack | NotTakenBack) -> After:
    migration = fact.migration
    match fact, presence:
        case Stays(reason=reason), _:
            told = (Report(migration, Failed(reason)),) if reason else ()
            if isinstance(presence, Outgoing) and presence.migration == migration:
                return Plugged() if presence.exited else Running(presence.since), told
            return presence, told
        case GivenAway(), Outgoing(present) if present == migration:
            return HandedOver(migration), ()
        case TakenBack(at=at), Running():
            return presence, (Report(migration, RolledBack()), ReportStarted())
        case TakenBack(at=at), _:
            return Running(at), (Report(migration, RolledBack()), ReportStarted())
        case NotTakenBack(reason=reason), _:
            return Plugged(), (ReportStopped(reason), Report(migration, RolledBack()))
    return presence, ()


def _found(presence: Presence, fact: FoundRunning | FoundIncoming | Departed | NotFound) -> After:
    match fact, presence:
        case FoundRunning(at), Absent() | Plugged() | HandedOver() | Incoming() | IncomingFailed():
            return Running(at), ()
        case FoundIncoming(), Incoming() | Outgoing():
            return presence, ()
        case FoundIncoming(), _:
            return Incoming(), ()
        case Departed(), Running():
            return HandedOver(), ()
        case Departed(), Outgoing(migration):
            return HandedOver(migration), ()
        case NotFound(ended=False), HandedOver():
            return presence, ()  # Known, until the controller knows it, too, to have left.
        case NotFound(), _:
            return Absent(), ()
    return presence, ()


def _has_port(presence: Presence) -> bool:
    match presence:
        case Absent():
            return False
        case IncomingFailed(plugged=plugged):
            return plugged
    return True


def _name(presence: Presence) -> str:
    return type(presence).__name__
