"""The controller as a program: its configuration, its database, its three listeners, its end."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import structlog

from retinue import logs
from retinue.config_file import ConfigError
from retinue.controller.api.access import Access
from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.controller.authn.switch_authz import SwitchAuthorization
from retinue.controller.authn.tls import TlsConfig, protection
from retinue.controller.config import LISTENERS, Config, load
from retinue.controller.store import Database, StoreError
from retinue.controller.switches.port_watcher import PortWatch
from retinue.security.listener import descriptors
from retinue.socket_addresses import endpoint
from retinue.southbound.openflow.server import OpenFlowServer
from retinue.southbound.ovsdb import OvsdbListener

log = structlog.get_logger()

PRIVATE = 0o077
"""The mask of what we make: files and sockets are for this user, whatever the mask was before."""


def run(config: Path, database: Path | None) -> int:
    """Run until SIGTERM or SIGINT; the exit code. Without a database nothing outlives it."""
    logs.to_stderr()
    os.umask(PRIVATE)
    descriptors.raise_limit()
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
        migrations_kept=config.migrations_kept,
        audit_seconds=config.audit_seconds,
        warm_up_seconds=config.warm_up_seconds,
        forward_seconds=config.forward_seconds,
        policy=config.placement.policy(),
        follow_clients=(config.placement.follow_switches, config.placement.follow_seconds),
    )
    if protected.files is not None:
        controller.images.authority = protected.files[0]
    try:
        if store is not None:
            controller.restore(await store.load())
        await _listen(config, protected, controller)
    finally:
        await controller.stop()
        if store is not None:
            await store.flush()
            await store.stop()


async def _listen(config: Config, protected: TlsConfig, controller: Controller) -> None:
    admission = SwitchAuthorization(controller.net, controller.events)
    openflow, ovsdb, rest = (protected.contexts.get(name) for name in LISTENERS)
    switches = (
        OpenFlowServer(controller, ssl=openflow, admits=admission.switch)
        if openflow is not None
        else OpenFlowServer(controller)
    )
    ports = (
        PortWatch(controller.inventory.vm_ports_changed, controller.inventory.edge_read, admission.database)
        if ovsdb is not None
        else PortWatch(controller.inventory.vm_ports_changed, controller.inventory.edge_read)
    )
    databases = (
        OvsdbListener(
            ports.follow, ovsdb, may_dial=lambda certificate, peer: admission.database(certificate, (), peer)
        )
        if ovsdb is not None
        else OvsdbListener(ports.follow)
    )
    api = Api(
        controller,
        lambda: {"openflow": dict(switches.rejected), "ovsdb": dict(databases.rejected)},
        Access(controller, protected.tokens, open=protected.rest_is_open),
        rest,
    )
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGHUP, _reload, protected)
    await controller.start()
    controller.orchestrator.resume_all()
    try:
        await switches.start(*endpoint(config.listen.openflow))
        await databases.start(*endpoint(config.listen.ovsdb))
        await api.start(*endpoint(config.listen.rest))
        log.info("controller.up", **_addresses(config, protected))
        await ended.wait()
    finally:
        await api.stop()
        await databases.stop()
        await switches.stop()


def _reload(protected: TlsConfig) -> None:
    """Take renewed certificates and changed tokens (SIGHUP); with a mistake in them, keep those in use."""
    try:
        protected.reload()
        log.info("controller.credentials_reloaded", tokens=len(protected.tokens))
    except ConfigError as error:
        log.error("controller.credentials_not_reloaded", reason=str(error))


def _addresses(config: Config, protected: TlsConfig) -> dict[str, str]:
    addresses = (config.listen.openflow, config.listen.ovsdb, config.listen.rest)
    return {
        name: at if name in protected.contexts else f"{at} (plain text)"
        for name, at in zip(LISTENERS, addresses, strict=True)
    }
