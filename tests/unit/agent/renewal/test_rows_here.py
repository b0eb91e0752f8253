"""The row of a VM that has arrived, in the table of a switch of others: stored where the switch lacks it."""

import json
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from retinue.agent import alone
from retinue.agent.alone import AloneAgent
from retinue.agent.migration.peer import Transfer
from retinue.agent.renewal.lease_notes import LEASES, LeaseNotes
from retinue.agent.renewal.standalone import rows_here
from retinue.agent.renewal.standalone.lease_desk import LeaseDesk
from retinue.agent.renewal.standalone.qemu_watch import ForeignNIC
from retinue.agent.renewal.standalone.rows_here import RowsHere
from retinue.agent.renewal.standalone.snooping_table import AdaptedTable, Row
from retinue.core.lease_renewal import Lease, Renewal, RenewalState
from retinue.core.lease_watch import KeptLease
from retinue.protocol import json_lines

MAC, IP = "52:54:00:00:00:01", IPv4Address("10.1.0.100")
ROW = Row(MAC, IP, "tap-a", 300.0)
STORED = {"mac": MAC, "ip": str(IP), "port": "tap-a", "seconds_left": 300.0}
OTHER = {"mac": "52:54:00:00:00:02", "ip": "10.1.0.102", "port": "tap-b", "seconds_left": 5.0}


class Switch:
    """With an adapter; `deaf`: it says so many times that it has stored, and has not."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows, self.deaf, self.asked = path, [OTHER], 0, list[str]()

    async def answer(self, line: bytes) -> dict[str, Any]:
        asked = json.loads(line)
        self.asked.append(asked.pop("do"))
        if self.asked[-1] == "rows":
            return {"rows": self.rows}
        assert self.asked[-1] == "store"
        if self.deaf:
            self.deaf -= 1
        else:
            self.rows = [row for row in self.rows if row["ip"] != asked["ip"]] + [asked]
        return {"ok": True}


@pytest.fixture
async def switch(tmp_path: Path) -> AsyncIterator[Switch]:
    made = Switch(tmp_path / "switch")
    async with json_lines.serving(made.path, made.answer):
        yield made


async def test_a_row_that_is_missing_is_stored_and_read_back(switch: Switch) -> None:
    assert await RowsHere(AdaptedTable(switch.path)).store(ROW)
    assert switch.rows == [OTHER, STORED]
    assert switch.asked == ["rows", "store", "rows"]


async def test_one_that_the_switch_has_made_itself_is_left_alone(switch: Switch) -> None:
    """Whatever it calls the port."""
    switch.rows = [{**STORED, "port": "ge-0/0/7"}]
    assert await RowsHere(AdaptedTable(switch.path)).store(ROW)
    assert switch.asked == ["rows"]


async def test_without_an_adapter_nothing_is_stored() -> None:
    assert await RowsHere(None).store(ROW)


async def test_what_is_not_there_when_read_back_is_told_and_tried_again(
    switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_here, "AGAIN_SECONDS", 0.0)
    switch.deaf = 2
    here = RowsHere(AdaptedTable(switch.path))
    with capture_logs() as logs:
        assert not await here.store(ROW)
        await here.store_later(ROW)
    assert [line["event"] for line in logs] == [*(["binding.not_stored"] * 2), "binding.stored"]
    assert "the switch still lacks 52:54:00:00:00:01 with 10.1.0.100 at tap-a" in logs[0]["error"]
    (stored,) = (row for row in switch.rows if row["ip"] == str(IP))
    assert 0 < float(str(stored["seconds_left"])) < 300, "the lease has been running meanwhile"


async def test_no_row_is_stored_of_a_lease_that_has_ended_meanwhile(
    switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_here, "AGAIN_SECONDS", 0.02)
    await RowsHere(AdaptedTable(switch.path)).store_later(Row(MAC, IP, "tap-a", 0.01))
    assert switch.asked == []


async def test_it_is_stored_after_the_ack_and_before_others_hear_of_it(
    tmp_path: Path, switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the VM's old switch might have lost its row before the new one has it."""
    lease = Lease(IP, MAC, IPv4Address("10.1.0.2"))

    async def renews(lease: Lease, xid: int, tap: str, bridge: str) -> Renewal:
        assert switch.asked == [], "not before"
        return Renewal(lease, xid, 0.0, RenewalState.ACKED, lease_seconds=300)

    told: list[bool] = []

    async def tells(mac: str, ip: IPv4Address, server: str) -> None:
        told.append(STORED in switch.rows)

    monkeypatch.setattr(alone, "renew_at_tap", renews)
    notes = LeaseNotes(tmp_path / LEASES)
    notes.keep(KeptLease(lease, notes.now() + 300, "vm1"))
    desk = LeaseDesk(notes, Transfer("server1"), {})
    monkeypatch.setattr(desk, "tell", tells)
    agent = AloneAgent(notes, desk, "", "server1", AdaptedTable(switch.path))
    agent.there("vm1", [ForeignNIC(MAC, "tap-a")], arrived=True)
    for task in list(agent._renewing.values()):
        await task
    assert told == [True]
    await agent.close()
