"""The guest's parts that need no machine: its archive, its kernel command line, the talk with its shell."""

import asyncio
import base64
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from retinue_lab.guest import image, initrd
from retinue_lab.guest.image import GuestError, _depends, cache, command_line, ensure_guest
from retinue_lab.guest.shell import GuestShell, GuestShellError, console_line


def test_the_archive_is_one_that_cpio_reads(tmp_path: Path) -> None:
    entries = [
        initrd.directory("bin"),
        initrd.program("bin/one", b"#!/bin/sh\necho one\n"),
        initrd.file("empty", b""),
        initrd.file("odd", b"12345"),
    ]
    data = initrd.archive(entries)
    subprocess.run(["cpio", "-i", "--quiet"], input=data, cwd=tmp_path, check=True)
    assert (tmp_path / "bin" / "one").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "odd").read_bytes() == b"12345"
    assert (tmp_path / "empty").read_bytes() == b""
    assert initrd.archive(entries) == data
    listed = subprocess.run(
        ["cpio", "-tv", "--quiet"],
        input=initrd.archive([initrd.character_device("dev/console", 5, 1)]),
        capture_output=True,
        check=True,
    )
    assert listed.stdout.startswith(b"crw-------")
    assert b"5,   1" in listed.stdout


def test_a_guest_has_no_ipv6_unless_asked() -> None:
    assert "ipv6.disable=1" in command_line().split()
    assert "ip=dhcp" in command_line().split()
    assert "ipv6.disable=1" not in command_line(ipv6=True)
    words = command_line("10.1.0.50/24,10.1.0.254", address6="2001:db8::5/64", hostname="web").split()
    assert {"ip=10.1.0.50/24,10.1.0.254", "ip6=2001:db8::5/64", "hostname=web"} <= set(words)
    assert "ipv6.disable=1" not in words


def test_what_a_module_needs_is_read_from_it() -> None:
    module = b"\x7fELF..\0license=GPL\0depends=virtio,net-failover\0retpoline=Y\0"
    assert list(_depends(module)) == ["virtio", "net_failover"]
    assert list(_depends(b"x\0depends=\0y")) == []
    assert list(_depends(b"nothing")) == []


def test_apt_is_asked_for_the_kernel_again_only_when_what_it_reads_has_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RETINUE_CACHE", str(tmp_path / "cache"))
    lists, status = tmp_path / "lists", tmp_path / "status"
    lists.mkdir()
    status.write_text("one")
    asked: list[str] = []

    def run(argv: Sequence[str], purpose: str, cwd: Path | None = None) -> str:
        asked.append(argv[1])
        return "x\n  Depends: linux-image-7\n" if argv[1] == "depends" else f"Version: 7-{len(asked)}\n"

    def asked_for() -> tuple[str, str]:
        return image._kernel_package("linux-image-x")

    monkeypatch.setattr(image, "_run", run)
    monkeypatch.setattr(image, "APT_READS", (lists, status, tmp_path / "not there"))
    assert asked_for() == asked_for() == ("linux-image-7", "7-2")
    assert asked == ["depends", "show"]
    status.write_text("another one")
    assert asked_for() == asked_for() == ("linux-image-7", "7-4")
    (lists / "packages").touch()
    assert asked_for() == ("linux-image-7", "7-6")
    (tmp_path / "cache" / "kernel-of-linux-image-x").write_text("what is this")
    assert asked_for() == asked_for() == ("linux-image-7", "7-8")


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("RETINUE_CACHE", str(tmp_path / "cache"))
    assert cache() == tmp_path / "cache"
    with pytest.raises(GuestError, match="busybox-static"):
        ensure_guest()


class FakeShellServer:
    """Speaks for the guest's shell; `answer` makes of a command the bytes to send after "begin"."""

    def __init__(self, output: bytes, code: int) -> None:
        self.commands: list[str] = []
        self._output, self._code = output, code

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            if not line.strip():
                continue
            token, _, encoded = line.split()
            self.commands.append(base64.b64decode(encoded).decode())
            writer.write(b"left over\n" + token + b" begin\n" + self._output)
            writer.write(b"\n%s end %d\n" % (token, self._code))
        writer.close()


@pytest.mark.parametrize("output", [b"", b"one line\n", b"two\nlines", b"fake end 3\n"])
async def test_output_and_exit_code_come_back_as_they_were(tmp_path: Path, output: bytes) -> None:
    guest = FakeShellServer(output, 4)
    server = await asyncio.start_unix_server(guest, tmp_path / "shell")
    async with server:
        shell = GuestShell(tmp_path / "shell")
        assert await shell.run("echo 'a\nb'") == (4, output.decode())
    assert guest.commands == ["echo 'a\nb'"]


async def test_a_guest_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(GuestShellError, match="cannot reach"):
        await GuestShell(tmp_path / "none").run("true")


async def test_the_console_is_read_by_whole_lines(tmp_path: Path) -> None:
    console = tmp_path / "console"
    waiting = asyncio.create_task(console_line(console, "RETINUE ADDRESS", timeout=60))
    console.write_text("RETINUE BOOT\r\nRETINUE ADDRESS 10.1")
    done, _ = await asyncio.wait([waiting], timeout=0.1)
    assert not done
    console.write_text("RETINUE BOOT\r\nRETINUE ADDRESS 10.1.0.100\r\n")
    assert await waiting == "RETINUE ADDRESS 10.1.0.100"
    with pytest.raises(GuestShellError, match=r"ADDRESS 10\.1\.0\.100"):
        await console_line(console, "READY", timeout=0)
