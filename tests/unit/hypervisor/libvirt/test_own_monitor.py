"""A monitor of ours beside libvirt's: a real process, which looks like QEMU (support/fakes/qemu.py)."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from retinue.hypervisor import HypervisorError, VMSpec
from retinue.hypervisor.libvirt import own_monitor
from retinue.hypervisor.libvirt.directory import Folder
from retinue.hypervisor.libvirt.domain_xml import MONITOR, QEMU_NAMESPACE, domain_xml
from retinue.hypervisor.monitor import EXITED, EventQueue
from support.fakes import qemu as fake

VM = "00000000-0000-4000-8000-000000000001"
LIMIT = 60.0
Starts = Callable[..., int]


@pytest.fixture
def folder() -> Iterator[Folder]:
    with tempfile.TemporaryDirectory(prefix="retinue-") as short:  # A socket's path has a limit.
        made = Folder(Path(short), Path(short))
        made.make()
        yield made


@pytest.fixture
def started(folder: Folder) -> Iterator[Starts]:
    """Starts a QEMU with such a monitor."""
    running: list[subprocess.Popen[bytes]] = []

    def start(how: str = "") -> int:
        ours, theirs = socket.socketpair()
        monitor = f"unix:{folder.files(VM).observer},server=on,wait=off"
        control = f"socket,id=control,fd={theirs.fileno()}"
        words = ("-chardev", control, "-qmp", monitor, "-append", how)
        running.append(
            subprocess.Popen([sys.executable, str(Path(fake.__file__)), *words], pass_fds=[theirs.fileno()])
        )
        with theirs, ours:
            ours.recv(1000)  # It greets us: it listens.
        return running[-1].pid

    yield start
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()


async def test_an_agent_that_comes_after_is_answered_out_of_band_by_a_qemu_that_waits_for_a_page(
    folder: Folder, started: Starts
) -> None:
    pid = started("waits")
    async with asyncio.timeout(LIMIT):
        first = await own_monitor.opened(folder, VM)
        assert first is not None
        await first.keep()
        await first.execute("cont")
        await first.close(is_left=True)
        assert own_monitor.may_be_left(folder, VM)
        second = await own_monitor.left(folder, VM, {"tap": os.getpid(), "tap2": pid})
        assert second is not None
        waits = asyncio.create_task(second.execute("query-status"))
        await second.command("migrate-recover", {"uri": f"unix:{second.rest_seen}"}, out_of_band=True)
        assert (await waits)["running"]
        await second.close()
        while own_monitor.may_be_left(folder, VM):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        third = await own_monitor.opened(folder, VM)
        assert third is not None, "it is free again"
        await third.close()


async def test_where_there_is_none_or_it_says_nothing_libvirt_is_asked(
    folder: Folder, started: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await own_monitor.opened(folder, VM) is None
    assert not own_monitor.may_be_left(folder, VM)
    monkeypatch.setattr(own_monitor, "OPEN_LIMIT", 0.2)
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(folder.files(VM).observer))
        busy.listen()
        assert await own_monitor.opened(folder, VM) is None
    assert await own_monitor.left(folder, VM, {"tap": os.getpid()}) is None


async def test_that_its_qemu_has_ended_is_told(folder: Folder, started: Starts) -> None:
    pid = started()
    events: EventQueue = asyncio.Queue()
    async with asyncio.timeout(LIMIT):
        monitor = await own_monitor.opened(folder, VM)
        assert monitor is not None
        with monitor.events_into(events):
            os.kill(pid, signal.SIGKILL)
            while (await events.get())[1]["event"] != EXITED:
                pass
        with pytest.raises(HypervisorError, match="QEMU has ended"):
            await monitor.execute("query-status")
        await monitor.close()


def test_a_vm_that_may_move_by_post_copy_is_made_with_one(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "a,b", tmp_path)
    spec = VMSpec(VM, "52:54:00:00:00:01", "tap", Path("/k"), Path("/i"))

    def words(*, monitor: bool = False) -> list[str]:
        domain = ElementTree.fromstring(domain_xml(spec, folder.consoles(VM), kind="kvm", monitor=monitor))
        return [arg.get("value", "") for arg in domain.iter(f"{{{QEMU_NAMESPACE}}}arg")]

    assert words() == []
    path = f"{tmp_path}/a,,b/{VM}.qmp"
    where = f"socket,id={MONITOR},path={path},server=on,wait=off"
    assert words(monitor=True) == ["-chardev", where, "-mon", f"chardev={MONITOR},mode=control"]
