"""The priority of every entry, table by table: of overlapping entries in one table the highest wins.

One enumeration for each table, or for each role where a table does different things on edge, leaf and spine;
members of one enumeration are listed from the highest down.
"""

from enum import IntEnum

from retinue.core.model import Role
from retinue.core.pipeline.tables import Table

TABLE_MISS = 0
"""In every table: a frame that no entry names is dropped."""
VRF_BAND = 4000
"""Added to the priority of every entry that is about frames of another VRF than the default one (see
`vrfs`), of all tables but ADMIT and SERVERS."""


class EdgeAdmit(IntEnum):
    """ADMIT on an edge: what a VM's port may send; the server's own traffic (other ports, any order)."""

    FABRIC_PRIORITY_TAG = 220
    """From the fabric, which sends no tags: dropped."""
    PRIORITY_TAG = 210
    """A tag that has a priority and no VLAN (802.1Q, 6.9.1): taken off, and the frame judged as untagged."""
    CLIENT_DHCP = 200
    TRUSTED_DHCP = 195
    """A server's message, from a VM that is a DHCP server."""
    ROGUE_DHCP = 190
    ROGUE_DHCP_ANSWER = 189
    ROGUE_DHCP_QUESTION = 188
    FORGED_ND = 187
    """What only a router says of IPv6, and what hides its kind behind extension headers."""
    SEARCH_BY_TUNNEL = 161
    """On a gateway to another domain: a VM that is away looks for its router..."""
    ND_BY_TUNNEL = 160
    """... and what else of neighbour discovery comes by its tunnel, but for advertisements of a router."""
    FIP = 155
    """How a VM finds an FCoE forwarder and logs in there, if there is one."""
    STORAGE = 154
    """From a port that is logged in, to its forwarder; and back."""
    BOUND = 150
    """From the VM's MAC with an assigned address; an ARP probe; of IPv6 a duplicate check."""
    FROM_TUNNEL = 140
    """On a gateway to another domain, by its tunnel: to a guest of that domain, or late, to a VM of ours that
    is coming back from there."""
    PROBE = 111
    """LLDP by which uplinks are probed, where an edge has several."""
    VDP = 110
    """LLDP: from the leaf, where that tells the gateway's MAC; from a VM, to be refused."""
    CHANNEL = 107
    """On the LOCAL port: to a server with which this one exchanges a VM, where that is metered."""
    SPOOFED_ND = 106
    """Neighbour discovery from an address that is not assigned to the NIC."""
    UNSPECIFIED = 105
    """From the unspecified address to a group: who joins one before its address is checked."""
    RARP_ANNOUNCEMENT = 103
    SPOOFED = 102
    """From the VM's MAC, but with an address that is not assigned to its NIC."""
    NOISE = 101
    """Anything else from the VM's MAC."""
    FOREIGN_MAC = 100
    SERVER = 100
    """On the LOCAL port and the uplink, where no VM is."""
    FLOODED_BY_ITSELF = 101
    """The same, by a VM that is at this edge, too: it gets none of its own."""
    FLOODED = 100
    """On the uplink: what was sent to a group of a vnet that floods."""


class LeafAdmit(IntEnum):
    """ADMIT on a leaf: ports of spines, of servers, of routers and DHCP servers."""

    FENCED = 110
    """From the port of a server that the operator says is dead: dropped."""
    FLOODED = 105
    """From an edge or a spine, to a group of a vnet that floods."""
    PROBE = 102
    """LLDP from a spine, or from the controller: whether links lose frames."""
    FROM_SPINE = 100
    FROM_SPINE_OTHER = 90
    """What is no untagged IP never comes from a spine."""
    FROM_LEAF = 100
    """From another leaf, by a tunnel."""
    FROM_STRANGER = 90
    """By a tunnel from an address that no leaf of ours has: dropped."""
    STORAGE = 65
    """To an FCoE forwarder, by who is logged in there; from one, and FIP."""
    PROBE_OF_UPLINK = 64
    """LLDP from a server with several uplinks, where one is known to lead: whether it loses frames..."""
    PROBE_OF_STRANGER = 63
    """... and from anywhere else: to find where it leads."""
    ND_UNSPECIFIED = 62
    """A duplicate check: whether an address is taken the controller says."""
    ND_GATEWAY = 61
    """A gateway is asked for by who names its MAC: answered here, and the controller told."""
    ARP = 60
    ND = 60
    COPY = 59
    """A copy of what one server is sent, for another server."""
    TRUSTED_DHCP = 58
    BOOT_SERVER = 57
    """From a DHCP server's host to a client's port, though not from a DHCP server's port: PXE's proxy."""
    CHASSIS = 57
    """LLDP, where a server is known by its chassis id: whose it is, the controller says."""
    MISSING_SERVER = 56
    """Anything but ARP and ND from the MAC of a server that is not found yet."""
    ROGUE_DHCP = 55
    SERVICE_ITSELF = 54
    """A router or DHCP server speaks for its own address..."""
    SERVICE_SPOOFED = 53
    """... and for nobody else of ours."""
    TO_GATEWAY = 50


class SpineAdmit(IntEnum):
    """ADMIT on a spine or core: all its ports lead to leaves, or from a spine to cores."""

    FLOODED_FROM_CORE = 130
    PROBE = 128
    """LLDP from a core, or from the controller: whether links lose frames."""
    PROBE_FROM_BELOW = 127
    """The same, from a leaf or spine: it is sent back, too."""
    FENCED = 125
    """From a leaf that nobody waits for, since the operator says that all servers there are dead: dropped."""
    FLOODED = 120
    """To a group of a vnet that floods."""
    FROM_CORE = 115
    FROM_CORE_OTHER = 110
    """What is no untagged IP never comes from a core."""
    TO_GATEWAY = 100
    TO_SERVER = 90


class Arp(IntEnum):
    """ARP, on edges and leaves."""

    OWN_ADDRESS = 300
    """A VM asks for its own address: announcement, duplicate check."""
    TRUNK_GATEWAY = 260
    """A NIC in a trunk asks for a gateway: the answer has its tag."""
    TRUNK = 250
    """It asks for anything else."""
    SUBINTERFACE_GATEWAY = 240
    """On a leaf: a router's subinterface asks for a gateway of its VRF."""
    SUBINTERFACE = 230
    """Anything else from there: never answered as in the default VRF."""
    GATEWAY = 200
    LOCAL_VM = 150
    GUEST = 110
    """Another domain's VM asks for anything else: its gateway, and whoever is at its home."""
    TO_CONTROLLER = 100


class Nd(IntEnum):
    """ND, on an edge: packets of IPv6 from a VM's bound addresses, and duplicate checks."""

    HONEST = 200
    SPOOFED = 100
    """Neighbour discovery that names another's address or MAC, or that was forwarded."""
    HIDDEN = 50
    """Whatever is behind an extension header that a switch does not read."""
    OTHER = 10
    """What is no neighbour discovery goes on."""


class Answer(IntEnum):
    """ANSWER, on edges and leaves: neighbour solicitations that name their sender's MAC, and the answers made
    of them."""

    ADVERTISEMENT_IN_TRUNK = 410
    """To a NIC in a trunk: it has its tag."""
    ADVERTISEMENT = 400
    UNSPECIFIED = 310
    """A duplicate check has no sender, so what names one is none: dropped (RFC 4861, 7.1.1)."""
    OWN_ADDRESS = 300
    """A VM asks for its own address: nobody else has it."""
    GATEWAY = 200
    LOCAL_VM = 150
    GUEST = 110
    """Another domain's VM asks for anything else: its gateway, and whoever is at its home."""
    TO_CONTROLLER = 100


class Forward(IntEnum):
    """FORWARD, on an edge: by destination MAC."""

    TRUNK_ECHO = 310
    """A NIC in a trunk pings a gateway: the answer has its tag."""
    GATEWAY_ECHO = 300
    TRUNK_GROUP = 270
    """What a NIC in a trunk sends to a group: dropped."""
    FLOODED = 260
    """To a group of a vnet that floods."""
    LINK_SCOPE = 250
    """From or to a link-local address: goes nowhere, wherever the other one is."""
    LOCAL_VM = 200
    GROUP = 110
    """Group addresses, broadcast among them: dropped."""
    GUEST = 108
    """Whatever else another domain's VM sends: it goes home, which knows where it belongs."""
    UNROUTABLE = 105
    """What no router may forward, and would be sent to one: dropped."""
    UP = 100


class Deliver(IntEnum):
    """DELIVER, on an edge: by destination address, what the fabric brought."""

    FLOODED = 220
    """To a group of a vnet that floods."""
    COPY = 210
    """From the server where the VM is delivered: never sent back there."""
    GUEST = 205
    """On the gateway to a guest's home: what the guest sends."""
    VM = 200
    SERVER = 100


class Route(IntEnum):
    """ROUTE, on leaves and spines: longest prefix first."""

    SIZE = 1500
    """Plus the prefix length. On a leaf, where a way takes less than others: a packet's size is looked at,
    before all else and once."""
    GATEWAY_ECHO = 1300
    UNROUTABLE = 1250
    """What no router may forward: dropped."""
    EXPIRED = 1240
    """On a leaf: this is the hop where its time to live ends, and its sender is told."""
    TOO_BIG = 1230
    """On a leaf: where it goes takes no packet as large as this one, and its sender is told."""
    HAIRPIN = 1210
    HOST = 1200
    PREFIX = 1000
    """Plus the prefix length, at most 128."""
    DEFAULT = 10


class Servers(IntEnum):
    """SERVERS, on leaves and spines: by a server's MAC."""

    SUBINTERFACE = 120
    """Of a router, from a VRF: by its subinterface there."""
    HAIRPIN = 110
    """On a spine: for a server of the leaf where it comes from."""
    SERVER = 100
    FROM_ABOVE = 20
    """For a server that is not here, and a spine, or core, sent it: dropped."""
    UP = 10
    """For a server that is not here, and it came from below."""


class Unwrap(IntEnum):
    """UNWRAP, on leaves that tunnels join: by the tunnel's identifier."""

    FLOODED = 200
    """To a group of a vnet that floods."""
    VRF = 100


class Wrap(IntEnum):
    """WRAP, on leaves that tunnels join: by the tag."""

    BACK = 110
    """On a router that is not ours: from another router, and on to one."""
    VRF = 100


PRIORITIES: dict[tuple[Role, Table], type[IntEnum]] = {
    (Role.EDGE, Table.ADMIT): EdgeAdmit,
    (Role.EDGE, Table.ARP): Arp,
    (Role.EDGE, Table.ND): Nd,
    (Role.EDGE, Table.ANSWER): Answer,
    (Role.EDGE, Table.FORWARD): Forward,
    (Role.EDGE, Table.DELIVER): Deliver,
    (Role.LEAF, Table.ADMIT): LeafAdmit,
    (Role.LEAF, Table.ARP): Arp,
    (Role.LEAF, Table.ANSWER): Answer,
    (Role.LEAF, Table.ROUTE): Route,
    (Role.LEAF, Table.UNWRAP): Unwrap,
    (Role.LEAF, Table.SERVERS): Servers,
    (Role.LEAF, Table.WRAP): Wrap,
    (Role.SPINE, Table.ADMIT): SpineAdmit,
    (Role.SPINE, Table.ROUTE): Route,
    (Role.SPINE, Table.SERVERS): Servers,
    (Role.CORE, Table.ADMIT): SpineAdmit,
    (Role.CORE, Table.ROUTE): Route,
    (Role.CORE, Table.SERVERS): Servers,
}
"""By a switch's role and the table: every table a switch of that role has entries in."""
