"""The controller as a program: its configuration, its database, its three listeners, its end."""

import asyncio
import signal
import sys
from pathlib import Path

import structlog

from retinue import logs
from retinue.api.access import Access
from retinue.api.server import Api
from retinue.controller.admission import Admission
from retinue.controller.config import LISTENERS, Config, ConfigError, endpoint, load
from retinue.controller.controller import Controller
from retinue.controller.ports import PortWatch
from retinue.controller.protection import Protection, protection
from retinue.controller.restore import restore, take_up_moves
from retinue.openflow.session import OpenFlowServer
from retinue.ovsdb import OvsdbListener
from retinue.store import Database, StoreError

log = structlog.get_logger()

SWITCHES_ARE_BACK = 15.0
"""Seconds after a start by which switches that can be reached have come back; Open vSwitch waits up to 8."""


def run(config: Path, database: Path | None) -> int:
    """Run until told to end (SIGTERM, SIGINT); the exit code. Without a database nothing outlives it."""
    logs.to_stderr()
    try:
        asyncio.run(_serve(load(config), database))
    except (ConfigError, StoreError) as error:
        print(f"retinue controller: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"retinue controller: cannot listen: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(config: Config, path: Path | None) -> None:
    net = config.network()
    protected = protection(config)
    store: Database | None = None
    if path is not None:
        store = Database()
        await store.start(path)
    controller = Controller(
        net,
        store,
        moves_kept=config.moves_kept,
        audit_seconds=config.audit_seconds,
        warm_up_seconds=config.warm_up_seconds,
        forward_seconds=config.forward_seconds,
    )
    try:
        if store is not None:
            restore(controller, await store.load())
        await _listen(config, protected, controller)
    finally:
        await controller.stop()
        if store is not None:
            await store.flush()
            await store.stop()


async def _listen(config: Config, protected: Protection, controller: Controller) -> None:
    admission = Admission(controller.net, controller.events)
    openflow, ovsdb, rest = (protected.contexts.get(name) for name in LISTENERS)
    switches = (
        OpenFlowServer(controller, ssl=openflow, admits=admission.switch)
        if openflow is not None
        else OpenFlowServer(controller)
    )
    ports = (
        PortWatch(controller.vm_ports_changed, controller.edge_read, admission.database)
        if ovsdb is not None
        else PortWatch(controller.vm_ports_changed, controller.edge_read)
    )
    databases = OvsdbListener(ports.follow, ovsdb)
    api = Api(
        controller,
        lambda: {"openflow": dict(switches.refused), "ovsdb": dict(databases.refused)},
        Access(controller, protected.tokens, open=protected.rest_is_open),
        rest,
    )
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGHUP, _reload, protected)
    controller.context.installer.hold_removals(SWITCHES_ARE_BACK)
    await controller.start()
    take_up_moves(controller)
    try:
        await switches.start(*endpoint(config.listen.openflow))
        await databases.start(*endpoint(config.listen.ovsdb))
        await api.start(*endpoint(config.listen.rest))
        log.info("controller is up", **_addresses(config, protected))
        await ended.wait()
    finally:
        await api.stop()
        await databases.stop()
        await switches.stop()


def _reload(protected: Protection) -> None:
    """Take renewed certificates and changed tokens (SIGHUP); with a mistake in them, keep those in use."""
    try:
        protected.reload()
        log.info("certificates and tokens read again", tokens=len(protected.tokens))
    except ConfigError as error:
        log.error("certificates and tokens are kept as they were", reason=str(error))


def _addresses(config: Config, protected: Protection) -> dict[str, str]:
    addresses = (config.listen.openflow, config.listen.ovsdb, config.listen.rest)
    return {
        name: at if name in protected.contexts else f"{at} (plain text)"
        for name, at in zip(LISTENERS, addresses, strict=True)
    }
