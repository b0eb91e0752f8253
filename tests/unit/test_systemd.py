"""What systemd is told of a service, by the real program too."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from retinue import systemd

CONFIG = """
gateway_mac = "00:00:de:ad:be:ef"
[listen]
plaintext = ["openflow", "ovsdb", "rest"]
openflow = "127.0.0.1:0"
ovsdb = "127.0.0.1:0"
rest = "127.0.0.1:0"
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Where systemd listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as here:
        here.bind(str(tmp_path / "notify"))
        here.settimeout(60)
        monkeypatch.setenv(systemd.SOCKET, str(tmp_path / "notify"))
        yield here


def until(told: socket.socket, word: str) -> list[str]:
    said: list[str] = []
    while not said or word not in said[-1]:
        said.append(told.recv(4096).decode())
    return said


async def test_a_service_says_that_it_is_ready_lives_and_ends(
    told: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(systemd.WATCHDOG, "20000")
    async with systemd.ready("it is up"):
        assert told.recv(4096) == b"READY=1\nSTATUS=it is up"
        for _ in range(3):
            assert await asyncio.to_thread(told.recv, 4096) == b"WATCHDOG=1"
    assert until(told, "STOPPING")[-1] == "STOPPING=1"


@pytest.mark.parametrize(("usec", "pid"), [("", ""), ("x", ""), ("20000", "1")])
async def test_nobody_is_told_that_it_lives_who_does_not_ask(
    told: socket.socket, monkeypatch: pytest.MonkeyPatch, usec: str, pid: str
) -> None:
    monkeypatch.setenv(systemd.WATCHDOG, usec)
    if pid:
        monkeypatch.setenv(systemd.PID, pid)
    await asyncio.wait_for(systemd._live(), 60)
    systemd.tell("that was all")
    assert told.recv(4096) == b"that was all"


async def test_without_systemd_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(systemd.SOCKET, raising=False)
    async with systemd.ready("up"):
        pass
    monkeypatch.setenv(systemd.SOCKET, "/nowhere/at/all")
    systemd.tell("READY=1")


def test_the_controller_is_a_service_of_systemd(told: socket.socket, tmp_path: Path) -> None:
    config = tmp_path / "controller.toml"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "retinue.cli.main", "controller", "run", "--config", str(config)]
    watched = os.environ | {systemd.WATCHDOG: "100000"}
    with subprocess.Popen(command, env=watched, stderr=subprocess.PIPE, text=True) as program:
        try:
            assert until(told, "READY=1")[-1].startswith("READY=1\nSTATUS=REST at 127.0.0.1")
            until(told, "WATCHDOG=1")
            program.send_signal(signal.SIGTERM)
            until(told, "STOPPING=1")
            assert program.wait(60) == 0
        finally:
            program.kill()
