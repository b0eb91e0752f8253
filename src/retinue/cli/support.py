"""`retinue support-dump`: what somebody needs who is to help from afar, in one file, without secrets."""

import io
import json
import os
import platform
import re
import sys
import tarfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from retinue.cli import output
from retinue.cli.connection import Connection, connected
from retinue.cli.doctor import snapshot
from retinue.cli.errors import CliError
from retinue.cli.findings import examine
from retinue.protocol.blocking import Client
from retinue.protocol.errors import ControllerError
from retinue.protocol.routes import Route

MOST_EVENTS = 5000
LARGEST_CONFIG = 1 << 20
"""Bytes."""
SECRET = re.compile(r"token|secret|pass(word|phrase)?|sha256|psk|private", re.IGNORECASE)
"""In the name of a key whose value nobody else may see; a key's or a certificate's file is only named."""
INSIDE = (
    (re.compile(r"-----BEGIN [^-]*PRIVATE KEY-----.*?(-----END [^-]*-----|$)", re.DOTALL), "(a private key)"),
    (re.compile(r"(?<=://)[^/@\s]+@"), "(user)@"),
)
"""What no value may have in it, whatever it is called, and what stands there instead."""
REMOVED = "(removed)"
ASKED = {
    "status": Route.GET_STATUS,
    "switches": Route.LIST_SWITCHES,
    "links": Route.LIST_LINKS,
    "servers": Route.LIST_SERVERS,
    "vms": Route.LIST_VMS,
    "bindings": Route.LIST_BINDINGS,
    "spoofing": Route.LIST_SPOOF_ATTEMPTS,
    "migrations": Route.LIST_MIGRATIONS,
    "renewals": Route.LIST_RENEWALS,
    "vnets": Route.LIST_VNETS,
    "subnets": Route.LIST_SUBNETS,
    "domains": Route.LIST_DOMAINS,
    "images": Route.LIST_IMAGES,
}
"""By file: what is asked of the controller."""


@connected
def support_dump(
    at: Connection,
    config: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A configuration of this machine; repeatable."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where it is written (.tar.gz).")
    ] = None,
) -> None:
    """Write all that is known of controller and network into one file, for somebody who is to help.

    In it are status, switches, servers, VMs, migrations, the latest events, metrics, and versions. Tokens,
    keys and passwords are left out; names and addresses of VMs and servers are in it: look before you give it
    away.

    \b
    Example:
      retinue support-dump --config /etc/retinue/controller.toml
    """
    path = to or Path(time.strftime("retinue-support-%Y%m%d-%H%M%S.tar.gz"))
    parts = {**_here(), **_configurations(config or [])}
    errors: dict[str, str] = {}
    client = at.client()
    for name, ask in _questions(client):
        try:
            parts[name] = ask()
        except ControllerError as error:
            errors[name] = str(error)
    parts["errors.json"] = _json(errors)
    try:
        _write(path, parts)
    except OSError as error:
        raise CliError(f"cannot write {path}: {error.strerror}") from error
    if at.as_json:
        output.print_json({"file": str(path), "parts": sorted(parts), "errors": errors})
        return
    output.say(f"{path} has {len(parts)} parts; look into it before you give it away (tar tzf {path})")
    for name, why in errors.items():
        output.say(f"without {name}: {why}", err=True)


def _questions(client: Client) -> Iterator[tuple[str, Callable[[], str]]]:
    for name, route in ASKED.items():
        yield f"{name}.json", lambda route=route: _json(client.ask(route))  # type: ignore[misc]
    yield "doctor.json", lambda: _json([asdict(one) for one in examine(snapshot(client, time.time()))])
    yield "metrics.txt", lambda: client.text(Route.GET_METRICS)
    yield "events.jsonl", lambda: "".join(_events(client))


def _events(client: Client) -> Iterator[str]:
    from retinue.protocol.events import HELLO

    newest = client.last_event()
    if not newest:
        return
    for event in client.events(max(0, newest - MOST_EVENTS)):
        if event["type"] == HELLO:
            continue
        yield json.dumps(redacted(event)) + "\n"
        if event["id"] >= newest:
            return


def _here() -> dict[str, str]:
    """Of the machine where this is typed."""
    from importlib.metadata import distributions

    from retinue import __version__

    programs = {found.metadata["Name"]: found.version for found in distributions()}
    versions = {
        "retinue": __version__,
        "python": sys.version,
        "system": platform.platform(),
        "packages": dict(sorted(programs.items())),
    }
    return {"versions.json": _json(versions)}


def _configurations(paths: list[Path]) -> dict[str, str]:
    """As they are read, without their secrets. Raises CliError."""
    found = {}
    for number, path in enumerate(paths, 1):
        try:
            if path.stat().st_size > LARGEST_CONFIG:
                raise CliError(f"{path} is larger than {LARGEST_CONFIG >> 20} MiB, and no configuration")
            value = tomllib.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise CliError(f"cannot read {path}: {error}") from error
        found[f"config-{number}-{path.name}.json"] = _json(value)
    return found


def redacted(value: Any, name: str = "") -> Any:
    """The same without what is secret by its name, or by what it is."""
    match value:
        case dict():
            return {key: redacted(inner, str(key)) for key, inner in value.items()}
        case list():
            return [redacted(inner, name) for inner in value]
        case str() | int() | float() if SECRET.search(name) and value:
            return REMOVED
        case str():
            for pattern, instead in INSIDE:
                value = pattern.sub(instead, value)
            return value
        case _:
            return value


def _json(value: Any) -> str:
    return json.dumps(redacted(value), indent=1) + "\n"


def _write(path: Path, parts: dict[str, str]) -> None:
    """For its owner alone; a file that is there is not overwritten. Raises OSError."""
    folder = path.name.removesuffix(".tar.gz")
    made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(made, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, text in parts.items():
            data = text.encode()
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size, info.mtime, info.mode = len(data), int(time.time()), 0o600
            archive.addfile(info, io.BytesIO(data))
