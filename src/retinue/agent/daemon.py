"""The agent as a program: beside the hypervisor of one server, on the controller's word.

It follows the controller's event stream. A VM booked on this server gets a port; when the controller says
that the VM's flows stand it is started. Of a move it does this server's part (see `keeper`). What it did, and
when a VM stopped and ran on, it reports. `local` is a socket for those on the server itself.

VMs run on when the agent ends; the next one takes them up. They are QEMUs of ours, or libvirt's.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from retinue import logs
from retinue.agent import local
from retinue.agent.config import AgentConfig, AgentConfigError, load
from retinue.agent.flow_cache import FlowCache
from retinue.agent.keeper import Keeper
from retinue.agent.orders import HttpOrders
from retinue.agent.records import RecordError
from retinue.agent.refusals import Refusals
from retinue.agent.renewer import Renewer
from retinue.agent.rest import ControllerAwayError, HttpRest, RefusedError, Rest
from retinue.agent.runners import runner
from retinue.agent.spec import spec
from retinue.agent.transfer import Transfer, secured
from retinue.hypervisor import HypervisorError, libvirt_host
from retinue.pki.contexts import TlsFilesError
from retinue.pki.credentials import Credentials

AGAIN_SECONDS = 0.2
"""Between two attempts to reach the controller."""
READY_FD = "RETINUE_READY_FD"

log = structlog.get_logger()


def run(path: Path) -> int:
    """Run until told to end (SIGTERM, SIGINT); the exit code."""
    logs.to_stderr()
    code = _run(path)
    if libvirt_host.in_use():  # Its threads are never done, and nothing waits for them.
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(path: Path) -> int:
    try:
        asyncio.run(_serve(load(path)))
    except (AgentConfigError, HypervisorError, TlsFilesError) as error:
        print(f"retinue agent: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"retinue agent: cannot listen: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(config: AgentConfig) -> None:
    folder = Path(config.folder)
    folder.mkdir(parents=True, exist_ok=True)
    runs = runner(config, folder / "vms")
    credentials = Credentials()
    transfer = Transfer(config.server)
    if config.tls is not None:
        credentials = Credentials(Path(config.tls.ca), Path(config.tls.certificate), Path(config.tls.key))
        transfer = secured(config.server, credentials)
    rest = HttpRest(config.controller, credentials)
    renewer = Renewer(config.server, config.bridge, HttpOrders(config.controller, credentials))
    await transfer.start(*config.endpoint)
    keeper = Keeper(
        *(config.server, rest, runs.hypervisor, runs.ports, lambda record: spec(record, config.vm), transfer),
        bypassed=FlowCache().until_bypassed,
    )
    await runs.begin(keeper)
    ready = asyncio.Event()
    refusals = Refusals(config.server, transfer.refused, rest, time.time())
    try:
        async with local.serving(folder / local.SOCKET, keeper):
            following = asyncio.create_task(follow(rest, keeper, renewer, ready, refusals.again))
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, following.cancel)
            telling = [asyncio.create_task(work) for work in (_tell_ready(ready), refusals.run())]
            log.info("agent is up", server=config.server, listens=transfer.address)
            with contextlib.suppress(asyncio.CancelledError):
                await following
            for task in telling:
                task.cancel()
            log.info("stopping")
    finally:
        await renewer.close()
        await keeper.close()
        await runs.end()
        await transfer.close()
        await rest.close()


async def follow(
    rest: Rest,
    keeper: Keeper,
    renewer: Renewer,
    ready: asyncio.Event,
    back: Callable[[], None] = lambda: None,
) -> None:
    """Act on the controller's events for ever; after each (new) connection catch up first.

    `back` is called when the controller is there, or there again.
    """
    last: int | None = None
    while True:
        try:
            async with contextlib.aclosing(rest.events(last)) as events:
                async for happening in events:
                    if happening.type == "hello":
                        back()
                        await keeper.catch_up()
                        ready.set()
                        # A controller that has started again numbers its events from the start.
                        last = happening.id if last is None else min(last, happening.id)
                    elif happening.type == "vm.renew":
                        last = happening.id
                        renewer.take(happening.renewal or {})
                    else:
                        last = happening.id
                        keeper.take(happening)
            log.warning("the controller has ended the event stream")
        except (ControllerAwayError, RefusedError, RecordError) as error:
            log.warning("no events", error=str(error))
        await asyncio.sleep(AGAIN_SECONDS)


async def _tell_ready(ready: asyncio.Event) -> None:
    """Tell who started us, if it wants to know, that we have caught up."""
    await ready.wait()
    log.info("ready")
    if READY_FD in os.environ:
        fd = int(os.environ[READY_FD])
        os.write(fd, b"ready\n")
        os.close(fd)
