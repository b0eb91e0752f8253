"""The controller as a program: its configuration, its database, its three listeners, its end."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from retinue import logs, systemd
from retinue.config_file import ConfigError
from retinue.controller.authn.tls import TlsConfig, protection
from retinue.controller.collector import Collector
from retinue.controller.config import Config, load
from retinue.controller.doors import Doors
from retinue.controller.leadership.candidate import Candidate, build
from retinue.controller.store import Database, StoreError
from retinue.security.listener import descriptors

log = structlog.get_logger()

PRIVATE = 0o077
"""The mask of what we make: files and sockets are for this user, whatever the mask was before."""


def run(config: Path, database: Path | None) -> int:
    """Run until SIGTERM or SIGINT; the exit code. Without a database nothing outlives it."""
    logs.to_stderr()
    os.umask(PRIVATE)
    descriptors.raise_limit()
    Collector().install()
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
    protected = protection(config)
    ended = asyncio.Event()
    opened: list[Doors] = []
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGHUP, _reload, protected, opened)
    if config.cluster is not None:
        if path is not None:
            raise ConfigError("[cluster] of the configuration names the database: leave --database out")
        await Candidate(config, config.cluster, protected, opened).run(ended)
    else:
        await _alone(config, protected, opened, path, ended)


async def _alone(
    config: Config, protected: TlsConfig, opened: list[Doors], path: Path | None, ended: asyncio.Event
) -> None:
    """The only controller of its switches."""
    store: Database | None = None
    net = config.network()
    if path is not None:
        store = Database()
        await store.start(path)
    controller = build(config, net, protected, store)
    try:
        if store is not None:
            controller.restore(await store.load())
        controller.pairs.configured(config.pairs())
        doors = Doors(config, protected, controller)
        doors.active.set()
        opened[:] = [doors]
        await controller.start()
        controller.orchestrator.resume_all()
        try:
            await doors.open_to_switches()
            await doors.open_to_managers()
            await doors.open_to_others()
            log.info("controller.up", **doors.addresses())
            async with systemd.ready(f"REST at {config.listen.rest}"):
                await ended.wait()
        finally:
            await doors.close()
    finally:
        await controller.stop()
        if store is not None:
            await store.flush()
            await store.stop()


def _reload(protected: TlsConfig, opened: Sequence[Doors]) -> None:
    """Take renewed certificates and changed tokens (SIGHUP); with a mistake in them, keep those in use."""
    peers = [doors.peers for doors in opened]
    managers = [doors.managers for doors in opened]
    wrong: list[str] = []
    reloads = [*(one.reload for one in peers), *(one.reload for one in managers)]
    for reload in (protected.reload, *reloads):
        try:
            reload()
        except ConfigError as error:
            wrong.append(str(error))
    for doors in opened:
        doors.certificate_read()
    if wrong:
        log.error("controller.credentials_not_reloaded", reason="; ".join(wrong))
        return
    domains = sorted(domain for one in peers for domain in one.doors)
    log.info("controller.credentials_reloaded", tokens=len(protected.tokens), domains=domains)
