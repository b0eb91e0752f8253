"""The table plan: read this page first.

Edge, leaf and spine are roles of one switch program. All forwarding between servers is IP forwarding *to a
server*; only the edge knows VMs by port. Nothing is learned from traffic and nothing is flooded: a frame
that no entry names is dropped.

      table            edge                         leaf                          spine
    0 ADMIT      who may send what from         from a server or a spine?     IP to the gateway MAC?
                 which port (seeds 1 and 2)     ARP, DHCP to where they end
   10 ARP        answered here or by the        answered here or by the       -
                 controller, never passed on    controller
   20 FORWARD    MAC known here: out of its     -                             -
                 port; any other unicast: MAC
                 := gateway, up (seed 3)
   30 DELIVER    IP of a VM here: MAC := its    -                             -
                 own, out of its port
   35 ROUTE      -                              host here: MAC := its         every host: MAC := its
                                                server's; else: a spine       server's, to its leaf
   40 SERVERS    -                              server's MAC: its port;       server's MAC: its leaf
                                                a copy for another: a spine

A packet from a VM on server1 to a VM on server2 passes: edge1 ADMIT, FORWARD (MAC := gateway), leaf1 ADMIT,
ROUTE (to a spine), spine ADMIT, ROUTE (MAC := server2), leaf2 ADMIT, SERVERS, edge2 ADMIT, DELIVER.
TTL is taken down once, by the leaf: to IP the whole fabric is one router.

A move of a VM changes its entries on its two edges, its two leaves and the spines, and nowhere else. While
the VM stands still its new edge sends a copy of what it delivers to the old one: up again, with the old
server's MAC, as which the leaf lets it in, from that port for that address (Priority.COPY).
"""

from enum import IntEnum
from zlib import crc32

from retinue.flows.entry import (
    Action,
    Field,
    Match,
    Move,
    Output,
    PortNo,
    match,
    set_field,
)
from retinue.model import IP, Mac
from retinue.model.network import Owner


class Table(IntEnum):
    ADMIT = 0
    ARP = 10
    FORWARD = 20
    DELIVER = 30
    ROUTE = 35
    SERVERS = 40


class EthType(IntEnum):
    IPV4 = 0x0800
    ARP = 0x0806
    RARP = 0x8035
    IPV6 = 0x86DD


UDP = 17
ICMP = 1
DHCP_SERVER_PORT = 67
DHCP_CLIENT_PORT = 68
ARP_REQUEST = 1
ARP_REPLY = 2
ICMP_ECHO_REQUEST = 8
ICMP_ECHO_REPLY = 0
NO_TAG = 0
"""The VLAN id of an untagged frame (OFPVID_NONE; a tag has one bit more, also that of VLAN 0). All ports are
access ports: every entry that admits a frame asks for it, so that no tag comes through to where it counts."""
GROUP_BIT = (1 << 40, 1 << 40)
"""Value and mask of the bit that makes a MAC a group address (broadcast among them)."""
SPINES_GROUP = 1
"""On a leaf: the select group over its spines, equal cost, by flow hash (row C4)."""


class Reason(IntEnum):
    """What an entry is for. Kept in its cookie: a packet-in says why it came, counters can be summed."""

    FORWARD = 0
    DHCP_CLIENT = 1
    DHCP_SERVER = 2
    VM_ARP = 3
    SERVER_ARP = 4
    QUIET = 5
    """Dropped without a report: honest noise, such as a guest's LLDP."""
    FORGED_MAC = 8
    FORGED_IP = 9
    FORGED_ARP = 10
    ROGUE_DHCP = 11
    """A DHCP server's message from where no such server may be; or a VM's question round the snooping."""


FORGERIES = frozenset({Reason.FORGED_MAC, Reason.FORGED_IP, Reason.FORGED_ARP, Reason.ROGUE_DHCP})
COOKIE_MARK = 0x5E71 << 48
FORGERY_COOKIE_MASK = 0xFFFF_0008_0000_0000
FORGERY_COOKIE = COOKIE_MARK | 8 << 32
"""Cookie and mask that pick the entries of all FORGERIES and no others."""


def cookie(reason: Reason, owner: Owner) -> int:
    return COOKIE_MARK | reason << 32 | crc32(str(owner).encode())


def reason_of(cookie: int) -> Reason | None:
    """The reason in a cookie of ours; None for another's cookie."""
    if cookie >> 48 << 48 != COOKIE_MARK:
        return None
    number = cookie >> 32 & 0xFFFF
    return Reason(number) if number in Reason._value2member_map_ else None


class Priority:
    """Of overlapping entries in one table the highest wins; these names give their order."""

    # ADMIT on an edge, for VMs
    DHCP = 200
    ROGUE_DHCP = 190
    ROGUE_DHCP_ANSWER = 189
    ROGUE_DHCP_QUESTION = 188
    BOUND = 150
    ARRIVAL = 103
    FORGED = 102
    QUIET = 101
    FOREIGN = 100
    # ADMIT on a leaf
    FROM_SPINE = 100
    FROM_SPINE_OTHER = 90
    LEAF_ARP = 60
    COPY = 59
    TRUSTED_DHCP = 58
    LEAF_ROGUE_DHCP = 55
    SERVICE_ITSELF = 54
    """A router or DHCP server speaks for its own address..."""
    SERVICE_FORGED = 53
    """... and for nobody else of ours."""
    TO_GATEWAY = 50
    # ROUTE
    ANSWER = 1300
    HAIRPIN = 1210
    HOST = 1200
    PREFIX = 1000
    """Plus the prefix length: longest prefix first."""
    DEFAULT = 10
    DROP = 0


class VMMeter(IntEnum):
    """What a VM's port may send to the controller, each with a meter of its own: no VM can starve another."""

    DHCP = 0
    ARP = 1
    FORGERY = 2

    @property
    def rate(self) -> int:
        """Frames a second, and the size of a burst."""
        return (20, 50, 100)[self]

    def id(self, port: int) -> int:
        return port * 4 + self + 16


LEAF_ARP_METER = 1
LEAF_DHCP_METER = 2
LEAF_FORGERY_METER = 3
LEAF_METER_RATE = 500

CONTROLLER = Output(PortNo.CONTROLLER)
ANSWER = Output(PortNo.IN_PORT)


def ip_match(*, src: IP | None = None, dst: IP | None = None, **terms: int | str) -> Match:
    """A match on the IP family of `src` or `dst`, and on them."""
    version = next(a.version for a in (src, dst) if a is not None)
    family = "ipv4" if version == 4 else "ipv6"
    found: dict[str, int | str | IP] = dict(terms)
    found["eth_type"] = EthType.IPV4 if version == 4 else EthType.IPV6
    if src is not None:
        found[f"{family}_src"] = src
    if dst is not None:
        found[f"{family}_dst"] = dst
    return match(**found)


def arp_answer(address: IP, with_mac: Mac) -> tuple[Action, ...]:
    """Turn an ARP request into its reply, `address` is at `with_mac`, and send it back where it came from."""
    return (
        Move(Field.ETH_SRC, Field.ETH_DST),
        set_field(Field.ETH_SRC, with_mac),
        set_field(Field.ARP_OP, ARP_REPLY),
        Move(Field.ARP_SHA, Field.ARP_THA),
        set_field(Field.ARP_SHA, with_mac),
        Move(Field.ARP_SPA, Field.ARP_TPA),
        set_field(Field.ARP_SPA, address),
        ANSWER,
    )


def echo_answer(address: IP, with_mac: Mac) -> tuple[Action, ...]:
    """Turn an ICMP echo request to `address` into its reply: operators ping their gateway first of all."""
    return (
        Move(Field.ETH_SRC, Field.ETH_DST),
        set_field(Field.ETH_SRC, with_mac),
        Move(Field.IPV4_SRC, Field.IPV4_DST),
        set_field(Field.IPV4_SRC, address),
        set_field(Field.ICMPV4_TYPE, ICMP_ECHO_REPLY),
        ANSWER,
    )
