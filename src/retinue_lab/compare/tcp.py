"""One TCP bulk stream from the client to the VM, by iperf3, and its longest stall.

iperf3 itself tells only what every tenth of a second brought. The longest stall is therefore taken from the
client's interface (guest/steady.c, `watch`): the longest time in which no frame came in, where else there is
an acknowledgement every millisecond. The guest has no iperf3 of its own: it fetches this machine's, with the
libraries it needs, over the network, into its memory.
"""

import asyncio
import contextlib
import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from retinue_lab.compare.bench import ADDRESS, Bench
from retinue_lab.errors import LabError
from retinue_lab.processes.processes import popen
from retinue_lab.topology.topology import CLIENT

FILES_PORT = 7002
LONGEST_SECONDS = 180
"""More than a migration may take."""
RATE = "40M"
"""Bits a second. Without a limit the lab's switches, which run in user space, lose packets all the time."""
END_LIMIT = 60.0
ALIVE_MS = 1000.0
"""A stream that stalled for so long at the end counts as dead."""

SERVE_FILES = """
import socket, sys
files = sys.stdin.buffer.read()
with socket.create_server(("", int(sys.argv[1]))) as listener:
    print("open", flush=True)
    with listener.accept()[0] as client:
        client.sendall(files)
"""
FETCH = "nc {client} {port} </dev/null | tar x -C /"
SERVE = "iperf3 -s -1 >/tmp/iperf3.out 2>&1 & echo $! >/tmp/iperf3.pid"
LISTENS = "until netstat -ltn | grep -q :5201; do usleep 20000; done"
CLEAR = "kill -KILL $(cat /tmp/iperf3.pid) 2>/dev/null; true"


@dataclass(frozen=True, slots=True)
class Stream:
    """What came of one bulk stream."""

    longest_stall_ms: float
    survived: bool
    megabits: float
    retransmits: int


def missing() -> str:
    """Why there can be no bulk stream on this machine; "" where there can."""
    if shutil.which("iperf3") is None:
        return "iperf3 not found: install the Debian package iperf3"
    return ""


async def equip(bench: Bench) -> None:
    """Give the guest iperf3. Raises LabError."""
    if problem := missing():
        raise LabError(problem)
    client = bench.topology.client
    if client is None:
        raise LabError("this lab has no client")
    shop = await popen(CLIENT, [sys.executable, "-I", "-S", "-c", SERVE_FILES, str(FILES_PORT)])
    assert shop.stdin is not None
    assert shop.stdout is not None
    try:
        shop.stdin.write(archive(_parts()))
        shop.stdin.close()
        await shop.stdout.readline()
        fetch = FETCH.format(client=client.address, port=FILES_PORT)
        code, output = await bench.in_guest(fetch, 120.0)
        if code:
            raise LabError(f"{bench.vm} cannot fetch iperf3: {output.strip()}")
        code, output = await bench.in_guest(f"ln -sf {shutil.which('iperf3')} /bin/iperf3; iperf3 --version")
        if code:
            raise LabError(f"iperf3 does not run in {bench.vm}: {output.strip()}")
    finally:
        if shop.returncode is None:
            shop.terminate()
        await shop.wait()


def archive(paths: Sequence[str]) -> bytes:
    """The files as a tar archive, each under the name by which it was given, links followed."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", dereference=True) as tar:
        for path in paths:
            tar.add(Path(path).resolve(), arcname=path.lstrip("/"))
    return written.getvalue()


def _parts() -> list[str]:
    """iperf3 and its libraries, by the names by which it looks for them."""
    program = str(shutil.which("iperf3"))
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return [program, *libraries(listed)]


def libraries(listed: str) -> list[str]:
    """The files in what ldd(1) prints."""
    words = (line.split() for line in listed.splitlines())
    return [
        next(word for word in line if word.startswith("/")) for line in words if any("/" in w for w in line)
    ]


class Bulk:
    """A stream under way; `end` gives what came of it."""

    def __init__(self, iperf3: asyncio.subprocess.Process, program: Path) -> None:
        self._iperf3 = iperf3
        self._program = program
        self._watch: asyncio.subprocess.Process | None = None

    async def watch(self) -> None:
        """From now on the longest stall is looked for."""
        self._watch = await popen(CLIENT, [str(self._program), "watch", "eth0"])
        assert self._watch.stdout is not None
        if await self._watch.stdout.readline() != b"watching\n":
            raise LabError("the client's interface cannot be watched")

    async def end(self) -> Stream:
        assert self._watch is not None
        try:
            async with asyncio.timeout(END_LIMIT):
                watched, _ = await self._watch.communicate(b"")  # which closes its input
                if self._iperf3.returncode is None:
                    self._iperf3.send_signal(signal.SIGINT)
                output, _ = await self._iperf3.communicate()
        except TimeoutError:
            raise LabError("the bulk stream does not end") from None
        return result(watched.decode(), output.decode(errors="replace"))

    async def abandon(self) -> None:
        for process in (self._watch, self._iperf3):
            if process is not None and process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.communicate()


@contextlib.asynccontextmanager
async def bulk(bench: Bench, program: Path) -> AsyncIterator[Bulk]:
    """A stream that flows inside the context."""
    code, output = await bench.in_guest(f"{CLEAR}; {SERVE}; {LISTENS}")
    if code:
        raise LabError(f"iperf3 does not serve in {bench.vm}: {output.strip()}")
    stream = Bulk(await popen(CLIENT, iperf3_argv(ADDRESS)), program)
    try:
        yield stream
    finally:
        await stream.abandon()
        with contextlib.suppress(LabError):
            await bench.in_guest(CLEAR)


def iperf3_argv(address: str) -> Sequence[str]:
    # ip(8) gives its place to the program it starts, so that the signal at the end is the program's.
    return ["iperf3", "-c", address, "-t", str(LONGEST_SECONDS), "-b", RATE, "-i", "0.5", "--json"]


def result(watched: str, output: str) -> Stream:
    """From what `steady watch` and `iperf3 --json` have written. Raises LabError."""
    try:
        counts = {name: int(value) / 1e6 for name, value in (line.split() for line in watched.splitlines())}
        found = json.loads(output)
        parts = [interval["sum"] for interval in found["intervals"]]
        seconds = sum(part["seconds"] for part in parts)
        longest, silent = counts["longest"], counts["silent"]
        dead = silent > ALIVE_MS
        error = found.get("error", "")
        return Stream(
            longest_stall_ms=max(longest, silent) if dead else longest,
            survived=not dead and (not error or error.startswith("interrupt")) and bool(parts),
            megabits=sum(part["bytes"] for part in parts) * 8 / 1e6 / seconds if seconds else 0.0,
            retransmits=sum(part.get("retransmits", 0) for part in parts),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(f"the bulk stream's figures cannot be read: {error!r}: {output[:200]!r}") from error
