"""The messages of a DHCP exchange: what a client says, and what a server answers.

Which field and option stands in which message is RFC 2131: tables 3 (servers) and 5 (clients), section 4.3.6.
`flags`, `secs` and further options are the caller's to add, with `dataclasses.replace` and `with_option`.
"""

import math
from ipaddress import IPv4Address

from retinue.core.model import Mac
from retinue.core.packets.dhcp import DHCP, FLAG_BROADCAST, BootOp, MessageType
from retinue.core.packets.dhcp_options import Option, Options, joined
from retinue.core.packets.errors import FrameError

_NONE = IPv4Address(0)
OWN_OPTIONS = frozenset(
    {
        Option.REQUESTED_ADDRESS, Option.OVERLOAD, Option.MESSAGE_TYPE, Option.SERVER_ID, Option.MAX_SIZE,
        Option.CLIENT_ID, Option.RAPID_COMMIT, Option.RELAY_AGENT,
    }
)  # fmt: skip
"""Options that belong to a message, or to who sent it, and say nothing of what the client wants; the client
identifier is kept by itself."""
OPTIONS_BYTES = 1024
"""Of a VM's options as they are kept; a renewal fits into one frame with that."""

# ---- a client's ----


def discover(
    chaddr: Mac, xid: int, requested: IPv4Address | None = None, client_id: bytes | None = None
) -> DHCP:
    """Who can give me an address? `requested` is one it would like."""
    return _client(MessageType.DISCOVER, chaddr, xid, client_id, requested=requested)


def request(
    chaddr: Mac,
    xid: int,
    requested: IPv4Address,
    server_id: IPv4Address | None,
    client_id: bytes | None = None,
) -> DHCP:
    """I take this server's offer (SELECTING); without a server: may I keep this address (INIT-REBOOT)?"""
    return _client(MessageType.REQUEST, chaddr, xid, client_id, requested=requested, server_id=server_id)


def renewal(ciaddr: IPv4Address, chaddr: Mac, xid: int, client_id: bytes | None = None) -> DHCP:
    """A DHCPREQUEST in state RENEWING: the address in ciaddr, neither option 50 nor 54 (RFC 2131, 4.3.2).

    `client_id` must be given if the client gave it when it got the lease: servers know the lease by it.
    """
    return _client(MessageType.REQUEST, chaddr, xid, client_id, ciaddr=ciaddr)


def kept_options(request: DHCP) -> Options:
    """What of a VM's request a renewal on its behalf repeats, byte by byte.

    The server may have judged by any of it: by vendor and user class, by the architecture, by what the VM
    wants to know; and it may set the VM's host name from each request anew. What exceeds OPTIONS_BYTES is
    left out.
    """
    kept: list[tuple[int, bytes]] = []
    left = OPTIONS_BYTES
    for code, value in request.options:
        if code not in OWN_OPTIONS and 2 + len(value) <= left:
            kept.append((code, value))
            left -= 2 + len(value)
    return tuple(kept)


NAME_SERVERS = (Option.DNS_SERVER, Option.NETBIOS_NAME_SERVER)
"""What a guest is told with its lease and goes on using: DNS and WINS servers (RFC 2132, 3.8 and 8.5)."""
ASKED_ON_BEHALF = (Option.LEASE_TIME, *NAME_SERVERS)
"""What a renewal on a VM's behalf asks for, besides what the VM itself did."""


def with_asked(options: Options) -> Options:
    """A VM's options as a renewal on its behalf has them: the list of what is asked for (option 55) is the
    VM's own, in its order, and behind it what is missing there of ASKED_ON_BEHALF."""
    asked = joined(options, Option.PARAMETER_LIST) or b""
    whole = asked + bytes(code for code in ASKED_ON_BEHALF if code not in asked)
    at = next((n for n, (code, _) in enumerate(options) if code == Option.PARAMETER_LIST), len(options))
    others = [(code, value) for code, value in options if code != Option.PARAMETER_LIST]
    return (*others[:at], (int(Option.PARAMETER_LIST), whole), *others[at:])


NO_NAME_SERVERS: Options = ((int(Option.DNS_SERVER), b""),)
"""An ACK that tells of none, where () would say that nothing is known."""


def name_servers(answer: DHCP) -> Options:
    """Those that an ACK tells of, by option."""
    told = ((int(code), answer.option(code)) for code in NAME_SERVERS)
    return tuple((code, value) for code, value in told if value)


def name_servers_text(told: Options) -> str:
    """In words, such as "DNS 10.1.0.2, 10.1.0.3"; "none" of none."""
    words = []
    for code, value in told:
        if len(value) < 4:
            continue
        kind = "DNS" if code == Option.DNS_SERVER else "WINS"
        whole = len(value) // 4 * 4
        words.append(f"{kind} {', '.join(str(IPv4Address(value[n : n + 4])) for n in range(0, whole, 4))}")
    return "; ".join(words) or "none"


def release(
    ciaddr: IPv4Address, chaddr: Mac, xid: int, server_id: IPv4Address, client_id: bytes | None = None
) -> DHCP:
    """I do not need the address any more."""
    return _client(MessageType.RELEASE, chaddr, xid, client_id, ciaddr=ciaddr, server_id=server_id)


def decline(
    chaddr: Mac, xid: int, requested: IPv4Address, server_id: IPv4Address, client_id: bytes | None = None
) -> DHCP:
    """The address I was given is in use by someone else."""
    return _client(MessageType.DECLINE, chaddr, xid, client_id, requested=requested, server_id=server_id)


def _client(
    kind: MessageType,
    chaddr: Mac,
    xid: int,
    client_id: bytes | None,
    ciaddr: IPv4Address = _NONE,
    requested: IPv4Address | None = None,
    server_id: IPv4Address | None = None,
) -> DHCP:
    options: list[tuple[int, bytes]] = [(Option.MESSAGE_TYPE, bytes((kind,)))]
    if client_id is not None:
        options.append((Option.CLIENT_ID, client_id))
    if requested is not None:
        options.append((Option.REQUESTED_ADDRESS, requested.packed))
    if server_id is not None:
        options.append((Option.SERVER_ID, server_id.packed))
    return DHCP(BootOp.REQUEST, xid, chaddr, ciaddr=ciaddr, options=tuple(options))


# ---- a server's ----


def offer(
    to: DHCP, yiaddr: IPv4Address, server_id: IPv4Address, lease_time: float, options: Options = ()
) -> DHCP:
    """The answer to a DISCOVER: this address, for `lease_time` seconds (`math.inf`: for ever)."""
    lease = (Option.LEASE_TIME, _seconds(lease_time))
    return _server(MessageType.OFFER, to, server_id, (lease, *options), yiaddr=yiaddr)


def ack(
    to: DHCP, yiaddr: IPv4Address, server_id: IPv4Address, lease_time: float, options: Options = ()
) -> DHCP:
    """The answer to a REQUEST: the address is yours, for `lease_time` seconds (`math.inf`: for ever)."""
    lease = (Option.LEASE_TIME, _seconds(lease_time))
    return _server(MessageType.ACK, to, server_id, (lease, *options), ciaddr=to.ciaddr, yiaddr=yiaddr)


def nak(to: DHCP, server_id: IPv4Address, message: str = "") -> DHCP:
    """The answer to a REQUEST: no, and `message` says why.

    Through a relay it must be broadcast, for the client's address may be wrong where it is (section 4.3.2).
    """
    why: Options = ((Option.MESSAGE, message.encode()),) if message else ()
    flags = to.flags | (FLAG_BROADCAST if to.giaddr != _NONE else 0)
    return _server(MessageType.NAK, to, server_id, why, flags=flags)


def _server(
    kind: MessageType,
    to: DHCP,
    server_id: IPv4Address,
    options: Options,
    ciaddr: IPv4Address = _NONE,
    yiaddr: IPv4Address = _NONE,
    flags: int | None = None,
) -> DHCP:
    """A reply carries back the client's identifier (RFC 6842) and, last, the relay's option 82 (RFC 3046)."""
    said: list[tuple[int, bytes]] = [
        (Option.MESSAGE_TYPE, bytes((kind,))),
        (Option.SERVER_ID, server_id.packed),
        *options,
    ]
    for code in (Option.CLIENT_ID, Option.RELAY_AGENT):
        value = to.option(code)
        if value is not None:
            said.append((code, value))
    return DHCP(
        BootOp.REPLY,
        to.xid,
        to.chaddr,
        flags=to.flags if flags is None else flags,
        ciaddr=ciaddr,
        yiaddr=yiaddr,
        giaddr=to.giaddr,
        options=tuple(said),
    )


def _seconds(lease_time: float) -> bytes:
    if lease_time == math.inf:
        return b"\xff\xff\xff\xff"
    if not 0 <= lease_time < 0xFFFFFFFF:
        raise FrameError(f"a lease of {lease_time} seconds does not fit the option")
    return int(lease_time).to_bytes(4, "big")
