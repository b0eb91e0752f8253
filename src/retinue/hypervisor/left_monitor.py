"""A QEMU's monitor that outlives the agent: QEMU itself keeps our end of it.

The QEMU of a VM that came by post-copy, and lacks some of its memory, does not answer a new monitor where
its main loop waits for a page: it would take one command out of band (`recovering`), but only by a monitor
that has said so before, in band. So before such a VM comes QEMU is given our own end of the socket pair
that is its monitor (QemuMachine.expect_postcopy). When the agent ends that does not end, and the next one
takes a copy of it (`taken_over`), known by its inode.

What QEMU has said since nobody read is read past first. Of the agent that has ended there may be half a line,
and answers to what it had asked: ours are known by another name, and follow the answer to a question that any
QEMU answers out of band.
"""

import asyncio
import json
import os
import socket
import time

from qemu.qmp import QMPClient

from retinue.hypervisor.errors import HypervisorError

NAME = "left-monitor"
"""What QEMU calls it among the files that it was given."""
LIMIT = 10.0
"""Seconds for the answer to the first question."""
QUESTION = "query-yank"
LOOK_SECONDS = 0.005
LONGEST_LINE = 1 << 20


def inode_of(end: socket.socket) -> int:
    return os.fstat(end.fileno()).st_ino


async def taken_over(vm: str, end: socket.socket) -> QMPClient:
    """The monitor whose QEMU has kept this end of it, of which we have a copy; closed where it is of no use.

    Raises HostError, QMPError, OSError, EOFError.
    """
    try:
        await asyncio.to_thread(_read_past, end)
        end.setblocking(False)
        qmp = QMPClient(vm)
        qmp.await_greeting = qmp.negotiate = False
        qmp._execute_id = time.monotonic_ns()  # What an agent before us has asked may be answered yet.
        await qmp.connect(end)
    except BaseException:
        end.close()
        raise
    return qmp


def _read_past(end: socket.socket) -> None:
    """Read all up to the answer to a question of ours, and nothing after it."""
    name = f"retinue-{os.getpid()}-{time.monotonic_ns()}"
    end.settimeout(LIMIT)
    until = time.monotonic() + LIMIT
    try:
        end.sendall(json.dumps({"exec-oob": QUESTION, "id": name}).encode() + b"\n")
        while time.monotonic() < until:
            seen = end.recv(LONGEST_LINE, socket.MSG_PEEK)
            if not seen:
                break
            place = seen.find(name.encode())
            line_end = seen.find(b"\n", place) if place >= 0 else seen.rfind(b"\n")
            if line_end < 0 and len(seen) < LONGEST_LINE:
                time.sleep(LOOK_SECONDS)  # The rest of the line is on its way.
                continue
            end.recv(line_end + 1 if line_end >= 0 else len(seen))
            if place >= 0 and line_end >= 0:
                return
    except OSError as error:
        raise HypervisorError(f"the monitor that QEMU has kept is of no use: {error}") from error
    raise HypervisorError("the monitor that QEMU has kept does not answer")
