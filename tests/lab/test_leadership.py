"""Who is active, by a real ovsdb-server: taking over, stealing, a killed server, a zombie's writes."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from retinue.controller.leadership.election import Election, guard
from retinue.controller.leadership.mandate import Mandate, since_boot
from retinue.controller.state import Word
from retinue.controller.store import Database, StoreError
from retinue.controller.store.members import Members
from retinue.controller.store.schema import schema

pytestmark = [pytest.mark.lab, pytest.mark.no_vms]

SECONDS = 2.0
"""A mandate's, here."""
PATIENCE = 60.0


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Server:
    """An ovsdb-server of one file, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.endpoint = f"unix:{folder}/db.sock"
        declared = folder / "retinue.ovsschema"
        declared.write_text(json.dumps(schema()))
        subprocess.run(["ovsdb-tool", "create", str(folder / "retinue.db"), str(declared)], check=True)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *("ovsdb-server", str(self.folder / "retinue.db"), f"--remote=p{self.endpoint}"),
            *(f"--unixctl={self.folder}/control.sock", "-vconsole:off", "-vsyslog:off"),
        )

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()


class Party:
    """One controller's part in the election."""

    def __init__(self, name: str, server: Server) -> None:
        self.mandate = Mandate(SECONDS)
        self.members = Members([server.endpoint])
        self.election = Election(self.members, name, f"https://{name}", self.mandate)
        self.task = asyncio.create_task(self.election.run())

    async def active(self) -> int:
        """Wait until it is; its epoch."""
        await until(lambda: self.election.is_active)
        assert self.election.active is not None
        return self.election.active.epoch

    async def hears(self) -> None:
        """Wait until it has heard the active one over its connection, and so has asked for the lock."""
        await until(lambda: self.election.active is not None)
        beat = self.beat
        await until(lambda: self.beat >= beat + 2)

    @property
    def beat(self) -> int:
        return 0 if self.election.active is None else self.election.active.beat

    async def die(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    def freeze(self, patch: pytest.MonkeyPatch) -> asyncio.Event:
        """It does nothing any more, its connections stand: as after SIGSTOP. Set the event: it goes on."""
        on = asyncio.Event()
        beat = self.election._beat

        async def stopped(connection: object) -> None:
            await on.wait()
            await beat(connection)  # type: ignore[arg-type]

        patch.setattr(self.election, "_beat", stopped)
        return on


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    made = Server(tmp_path)
    await made.start()
    yield made
    await made.kill()


@pytest.fixture
async def party(server: Server) -> AsyncIterator[Callable[[str], Party]]:
    made: list[Party] = []

    def make(name: str) -> Party:
        made.append(Party(name, server))
        return made[-1]

    yield make
    for one in made:
        await one.die()


async def test_the_lock_is_free_at_once_when_its_owner_dies(party: Callable[[str], Party]) -> None:
    first = party("first")
    assert await first.active() == 1
    second = party("second")
    await second.hears()
    assert not second.election.is_active
    began = since_boot()
    await first.die()
    assert await second.active() == 2
    print(f"taken over {1000 * (since_boot() - began):.1f} ms after the end of the first")
    again = party("first")
    await again.hears()
    assert (again.election.is_active, again.mandate.epoch) == (False, 2)


async def test_of_several_that_want_it_one_has_it(party: Callable[[str], Party]) -> None:
    parties = [party(f"c{n}") for n in range(4)]
    await until(lambda: any(one.election.is_active for one in parties))
    for one in parties:
        if not one.election.is_active:
            await one.hears()
    assert [one.election.is_active for one in parties].count(True) == 1
    assert {one.election.active and one.election.active.epoch for one in parties} == {1}


async def test_one_that_is_silent_is_robbed_and_finds_its_mandate_over(
    party: Callable[[str], Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = party("first")
    await first.active()
    second = party("second")
    await second.hears()
    go_on = first.freeze(monkeypatch)
    epoch = await second.active()
    assert epoch == 2
    assert first.election.is_active, "it has had no chance to find out"
    assert not first.mandate.holds(), "and yet may say nothing to a switch"
    go_on.set()
    await until(lambda: not first.election.is_active)
    assert second.election.is_active
    assert not first.mandate.holds()


async def test_after_the_server_was_killed_the_active_one_is_still_it(
    party: Callable[[str], Party], server: Server
) -> None:
    first = party("first")
    await first.active()
    second = party("second")
    await second.hears()
    await server.kill()
    await server.start()
    await second.hears()
    assert (first.election.is_active, second.election.is_active) == (True, False)
    assert first.mandate.epoch == 1
    await first.die()
    assert await second.active() == 2, "and the lock is as it was"


async def test_without_the_database_the_mandate_ends_and_nobody_takes_over(
    party: Callable[[str], Party], server: Server
) -> None:
    first = party("first")
    await first.active()
    second = party("second")
    await second.hears()
    await server.kill()
    await until(lambda: not first.mandate.holds())
    assert (first.election.is_active, second.election.is_active) == (True, False)
    await server.start()
    await until(first.mandate.holds)
    assert first.mandate.epoch == 1


async def test_not_one_row_of_one_that_was_overtaken_gets_in(
    party: Callable[[str], Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = party("first")
    epoch = await first.active()
    deposed: list[str] = []
    store = Database(deposed=deposed.append)
    store.guard(guard(epoch))
    await store.start(first.members)
    store.put(Word("before", "first", 1.0))
    await store.flush()
    second = party("second")
    await second.hears()
    go_on = first.freeze(monkeypatch)
    await second.active()
    store.put(Word("after", "first", 2.0))
    with pytest.raises(StoreError, match="another controller"):
        await store.flush()
    assert len(deposed) == 1
    theirs = Database()
    theirs.guard(guard(2))
    await theirs.start(second.members)
    assert [word.about for word in (await theirs.load()).words] == ["before"]
    go_on.set()
    for one in (store, theirs):
        with contextlib.suppress(StoreError):
            await one.stop()


class Cluster:
    """Three members (Raft) over TCP on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.endpoints = [f"unix:{folder}/{n}.sock" for n in range(3)]
        declared = folder / "retinue.ovsschema"
        declared.write_text(json.dumps(schema()))
        at = [f"tcp:127.0.0.1:{port}" for port in free_ports(3)]
        tool = ["ovsdb-tool", "--election-timer=2000"]
        subprocess.run([*tool, "create-cluster", str(folder / "0.db"), str(declared), at[0]], check=True)
        for n in (1, 2):
            joins = ["join-cluster", str(folder / f"{n}.db"), "Retinue", at[n], at[0]]
            subprocess.run(["ovsdb-tool", *joins], check=True)
        self.members: dict[int, asyncio.subprocess.Process] = {}

    async def start(self, n: int) -> None:
        self.members[n] = await asyncio.create_subprocess_exec(
            *("ovsdb-server", str(self.folder / f"{n}.db"), f"--remote=p{self.endpoints[n]}"),
            *(f"--unixctl={self.folder}/{n}.control", "-vconsole:off", "-vsyslog:off"),
        )

    async def joined(self, n: int) -> None:
        """Return when it is in contact with the others: until all are, fewer may die."""
        while not Path(f"{self.folder}/{n}.sock").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        argv = ["ovsdb-client", f"--timeout={PATIENCE:.0f}", "wait", self.endpoints[n]]
        waiting = await asyncio.create_subprocess_exec(*argv, "Retinue", "connected")
        assert await waiting.wait() == 0

    async def leader(self) -> int:
        """Of those that answer, once there is one."""
        while True:
            for n in self.members:
                argv = [
                    "ovs-appctl",
                    "-T",
                    "1",
                    "-t",
                    f"{self.folder}/{n}.control",
                    "cluster/status",
                    "Retinue",
                ]
                asked = await asyncio.create_subprocess_exec(
                    *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
                )
                said, _ = await asked.communicate()
                if b"Role: leader" in said:
                    return n
            await asyncio.sleep(0.1)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in found]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    for n in range(3):
        await made.start(n)
        await made.joined(n)
    yield made
    for process in made.members.values():
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_a_leader_that_is_killed_or_stopped_is_left_and_nobody_takes_over(
    cluster: Cluster, number: signal.Signals
) -> None:
    """Writes go on by the next leader, within the mandate; the active one stays it."""
    elections = []
    for name in ("first", "second"):
        elections.append(Election(Members(cluster.endpoints), name, f"https://{name}", Mandate(20.0)))
    first, second = elections
    tasks = [asyncio.create_task(first.run())]
    store = Database()
    try:
        await until(lambda: first.is_active)
        tasks.append(asyncio.create_task(second.run()))
        await until(lambda: second.active is not None)
        store.guard(guard(1))
        await store.start(Members(cluster.endpoints))
        first.moved = store.leave
        leader = await cluster.leader()
        cluster.members[leader].send_signal(number)
        began = since_boot()
        store.put(Word("after", "first", 1.0))
        await store.flush(PATIENCE)
        print(f"leader {number.name}: written {since_boot() - began:.1f} s later")
        await until(lambda: first.report()["database"] not in ("", cluster.endpoints[leader]))
        await until(lambda: second.report()["database"] == first.report()["database"])
        assert (first.is_active, second.is_active) == (True, False)
        assert first.mandate.epoch == 1
        for task in tasks[:1]:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await until(lambda: second.is_active)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await store.stop()
