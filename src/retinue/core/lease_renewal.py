"""One renewal on a VM's behalf, on the agent's side: what to send, what an answer means, when to give up.

    begin         -                     send, wait 1 s
    no answer     the wait is over      send again, wait twice as long: 1, 2, 4, 8 s; then silent
    ACK           for this address      acked, with the lease time
    NAK           -                     rejected, with the server's message
    verdict       by the controller     acked or rejected, as the controller judged the answer
    else          -                     another's message, changes nothing

The DHCP server judges (RFC 2131, 4.3.2): "If the DHCP server ... the network address is correct", it sends
DHCPACK, otherwise DHCPNAK; nobody else may send either in its place. Of DHCPv6 the
controller has the answers, always. No clock and no randomness here: times
and the transaction id are handed in.
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address

from retinue.core.model import IAKind, Mac
from retinue.core.model.link_local import group_mac, link_local
from retinue.core.packets import (
    BROADCAST,
    CLIENT_PORT,
    DHCP,
    SERVER_PORT,
    BootOp,
    MessageType,
    Options,
    dhcp_frame,
    renewal,
    with_asked,
)
from retinue.core.packets.dhcp6 import (
    ALL_AGENTS_AND_SERVERS,
    CLIENT_PORT6,
    SERVER_PORT6,
    dhcp6_frame,
    renew6,
)
from retinue.core.packets.dhcp6_options import ADDRESS_BITS, IA, IAAddress, Options6

BACK_OFF = (1.0, 2.0, 4.0, 8.0)
"""Seconds to wait for an answer, after each sending."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What must be known of a VM's lease to renew it."""

    ip: IPv4Address
    mac: Mac
    server: IPv4Address
    """Server identifier (option 54) of the DHCP server that granted it."""
    client_id: bytes = b""
    """Option 61 as the VM gave it; empty if it gave none. RFC 2131, 4.2: a client that used one "MUST use
    the same 'client identifier' in all subsequent messages"."""
    next_hop: Mac = BROADCAST
    """Whose MAC the frame goes to: the gateway's, or the server's. Broadcast where neither is known."""
    options: Options = ()
    """The other options of the VM's request (`packets.kept_options`): a server may decide by any of them."""


@dataclass(frozen=True, slots=True)
class Lease6Held:
    """What must be known of a VM's lease of DHCPv6 to renew it."""

    ip: IPv6Address
    mac: Mac
    client_id: bytes
    """The VM's DUID."""
    server: bytes
    """DUID of the server that granted it."""
    iaid: int
    options: Options6 = ()
    """What else the VM said to get it (`packets.dhcp6.options_of_lease`)."""
    ia: IAKind = IAKind.NA
    length: int = ADDRESS_BITS
    """Of a prefix."""


class RenewalState(StrEnum):
    """Waiting for the DHCP server's answer, or how the renewal ended."""

    WAITING = "waiting"
    ACKED = "acked"
    REJECTED = "rejected"
    SILENT = "silent"

    @property
    def ended(self) -> bool:
        return self is not RenewalState.WAITING


@dataclass(frozen=True, slots=True)
class Renewal:
    """One renewal under way, or ended."""

    lease: Lease | Lease6Held
    xid: int
    began: float
    state: RenewalState = RenewalState.WAITING
    sent: int = 0
    """How many times the request has gone out."""
    wait_until: float = 0.0
    lease_seconds: float | None = None
    """What the ACK granted; `math.inf` for a lease that never ends."""
    reason: str = ""
    """Why there is no ACK."""


# ---- events and effects ----


@dataclass(frozen=True, slots=True)
class AnswerReceived:
    """A DHCP message for the VM's hardware address came in."""

    dhcp: DHCP


@dataclass(frozen=True, slots=True)
class ControllerVerdict:
    """The controller took the answer and judged it: the lease's seconds (None: for ever), or why there is
    no lease."""

    lease_seconds: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Waited:
    """Time has passed."""


Event = AnswerReceived | ControllerVerdict | Waited


@dataclass(frozen=True, slots=True)
class Send:
    """Put this frame into the switch at the VM's own port."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class Wait:
    """Come back at this time (seconds since the epoch), if no answer comes before."""

    until: float


@dataclass(frozen=True, slots=True)
class Acked:
    """The lease is renewed."""

    lease_seconds: float


@dataclass(frozen=True, slots=True)
class NotRenewed:
    """Rejected by the server, or silent; the reason is for the operator."""

    reason: str


Effect = Send | Wait | Acked | NotRenewed


def begin(lease: Lease | Lease6Held, xid: int, now: float) -> tuple[Renewal, list[Effect]]:
    """Ask for the first time. `xid` must be fresh: a random number of 32 bits, of DHCPv6 of 24."""
    return _ask(Renewal(lease, xid, now), now)


def step(this: Renewal, event: Event, now: float) -> tuple[Renewal, list[Effect]]:
    """What an event does. An ended renewal takes no more."""
    if this.state.ended:
        return this, []
    match event:
        case AnswerReceived(dhcp):
            return _on_answer(this, dhcp)
        case ControllerVerdict(reason=reason) if reason:
            return replace(this, state=RenewalState.REJECTED, reason=reason), [NotRenewed(reason)]
        case ControllerVerdict(lease_seconds=seconds):
            seconds = math.inf if seconds is None else seconds
            return replace(this, state=RenewalState.ACKED, lease_seconds=seconds), [Acked(seconds)]
        case Waited() if now < this.wait_until:
            return this, [Wait(this.wait_until)]
        case Waited() if this.sent < len(BACK_OFF):
            return _ask(this, now)
        case Waited():
            reason = (
                f"DHCP server {_server(this.lease)} did not answer {this.sent} requests "
                f"in {now - this.began:.0f} s"
            )
            return replace(this, state=RenewalState.SILENT, reason=reason), [NotRenewed(reason)]


def _ask(this: Renewal, now: float) -> tuple[Renewal, list[Effect]]:
    until = now + BACK_OFF[this.sent]
    match this.lease:
        case Lease() as lease:
            frame = request_frame(lease, this.xid, secs=int(now - this.began))
        case Lease6Held() as lease6:
            frame = renew_frame(lease6, this.xid, now - this.began)
    return replace(this, sent=this.sent + 1, wait_until=until), [Send(frame), Wait(until)]


def _on_answer(this: Renewal, dhcp: DHCP) -> tuple[Renewal, list[Effect]]:
    if not isinstance(this.lease, Lease) or not is_answer(this.lease, this.xid, dhcp):
        return this, []
    if dhcp.message_type is MessageType.NAK:
        reason = rejection(dhcp)
        return replace(this, state=RenewalState.REJECTED, reason=reason), [NotRenewed(reason)]
    seconds = dhcp.lease_time
    if dhcp.yiaddr != this.lease.ip or seconds is None:
        # RFC 2131, 4.3.1 table 3: in an ACK to a DHCPREQUEST the lease time must be there.
        reason = f"DHCP server {this.lease.server} acknowledged {dhcp.yiaddr}, not {this.lease.ip}"
        if seconds is None:
            reason = f"DHCP server {this.lease.server} acknowledged without a lease time"
        return replace(this, state=RenewalState.REJECTED, reason=reason), [NotRenewed(reason)]
    return replace(this, state=RenewalState.ACKED, lease_seconds=seconds), [Acked(seconds)]


def is_answer(lease: Lease, xid: int, dhcp: DHCP) -> bool:
    """True for an ACK or NAK to this renewal, by the server that granted the lease."""
    return (
        dhcp.op == BootOp.REPLY
        and (dhcp.xid, dhcp.chaddr, dhcp.server_id) == (xid, lease.mac, lease.server)
        and dhcp.message_type in (MessageType.ACK, MessageType.NAK)
    )


def _server(lease: Lease | Lease6Held) -> str:
    return str(lease.server) if isinstance(lease, Lease) else lease.server.hex()


def rejection(nak: DHCP) -> str:
    """Why a NAK was sent, for the operator."""
    message = f": {nak.message}" if nak.message else ""
    return f"rejected by DHCP server {nak.server_id or 'unknown'}{message}"


def request_frame(lease: Lease, xid: int, secs: int = 0) -> bytes:
    """The frame that asks to renew a lease, as the VM would send it.

    RFC 2131, 4.3.2, "DHCPREQUEST generated during RENEWING state: 'server identifier' MUST NOT be filled in,
    'requested IP address' option MUST NOT be filled in, 'ciaddr' MUST be filled in with client's IP address.
    ... This message will be unicast". `secs` are seconds since the first request (4.4.1).
    """
    from_the_vm = renewal(lease.ip, lease.mac, xid, lease.client_id or None)
    options = (*from_the_vm.options, *with_asked(lease.options))
    return dhcp_frame(
        replace(from_the_vm, secs=min(secs, 0xFFFF), options=options),
        eth_src=lease.mac,
        eth_dst=lease.next_hop,
        ip_src=lease.ip,
        ip_dst=lease.server,
        sport=CLIENT_PORT,
        dport=SERVER_PORT,
    )


def renew_frame(lease: Lease6Held, xid: int, elapsed: float = 0.0) -> bytes:
    """The frame that asks to renew a lease of DHCPv6, as the VM would send it (RFC 8415, 18.2.4).

    From the link-local address that follows from the NIC's MAC; `elapsed` seconds after the first.
    """
    ia = IA(lease.iaid, (IAAddress(lease.ip, length=lease.length),), kind=lease.ia)
    said = renew6(xid, lease.client_id, lease.server, ia, lease.options, elapsed)
    to = ALL_AGENTS_AND_SERVERS
    return dhcp6_frame(
        said.build(), lease.mac, group_mac(to), link_local(lease.mac), to, CLIENT_PORT6, SERVER_PORT6
    )
