"""What a switch of others still has of a VM that has left: told, and deleted by way of an adapter."""

import asyncio
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
from retinue.agent.renewal.standalone import rows_left
from retinue.agent.renewal.standalone.lease_desk import LeaseDesk
from retinue.agent.renewal.standalone.qemu_watch import ForeignNIC
from retinue.agent.renewal.standalone.rows_left import RowsLeft
from retinue.agent.renewal.standalone.snooping_table import AdaptedTable, Row, TableError
from retinue.core.lease_renewal import Lease, Renewal, RenewalState
from retinue.core.lease_watch import KeptLease
from retinue.protocol import json_lines

MAC, IP = "52:54:00:00:00:01", IPv4Address("10.1.0.100")
OTHER = {"mac": "52:54:00:00:00:02", "ip": "10.1.0.102", "port": "tap-b", "seconds_left": 5.0}
OWN = {"mac": MAC, "ip": str(IP), "port": "tap-a", "seconds_left": 300.0}
LEASE = Lease(IP, MAC, IPv4Address("10.1.0.2"))


class Switch:
    """With an adapter; `deaf`: it says that it has deleted, and has not."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows, self.deaf, self.asked = path, [OWN, OTHER], False, list[str]()
        self.says: Any = None

    async def answer(self, line: bytes) -> dict[str, Any]:
        asked = json.loads(line)
        self.asked.append(asked["do"])
        if self.says is not None:
            return dict(self.says)
        if asked["do"] == "rows":
            return {"rows": self.rows}
        if not self.deaf:
            self.rows = [row for row in self.rows if (row["mac"], row["ip"]) != (asked["mac"], asked["ip"])]
        return {"ok": True}


@pytest.fixture
async def switch(tmp_path: Path) -> AsyncIterator[Switch]:
    made = Switch(tmp_path / "switch")
    async with json_lines.serving(made.path, made.answer):
        yield made


async def test_a_row_is_deleted_when_the_table_no_longer_has_it(switch: Switch) -> None:
    table = AdaptedTable(switch.path)
    own, other = await table.rows()
    assert own == Row(MAC, IP, "tap-a", 300.0)
    await table.delete(own)
    assert await table.rows() == [other] and switch.asked == ["rows", "delete", "rows", "rows"]
    switch.deaf = True
    with pytest.raises(TableError, match=r"the switch still has .*:02 with 10\.1\.0\.102 at tap-b"):
        await table.delete(other)


@pytest.mark.parametrize(
    "says",
    [
        {"error": "no such table"},
        {},
        {"rows": [{"mac": "x", "ip": "10.1.0.1", "port": "1"}]},
        {"rows": [{"mac": MAC, "ip": "fd00::1", "port": "1"}]},
        {"rows": [{"mac": MAC, "ip": "10.1.0.1", "port": "1", "seconds_left": -1}]},
    ],
)
async def test_what_an_adapter_says_that_is_no_table_is_said(switch: Switch, says: Any) -> None:
    switch.says = says
    with pytest.raises(TableError, match="adapter"):
        await AdaptedTable(switch.path).rows()


async def test_no_adapter_is_said(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="does not answer"):
        await AdaptedTable(tmp_path / "nobody").rows()


def following(table: AdaptedTable | None, here: set[str]) -> RowsLeft:
    return RowsLeft(table, lambda: here, lambda mac: 300.0)


async def settled(rows: RowsLeft) -> None:
    await asyncio.gather(*rows._tasks.values())


async def test_the_row_of_a_vm_that_has_gone_is_deleted_and_no_other(switch: Switch) -> None:
    rows = following(AdaptedTable(switch.path), set())
    rows.renewed_elsewhere(MAC, IP, "server2")
    await settled(rows)
    assert switch.rows == [OTHER]


async def test_while_the_vm_has_a_machine_here_its_row_stays(switch: Switch) -> None:
    """Whoever says otherwise: what runs here is this agent's to know."""
    here = {MAC}
    rows = following(AdaptedTable(switch.path), here)
    rows.renewed_elsewhere(MAC, IP, "server2")
    rows.look()
    await settled(rows)
    assert switch.rows == [OWN, OTHER]
    here.clear()
    rows.look()
    await settled(rows)
    assert switch.rows == [OTHER]


async def test_one_that_has_come_back_keeps_its_row(switch: Switch) -> None:
    here = {MAC}
    rows = following(AdaptedTable(switch.path), here)
    rows.renewed_elsewhere(MAC, IP, "server2")
    rows.back([MAC])
    here.clear()
    rows.look()
    await settled(rows)
    assert switch.rows == [OWN, OTHER]


async def test_what_cannot_be_deleted_is_told_and_tried_again(
    switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_left, "AGAIN_SECONDS", 0.0)
    switch.deaf = True
    rows = following(AdaptedTable(switch.path), set())
    with capture_logs() as logs:
        rows.renewed_elsewhere(MAC, IP, "server2")
        await settled(rows)
    told = [line for line in logs if line["event"] == "binding.left"]
    assert len(told) == rows_left.TRIES
    assert told[0]["seconds_left"] == 300.0 and "the switch still has" in told[0]["error"]
    assert switch.asked == ["rows", "delete", "rows"] * rows_left.TRIES


async def test_without_an_adapter_it_is_told_until_when_the_row_stays() -> None:
    rows = following(None, set())
    with capture_logs() as logs:
        rows.renewed_elsewhere(MAC, IP, "server2")
        await settled(rows)
    (told,) = [line for line in logs if line["event"] == "binding.left"]
    assert (told["mac"], told["ip"], told["seconds_left"]) == (MAC, str(IP), 300.0)


async def test_after_the_ack_the_agent_where_the_vm_was_hears_of_it(
    tmp_path: Path, switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of nothing that it has not seen itself."""

    async def renews(lease: Lease, xid: int, tap: str, bridge: str) -> Renewal:
        assert switch.rows == [OWN, OTHER], "not before"
        return Renewal(lease, xid, 0.0, RenewalState.ACKED, lease_seconds=900)

    monkeypatch.setattr(alone, "renew_at_tap", renews)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    theirs, transfer = LeaseNotes(tmp_path / "one" / LEASES), Transfer("server1")
    desk = transfer.visitors = LeaseDesk(theirs, transfer, {})
    await transfer.start("127.0.0.1")
    source = AloneAgent(theirs, desk, "", "server1", AdaptedTable(switch.path))
    theirs.keep(KeptLease(LEASE, theirs.now() + 300, "vm1"))
    source.there("vm1", [ForeignNIC(MAC, "tap-a")], arrived=False)

    peers = {"server1": transfer.address}
    notes = LeaseNotes(tmp_path / "two" / LEASES)
    ours = LeaseDesk(notes, Transfer("server2"), peers)
    target = AloneAgent(notes, ours, "", "server2")
    target.there("vm1", [ForeignNIC(MAC, "tap-a")], arrived=True)
    await asyncio.gather(*target._renewing.values())
    assert switch.rows == [OWN, OTHER], "its machine is still there"
    source.gone("vm1")
    await settled(source._rows_left)
    assert switch.rows == [OTHER]
    await ours.tell(str(OTHER["mac"]), IPv4Address(str(OTHER["ip"])), "server2")
    await settled(source._rows_left)
    assert switch.rows == [OTHER], "whose lease was never seen here"
    for agent in (source, target):
        await agent.close()
    await transfer.close()
