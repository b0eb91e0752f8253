"""One VM at one server as dialogues: orders and facts go in, presence and effects come out."""

import pytest

from retinue.core.migration import IllegalEventError
from retinue.core.migration import endpoint_effects as fx
from retinue.core.migration import endpoint_events as e
from retinue.core.migration.endpoint import Settle, settle_first, step
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
from retinue.core.model import Ending

M, OTHER = "migration-1", "migration-2"
PRESENCES = (
    Absent(),
    Plugged(),
    Running(5.0),
    Outgoing(M, 5.0),
    HandedOver(M),
    Incoming(M),
    IncomingFailed(M),
)
NOTHING, ILLEGAL = (), "illegal"
END = (fx.EndMachine(), fx.RemovePort())
REJECTED = (fx.Reject(M, fx.Why.NOT_RUNNING),)
RESUMED = (fx.Report(M, Resumed(5.0)),)
CLOSED, FREED = fx.Report(M, TargetClosed()), fx.Report(M, SourceFreed())
CLOSE = (fx.CountFrames(), fx.EndMachine(), fx.HandBack(M), fx.RemovePort(), CLOSED)
KEEP, RESUME = (fx.KeepAtSource(M),), (fx.ResumeAtSource(M),)


def opens(plugged: bool) -> tuple[fx.Effect, ...]:
    return (fx.EndMachine(), fx.OpenMachine(M, plugged))


TABLE: dict[e.Order, tuple[tuple[fx.Effect, ...] | str, ...]] = {
    e.Register(): ((fx.MakePort(),), *[NOTHING] * 6),
    e.Start(): (*[(fx.StartMachine(),)] * 2, *[(fx.ReportStarted(),)] * 2, *[NOTHING] * 3),
    e.Remove(): (END,) * 7,
    e.OpenTarget(M): (
        *(opens(False), opens(True), RESUMED, RESUMED, opens(True)),
        *((fx.Report(M, TargetOpened()),), opens(True)),
    ),
    e.Stop(False, 60.0): (
        *[(fx.ReportStopped(how=Ending.OFF),)] * 2,
        *[(fx.StopMachine(False, 60.0),)] * 2,
        *[NOTHING] * 3,
    ),
    e.Reboot(60.0): (*[NOTHING] * 2, *[(fx.RebootMachine(60.0),)] * 2, *[NOTHING] * 3),
    e.Reset(): (*[NOTHING] * 2, *[(fx.ResetMachine(),)] * 2, *[NOTHING] * 3),
    e.PrepareSource(M): (
        *(REJECTED, REJECTED, (fx.SendMemory(M),), NOTHING, REJECTED),
        *((fx.Reject(M, fx.Why.BUSY),), REJECTED),
    ),
    e.StartCopy(M): (
        *(REJECTED, REJECTED, (fx.Report(M, CopyStarted()), fx.SendMemory(M))),
        *(NOTHING, NOTHING, NOTHING, REJECTED),
    ),
    e.FreeSource(M): (
        *((FREED,), (*END, FREED), ILLEGAL, ILLEGAL),
        *((fx.SendRest(M), *END, FREED), *[(*END, FREED)] * 2),
    ),
    e.RollBackAtSource(M): (NOTHING, KEEP, KEEP, KEEP, NOTHING, KEEP, KEEP),
    e.ReturnToSource(M): ((fx.ReportLost(), fx.Report(M, RolledBack())), *[RESUME] * 6),
    e.RollBackAtTarget(M): ((CLOSED,), CLOSE, RESUMED, RESUMED, (CLOSED,), CLOSE, CLOSE),
}
"""As in the docstring of the module: by order, the effects in each presence."""


@pytest.mark.parametrize(
    ("order", "presence", "wanted"),
    [
        (order, presence, wanted)
        for order, row in TABLE.items()
        for presence, wanted in zip(PRESENCES, row, strict=True)
    ],
)
def test_each_order_in_each_presence(
    order: e.Order, presence: Presence, wanted: tuple[fx.Effect, ...] | str
) -> None:
    if wanted == ILLEGAL:
        with pytest.raises(IllegalEventError):
            step(presence, order)
        return
    after, effects = step(presence, order)
    assert effects == wanted
    match order:
        case e.OpenTarget() if opens(True)[0] in effects:
            assert after == Incoming(M)
        case e.PrepareSource() | e.StartCopy() if fx.SendMemory(M) in effects:
            assert after == Outgoing(M, 5.0, copying=isinstance(order, e.StartCopy))
        case _:
            assert after == (Absent() if fx.RemovePort() in effects else presence)


def test_a_vm_arrives_and_is_migrated_on() -> None:
    presence, _ = step(Absent(), e.OpenTarget(M))
    presence, effects = step(presence, e.Opened(M))
    assert effects == (fx.ReceiveMemory(M), fx.Report(M, TargetOpened()))
    presence, effects = step(presence, e.RanHere(M, 7.0))
    assert (presence, effects) == (Running(7.0), (fx.Report(M, Resumed(7.0)), fx.ReportStarted()))
    presence, _ = step(presence, e.StartCopy(OTHER))
    assert step(presence, e.GivenAway(OTHER)) == (HandedOver(OTHER), ())


def test_a_vm_that_did_not_arrive_may_be_waited_for_again() -> None:
    presence, effects = step(Incoming(M), e.NotArrived(M, "hung up"))
    assert (presence, effects) == (IncomingFailed(M), (fx.Report(M, Failed("hung up")),))
    assert step(presence, e.OpenTarget(M)) == (Incoming(M), opens(True))
    presence, _ = step(Incoming(M), e.NotOpened(M, "no bridge", plugged=False))
    assert step(presence, e.OpenTarget(M)) == (Incoming(M), opens(False))


def test_a_vm_that_had_been_told_to_run_and_ended_has_moved() -> None:
    after, effects = step(Incoming(M), e.RanAndEnded(M, 7.0, "no memory"))
    assert after == Plugged()
    assert effects == (fx.Report(M, Resumed(7.0)), fx.ReportStopped("no memory"))


def test_a_transfer_that_fails_leaves_the_vm_where_it_was() -> None:
    assert step(Outgoing(M, 5.0), e.Stays(M, "hung up")) == (Running(5.0), (fx.Report(M, Failed("hung up")),))
    assert step(Outgoing(M, 5.0), e.Stays(M)) == (Running(5.0), ())


@pytest.mark.parametrize(
    "fact", [e.Opened(OTHER), e.NotOpened(OTHER, "old", True), e.NotArrived(OTHER, "old"), e.GivenAway(OTHER)]
)
@pytest.mark.parametrize("presence", PRESENCES)
def test_what_an_earlier_transfer_tells_changes_nothing(presence: Presence, fact: e.Fact) -> None:
    assert step(presence, fact) == (presence, ())


def test_an_earlier_transfer_that_fails_is_told_and_changes_nothing() -> None:
    told = (fx.Report(OTHER, Failed("old")),)
    assert step(Outgoing(M), e.Stays(OTHER, "old")) == (Outgoing(M), told)


@pytest.mark.parametrize("presence", [p for p in PRESENCES if p != Incoming(M)])
def test_a_vm_that_was_not_waited_for_cannot_have_arrived(presence: Presence) -> None:
    for fact in (e.RanHere(M, 7.0), e.RanAndEnded(M, 7.0, "ended")):
        with pytest.raises(IllegalEventError, match="has run"):
            step(presence, fact)


@pytest.mark.parametrize("presence", PRESENCES[2:])
def test_a_vm_is_not_started_beside_one(presence: Presence) -> None:
    with pytest.raises(IllegalEventError, match="started beside"):
        step(presence, e.Started(1.0))


# ---- a machine that ends ----


@pytest.mark.parametrize(
    ("presence", "after", "told"),
    [
        (Absent(), Absent(), False),
        (Plugged(), Plugged(), True),
        (Running(5.0), Plugged(), True),
        (Outgoing(M, 5.0), Outgoing(M, 5.0, exited=True), True),
        (HandedOver(M), HandedOver(M), False),
        (Incoming(M), Incoming(M), False),
        (IncomingFailed(M), IncomingFailed(M), False),
    ],
)
def test_the_end_of_a_machine_is_news_where_the_vm_is_this_servers(
    presence: Presence, after: Presence, told: bool
) -> None:
    assert step(presence, e.Exited()) == (after, (fx.ReportStopped(),) if told else ())


def test_a_vm_whose_machine_ends_on_its_way_may_have_been_handed_over() -> None:
    presence, _ = step(Outgoing(M, 5.0), e.Exited())
    assert step(presence, e.Start()) == (presence, ()), "it may run at the target"
    assert step(presence, e.Exited()) == (presence, ()), "told already"
    assert step(presence, e.GivenAway(M)) == (HandedOver(M), ())
    after, _ = step(presence, e.Stays(M, "QEMU has ended"))
    assert step(after, e.Start()) == (Plugged(), (fx.StartMachine(),))


# ---- taken back ----


def test_only_the_targets_word_gives_back_what_was_handed_over() -> None:
    for order in (e.Register(), e.Start(), e.StartCopy(M), e.PrepareSource(M), e.RollBackAtSource(M)):
        after, effects = step(HandedOver(M), order)
        assert after == HandedOver(M)
        assert not {type(effect) for effect in effects} & {
            fx.StartMachine,
            fx.KeepAtSource,
            fx.ResumeAtSource,
        }
    assert step(HandedOver(M), e.ReturnToSource(M)) == (HandedOver(M), RESUME)
    assert step(HandedOver(M), e.TakenBack(M, 9.0)) == (
        Running(9.0),
        (fx.Report(M, RolledBack()), fx.ReportStarted()),
    )
    after, effects = step(HandedOver(M), e.NotTakenBack(M, "its machine is gone"))
    assert (after, effects) == (
        Plugged(),
        (fx.ReportStopped("its machine is gone"), fx.Report(M, RolledBack())),
    )


def test_a_vm_taken_back_that_had_not_left_runs_since_it_did() -> None:
    assert step(Running(5.0), e.TakenBack(M, 9.0))[0] == Running(5.0)


# ---- a source that is prepared first ----


def test_a_prepared_source_copies_when_it_may() -> None:
    prepared, _ = step(Running(5.0), e.PrepareSource(M))
    assert step(prepared, e.PrepareSource(M)) == (prepared, ())
    assert step(prepared, e.PrepareSource(OTHER)) == (prepared, (fx.Reject(OTHER, fx.Why.BUSY),))
    copying, effects = step(prepared, e.StartCopy(M, prepared=True))
    assert (copying, effects) == (Outgoing(M, 5.0), (fx.Report(M, CopyStarted()), fx.AllowCopy()))
    assert step(copying, e.StartCopy(M, prepared=True)) == (copying, ())
    assert step(HandedOver(M), e.StartCopy(M, prepared=True)) == (HandedOver(M), ())


@pytest.mark.parametrize("presence", [Absent(), Running(5.0), Outgoing(OTHER)])
def test_a_source_that_was_not_prepared_does_not_copy(presence: Presence) -> None:
    rejected = (fx.Reject(M, fx.Why.NOT_PREPARED),)
    assert step(presence, e.StartCopy(M, prepared=True)) == (presence, rejected)


def test_a_source_that_the_hypervisor_does_not_run_is_not_prepared() -> None:
    assert step(Running(5.0), e.PrepareSource(M, running=False)) == (Running(5.0), REJECTED)


# ---- what the hypervisor tells ----


@pytest.mark.parametrize(
    ("fact", "after"),
    [
        (
            e.FoundRunning(9.0),
            (Running(9.0), Running(9.0), Running(5.0), Outgoing(M, 5.0), *[Running(9.0)] * 3),
        ),
        (e.FoundIncoming(), (*[Incoming()] * 3, Outgoing(M, 5.0), Incoming(), Incoming(M), Incoming())),
        (
            e.Departed(),
            (Absent(), Plugged(), HandedOver(), HandedOver(M), HandedOver(M), Incoming(M), IncomingFailed(M)),
        ),
        (e.NotFound(ended=False), (*[Absent()] * 4, HandedOver(M), *[Absent()] * 2)),
        (e.NotFound(ended=True), (Absent(),) * 7),
    ],
)
def test_what_others_do_is_believed(fact: e.Fact, after: tuple[Presence, ...]) -> None:
    assert tuple(step(presence, fact) for presence in PRESENCES) == tuple((known, ()) for known in after)


# ---- what has to end first ----


@pytest.mark.parametrize(
    ("presence", "order", "wanted"),
    [
        (Outgoing(M), e.RollBackAtSource(M), Settle.CALL_OFF),
        (Outgoing(M), e.Remove(), Settle.CALL_OFF),
        (Incoming(M), e.RollBackAtTarget(M), Settle.CALL_OFF),
        (Running(), e.RollBackAtTarget(M), Settle.NOTHING),
        (HandedOver(OTHER), e.RollBackAtTarget(M), Settle.NOTHING),
        (Incoming(M), e.OpenTarget(M), Settle.NOTHING),
        (Incoming(OTHER), e.OpenTarget(M), Settle.CALL_OFF),
        (Outgoing(M), e.FreeSource(M), Settle.WAIT),
        (Outgoing(M), e.StartCopy(M), Settle.NOTHING),
        (HandedOver(M), e.ReturnToSource(M), Settle.NOTHING),
    ],
)
def test_what_becomes_of_a_transfer_before_an_order(
    presence: Presence, order: e.Order, wanted: Settle
) -> None:
    assert settle_first(presence, order) is wanted
