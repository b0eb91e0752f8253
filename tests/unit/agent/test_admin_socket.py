"""The agent's socket for those on its own server."""

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from retinue.agent import admin_socket
from retinue.agent.dispatcher import Dispatcher
from retinue.protocol import json_lines
from support.agents.world import VM, TwoServers, bench_up

NIC = {
    "id": "web", "mac": VM.mac, "vnet": "", "addresses": ["10.1.0.50"], "subnets": {}, "enabled": True,
    "slot": 1, "mtu": 0, "trunk": "", "vlan": 0, "initial_mac": "",
}  # fmt: skip
RECORD = {"id": "web", "mac": VM.mac, "server": "server1"}


@pytest.fixture
async def bench() -> AsyncIterator[TwoServers]:
    async with bench_up() as made:
        yield made


async def ask(dispatcher: Dispatcher, **request: Any) -> Any:
    return await admin_socket.answer(dispatcher, json.dumps(request).encode())


async def test_the_vms_are_shown_with_what_they_have_here(bench: TwoServers) -> None:
    dispatcher = bench.source.dispatcher
    assert await ask(dispatcher, do="vms") == {"vms": []}
    await bench.registered()
    shell = str(bench.source.machine.files.shell)
    row = {
        "id": "web",
        "mac": VM.mac,
        "nics": [NIC],
        "runs": True,
        "since": 0.0,
        "machine": True,
        "port": "tap-web",
        "migration": "",
    }
    since = dispatcher.vms["web"].since
    assert since > 0
    assert await ask(dispatcher, do="vms") == {"vms": [{**row, "since": since, "shell": shell}]}
    bench.source.machine.die()
    assert await ask(dispatcher, do="vms") == {"vms": [{**row, "runs": False, "machine": False, "shell": ""}]}


async def test_during_a_move_the_vm_is_shown_to_run_where_it_runs(bench: TwoServers) -> None:
    await bench.prepared()

    async def runs() -> list[tuple[bool, bool, str]]:
        rows = [(await ask(agent.dispatcher, do="vms"))["vms"][0] for agent in bench.agents.values()]
        return [(row["runs"], row["machine"], row["migration"]) for row in rows]

    assert await runs() == [(True, True, ""), (False, True, "migration-1")]
    await bench.step("start_copy")
    assert await runs() == [(False, True, "migration-1"), (True, True, "migration-1")]


async def test_consoles_of_all_machines_it_has_had_here_oldest_first(bench: TwoServers) -> None:
    await bench.registered()
    first = str(bench.source.machine.files.serial_log)
    assert await ask(bench.source.dispatcher, do="consoles", vm="web") == {"consoles": [first]}
    assert await ask(bench.source.dispatcher, do="consoles", vm="db") == {"consoles": []}


async def test_a_vm_is_taken_in_and_given_away(bench: TwoServers) -> None:
    await bench.registered()
    here, there = bench.source.dispatcher, bench.target.dispatcher
    taken = await ask(there, do="take", vm=RECORD, migration="by-hand-1", source="server1")
    assert taken == {"memory_at": bench.target.transfer.address}
    given = {"do": "give", "vm": "web", "migration": "by-hand-1", "target": "server2"}
    assert await ask(here, **given, **taken) == {"stopped_at": 100.0, "resumed_at": 100.5}
    assert await ask(here, do="vms") == {"vms": []}
    assert await ask(there, do="drop", vm="web") == {}
    assert await ask(there, do="vms") == {"vms": []}
    assert bench.world.running("web") == []


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ("{", "truncated"),
        ("[]", "Expected `object`"),
        ('{"do": 5}', "Expected `str`"),
        ('{"do": "vms", "what": 1}', "unknown field `what`"),
        ('{"do": "dance"}', "cannot do 'dance' so: it is vms, leases, consoles, report, take, give or drop"),
        ('{"do": "take", "vm": "web"}', "cannot do 'take' so"),
        ('{"do": "take", "vm": {"id": "db"}}', "missing required field `mac`"),
        ('{"do": "drop", "vm": {"id": "web", "mac": "m", "server": "s"}}', "cannot do 'drop' so"),
        ('{"do": "drop", "vm": "db"}', "there is no VM 'db'; there are: web"),
        ('{"do": "give", "vm": "db"}', "there is no VM 'db'"),
        ('{"do": "give", "vm": "web", "target": "x"}', "the agent of x cannot be reached"),
        ('{"do": "take", "vm": {"id": "web", "mac": "m", "server": "s"}}', "is on server1 already"),
    ],
)
async def test_what_cannot_be_done_is_answered_with_the_reason(
    bench: TwoServers, request_: str, reason: str
) -> None:
    await bench.registered()
    assert reason in (await admin_socket.answer(bench.source.dispatcher, request_.encode()))["error"]
    assert bench.world.running("web") == ["server1"]


async def test_requests_come_line_by_line_over_a_socket_of_the_owners(
    bench: TwoServers, tmp_path: Path
) -> None:
    path = tmp_path / admin_socket.SOCKET
    path.write_text("left behind")
    async with admin_socket.serving(path, bench.source.dispatcher), asyncio.timeout(60):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"do": "vms"}\n{"do"\n{"do": "vms"}\n')
        answers = [json.loads(await reader.readline()) for _ in range(3)]
        assert (answers[0], list(answers[1]), answers[2]) == ({"vms": []}, ["error"], {"vms": []})
        writer.write(b"x" * (json_lines.LONGEST_REQUEST + 2))
        assert await reader.read() == b""
        writer.close()
        # That was that connection's own trouble.
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"do": "vms"}\n')
        assert json.loads(await reader.readline()) == {"vms": []}
        writer.close()
    assert not path.exists()
