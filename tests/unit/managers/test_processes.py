"""Both managers as processes, on this machine, and a domain's controller that speaks to them over TLS."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from retinue.controller.api.managers import ManagersLink
from retinue.controller.config_tables import ManagersTable
from retinue.controller.mobility import managers as client_side
from retinue.core.migration import MigrationState as S
from retinue.core.model import VM
from retinue.core.placement import Wish
from support.fabric.domains import nic, server_of
from support.fabric.two_controllers import VM_ID, TwoDomains, two_domains
from support.pki_files import Certificates
from support.recent_events import recent

LIMIT, LONG = 0.5, 60.0
"""Seconds in which a manager is to answer here: one that hangs, and one that may be slow."""


@pytest.fixture
async def domains() -> AsyncIterator[TwoDomains]:
    async with two_domains() as made:
        vm = VM(VM_ID, (nic("a", 1),), server_of("a", 1), memory_mib=128)
        made.controller("a").inventory.register_vms([vm])
        made.plug("a", server_of("a", 1))
        await made.fakes["a"].settle()
        yield made


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("pki"))


@contextlib.contextmanager
def running(folder: Path, noun: str, config: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """It listens inside the context."""
    file = folder / f"{noun}.toml"
    file.write_text(config)
    argv = [sys.executable, "-m", "retinue.cli.main", noun, "run", "--config", str(file)]
    with (folder / f"{noun}.log").open("wb") as log, subprocess.Popen(argv, stderr=log) as process:
        try:
            deadline = time.monotonic() + 60
            while not listens(port):
                assert process.poll() is None, (folder / f"{noun}.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            assert process.wait(20) == 0, (folder / f"{noun}.log").read_text()


def listens(port: int) -> bool:
    """By the kernel's table: to connect would be one more stranger."""
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A" for row in rows)


def tls(pki: Certificates, party: str) -> str:
    certificate, key = pki.files(party)
    return f'[tls]\nca = "{pki.authority.ca}"\ncertificate = "{certificate}"\nkey = "{key}"\n'


async def test_they_decide_while_they_are_there_and_are_filled_anew_when_they_are_back(
    tmp_path: Path, domains: TwoDomains, pki: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_side, "FILL_LIMIT", LONG)
    monkeypatch.setattr(client_side, "DECIDE_LIMIT", LONG)
    mobility_at, resources_at = 20000 + os.getpid() % 10000 * 2, 20001 + os.getpid() % 10000 * 2
    door = f'[[domain]]\nid = "a"\nlisten = "127.0.0.1:{resources_at}"\nca = "{pki.authority.ca}"\n'
    resource = tls(pki, "mobility/r1") + door
    asks = f'listen = "127.0.0.1:{mobility_at}"\nresources = "https://127.0.0.1:{resources_at}"\n'
    a = domains.controller("a")
    table = ManagersTable(f"https://127.0.0.1:{mobility_at}", f"https://127.0.0.1:{resources_at}")
    link = ManagersLink(table, (pki.authority.ca, *pki.files("controller/c1")), a)
    managers = a.mobility.deciding.managers
    assert managers is not None

    async def goes(to: int, decided_by: str) -> None:
        assert (await a.mobility.migrate(VM_ID, Wish())).target == server_of("a", to)
        await domains.until("a", S.DONE)
        assert recent(a.events, "mobility.decision", 100)[-1].data["by"] == decided_by

    def said() -> list[str]:
        found = [event.data for event in recent(a.events, "mobility.manager", 100)]
        return [f"{one['manager']} {one['state']}" for one in found]

    try:
        with running(tmp_path, "mobility", asks + tls(pki, "mobility/m1"), mobility_at):
            with running(tmp_path, "resource", resource, resources_at) as process:
                await managers.look()
                assert said() == ["resources there", "mobility there"]
                await goes(2, "mobility")
                process.send_signal(signal.SIGSTOP)
                monkeypatch.setattr(client_side, "FILL_LIMIT", LIMIT)
                began = time.monotonic()
                await goes(1, "controller")
                assert said()[2:] == ["resources away"]
                assert time.monotonic() - began >= LIMIT
            monkeypatch.setattr(client_side, "FILL_LIMIT", LONG)
            with running(tmp_path, "resource", resource, resources_at):
                await managers.look()
                await goes(2, "mobility")
                assert said()[2:] == ["resources away", "resources there"]
        assert "managers.decided" in (tmp_path / "mobility.log").read_text()
        assert "managers.filled" in (tmp_path / "resource.log").read_text()
    finally:
        await link.stop()


def test_one_with_anothers_certificate_does_not_start(tmp_path: Path, pki: Certificates) -> None:
    file = tmp_path / "mobility.toml"
    asks = 'listen = "127.0.0.1:1"\nresources = "https://127.0.0.1:2"\n'
    file.write_text(asks + tls(pki, "agent/server1"))
    argv = [sys.executable, "-m", "retinue.cli.main", "mobility", "run", "--config", str(file)]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert (
        "is a certificate of role agent; `retinue pki issue mobility NAME --address ADDRESS`" in ended.stderr
    )
