"""The two managers as programs: configuration, listeners, end. Both keep nothing that outlives them."""

import asyncio
import os
import signal
import ssl
import sys
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from retinue import logs, systemd
from retinue.config_file import ConfigError, TlsTable
from retinue.managers.config import load_mobility, load_resource
from retinue.managers.door import ManagerDoor
from retinue.managers.mobility import MATCH_LIMIT, Mobility
from retinue.managers.resources import Resources
from retinue.protocol.client import ControllerClient, lasting
from retinue.protocol.managers import LARGEST_ANSWER, MATCHES_PATH, THE_RESOURCE, MatchAsked, Matched
from retinue.protocol.records import record
from retinue.security.authority import PkiError, holder
from retinue.security.contexts import TlsFilesError, client_context, reload_certificate, server_context
from retinue.security.credentials import Credentials
from retinue.security.identity import PeerRole
from retinue.security.listener import descriptors
from retinue.socket_addresses import endpoint

log = structlog.get_logger()

Files = tuple[Path, Path, Path]


def run_resource(config: Path) -> int:
    """Until SIGTERM or SIGINT; the exit code."""
    return _run("resource", _resource(config))


def run_mobility(config: Path) -> int:
    return _run("mobility", _mobility(config))


def check_resource(path: Path) -> str:
    """What its configuration says, where it is good. Raises ConfigError, TlsFilesError, PkiError."""
    config = load_resource(path)
    for one in config.domain:
        server_context(*_files(config.tls, one.ca))
    listening = ", ".join(f"{one.id} at {one.listen}" for one in config.domain)
    return f"{path} is good: domains {listening}"


def check_mobility(path: Path) -> str:
    """As of the resource manager."""
    config = load_mobility(path)
    server_context(*_files(config.tls, config.tls.ca))
    client_context(*_files(config.tls, config.resources_ca))
    return f"{path} is good: it listens at {config.listen}, the resource manager is at {config.resources}"


def _run(noun: str, serving: Coroutine[Any, Any, None]) -> int:
    logs.to_stderr()
    os.umask(0o077)
    descriptors.raise_limit()
    try:
        asyncio.run(serving)
    except (ConfigError, TlsFilesError, PkiError) as error:
        print(f"retinue {noun}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"retinue {noun}: cannot listen: {error}", file=sys.stderr)
        return 1
    return 0


async def _resource(path: Path) -> None:
    config = load_resource(path)
    resources = Resources({one.id: one.offers_to for one in config.domain}, time.monotonic)
    contexts: list[tuple[ssl.SSLContext, Files]] = []
    doors: list[tuple[ManagerDoor, str]] = []
    for one in config.domain:
        files = _files(config.tls, one.ca)
        contexts.append((server_context(*files), files))
        doors.append(
            (ManagerDoor(f"domain {one.id}", resources.said_by(one.id), contexts[-1][0]), one.listen)
        )
    await _serve(doors, contexts, "resource")


async def _mobility(path: Path) -> None:
    config = load_mobility(path)
    own, theirs = _files(config.tls, config.tls.ca), _files(config.tls, config.resources_ca)
    inside, outside = server_context(*own), client_context(*theirs, role=PeerRole.MOBILITY)
    client = ControllerClient(
        config.resources, Credentials(), lasting(outside), largest=LARGEST_ANSWER, whom=THE_RESOURCE
    )

    async def ask(asked: MatchAsked) -> Matched:
        said = await client.request("POST", MATCHES_PATH, msgspec.to_builtins(asked), MATCH_LIMIT)
        return record(Matched, said, THE_RESOURCE)

    said = Mobility(ask, time.monotonic).said()
    door = ManagerDoor("this domain", said, inside)
    try:
        await _serve([(door, config.listen)], [(inside, own), (outside, theirs)], "mobility")
    finally:
        await client.close()


def _files(tls: TlsTable, ca: str) -> Files:
    """Raises ConfigError for a certificate of another role."""
    role, _ = holder(Path(tls.certificate))
    if role not in (None, PeerRole.MOBILITY):
        raise ConfigError(
            f"{tls.certificate} is a certificate of role {role}; "
            "`retinue pki issue mobility NAME --address ADDRESS` makes one"
        )
    return Path(ca), Path(tls.certificate), Path(tls.key)


async def _serve(
    doors: Sequence[tuple[ManagerDoor, str]], contexts: Sequence[tuple[ssl.SSLContext, Files]], noun: str
) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGHUP, _reload, contexts)
    try:
        for door, at in doors:
            await door.start(*endpoint(at))
        listening = ", ".join(at for _, at in doors)
        log.info("managers.up", manager=noun, listen=listening)
        async with systemd.ready(f"listens at {listening}"):
            await ended.wait()
    finally:
        for door, _ in doors:
            await door.stop()


def _reload(contexts: Sequence[tuple[ssl.SSLContext, Files]]) -> None:
    """Take renewed certificates (SIGHUP); with a mistake in them those in use stay."""
    wrong: list[str] = []
    for context, files in contexts:
        try:
            reload_certificate(context, *files)
        except TlsFilesError as error:
            wrong.append(str(error))
    if wrong:
        log.error("managers.credentials_not_reloaded", reason="; ".join(wrong))
    else:
        log.info("managers.credentials_reloaded")
