"""The controller's half of a migration and both agents' halves together, in every order of what may happen.

No clock, no program: the three state machines, the orders and reports between them, and a transfer of memory
that may fail, or be called off, at each of its points. Whatever is drawn: the VM never runs at two servers,
and once it has run at the target it never runs at the source again.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from hypothesis import example, given, settings
from hypothesis import strategies as st

from retinue.core import migration as fsm
from retinue.core.migration import IllegalEventError, MigrationState, PlacementChange, endpoint
from retinue.core.migration import endpoint_effects as fx
from retinue.core.migration import endpoint_events as e
from retinue.core.migration.endpoint import Settle
from retinue.core.migration.presence import Absent, HandedOver, Incoming, Outgoing, Presence, Running

M = "migration-1"
S, T = "source", "target"
CONFIRMED_BY = {
    fsm.AdmitAtTarget: PlacementChange.ADMITTED,
    fsm.DivertToTarget: PlacementChange.DIVERTED,
    fsm.CloseSource: PlacementChange.SOURCE_CLOSED,
    fsm.CeaseForwarding: PlacementChange.SETTLED,
    fsm.CloseTarget: PlacementChange.TARGET_CLOSED,
}
MAY_HAVE_HANDED_OVER = (MigrationState.DIVERTED, MigrationState.ROLLING_BACK)


class Server:
    """One end, with the truth about its machine beside what its agent knows."""

    def __init__(self, presence: Presence) -> None:
        self.presence = presence
        self.machine = isinstance(presence, Running)
        self.runs = self.machine
        self.orders: deque[e.Order] = deque()
        self.reports: deque[fsm.Event] = deque()


class Model:
    def __init__(self) -> None:
        self.ends = {S: Server(Running()), T: Server(Absent())}
        self.migration = fsm.begin(M, "vm1", S, T, 0.0)
        self.confirmations: deque[fsm.Event] = deque()
        self.transfer = ""
        """Where it is: "", copying, stopped, handed over, or answered (the target's word is on its way)."""
        self.failed_word = False
        """The target's word is that it could not take the VM in."""
        self.ran_at_target = False
        self.trace: list[str] = []
        self.controller(fsm.Matched())

    # ---- what may happen next ----

    def possible(self) -> list[tuple[str, Callable[[], None]]]:
        found: list[tuple[str, Callable[[], None]]] = []
        for name, end in self.ends.items():
            if end.orders:
                found.append((f"order to {name}", partial(self.order, name)))
            if end.reports:
                found.append((f"report of {name}", partial(self.hears, end)))
            if end.machine:
                found.append((f"{name} exits", partial(self.exits, name)))
            if name == self.placed() and (
                self.migration.state not in MAY_HAVE_HANDED_OVER or end.presence != Absent()
            ):
                found.append((f"start at {name}", partial(end.orders.append, e.Start())))
        if self.confirmations:
            found.append(("confirmed", lambda: self.controller(self.confirmations.popleft())))
        found.append(("time", lambda: self.controller(fsm.TimedOut())))
        found.append(("cancel", lambda: self.controller(fsm.Cancelled("operator"))))
        match self.transfer:
            case "copying":
                found += [("converges", self.converges), ("source stops", self.stops)]
            case "stopped":
                found.append(("hands over", lambda: self.goes_on("handed over")))
            case "handed over":
                found.append(("target decides", self.target_decides))
            case "answered":
                found.append(("source hears", self.source_hears))
        if self.transfer:
            found.append(("connection fails", self.connection_fails))
        if self.waiting():
            found.append(("target fails", self.target_fails))
        return found

    def placed(self) -> str:
        before = (MigrationState.MATCHED, MigrationState.ADMITTING, MigrationState.PREPARED)
        undone = (MigrationState.COPYING, MigrationState.ROLLING_BACK, MigrationState.UNDONE)
        return S if self.migration.state in (*before, *undone) else T

    def waiting(self) -> bool:
        return self.ends[T].presence == Incoming(M) and self.ends[T].machine

    # ---- the controller ----

    def hears(self, end: Server) -> None:
        self.controller(end.reports.popleft())

    def controller(self, event: fsm.Event) -> None:
        try:
            self.migration, effects = fsm.step(self.migration, event, 0.0)
        except IllegalEventError:
            return
        for effect in effects:
            match effect:
                case fsm.OpenTarget():
                    self.ends[T].orders.append(e.OpenTarget(M))
                case fsm.StartCopy():
                    self.ends[S].orders.append(e.StartCopy(M))
                case fsm.FreeSource():
                    self.ends[S].orders.append(e.FreeSource(M))
                case fsm.ReturnToSource():
                    self.ends[S].orders.append(e.ReturnToSource(M))
                case fsm.RollBackAtHypervisor():
                    self.ends[S].orders.append(e.RollBackAtSource(M))
                    self.ends[T].orders.append(e.RollBackAtTarget(M))
                case _ if type(effect) in CONFIRMED_BY:
                    self.confirmations.append(fsm.Confirmed(CONFIRMED_BY[type(effect)]))

    # ---- the agents ----

    def order(self, name: str) -> None:
        end = self.ends[name]
        order = end.orders.popleft()
        settle = endpoint.settle_first(end.presence, order)
        if settle is Settle.WAIT and name == S and self.transfer:
            end.orders.appendleft(order)
            return
        if settle is Settle.CALL_OFF:
            self.call_off(name)
        self.step(name, order)

    def step(self, name: str, event: e.Event) -> None:
        end = self.ends[name]
        try:
            end.presence, effects = endpoint.step(end.presence, event)
        except IllegalEventError:
            return
        self.trace.append(f"  {name}: {event} -> {end.presence}")
        for effect in effects:
            self.carry_out(name, effect)

    def carry_out(self, name: str, effect: fx.Effect) -> None:
        end = self.ends[name]
        match effect:
            case fx.MakePort():
                self.step(name, e.PortMade())
            case fx.StartMachine():
                end.machine = True
                self.run(name)
                self.step(name, e.Started(1.0))
            case fx.OpenMachine():
                end.machine = True
                self.step(name, e.Opened(M))
            case fx.SendMemory():
                self.transfer = "copying" if self.waiting() else ""
                if not self.transfer:
                    self.step(name, e.Stays(M, "the target does not expect it"))
            case fx.KeepAtSource() | fx.ResumeAtSource():
                if end.machine:
                    self.run(name)
                    self.step(name, e.TakenBack(M, 1.0))
                else:
                    self.step(name, e.NotTakenBack(M, "its machine is gone"))
            case fx.EndMachine():
                end.machine = end.runs = False
            case fx.Report(what=what):
                end.reports.append(what)
            case fx.Reject(why=why):
                end.reports.append(fsm.Failed(str(why)))

    def run(self, name: str) -> None:
        self.ends[name].runs = True
        self.ran_at_target = self.ran_at_target or name == T

    def exits(self, name: str) -> None:
        end = self.ends[name]
        if name == T and self.waiting():
            self.target_fails()
            return
        end.machine = end.runs = False
        if name == S and self.transfer in ("copying", "stopped"):
            self.transfer = ""
            self.step(S, e.Exited())
            self.step(S, e.Stays(M, "its machine has ended"))
            self.target_fails(told=False)
        else:
            self.step(name, e.Exited())

    # ---- the transfer ----

    def goes_on(self, where: str) -> None:
        self.transfer = where

    def converges(self) -> None:
        self.ends[S].reports.append(fsm.Converged())

    def stops(self) -> None:
        self.ends[S].runs = False
        self.ends[S].reports.append(fsm.SourceStopped(1.0))
        self.transfer = "stopped"

    def target_decides(self) -> None:
        """The word that the VM is its own has come to the target; who waits runs it."""
        if self.waiting():
            self.run(T)
            self.step(T, e.RanHere(M, 2.0))
            self.failed_word = False
            self.transfer = "answered"
        else:
            self.connection_fails()

    def source_hears(self) -> None:
        self.transfer = ""
        if self.failed_word:
            self.source_keeps("the target could not take the VM in")
        else:
            self.step(S, e.GivenAway(M))

    def connection_fails(self) -> None:
        where, self.transfer = self.transfer, ""
        if where in ("handed over", "answered"):
            self.step(S, e.GivenAway(M))
        else:
            self.source_keeps("hung up")
        if self.waiting():
            self.target_fails(told=False)

    def source_keeps(self, reason: str) -> None:
        if self.ends[S].machine:
            self.run(S)
        self.step(S, e.Stays(M, reason))

    def target_fails(self, *, told: bool = True, silent: bool = False) -> None:
        """What waits for the memory ends. The source is told so, unless the connection has failed."""
        if not self.waiting():
            return
        self.ends[T].machine = False
        if told and self.transfer == "handed over":
            self.failed_word, self.transfer = True, "answered"
        elif told and self.transfer in ("copying", "stopped"):
            self.transfer = ""
            self.source_keeps("the target has failed")
        if not silent:
            self.step(T, e.NotArrived(M, "it failed"))

    def call_off(self, name: str) -> None:
        if name == T:
            self.target_fails(silent=True)
        elif self.transfer and isinstance(self.ends[S].presence, Outgoing):
            where, self.transfer = self.transfer, ""
            if where in ("handed over", "answered"):
                self.step(S, e.GivenAway(M))
            else:
                self.source_keeps("")
                if self.waiting():
                    self.target_fails(told=False)

    # ---- what must hold ----

    def check(self) -> None:
        assert not (self.ends[S].runs and self.ends[T].runs), "it runs at both servers"
        assert not (self.ends[S].runs and self.ran_at_target), "it runs on from its past at the source"
        for name, end in self.ends.items():
            known = isinstance(end.presence, Running | Outgoing)
            assert known or not end.runs, f"the agent of {name} does not know that it runs: {end.presence}"


WAY = (
    *("report of source", "report of target", "confirmed", "order to target"),
    *("source hears", "target decides", "hands over", "source stops", "order to source"),
)


@settings(deadline=None, max_examples=1500, derandomize=True)
@given(st.integers(0, 30), st.lists(st.integers(0, 19), max_size=40))
@example(30, [])
def test_a_vm_is_never_started_beside_one_that_may_run_elsewhere(before: int, choices: Sequence[int]) -> None:
    """`before`: so many steps of a migration go well, so that every part of one is reached often."""
    model = Model()
    play(model, *WAY, steps=before)
    try:
        for choice in choices:
            possible = model.possible()
            name, happens = possible[choice % len(possible)]
            model.trace.append(name)
            happens()
            model.check()
    except AssertionError as error:
        error.add_note("\n".join(model.trace))
        raise


def play(model: Model, *wanted: str, steps: int = 100) -> None:
    """The first of these that is possible, again and again until none is, or for so many steps."""
    for _ in range(steps):
        possible = dict(reversed(model.possible()))
        name = next((name for name in wanted if name in possible), None)
        if name is None:
            return
        possible[name]()
        model.check()
    assert steps < 100, f"it goes on for ever: {model.trace}"


def test_the_model_reaches_the_end_of_a_migration() -> None:
    """Else it would show nothing: without troubles the VM arrives, and the source is freed."""
    model = Model()
    play(model, *WAY)
    assert model.migration.state is MigrationState.DONE
    assert (model.ends[S].presence, model.ends[T].presence) == (Absent(), Running(2.0))


def test_the_model_reaches_a_hand_over_without_an_answer() -> None:
    model = Model()
    play(model, *(name for name in WAY if name not in ("target decides", "source hears")))
    assert model.transfer == "handed over"
    model.connection_fails()
    assert model.ends[S].presence == HandedOver(M)
    model.controller(fsm.Failed("no word"))
    play(model, *WAY)
    assert model.migration.state is MigrationState.UNDONE
    assert (model.ends[S].presence, model.ends[T].presence) == (Running(1.0), Absent())
