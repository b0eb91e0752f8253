"""Reports to the controller: in order for each subject, and again while the controller is away."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from retinue.agent.controller_link.reports import Reports
from retinue.protocol.errors import ControllerAwayError, RejectedError
from support.fakes.reports_only import ReportsOnly


class Controller(ReportsOnly):
    """Notes what it accepts. `script` is what it does with each report in turn; then it accepts."""

    def __init__(self) -> None:
        self.accepted: list[str] = []
        self.asked: list[str] = []
        self.script: list[Exception | asyncio.Event] = []

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(body["event"])
        if self.script:
            match self.script.pop(0):
                case asyncio.Event() as event:
                    await event.wait()
                case Exception() as error:
                    raise error
        self.accepted.append(body["event"])
        return {}


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Controller:
    monkeypatch.setattr("retinue.agent.controller_link.reports.RETRY_SECONDS", 0)
    return Controller()


@pytest.fixture
async def reports(controller: Controller) -> AsyncIterator[Reports]:
    made = Reports(controller)
    yield made
    await made.close()


def tell(reports: Reports, *events: str, subject: str = "web") -> None:
    for event in events:
        reports.tell(subject, f"/{subject}", {"event": event})


async def test_reports_about_a_subject_keep_their_order_while_the_controller_is_away(
    controller: Controller, reports: Reports
) -> None:
    controller.script = [ControllerAwayError("hung up")] * 3
    tell(reports, "copying", "stopped", "resumed")
    await asyncio.wait_for(reports.delivered(), 60)
    assert controller.accepted == ["copying", "stopped", "resumed"]
    assert controller.asked == ["copying"] * 4 + ["stopped", "resumed"]


async def test_a_rejected_report_does_not_hold_up_the_next(controller: Controller, reports: Reports) -> None:
    controller.script = [RejectedError("does not fit")]
    tell(reports, "copying", "stopped")
    await asyncio.wait_for(reports.delivered(), 60)
    assert controller.accepted == ["stopped"]


async def test_a_report_that_hangs_holds_up_its_own_subject_only(
    controller: Controller, reports: Reports
) -> None:
    answered = asyncio.Event()
    controller.script = [answered]
    tell(reports, "first", "second")
    await asyncio.sleep(0)
    await asyncio.wait_for(reports.tell("db", "/db", {"event": "other"}), 60)
    assert controller.accepted == ["other"]
    answered.set()
    await asyncio.wait_for(reports.delivered(), 60)
    assert controller.accepted == ["other", "first", "second"]


async def test_a_question_is_asked_after_what_was_told_before(
    controller: Controller, reports: Reports
) -> None:
    controller.script = [ControllerAwayError("hung up"), ControllerAwayError("hung up")]
    tell(reports, "copying")
    await reports.ask("web", "/web", {"event": "converged"}, 5)
    assert controller.accepted == ["copying", "converged"]


async def test_a_question_is_asked_again_and_a_rejection_is_its_answer(
    controller: Controller, reports: Reports
) -> None:
    controller.script = [ControllerAwayError("hung up"), RejectedError("it does not fit")]
    with pytest.raises(RejectedError, match="it does not fit"):
        await reports.ask("web", "/web", {"event": "converged"}, 5)
    assert controller.asked == ["converged"] * 2


@pytest.mark.parametrize("told_before", [False, True])
async def test_a_question_that_is_not_answered_in_time_is_given_up(
    controller: Controller, reports: Reports, told_before: bool
) -> None:
    controller.script = [asyncio.Event()]
    if told_before:
        tell(reports, "copying")
    with pytest.raises(ControllerAwayError, match=r"has not answered within 0\.01 s"):
        await reports.ask("web", "/web", {"event": "converged"}, 0.01)
    assert controller.accepted == []


async def test_what_nobody_takes_is_given_up_at_the_end(controller: Controller, reports: Reports) -> None:
    controller.script = [asyncio.Event()]
    tell(reports, "first", "second")
    await asyncio.sleep(0)
    await asyncio.wait_for(reports.close(), 60)
    assert controller.accepted == []
