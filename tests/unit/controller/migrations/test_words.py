"""Who may say what of a migration: by REST with an agent's token, and by what libvirt does."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

import aiohttp
import pytest

from retinue.controller.api.access import Access
from retinue.controller.api.server import Api
from retinue.controller.migrations import words
from retinue.controller.migrations.orchestrator import MigrationError
from retinue.core.migration import MigrationState
from retinue.core.model import VM, PortStatus
from retinue.protocol.migrations import Report
from retinue.protocol.vms import VMReport
from retinue.security.tokens import Tokens
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import assignment, fabric, vm_ip, vm_mac, vm_port
from support.fakes.session import FakeNetwork
from support.recent_events import recent

S = MigrationState
SOURCE, TARGET, THIRD = "server1", "server2", "server3"


def port(edge: int) -> BridgePort:
    return BridgePort(
        dpid=0x30 + edge, bridge="br0", name="vnet0", number=vm_port(1), status=PortStatus.UP,
        iface_id="vm1", attached_mac=vm_mac(1),
    )  # fmt: skip


@dataclass
class Doors:
    """vm1 runs at server1 and is migrated to server2; each server's agent has a token."""

    fake: FakeNetwork
    url: str
    http: aiohttp.ClientSession

    @property
    def state(self) -> MigrationState:
        return self.fake.controller.orchestrator.migrations["migration-1"].state

    async def say(self, server: str, event: str, **more: object) -> int:
        """What an agent reports of the migration; the status of the answer."""
        return await self.post(server, "/v1/migrations/migration-1/events", {"event": event, **more})

    async def post(self, who: str, path: str, body: object) -> int:
        shown = {"Authorization": f"Bearer {token(who)}"}
        async with self.http.post(self.url + path, json=body, headers=shown) as answer:
            await answer.read()
            await self.fake.settle()
            return answer.status

    def at(self) -> list[tuple[str, bool]]:
        return sorted((row.switch, row.active) for row in self.fake.controller.net.bindings(["vm1"]))

    async def until(self, state: MigrationState, converged: bool = True) -> None:
        """What the two ends say, each its own, up to this state."""
        said = [(TARGET, "target_opened"), (SOURCE, "copy_started")]
        for server, event in said if state is S.COPYING else [*said, (SOURCE, "converged")]:
            assert await self.say(server, event) == 200
        assert self.state is state


def token(who: str) -> str:
    return f"the token of {who} alone"


@pytest.fixture
async def doors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Doors]:
    monkeypatch.setattr(words, "LET_GO_LIMIT", 0.05)
    fake = FakeNetwork(fabric(), clock=lambda: 1000.0)
    await fake.start()
    address = vm_ip(1)
    assert isinstance(address, IPv4Address)
    controller = fake.controller
    controller.inventory.register_vms([VM.with_one_nic("vm1", vm_mac(1), SOURCE, addresses=(address,))])
    for edge in (1, 2):
        controller.inventory.ports.changed([], [port(edge)])
    await fake.settle()
    controller.inventory.power.on_report("vm1", VMReport.STARTED, SOURCE)
    controller.orchestrator.start("vm1", target_server=TARGET)
    await fake.settle()
    file = tmp_path / "tokens.toml"
    file.touch(0o600)
    file.write_text(
        "".join(
            f'[[token]]\nname = "{who}"\nrole = "agent"\nservers = ["{who}"]\ntoken = "{token(who)}"\n'
            for who in (SOURCE, TARGET, THIRD)
        )
    )
    api = Api(controller, dict, Access(controller, Tokens(file), open=False))
    at = await api.start("127.0.0.1", 0)
    async with aiohttp.ClientSession() as http:
        yield Doors(fake, f"http://127.0.0.1:{at}", http)
    await api.stop()
    await fake.stop()


OTHER = {words.End.SOURCE: TARGET, words.End.TARGET: SOURCE}


@pytest.mark.parametrize("report", [report for report in Report if len(words.SAID_BY[report]) == 1])
@pytest.mark.parametrize("state", [S.COPYING, S.DIVERTED])
async def test_no_end_speaks_for_the_other(doors: Doors, report: Report, state: MigrationState) -> None:
    await doors.until(state)
    (end,) = words.SAID_BY[report]
    orchestrator = doors.fake.controller.orchestrator
    before, where, figures = (
        orchestrator.migrations["migration-1"],
        doors.at(),
        dict(orchestrator.figures_of("migration-1")),
    )
    for who in (OTHER[end], THIRD):
        assert await doors.say(who, report, at=1.0, frames=7) == 403
    assert orchestrator.migrations["migration-1"] == before
    assert doors.at() == where
    assert orchestrator.figures_of("migration-1") == figures, "nor is what it counted believed"
    told = [event.data["reason"] for event in recent(doors.fake.controller.events, "access.rejected")]
    assert any("server3" in reason for reason in told) and any(OTHER[end] in reason for reason in told)


async def test_either_end_may_fail(doors: Doors) -> None:
    assert set(words.SAID_BY) == set(Report)
    await doors.until(S.COPYING)
    assert await doors.say(TARGET, "failed", reason="no memory") == 200
    assert doors.state is S.ROLLING_BACK


async def rolled_back(doors: Doors) -> None:
    await doors.until(S.COPYING)
    doors.fake.controller.orchestrator.cancel("migration-1")
    await doors.fake.settle()


STAGES: dict[str, Callable[[Doors], object]] = {
    "copying": lambda doors: doors.until(S.COPYING),
    "diverted": lambda doors: doors.until(S.DIVERTED),
    "rolling back": rolled_back,
}


@pytest.mark.parametrize("stage", STAGES)
async def test_a_target_does_not_take_a_vm_whose_source_has_not_let_go(doors: Doors, stage: str) -> None:
    await STAGES[stage](doors)  # type: ignore[misc]
    before = doors.state
    assert await doors.say(TARGET, "resumed", at=1.0) == 409
    assert doors.state is before
    assert ("edge1", stage != "diverted") in doors.at(), "it may still run there"


async def test_a_target_takes_a_vm_whose_sources_port_has_gone(doors: Doors) -> None:
    await doors.until(S.COPYING)
    doors.fake.controller.inventory.ports.changed([port(1)], [])
    assert await doors.say(TARGET, "resumed", at=1.0) == 200
    assert doors.state is S.CONFIRMED


async def test_reports_of_two_agents_may_overtake_each_other(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "LET_GO_LIMIT", 60.0)
    await doors.until(S.DIVERTED)
    resumed = asyncio.create_task(doors.say(TARGET, "resumed", at=2.0))
    await doors.fake.settle()
    assert not resumed.done()
    assert await doors.say(SOURCE, "stopped", at=1.0) == 200
    assert await resumed == 200
    assert doors.state is S.CONFIRMED
    assert doors.at() == [("edge2", True)]


@pytest.mark.parametrize("let_go", ["stopped", "port gone"])
async def test_a_target_that_was_too_early_need_not_say_it_again(doors: Doors, let_go: str) -> None:
    """The source's report comes later than anybody waits for it."""
    await doors.until(S.DIVERTED)
    assert await doors.say(TARGET, "resumed", at=2.0) == 409
    if let_go == "stopped":
        assert await doors.say(SOURCE, "stopped", at=1.0) == 200
    else:
        doors.fake.controller.inventory.ports.changed([port(1)], [])
        await doors.fake.settle()
    assert doors.state is S.CONFIRMED
    assert doors.fake.controller.orchestrator.migrations["migration-1"].resumed_at == 2.0


async def test_what_was_said_too_early_is_off_with_the_migration(doors: Doors) -> None:
    await doors.until(S.DIVERTED)
    assert await doors.say(TARGET, "resumed", at=2.0) == 409
    assert await doors.say(TARGET, "failed", reason="it ended") == 200
    assert await doors.say(SOURCE, "stopped", at=1.0) == 200
    assert doors.state is S.ROLLING_BACK


async def test_frames_are_counted_when_the_report_is_taken(doors: Doors) -> None:
    await doors.until(S.COPYING)
    orchestrator = doors.fake.controller.orchestrator
    with pytest.raises(MigrationError):
        orchestrator.reports.on_report("migration-1", Report.ROLLED_BACK, 1.0, frames=5)
    assert "kept" not in orchestrator.figures_of("migration-1")
    assert "resumed_here" not in orchestrator.figures_of("migration-1")


async def test_only_where_the_vm_runs_is_it_said_to_run_or_not(doors: Doors) -> None:
    """A target that has nothing of the VM yet neither stops nor renews it."""
    states = doors.fake.controller.context.state.vm_states
    await doors.until(S.COPYING)
    before = states["vm1"]
    for who in (TARGET, THIRD):
        assert await doors.post(who, "/v1/vms/vm1/events", {"event": "stopped", "server": who}) == 403
        assert await doors.post(who, "/v1/vms/vm1/renewals", {"agent": True}) == 403
    assert states["vm1"] is before
    assert await doors.say(SOURCE, "converged") == 200
    assert await doors.say(SOURCE, "stopped", at=1.0) == 200
    assert await doors.post(TARGET, "/v1/vms/vm1/events", {"event": "stopped", "server": TARGET}) == 403
    assert await doors.say(TARGET, "resumed", at=2.0) == 200
    assert await doors.post(TARGET, "/v1/vms/vm1/events", {"event": "started", "server": TARGET}) == 200
    assert await doors.post(SOURCE, "/v1/vms/vm1/events", {"event": "stopped", "server": SOURCE}) == 403


@pytest.mark.parametrize("who", [SOURCE, TARGET])
async def test_an_agent_renews_at_its_own_server(doors: Doors, who: str) -> None:
    """Whatever it leaves out: nobody has the other's agent renew, or ends what it is doing."""
    await doors.until(S.DIVERTED)
    controller = doors.fake.controller
    controller.net.assign(replace(assignment(1), server=IPv4Address("10.1.0.2")))
    assert await doors.post(who, "/v1/vms/vm1/renewals", {"agent": True}) == 201
    (order,) = controller.renewals.orders.values()
    assert order.server == who
    other = TARGET if who == SOURCE else SOURCE
    assert await doors.post(who, "/v1/vms/vm1/renewals", {"agent": True, "server": other}) == 403


async def test_a_source_that_says_late_that_the_vm_stopped_lets_it_go(doors: Doors) -> None:
    """The target's report has been refused, and the migration is being rolled back meanwhile."""
    await doors.until(S.DIVERTED)
    controller = doors.fake.controller
    controller.orchestrator.cancel("migration-1")
    assert await doors.say(TARGET, "resumed", at=2.0) == 409
    assert await doors.say(SOURCE, "stopped", at=1.0) == 200
    assert await doors.say(TARGET, "resumed", at=2.0) == 200
    assert doors.at() == [("edge2", True)]
