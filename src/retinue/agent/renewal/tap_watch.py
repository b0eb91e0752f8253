"""The DHCP of VMs as it passes at their taps: listened to beside the switch, nothing kept back, nothing sent.

One socket hears both directions at every interface of this server, through a filter in the kernel that lets
DHCPv4 through and nothing else; of interfaces that are no VM's nothing is taken. Frames that the agent puts
in and takes out by itself (`standalone.tap_port`) do not pass here.
"""

import asyncio
import contextlib
import ctypes
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog

from retinue.core.model import Mac
from retinue.core.packets import CLIENT_PORT, SERVER_PORT
from retinue.core.token_bucket import TokenBucket

_ETH_P_ALL = 3
"""Frames that go out are seen by nobody who asks for less."""
_SO_ATTACH_FILTER = 26
_SO_TIMESTAMPNS = 35
_LONGEST = 4096
AT_ONCE = 8
"""Frames taken in one turn of the event loop, which has VMs to see to."""
A_SECOND = 20.0
"""Frames of one tap that are looked into; a client sends a handful."""

# What `tcpdump -d 'ip and (udp src port 67 or udp src port 68)'` prints: (code, jt, jf, k).
_FILTER = (
    (0x28, 0, 0, 12),  # ldh the Ethernet type
    (0x15, 0, 9, 0x0800),
    (0x30, 0, 0, 23),  # ldb the protocol
    (0x15, 0, 7, socket.IPPROTO_UDP),
    (0x28, 0, 0, 20),  # ldh flags and fragment offset: no later fragment
    (0x45, 5, 0, 0x1FFF),
    (0xB1, 0, 0, 14),  # ldxb 4 * the header's length
    (0x48, 0, 0, 14),  # ldh the source port
    (0x15, 1, 0, SERVER_PORT),
    (0x15, 0, 1, CLIENT_PORT),
    (0x06, 0, 0, _LONGEST),
    (0x06, 0, 0, 0),
)

log = structlog.get_logger()


class Listener(Protocol):
    def seen(self, mac: Mac, frame: bytes, *, from_vm: bool, vm: str = "", ago: float = 0.0) -> None:
        """As LeaseNotes.seen."""


@dataclass(frozen=True, slots=True)
class WatchedTap:
    """Whose tap it is."""

    vm: str
    mac: Mac


class Taps(Protocol):
    """Who knows the taps of this server's VMs."""

    @property
    def changes(self) -> int:
        """How often VMs or their NICs have changed: it is asked for at each frame."""

    def watched(self) -> Mapping[str, WatchedTap]:
        """By name."""


class TapWatch:
    """Tells the listener of the DHCP at these taps."""

    def __init__(self, listener: Listener, taps: Taps) -> None:
        self._listener, self._taps = listener, taps
        self._wire: socket.socket | None = None
        self._changes = -1
        self._known: Mapping[str, WatchedTap] = {}
        self._buckets: dict[str, TokenBucket] = {}

    def start(self) -> bool:
        """Begin to listen; False, and logged, where this process may not (it needs CAP_NET_RAW)."""
        try:
            protocol = socket.htons(_ETH_P_ALL)
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
        except OSError as error:
            log.warning("leases.not_watched", error=str(error))
            return False
        try:
            _attach(wire)  # What came before it is no DHCP, mostly, and left out for that.
            with contextlib.suppress(OSError):
                wire.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        except OSError as error:
            wire.close()
            log.warning("leases.not_watched", error=str(error))
            return False
        self._wire = wire
        asyncio.get_running_loop().add_reader(wire.fileno(), self._readable)
        return True

    def close(self) -> None:
        if self._wire is not None:
            asyncio.get_running_loop().remove_reader(self._wire.fileno())
            self._wire.close()
            self._wire = None

    def _readable(self) -> None:
        assert self._wire is not None
        for _ in range(AT_ONCE):
            try:
                frame, extra, _, at = self._wire.recvmsg(_LONGEST, 64)
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("leases.watch_failed", error=str(error))
                return
            self.passed(at[0], frame, from_vm=at[2] != socket.PACKET_OUTGOING, ago=_age(extra))

    def passed(self, interface: str, frame: bytes, *, from_vm: bool, ago: float = 0.0) -> None:
        """A frame of DHCP has passed at an interface, so many seconds ago."""
        if self._changes != self._taps.changes:
            self._changes, self._known = self._taps.changes, self._taps.watched()
            self._buckets = {name: bucket for name, bucket in self._buckets.items() if name in self._known}
        tap = self._known.get(interface)
        # The hardware address in it is the VM's (RFC 2131, "chaddr"), or it is about another one's lease.
        if tap is None or bytes.fromhex(tap.mac.replace(":", "")) not in frame:
            return
        now = time.monotonic()
        if interface not in self._buckets:
            self._buckets[interface] = TokenBucket(A_SECOND, now)
        if self._buckets[interface].take(now):
            self._listener.seen(tap.mac, frame, from_vm=from_vm, vm=tap.vm, ago=ago)


def _age(extra: list[tuple[int, int, bytes]]) -> float:
    """Seconds since the kernel received the frame, however late it is worked on; 0 where it does not say."""
    for level, kind, data in extra:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) >= 16:
            seconds, nanoseconds = struct.unpack("@qq", data[:16])
            at: float = seconds + nanoseconds / 1e9
            return max(0.0, time.time() - at)
    return 0.0


def _attach(wire: socket.socket) -> None:
    code = b"".join(struct.pack("@HBBI", *line) for line in _FILTER)
    kept = ctypes.create_string_buffer(code)
    program = struct.pack("@HP", len(_FILTER), ctypes.addressof(kept))
    wire.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


__all__ = ["TapWatch", "Taps", "WatchedTap"]
