"""Telling systemd how a service of Type=notify is (sd_notify(3)): that it is ready, lives, and ends.

Where systemd has not started the program, nothing is told to anybody.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator

SOCKET, WATCHDOG, PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"


@contextlib.asynccontextmanager
async def ready(status: str) -> AsyncIterator[None]:
    """Inside the context the service is up: `status` says it in a sentence.

    The event loop is what lives: when it hangs, systemd ends the service, and starts it anew.
    """
    tell("READY=1", f"STATUS={status}")
    living = asyncio.create_task(_live(), name="systemd's watchdog")
    try:
        yield
    finally:
        living.cancel()
        tell("STOPPING=1")


def tell(*lines: str) -> None:
    path = os.environ.get(SOCKET, "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.connect(address)
        to.send("\n".join(lines).encode())


async def _live() -> None:
    """Say so twice as often as it is asked for."""
    text = os.environ.get(WATCHDOG, "")
    if not text.isascii() or not text.isdigit() or os.environ.get(PID, str(os.getpid())) != str(os.getpid()):
        return
    while True:
        tell("WATCHDOG=1")
        await asyncio.sleep(int(text) / 1e6 / 2)
