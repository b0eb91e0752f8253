"""What lab tools ask about VMs, answered by asking the agents of both servers."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from retinue.agent import admin_socket
from retinue.core.migration.presence import Running
from retinue.hypervisor.paths import MachineFiles
from retinue.protocol import json_lines
from retinue.protocol.json_lines import RequestError
from retinue_lab.network.vm_driver import Agents, Tools
from support.agents.world import VM, TwoServers, bench_up


class DrivenAgents:
    """Agents with sockets of their own, and the tools before them."""

    def __init__(self, bench: TwoServers, folder: Path) -> None:
        self.bench, self.folder = bench, folder
        self.sockets = {server: folder / f"{server}.sock" for server in bench.agents}
        self.tools = Tools(Agents(self.sockets))
        self.running = contextlib.AsyncExitStack()

    async def up(self) -> None:
        for server, agent in self.bench.agents.items():
            await self.running.enter_async_context(
                admin_socket.serving(self.sockets[server], agent.dispatcher)
            )

    async def ask(self, **request: Any) -> Any:
        async with asyncio.timeout(60):
            return await self.tools.answer(json.dumps(request).encode())

    async def vm(self) -> Any:
        """What is shown of the only VM; None without."""
        rows = (await self.ask(do="vms"))["vms"]
        return rows[0] if rows else None


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[DrivenAgents]:
    async with bench_up() as bench:
        made = DrivenAgents(bench, tmp_path)
        await made.up()
        async with made.running:
            yield made


@contextlib.asynccontextmanager
async def shell(path: Path, said: str) -> AsyncIterator[None]:
    """A guest whose shell answers every command so."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            if line.strip():
                token = line.split()[0]
                writer.write(token + f" begin\n{said}\n\n".encode() + token + b" end 3\n")
        writer.close()

    async with await asyncio.start_unix_server(answer, path):
        yield


@pytest.mark.parametrize("order", [("server1", "server2"), ("server2", "server1")])
async def test_a_vm_runs_where_it_ran_on_last(lab: DrivenAgents, order: tuple[str, str]) -> None:
    """A source may not have heard yet that its VM has left."""
    await lab.bench.registered()
    await lab.bench.step("open_target", "start_copy")
    lab.bench.source.dispatcher.vms["web"].presence = Running()
    for server in order:
        lab.sockets[server] = lab.sockets.pop(server)
    assert (await lab.vm())["runs_at"] == "server2"


async def test_a_vm_is_shown_once_with_all_its_places(lab: DrivenAgents) -> None:
    assert await lab.ask(do="vms") == {"vms": []}
    await lab.bench.registered()
    location = {"port": "tap-web", "machine": True}
    at = {"server1": location}
    nic = {
        "id": "web",
        "mac": VM.mac,
        "vnet": "",
        "addresses": ["10.1.0.50"],
        "subnets": {},
        "enabled": True,
        "slot": 1,
        "mtu": 0,
        "trunk": "",
        "vlan": 0,
        "initial_mac": "",
    }
    row = {"id": "web", "mac": VM.mac, "nics": [nic], "runs_at": "server1", "locations": at, "migration": ""}
    assert await lab.vm() == {**row, "shell": str(lab.bench.source.machine.files.shell)}
    await lab.bench.step("open_target")
    both = {**row, "locations": {"server1": location, "server2": location}, "migration": "migration-1"}
    assert await lab.vm() == {**both, "shell": str(lab.bench.source.machine.files.shell)}
    await lab.bench.step("start_copy")
    assert await lab.vm() == {
        **both,
        "runs_at": "server2",
        "shell": str(lab.bench.target.machine.files.shell),
    }


async def test_an_agent_that_is_away_is_left_out(lab: DrivenAgents) -> None:
    await lab.bench.registered()
    lab.sockets["server2"].unlink()
    assert (await lab.vm())["runs_at"] == "server1"
    lab.sockets["server1"].unlink()
    assert await lab.ask(do="vms") == {"vms": []}


async def test_commands_run_in_the_guest_where_it_runs(lab: DrivenAgents) -> None:
    await lab.bench.prepared()
    for server, agent in lab.bench.agents.items():
        agent.machine.files = MachineFiles.named(lab.folder, server)
    async with (
        shell(lab.bench.source.machine.files.shell, "here"),
        shell(lab.bench.target.machine.files.shell, "there"),
    ):
        assert await lab.ask(do="guest", vm="web", command="x") == {"code": 3, "output": "here\n"}
        await lab.bench.step("start_copy")
        assert await lab.ask(do="guest", vm="web", command="x") == {"code": 3, "output": "there\n"}


async def test_a_guest_that_does_not_answer_is_said_to(lab: DrivenAgents) -> None:
    await lab.bench.registered()
    lab.bench.source.machine.files = MachineFiles.named(lab.folder, "gone")
    assert "cannot reach the guest's shell" in (await lab.ask(do="guest", vm="web", command="x"))["error"]
    lab.bench.source.machine.die()
    assert await lab.ask(do="guest", vm="web") == {"error": "VM web does not run"}


async def test_the_console_is_that_of_all_its_machines_in_the_order_of_their_lives(lab: DrivenAgents) -> None:
    await lab.bench.prepared()
    await lab.bench.step("start_copy")
    early, late, gone = (lab.folder / name for name in ("early", "late", "gone"))
    early.write_text("RETINUE READY\n")
    late.write_text("and on\n")
    os.utime(early, (1, 1))
    os.utime(late, (2, 2))
    lab.bench.source.dispatcher.consoles["web"] = [gone, late]
    lab.bench.target.dispatcher.consoles["web"] = [early]
    assert await lab.ask(do="serial", vm="web") == {"text": "RETINUE READY\nand on\n"}


async def test_a_vm_is_moved_without_the_controller(lab: DrivenAgents) -> None:
    await lab.bench.registered()
    moved = {"stopped_at": 100.0, "resumed_at": 100.5}
    assert await lab.ask(do="migrate", vm="web", target="server2") == moved
    shown = await lab.vm()
    assert (shown["runs_at"], list(shown["locations"])) == ("server2", ["server2"])
    assert not [line for line in lab.bench.world.take() if "tells" in line]
    assert await lab.ask(do="migrate", vm="web", target="server1") == moved
    assert lab.bench.world.running("web") == ["server1"]


@pytest.mark.parametrize("server", ["server1", "server3", ""])
async def test_a_vm_is_not_moved_to_where_it_is_or_nobody_is(lab: DrivenAgents, server: str) -> None:
    await lab.bench.registered()
    answer = await lab.ask(do="migrate", vm="web", target=server)
    assert answer == {"error": f"VM web does not run, or cannot go to {server!r}"}


async def test_a_vm_that_could_not_be_moved_runs_on_and_leaves_nothing_there(lab: DrivenAgents) -> None:
    await lab.bench.registered()
    lab.bench.source.hypervisor.script["copy"] = "fails"
    answer = await lab.ask(do="migrate", vm="web", target="server2")
    assert answer == {"error": "the agent of server1: copy fails"}
    await lab.bench.settled()
    shown = await lab.vm()
    assert (shown["runs_at"], list(shown["locations"])) == ("server1", ["server1"])


async def test_a_vm_that_its_source_does_not_bring_is_not_waited_for(lab: DrivenAgents) -> None:
    await lab.bench.registered()
    await lab.bench.target.transfer.close()
    answer = await lab.ask(do="migrate", vm="web", target="server2")
    assert "the agent of server1: the agent of server2 cannot be reached" in answer["error"]
    assert lab.bench.target.dispatcher.vms == {}
    assert lab.bench.world.running("web") == ["server1"]


async def test_a_target_that_cannot_take_it_in_says_why(lab: DrivenAgents) -> None:
    await lab.bench.registered()
    lab.bench.target.ports.broken = "no bridge"
    answer = await lab.ask(do="migrate", vm="web", target="server2")
    assert answer == {"error": "the agent of server2: no bridge"}
    assert list((await lab.vm())["locations"]) == ["server1"]


async def test_a_vm_that_runs_at_the_target_is_not_ended_for_the_sources_error(lab: DrivenAgents) -> None:
    """The source has not heard of it, and stands still."""
    await lab.bench.registered()
    lab.bench.target.hypervisor.script["tell"] = "fails"
    assert "hung up" in (await lab.ask(do="migrate", vm="web", target="server2"))["error"]
    assert lab.bench.world.running("web") == ["server2"]
    assert (await lab.vm())["runs_at"] == "server2"


async def test_lab_tools_ask_over_a_socket_and_mistakes_are_answered(lab: DrivenAgents) -> None:
    await lab.bench.registered()
    path = lab.folder / "vmdriver.sock"
    async with json_lines.serving(path, lab.tools.answer), asyncio.timeout(60):
        reader, writer = await asyncio.open_unix_connection(path)

        async def ask(line: str) -> Any:
            writer.write(line.encode() + b"\n")
            return json.loads(await reader.readline())

        assert (await ask('{"do": "vms"}'))["vms"][0]["id"] == "web"
        for wrong, said in (
            ('{"do": "guest", "vm": "db"}', "there is no VM 'db'; there are: web"),
            ('{"do": "serial", "vm": "db"}', "there is no VM 'db'"),
            ('{"do": "migrate", "vm": "db"}', "there is no VM 'db'"),
            ('{"do": "dance"}', "migrate, vms, guest or serial"),
            ("{", "truncated"),
            ('{"do": 5}', "str"),
            ('{"do": "vms", "more": 1}', "unknown field"),
        ):
            assert said in (await ask(wrong))["error"]
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    assert not path.exists()


@pytest.mark.parametrize("said", [b"", b"nonsense\n", b"\xff\n"])
async def test_an_agent_that_hangs_up_or_talks_nonsense_is_named(tmp_path: Path, said: bytes) -> None:
    path = tmp_path / "odd.sock"
    agents = Agents({"server9": path})

    async def odd(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(said)
        writer.close()

    async with await asyncio.start_unix_server(odd, path):
        assert await Tools(agents).answer(b'{"do": "vms"}') == {"vms": []}
        with pytest.raises(RequestError, match="the agent of server9 does not answer"):
            await agents.ask("server9", do="vms")
