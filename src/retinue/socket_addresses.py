"""Where sockets are, as people write it: HOST:PORT, and paths of Unix sockets."""

import asyncio
import contextlib
import errno
import os
import re
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

LONGEST_PATH = 107
"""Bytes of a Unix socket's path: sun_path has 108, the last one zero (unix(7))."""


def endpoint(text: str) -> tuple[str, int]:
    """Read "192.0.2.1:6653" or "[2001:db8::1]:6653"; raises ValueError with a sentence."""
    host, _, port = text.rpartition(":")
    if (
        not re.fullmatch(r"[\w.:%-]+|\[[\w.:%-]+\]", host, re.ASCII)
        or not (port.isascii() and port.isdecimal())
        or int(port) > 65535
    ):
        raise ValueError(f"{text!r} is not HOST:PORT, such as 192.0.2.1:6653")
    return host.strip("[]"), int(port)


def may_be_another_host(host: str) -> bool:
    """False for an address that leads to the machine itself, or to no single one: loopback, link-local,
    multicast.

    A name may be another host's; what it resolves to is to be asked again.
    """
    if host.rstrip(".").lower() in ("", "localhost") or host.rstrip(".").lower().endswith(".localhost"):
        return False
    try:
        found = ip_address(host)
    except ValueError:
        return not host.replace(".", "").isdigit()  # 127.1 and 2130706433 are loopback, to getaddrinfo.
    inner = getattr(found, "ipv4_mapped", None) or found
    return not (
        inner.is_loopback
        or inner.is_unspecified
        or inner.is_multicast
        or inner.is_link_local
        or inner.is_reserved
    )


async def resolved(host: str | None, port: int) -> list[tuple[Any, ...]]:
    """What socket.getaddrinfo has for a TCP endpoint, to listen or to connect. Raises OSError.

    Nobody is asked about a numeric address, so no thread waits for an answer.
    """
    try:
        ip_address(host or "")
    except ValueError:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return list(found)
    flags = socket.AI_PASSIVE | socket.AI_NUMERICHOST
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags))


def fits(path: Path | str) -> bool:
    """Whether a Unix socket can have this path."""
    return len(os.fsencode(path)) <= LONGEST_PATH


@contextlib.contextmanager
def short_path(path: Path | str) -> Iterator[str]:
    """A path that bind(2) and connect(2) take, of the Unix socket at `path`, however long that one is.

    Good inside the context: a long one leads through its folder, which is open meanwhile. Raises OSError
    where there is no such folder, or the socket's own name is too long for any way.
    """
    path = Path(path)
    if fits(path):
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        through = f"/proc/self/fd/{folder}/{path.name}"
        if not fits(through):
            raise OSError(errno.ENAMETOOLONG, f"a socket's path has {LONGEST_PATH} bytes at most", path.name)
        yield through
    finally:
        os.close(folder)
