"""What an agent leaves of its QEMUs, however it ends, and what the next one makes of it: real processes,
which look like QEMU (support/fakes/qemu.py)."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from retinue.core.model import Ending
from retinue.host import open_files
from retinue.host.errors import HostError
from retinue.hypervisor import (
    Event,
    Exited,
    HypervisorError,
    Left,
    NICSpec,
    QemuHypervisor,
    QemuMachine,
    RunState,
    StartedAnew,
    VMSpec,
    ignore,
)
from retinue.hypervisor.qemu import notes
from retinue.hypervisor.qemu.process import birth
from support.fakes import qemu as fake

PROGRAM = str(Path(fake.__file__))
MAC = "52:54:00:00:00:01"
WORDS = {".console", ".log"}


def spec(id: str = "vm1", append: str = "") -> VMSpec:
    return VMSpec(id, MAC, f"tap-{id}", Path("/k"), Path("/i"), append)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "vms"
    for pids in notes.find_processes(tmp_path / "vms").values():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def hypervisor(folder: Path) -> QemuHypervisor:
    # Not by its first line: what stands for python3 there may be a program with processes of its own.
    return QemuHypervisor(folder, (sys.executable,), binary=PROGRAM)


@pytest.fixture
async def agent(folder: Path) -> AsyncIterator[QemuHypervisor]:
    yield hypervisor(folder)


async def taken_up(folder: Path) -> Left[QemuMachine]:
    return await hypervisor(folder).adopt(lambda vm: ignore)


def suffixes(folder: Path) -> set[str]:
    return {path.suffix for path in folder.iterdir()}


KILLED_AT = ("write", "make_readable_by_us_alone", "spawn", "write again", "connect", "never")
"""What the agent that is killed has not done, or not to its end."""
STORY = """
import asyncio, os, sys
from pathlib import Path
from qemu.qmp import QMPClient
from retinue.hypervisor.qemu import hypervisor as module
from test_left_over import hypervisor, spec

folder, moment, kind = sys.argv[1:]
calls = 0

def killed(*_, **__):
    os._exit(9)

def second(*arguments):
    global calls
    calls += 1
    if calls == 2:
        os._exit(9)
    return first(*arguments)

match moment:
    case "write" | "make_readable_by_us_alone":
        setattr(module.notes, moment, killed)
    case "spawn":
        module.spawn = killed
    case "write again":
        first, module.notes.write = module.notes.write, second
    case "connect":
        QMPClient.connect = killed

async def main():
    made = hypervisor(Path(folder))
    await (made.start if kind == "start" else made.open_target)(spec())
    os._exit(9)

asyncio.run(main())
"""


def agent_killed_at(folder: Path, moment: str, kind: str) -> None:
    here = Path(__file__)
    paths = os.pathsep.join(map(str, (here.parent, here.parents[3])))
    argv = [sys.executable, "-c", STORY, str(folder), moment, kind]
    done = subprocess.run(argv, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, check=False)
    assert done.returncode == 9, done.stderr.decode()


@pytest.mark.parametrize("kind", ["start", "open_target"])
@pytest.mark.parametrize("moment", KILLED_AT)
async def test_whenever_an_agent_is_killed_the_next_one_adopts_or_clears(
    folder: Path, moment: str, kind: str
) -> None:
    agent_killed_at(folder, moment, kind)
    left = await taken_up(folder)
    running = notes.find_processes(folder)
    adopted = [machine.spec.id for machine in left.machines]
    if kind == "start" and adopted:
        assert adopted == ["vm1"] and len(running) == 1
        assert await left.machines[0].state() is RunState.RUNNING
        await left.machines[0].quit()
    assert notes.find_processes(folder) == {}, "no QEMU that nobody knows"
    if folder.exists():
        assert suffixes(folder) <= WORDS
    if moment in ("never", "connect"):
        assert bool(adopted) == (kind == "start") or moment == "connect"
    assert left.ended == {}
    # And the VM can be started, and come in.
    made = hypervisor(folder)
    for machine in (await made.start(spec()), await made.open_target(spec())):
        await machine.quit()


async def test_a_qemu_that_was_about_to_be_cancelled_is_scheduled_as_ever(
    folder: Path, agent: QemuHypervisor
) -> None:
    """The agent before has ended just then (QemuMachine.cancel_migration)."""
    machine = await agent.start(spec())
    pid = machine.process.pid
    with machine.process.uninterrupted():
        if os.sched_getscheduler(pid) == os.SCHED_OTHER:
            pytest.skip("this user may not order that")
        await machine.let_go()
        (found,) = (await taken_up(folder)).machines
        assert os.sched_getscheduler(pid) == os.SCHED_OTHER
    # What an operator has ordered is the operator's.
    os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(1))
    await found.let_go()
    (found,) = (await taken_up(folder)).machines
    assert os.sched_getscheduler(pid) == os.SCHED_RR
    await found.quit()


async def test_a_qemu_without_a_readable_note_is_ended(folder: Path, agent: QemuHypervisor) -> None:
    for damage in (Path.unlink, lambda note: note.write_text('{"spec":')):
        machine = await agent.start(spec())
        await machine.let_go()
        damage(machine.files.note)
        left = await taken_up(folder)
        assert (left.machines, notes.find_processes(folder)) == ([], {})
        assert suffixes(folder) <= WORDS


async def test_a_qemu_that_does_not_answer_is_ended(
    folder: Path, agent: QemuHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinue.hypervisor.qemu.hypervisor.ANSWER_LIMIT", 0.2)
    machine = await agent.start(spec())
    await machine.let_go()
    os.kill(machine.process.pid, signal.SIGSTOP)
    left = await taken_up(folder)
    assert (left.machines, notes.find_processes(folder)) == ([], {})


async def test_a_qemu_that_greets_and_then_answers_nothing_is_ended(
    folder: Path, agent: QemuHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinue.hypervisor.monitor.COMMAND_LIMIT", 0.2)
    machine = await agent.start(spec(append="idle"))
    await machine.let_go()
    left = await taken_up(folder)
    assert (left.machines, notes.find_processes(folder)) == ([], {})


async def test_what_somebody_had_begun_to_end_is_not_taken_up(folder: Path, agent: QemuHypervisor) -> None:
    machine = await agent.start(spec())
    machine.write_down(ending=True)
    await machine.let_go()
    left = await taken_up(folder)
    assert (left.machines, left.ended, notes.find_processes(folder)) == ([], {}, {})


async def test_one_that_tells_an_event_as_it_is_asked_first_is_taken_up(
    folder: Path, agent: QemuHypervisor
) -> None:
    """It is in a migration, say. The library takes that for the answer; the VM would have been ended."""
    machine = await agent.start(spec(append="chatty"))
    await machine.let_go()
    (found,) = (await taken_up(folder)).machines
    assert found.process.pid == machine.process.pid
    await found.quit()


async def test_the_process_of_another_is_not_taken_for_ours(folder: Path, agent: QemuHypervisor) -> None:
    machine = await agent.start(spec())
    machine.write_down(pid=os.getpid(), born="1")
    await machine.let_go()
    (found,) = (await taken_up(folder)).machines
    assert found.process.pid == machine.process.pid, "it is looked for"
    await found.quit()
    assert birth(os.getpid())


# ---- how a VM has ended ----


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def ended(events: list[Event]) -> Exited:
    await until(lambda: events and isinstance(events[-1], Exited))
    last = events[-1]
    assert isinstance(last, Exited)
    return last


async def test_a_vm_that_is_switched_off_ends_as_such(folder: Path, agent: QemuHypervisor) -> None:
    events: list[Event] = []
    machine = await agent.start(spec(), events.append)
    await machine.press_power()
    assert (await ended(events)).how is Ending.OFF
    assert notes.find_processes(folder) == {}
    assert (await taken_up(folder)).ended == {"vm1": Ending.OFF}, "until somebody has been told"
    agent.end_is_reported(spec())
    assert (await taken_up(folder)).ended == {}
    assert suffixes(folder) <= WORDS


async def test_a_vm_whose_power_is_cut_is_off(agent: QemuHypervisor) -> None:
    events: list[Event] = []
    machine = await agent.start(spec(append="deaf"), events.append)
    await machine.press_power()
    await machine.cut_power()
    assert (await ended(events)).how is Ending.OFF


async def test_a_vm_whose_qemu_is_killed_has_crashed(folder: Path, agent: QemuHypervisor) -> None:
    events: list[Event] = []
    machine = await agent.start(spec(), events.append)
    os.kill(machine.process.pid, signal.SIGKILL)
    end = await ended(events)
    assert end.how is Ending.CRASHED and "QEMU has ended" in end.reason
    assert ".qmp" not in suffixes(folder) and ".shell" not in suffixes(folder)
    assert (await taken_up(folder)).ended == {"vm1": Ending.CRASHED}


async def test_a_qemu_that_has_just_ended_is_given_nothing_and_that_is_said(agent: QemuHypervisor) -> None:
    """A target is given its monitor to keep: who has it made takes no other error for its answer."""
    events: list[Event] = []
    machine = await agent.open_target(spec(), events.append)
    machine.kill()
    await ended(events)
    await machine.quit()
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(HypervisorError, match="getfd: QEMU has ended"):
        await machine.give(ours)


async def test_a_guest_that_is_to_reboot_starts_anew_in_the_same_qemu(agent: QemuHypervisor) -> None:
    events: list[Event] = []
    machine = await agent.start(spec(), events.append)
    for begin in (machine.reboot, machine.reset):
        await begin()
        await until(lambda: isinstance(events[-1], StartedAnew))
        async with asyncio.timeout(60):
            while await machine.state() is not RunState.RUNNING:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        events.append(events[0])
    assert machine.alive
    await machine.quit()


async def test_a_vm_that_ended_while_no_agent_ran_has_crashed_or_is_off(
    folder: Path, agent: QemuHypervisor
) -> None:
    crashed, off = await agent.start(spec("vm1")), await agent.start(spec("vm2"))
    for machine in (crashed, off):
        await machine.let_go()
    os.kill(crashed.process.pid, signal.SIGKILL)
    _, writer = await asyncio.open_unix_connection(str(off.files.observer))
    writer.write(b'{"execute": "qmp_capabilities"}\n{"execute": "system_powerdown"}\n')
    await writer.drain()
    note = notes.read(crashed.files.note)
    assert note is not None
    await until(lambda: not notes.is_running(note))
    async with asyncio.timeout(60):
        left = await taken_up(folder)
        while left.machines:  # It has not read that yet.
            await left.machines[0].let_go()
            left = await taken_up(folder)
    writer.close()
    assert left.ended == {"vm1": Ending.CRASHED, "vm2": Ending.OFF}
    assert notes.find_processes(folder) == {}


async def test_a_vm_whose_memory_came_through_the_agent_that_ended_has_crashed(
    folder: Path, agent: QemuHypervisor
) -> None:
    machine = await agent.start(spec(append="lacks"))
    await machine.let_go()
    left = await taken_up(folder)
    assert (left.machines, left.ended) == ([], {"vm1": Ending.CRASHED})
    assert notes.find_processes(folder) == {}


async def waiting_for_a_page(agent: QemuHypervisor) -> QemuMachine:
    """It came by post-copy, and answers nothing in band any more."""
    machine = await agent.open_target(spec(append="waits"))
    await machine.expect_postcopy()
    machine.write_down(incoming=False)
    await machine.execute("cont")
    return machine


async def recover(machine: QemuMachine) -> None:
    await machine.command("migrate-recover", {"uri": "unix:/nowhere"}, out_of_band=True)


async def test_a_qemu_that_waits_for_a_page_is_spoken_to_by_the_monitor_it_has_kept(
    folder: Path, agent: QemuHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one agent after the other, whatever the one before was about to ask or to read."""
    monkeypatch.setattr("retinue.hypervisor.qemu.hypervisor.HANGS_LIMIT", 0.2)
    machine = await waiting_for_a_page(agent)
    for _ in range(3):
        asked = asyncio.gather(*(machine.execute("query-migrate") for _ in range(8)), return_exceptions=True)
        await asyncio.sleep(0)
        note = notes.read(machine.files.note)
        assert note is not None and note.monitor
        await machine.let_go()
        await asked
        with open_files.socket_of(machine.process.pid, note.monitor) as end:
            end.send(b'{"exec-oob": "query-yank", "id": "__qmp#00003"}\n')
            end.settimeout(60)
            end.recv(7)  # And has read a part of a line.
        left = await taken_up(folder)
        assert (left.lacking, left.ended) == ({"vm1"}, {})
        (machine,) = left.machines
    await recover(machine)
    assert await machine.state() is RunState.RUNNING, "no other question's answer"
    await machine.lacks_nothing()
    note = notes.read(machine.files.note)
    assert note is not None and not note.monitor
    inode = machine._ours and os.fstat(machine._ours.fileno()).st_ino
    with pytest.raises(HostError, match="has no socket"):  # An agent's end is the monitor's, as ever.
        open_files.socket_of(machine.process.pid, inode or 0)
    await machine.quit()


async def test_a_target_that_has_not_run_is_ended_also_where_it_waits_for_a_page(
    folder: Path, agent: QemuHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinue.hypervisor.qemu.hypervisor.ANSWER_LIMIT", 0.2)
    machine = await waiting_for_a_page(agent)
    machine.write_down(incoming=True)
    await machine.let_go()
    left = await taken_up(folder)
    assert (left.machines, left.lacking, left.ended) == ([], set(), {})
    assert notes.find_processes(folder) == {}


async def test_a_target_that_was_about_to_run_and_does_not_has_not_crashed(
    folder: Path, agent: QemuHypervisor
) -> None:
    """Its source may run it again."""
    machine = await agent.open_target(spec(append="lacks"))
    await machine.expect_postcopy()
    machine.write_down(incoming=False)
    await machine.let_go()
    left = await taken_up(folder)
    assert (left.machines, left.lacking, left.ended) == ([], set(), {})
    assert notes.find_processes(folder) == {}


async def test_a_monitor_that_cannot_be_had_any_more_is_done_without(
    folder: Path, agent: QemuHypervisor
) -> None:
    machine = await agent.start(spec())
    machine.write_down(monitor=1)
    await machine.let_go()
    (found,) = (await taken_up(folder)).machines
    assert await found.state() is RunState.RUNNING
    await found.quit()


async def test_a_vm_that_runs_elsewhere_with_memory_still_here_is_no_vm_of_ours(
    folder: Path, agent: QemuHypervisor
) -> None:
    machine = await agent.start(spec(append="rest"))
    assert await machine.state() is RunState.MOVED
    await machine.let_go()
    (again,) = (await taken_up(folder)).machines
    assert await again.state() is RunState.MOVED
    await again.quit()


async def test_a_vm_of_an_earlier_boot_has_not_crashed(folder: Path, agent: QemuHypervisor) -> None:
    machine = await agent.start(spec())
    machine.write_down(boot="another")
    await machine.let_go()
    os.kill(machine.process.pid, signal.SIGKILL)
    await until(lambda: not notes.find_processes(folder))
    assert (await taken_up(folder)).ended == {}


# ---- files ----


async def test_files_of_machines_that_have_ended_go(folder: Path, agent: QemuHypervisor) -> None:
    for _ in range(5):
        machine = await agent.start(spec())
        await machine.quit()
        target = await agent.open_target(spec())
        await target.quit()
    assert suffixes(folder) == {".console"}
    assert len(list(folder.iterdir())) <= 1 + notes.ENDED_KEPT
    other = await agent.start(spec("vm2"))
    agent.forget(spec())
    assert {path.stem for path in folder.iterdir()} == {other.files.name}
    agent.forget_all_but([])
    assert {path.stem for path in folder.iterdir()} == {other.files.name}, "it runs"
    await other.quit()
    agent.forget_all_but([])
    assert list(folder.iterdir()) == []


async def test_a_link_that_was_taken_down_comes_up_whatever_happens(
    agent: QemuHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = await agent.start(spec())
    links: list[bool] = []
    down = asyncio.Event()

    async def execute(self: QemuMachine, command: str, *, name: str, up: bool) -> None:
        assert (command, name) == ("set_link", "nic0")
        links.append(up)
        down.set()

    with monkeypatch.context() as patch:
        patch.setattr(QemuMachine, "execute", execute)
        await machine.flap_link()
        assert links == [False, True]
        down.clear()
        flapping = asyncio.create_task(machine.flap_link())
        await down.wait()
        flapping.cancel()
        await asyncio.wait({flapping})
    assert links == [False, True] * 2
    await machine.quit()


async def test_no_link_stays_down_where_another_could_not_be_taken_down(
    agent: QemuHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = await agent.start(spec())
    is_up: dict[str, bool] = {}

    async def execute(self: QemuMachine, command: str, *, name: str, up: bool) -> None:
        if name != "nic0":
            raise HypervisorError(f"there is no {name}")
        is_up[name] = up

    with monkeypatch.context() as patch:
        patch.setattr(QemuMachine, "execute", execute)
        machine.write_down(spec=replace(spec(), more_nics=(NICSpec("b", "52:54:00:00:00:02", "vb", 2),)))
        with pytest.raises(HypervisorError, match="there is no nic2"):
            await machine.flap_link()
    assert is_up == {"nic0": True}
    await machine.quit()


async def test_a_qemu_that_does_not_come_up_leaves_its_last_words_alone(
    folder: Path, agent: QemuHypervisor
) -> None:
    broken = QemuHypervisor(folder, binary="/bin/false")
    with pytest.raises(HypervisorError, match="did not come up"):
        await broken.start(spec())
    with pytest.raises(HypervisorError, match="cannot be started"):
        await QemuHypervisor(folder, binary="/nowhere/qemu").start(spec())
    for mtu, why in ((1500, "/nowhere/qemu"), (9000, "mtu 9000` failed")):
        with pytest.raises(HypervisorError, match=why):
            await QemuHypervisor(folder, binary="/nowhere/qemu").start(replace(spec(), mtu=mtu))
    assert suffixes(folder) <= WORDS


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_nobody_else_reads_consoles_logs_and_notes(
    folder: Path, agent: QemuHypervisor, umask: int
) -> None:
    before = os.umask(umask)
    try:
        machine = await agent.start(spec())
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    for path in (machine.files.serial_log, machine.files.log, machine.files.note):
        assert path.stat().st_mode & 0o777 == 0o600, path
    await machine.quit()
