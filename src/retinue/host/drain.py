"""When a VM that is about to stop has been given all that comes for it: asked of its taps, or watched."""

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from retinue.host.errors import HostError
from retinue.host.tap_queue import Holders, until_empty
from retinue.host.timing import CACHE_LAG

LOOK = 0.0007
QUIET = 0.004
"""Seconds without a frame after which none is on its way any more, in a fabric of a few switches."""
QUIET_LIMIT = 1.0

TRANSMITTED = 9
"""Column of net/dev (proc_pid_net(5)). A tap has transmitted what whoever has it open has read."""

log = structlog.get_logger()


async def drain(taps: Sequence[str], holders: Holders, network: int | None = None) -> None:
    """Return when these taps have given their VM all that comes, or after a second.

    `holders` are the processes that have them open, given when nothing more comes: then the taps are asked
    themselves. Where they cannot be: when they have given no frame for a while. `network` is a process in
    whose network they are, if not in ours. Raises HostError when they are not there.
    """
    if all(tap in holders for tap in taps):
        try:
            for tap in taps:
                if not await until_empty(holders[tap], tap):
                    log.warning("tap.not_drained", tap=tap)
            return
        except HostError as error:
            log.warning("tap.not_watched_inside", taps=taps, error=str(error))
    await _until_nothing_comes(taps, os.getpid() if network is None else network)


async def _until_nothing_comes(taps: Sequence[str], pid: int) -> None:
    began = last_came = now = time.monotonic()
    frames = sum(frames_given(pid, tap) for tap in taps)
    while now < max(began + CACHE_LAG, last_came + QUIET):
        await asyncio.sleep(LOOK)
        now, before = time.monotonic(), frames
        frames = sum(frames_given(pid, tap) for tap in taps)
        if frames != before:
            last_came = now
        if now > began + QUIET_LIMIT:
            log.warning("tap.not_quiet", taps=taps)
            return


def frames_given(pid: int, tap: str) -> int:
    """How many frames the tap of that name, in the network of a process, has given its VM."""
    try:
        table = Path(f"/proc/{pid}/net/dev").read_text()
    except OSError as error:
        raise HostError(f"process {pid} has ended") from error
    for line in table.splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == tap:
            return int(numbers.split()[TRANSMITTED])
    raise HostError(f"the server of process {pid} has no {tap}")
