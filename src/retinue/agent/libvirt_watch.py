"""Tells the controller what libvirt does on this server, so that the network follows a move typed by anybody.

    python -m retinue.agent.libvirt_watch --server server1 --controller https://192.0.2.1:8080 [--uri URI]

Each word of libvirt about a VM becomes one report, POST /v1/servers/SERVER/hypervisor-events (see
docs/libvirt.md). Reports about one VM arrive in order, and again while the controller is away; those about
others do not wait for them. What runs here is told again from time to time, so that nothing stays unknown
whoever was away. A VM that comes in has its tap's queue made long, since packets will wait there until it
runs.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from urllib.parse import quote

import aiohttp
import structlog

from retinue.hypervisor.interface import HypervisorError
from retinue.hypervisor.libvirt_domain import taps
from retinue.hypervisor.libvirt_events import Happening, Kind
from retinue.hypervisor.libvirt_host import LibvirtHost
from retinue.hypervisor.taps import QUEUE_FRAMES
from retinue.pki.credentials import Credentials

LOCAL = "qemu:///system"
READY_FD = "RETINUE_READY_FD"
"""Environment variable with the number of a descriptor to write "ready" to, where somebody waits for it."""
AGAIN_SECONDS = 0.2
ANSWER_LIMIT = 10.0
ROUND_SECONDS = 10.0
"""Between two accounts of all that runs here."""
OLDEST = 600.0
"""Seconds after which a report nobody took is no news any more."""

log = structlog.get_logger()


class Reporter:
    """Delivers reports to the controller, for each VM in order."""

    def __init__(self, controller: str, server: str) -> None:
        self._url = f"{controller.rstrip('/')}/v1/servers/{quote(server, safe='')}/hypervisor-events"
        shown = Credentials.of_environment()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(keepalive_timeout=3600, ssl=shown.ssl_for(controller)),
            headers=shown.headers,
            timeout=aiohttp.ClientTimeout(total=ANSWER_LIMIT),
        )
        self._last: dict[str, asyncio.Task[None]] = {}

    def busy(self, vm: str) -> bool:
        """True while a report about this VM has not been taken."""
        return vm in self._last

    def tell(self, happening: Happening) -> None:
        """Deliver in the background."""
        before = self._last.get(happening.vm)
        task = asyncio.create_task(self._deliver(before, happening), name=f"report of {happening.vm}")
        self._last[happening.vm] = task
        task.add_done_callback(lambda done: self._forget(happening.vm, done))

    async def close(self) -> None:
        for task in list(self._last.values()):
            task.cancel()
        await asyncio.gather(*self._last.values(), return_exceptions=True)
        await self._session.close()

    def _forget(self, vm: str, task: asyncio.Task[None]) -> None:
        if self._last.get(vm) is task:
            del self._last[vm]

    async def _deliver(self, before: asyncio.Task[None] | None, happening: Happening) -> None:
        if before is not None and not before.done():
            await asyncio.wait({before})
        body = {"vm": happening.vm, "kind": happening.kind, "at": happening.at}
        about = {"vm": happening.vm, "kind": str(happening.kind)}
        while time.time() - happening.at < OLDEST:
            try:
                async with self._session.post(self._url, json=body) as response:
                    said = await response.text()
                    if response.status < 500:
                        if response.status >= 400:
                            log.warning("report refused", **about, reason=said.strip())
                        return
                    reason = f"status {response.status}"
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                reason = str(error) or type(error).__name__
            log.warning("a report has to wait", **about, reason=reason)
            await asyncio.sleep(AGAIN_SECONDS)
        log.error("a report was not delivered", **about)


async def lengthen_queues(host: LibvirtHost, vm: str) -> None:
    """Let a VM's tap hold what arrives while it stands still; libvirt leaves it at the system's 1000."""
    try:
        domain = await host.domain(vm)
        names = () if domain is None else taps(await host.call(domain.XMLDesc, 0))
        for name in names:
            process = await asyncio.create_subprocess_exec(
                *("ip", "link", "set", "dev", name, "txqueuelen", str(QUEUE_FRAMES)),
                stderr=asyncio.subprocess.PIPE,
            )
            _, said = await process.communicate()
            if process.returncode:
                log.warning("a tap's queue stays short", vm=vm, tap=name, reason=said.decode().strip())
    except (HypervisorError, OSError) as error:
        log.warning("a tap's queue stays short", vm=vm, reason=str(error))


async def watch(server: str, uri: str, controller: str) -> None:
    host = LibvirtHost(server, uri)
    reporter = Reporter(controller, server)
    _ = host.library  # Says at once when it is missing.
    await _reached(host)
    _tell_ready()
    work: set[asyncio.Task[None]] = {asyncio.create_task(_rounds(host, reporter))}
    try:
        async with contextlib.aclosing(host.watch()) as happenings:
            async for happening in happenings:
                log.info(str(happening.kind), vm=happening.vm, at=happening.at)
                reporter.tell(happening)
                if happening.kind is Kind.INCOMING:
                    task = asyncio.create_task(lengthen_queues(host, happening.vm))
                    work.add(task)
                    task.add_done_callback(work.discard)
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await reporter.close()
        await host.close()


async def _rounds(host: LibvirtHost, reporter: Reporter) -> None:
    while True:
        await asyncio.sleep(ROUND_SECONDS)
        with contextlib.suppress(HypervisorError):  # `watch` says so
            for happening in await host.found():
                if not reporter.busy(happening.vm):
                    reporter.tell(happening)


async def _reached(host: LibvirtHost) -> None:
    with contextlib.suppress(HypervisorError):
        await host.connection()


def _tell_ready() -> None:
    if READY_FD in os.environ:
        fd = int(os.environ[READY_FD])
        os.write(fd, b"ready\n")
        os.close(fd)


async def _until_stopped(server: str, uri: str, controller: str) -> None:
    watching = asyncio.create_task(watch(server, uri, controller))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, watching.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await watching


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m retinue.agent.libvirt_watch",
        description="Tell the controller what libvirt does on this server.",
    )
    parser.add_argument("--server", required=True, help="this server's id, as the controller knows it")
    parser.add_argument("--controller", required=True, help="the controller's REST interface, a URL")
    parser.add_argument("--uri", default=LOCAL, help="of libvirt; by default %(default)s")
    wanted = parser.parse_args(arguments)
    try:
        asyncio.run(_until_stopped(wanted.server, wanted.uri, wanted.controller))
    except HypervisorError as error:
        print(f"libvirt watch: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    # The events' thread of libvirt is never done; nothing waits for it.
    code = main()
    sys.stderr.flush()
    os._exit(code)
