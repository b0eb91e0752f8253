"""A VM that spoofs: frames in another VM's name, and a watch that counts those that get through.

Every frame carries a mark, by which it is known wherever it comes out and whatever the fabric has written
over its addresses. Behind the spoofed ones goes one honest frame: when it has come out, so has all that was
sent before it; and it shows that the watch sees.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from retinue.core.packets import ARP, BROADCAST, ArpOp, Ethernet, EtherType, build_udp4
from retinue_lab.errors import LabError
from retinue_lab.measure.capture import SETTLE, PortWatch, WatchedPort
from retinue_lab.processes.processes import Popen

SPOOFED, HONEST = b"retinue:spoofed", b"retinue:honest"
DISCARD = 9
"""The UDP port where nobody answers (RFC 863)."""
EACH = 20
"""Frames of each kind: together less than what a port's meter lets through to be reported at once."""
WATCH_LIMIT = 60.0


@dataclass(frozen=True, slots=True)
class Party:
    mac: str
    ip: IPv4Address


def spoofed_frames(spoofer: Party, victim: Party, gateway_mac: str, to: IPv4Address) -> list[bytes]:
    """One of each kind: the victim's IP, its MAC and IP, and ARP that claims its IP for the spoofer."""
    packet = build_udp4(victim.ip, to, DISCARD, DISCARD, SPOOFED)
    claim = ARP(ArpOp.REPLY, spoofer.mac, victim.ip, spoofer.mac, victim.ip)
    return [
        Ethernet(gateway_mac, spoofer.mac, EtherType.IPV4, packet).build(),
        Ethernet(gateway_mac, victim.mac, EtherType.IPV4, packet).build(),
        Ethernet(BROADCAST, spoofer.mac, EtherType.ARP, claim.build() + SPOOFED).build(),
    ]


def honest_frame(sender: Party, gateway_mac: str, to: IPv4Address) -> bytes:
    packet = build_udp4(sender.ip, to, DISCARD, DISCARD, HONEST)
    return Ethernet(gateway_mac, sender.mac, EtherType.IPV4, packet).build()


def sending(frames: Sequence[bytes], last: bytes) -> str:
    """The guest's command that sends each frame EACH times, then the last one once."""
    return f"sendraw -c {EACH} {' '.join(map(bytes.hex, frames))} && sendraw {last.hex()}"


class MarkWatch:
    """Counts marked frames at some ports while they come."""

    def __init__(self, popen: Popen, ports: Sequence[WatchedPort]) -> None:
        self._watches = [PortWatch(popen, port, self._note) for port in ports]
        self._honest = asyncio.Event()
        self.spoofed = 0
        """Frames seen, on all ports together."""

    async def start(self) -> None:
        """Returns when every port is being watched."""
        for watch in self._watches:
            await watch.start()

    async def until_honest(self) -> None:
        """Wait for the honest frame. Raises LabError when it does not come."""
        try:
            async with asyncio.timeout(WATCH_LIMIT):
                await self._honest.wait()
        except TimeoutError:
            raise LabError(
                f"the honest frame behind the spoofed ones did not arrive in {WATCH_LIMIT:.0f} s"
            ) from None

    async def stop(self) -> None:
        """Let what has already arrived be counted, and end."""
        await asyncio.sleep(SETTLE)
        for watch in self._watches:
            await watch.stop()

    def _note(self, frame: bytes) -> None:
        self.spoofed += SPOOFED in frame
        if HONEST in frame:
            self._honest.set()
