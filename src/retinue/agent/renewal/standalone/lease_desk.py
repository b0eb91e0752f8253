"""Agents without a controller tell each other of leases: a VM arrives, and its lease is known where it was.

who asks                                         who has seen the VM's DHCP
lease mac                                     -> lease, with what a renewal needs    or  absent
renewed mac ip server                         -> heard: the VM is there, and its row here is left

The end is told as the seconds that are left, so the two servers' clocks need not agree. It goes over the
connections of agents (migration/peer.py), which show whose agents they are.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address
from typing import Annotated, Any, Literal

import msgspec
import structlog

from retinue.agent.migration.peer import HELLO_LIMIT, Transfer
from retinue.agent.renewal.lease_file import LeaseRecord, kept_of, record_of
from retinue.agent.renewal.lease_notes import LeaseNotes
from retinue.core.lease_watch import KeptLease
from retinue.core.limits import LONGEST_ID
from retinue.core.model import Mac
from retinue.core.model import mac as checked_mac
from retinue.host.errors import HostError
from retinue.hypervisor import Channel, ChannelError

LONGEST_LEASE = 2.0**32
"""Seconds: what option 51 can say (RFC 2132, 9.2)."""
LEASE, ABSENT = "lease", "absent"
RENEWED, HEARD = "renewed", "heard"
AWAY: Literal["away"] = "away"

log = structlog.get_logger()


class PeersAwayError(Exception):
    """Nobody who could be asked knows the lease, and not everybody could be: who may know it is to be asked
    again."""


class LeaseDesk:
    """Answers other agents (peer.Visitors), and asks those in `peers`: by server, HOST:PORT of its agent."""

    def __init__(self, notes: LeaseNotes, transfer: Transfer, peers: Mapping[str, str]) -> None:
        self._notes, self._transfer, self._peers = notes, transfer, peers
        self.renewed_elsewhere: Callable[[Mac, IPv4Address, str], None] = lambda mac, ip, server: None
        """Called with the MAC and the address of a VM whose lease an agent has renewed, and its server."""

    def knows(self, hello: dict[str, Any]) -> bool:
        return hello["type"] in (LEASE, RENEWED)

    async def visit(self, channel: Channel, hello: dict[str, Any], *, manager: bool) -> None:
        """Any agent may ask for any VM: it may come to its server next. What one says that it has renewed is
        gone from here when no VM here has that MAC."""
        if hello["type"] == RENEWED:
            await self._hear(channel, hello)
            return
        kept = self._notes.of(str(hello.get("mac")))
        try:
            if kept is None:
                await channel.send_message(ABSENT)
            else:
                await channel.send_message(LEASE, **answer_of(kept, self._notes.now()))
        except ChannelError:
            return

    async def _hear(self, channel: Channel, hello: dict[str, Any]) -> None:
        try:
            said = msgspec.convert(hello, _Renewed)
            mac, ip = checked_mac(said.mac), IPv4Address(said.ip)
        except ValueError as error:  # ModelError and msgspec.ValidationError are such.
            log.warning("lease.peer_says_no_renewal", error=str(error))
            return
        kept = self._notes.of(mac)
        if kept is not None and kept.lease.ip == ip:  # Of one that was never seen here nothing is left.
            self.renewed_elsewhere(mac, ip, said.server)
        with contextlib.suppress(ChannelError):
            await channel.send_message(HEARD)

    async def tell(self, mac: Mac, ip: IPv4Address, server: str) -> None:
        """Tell all peers that a VM's lease was renewed at this server; one that is away is not told."""
        said = {"mac": mac, "ip": str(ip), "server": server}
        await asyncio.gather(*(self._tell(peer, at, said) for peer, at in self._peers.items()))

    async def _tell(self, server: str, address: str, said: dict[str, str]) -> None:
        try:
            async with asyncio.timeout(HELLO_LIMIT):
                channel = await self._transfer.open(address, server)
                try:
                    await channel.send_message(RENEWED, **said)
                    await channel.receive_message()
                finally:
                    channel.abort()
        except (HostError, TimeoutError) as error:
            log.warning("lease.peer_not_told", server=server, error=str(error) or "no answer", **said)

    async def find(self, mac: Mac) -> KeptLease | None:
        """What is known of the lease of this MAC, here or at a peer: of several the one that ends last.

        None: everybody has been asked, and nobody knows it. Raises PeersAwayError.
        """
        asked = [self._ask(server, address, mac) for server, address in self._peers.items()]
        said = await asyncio.gather(*asked)
        found = [kept for kept in (self._notes.of(mac), *said) if isinstance(kept, KeptLease)]
        away = [server for server, kept in zip(self._peers, said, strict=True) if kept == AWAY]
        if away and not found:
            raise PeersAwayError(f"{', '.join(away)} cannot be asked")
        return max(found, key=lambda kept: float("inf") if kept.end is None else kept.end, default=None)

    async def _ask(self, server: str, address: str, mac: Mac) -> KeptLease | Literal["away"] | None:
        try:
            async with asyncio.timeout(HELLO_LIMIT):
                channel = await self._transfer.open(address, server)
                try:
                    await channel.send_message(LEASE, mac=mac)
                    answer = await channel.receive_message()
                finally:
                    channel.abort()
            if answer.pop("type") == ABSENT:
                return None
            kept = lease_of_answer(answer, self._notes.now())
            if kept.lease.mac != mac:
                raise ValueError(f"asked for {mac}, it tells of {kept.lease.mac}")
        except (HostError, TimeoutError) as error:
            log.warning("lease.peer_away", server=server, mac=mac, error=str(error) or "no answer")
            return AWAY
        except ValueError as error:  # It would say so again.
            log.warning("lease.peer_says_no_lease", server=server, mac=mac, error=str(error))
            return None
        return kept


class _Renewed(msgspec.Struct):
    mac: Annotated[str, msgspec.Meta(max_length=17)]
    ip: Annotated[str, msgspec.Meta(max_length=15)]
    server: Annotated[str, msgspec.Meta(max_length=LONGEST_ID)]


class _Answer(msgspec.Struct):
    """Of an agent of any release: what it says besides is left out."""

    lease: LeaseRecord
    seconds_left: float | None
    """None: for ever."""


def answer_of(kept: KeptLease, now: float) -> dict[str, Any]:
    left = None if kept.end is None else kept.end - now
    return {"lease": msgspec.to_builtins(record_of(kept)), "seconds_left": left}


def lease_of_answer(answer: dict[str, Any], now: float) -> KeptLease:
    """Raises ValueError for what is no lease (msgspec.ValidationError is one)."""
    said = msgspec.convert(answer, _Answer)
    kept = kept_of(said.lease)
    if said.seconds_left is not None and not abs(said.seconds_left) <= LONGEST_LEASE:
        raise ValueError(f"a lease with {said.seconds_left} seconds left")
    end = None if said.seconds_left is None else now + said.seconds_left
    return KeptLease(kept.lease, end, kept.vm)


__all__ = ["LeaseDesk", "PeersAwayError", "answer_of", "lease_of_answer"]
