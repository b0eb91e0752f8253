"""How long, large, deep and many anything from outside may be: every limit that is not a time, in one place.

What comes in is of one of four kinds. An *id* has a grammar, and what does not follow it is refused. A *text*
is for people: it is cut, since what it says counts and not its length. A *number* has a range. The rest is
counted: bytes of a message, levels of its nesting, connections, rows. docs/limits.md has the table.
"""

import re

# ---- ids ----

LONGEST_ID = 63
"""Characters of an id: a VM's, a server's, a switch's, a port's name."""
ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._@-]{{0,{LONGEST_ID - 1}}}")
"""An id is a name on command lines, in paths, files and certificates, and an `iface-id`: it means nothing to
any of them. UUIDs are ids."""
ID_IN_WORDS = f"up to {LONGEST_ID} letters, digits, and . _ @ -, a letter or digit first"
_CHUNK = "(?:0|[1-9][0-9]{0,8})"
PART = f"disk[1-9][0-9]?|{_CHUNK}(?:-{_CHUNK})?"
"""What follows an id and ":" in the name of a part of a thing: a VM's disk, chunks of an image. A number is
written in one way alone."""
NAME = re.compile(rf"{ID.pattern}(?::(?:{PART}))?")
"""An id, or the name of a part."""
PORT_NAME = re.compile(rf"[!-~]{{1,{LONGEST_ID}}}")
"""The name of a switch's port, as the switch reports it: visible ASCII."""

# ---- texts ----

LONGEST_REASON = 500
"""Characters of a sentence that somebody else wrote: a report's reason, an error, an event's text."""
LONGEST_LOGGED = 2000
"""Characters of one field of a line in a log."""
LONGEST_ADDRESS = 261
"""Characters of HOST:PORT: a name of 255 (RFC 1035), a colon, five digits."""

# ---- numbers ----

LONGEST_EVENT_ID = 18
"""Digits of an event's id."""
LARGEST_COUNT = (1 << 53) - 1
"""The largest integer that every reader of JSON reads exactly (RFC 8259, section 6)."""
LATEST = 253_402_300_799
"""Seconds since the epoch: the end of the year 9999, past which no clock shows a date."""
LARGEST_IMAGE = 256 << 30
"""Bytes of an image that servers fetch by name."""
LARGEST_PORT_NUMBER = 0xFFFF_FF00
"""OFPP_MAX: no port of a switch has a higher number (OpenFlow 1.4, 7.2.1)."""
HIGHEST_VM_PORT = 32_767
"""Of a VM's port: each has meters of its own, of which Open vSwitch has 2^18 (core/pipeline/meters.py)."""
LEAST_MTU, MOST_MTU = 1280, 9216
"""Bytes of an IP packet that a network takes: what IPv6 needs at the least (RFC 8200, section 5), and jumbo
frames of common switches."""
VXLAN_BYTES = 50
"""What a tunnel puts before an IP packet: Ethernet, and outside it VXLAN, UDP and IPv4 (RFC 7348, 5)."""
LARGEST_FRAME = MOST_MTU + 14
"""Bytes of an untagged Ethernet frame."""
MOST_MEMORY_MIB = 1 << 24
"""MiB of one VM's memory: 16 TiB."""
MOST_DISK_MIB = 1 << 26
"""MiB of one disk of a VM: 64 TiB."""
LONGEST_PATH = 255
"""Characters of the path of a disk's file."""

HIGHEST_VLAN = 4094
"""IEEE 802.1Q: 0 is no VLAN, and 4095 is reserved."""
MOST_RATE = 1_000_000_000
"""Kilobits a second of a NIC."""

# ---- messages ----

LARGEST_BODY = 1 << 20
"""Bytes of a REST request's body, of a manager's: ten thousand VMs at once."""
LARGEST_REPORT = 64 << 10
"""Bytes of a REST request's body, of an agent's."""
LARGEST_PEER_ANSWER = 4 << 20
"""Bytes of an answer of another domain's controller: 10,000 names with their addresses."""
LARGEST_EVENT = 4 << 20
"""Bytes of one event, to an agent; a larger one is left out."""
LARGEST_FIRST_MESSAGE = 128 << 10
"""Bytes of one OVSDB message, from a peer that has yet to show what it is."""
LARGEST_DATABASE = 4 << 20
"""Bytes of one OVSDB message of a switch: what its database says of some thousand ports."""
DEEPEST = 32
"""Levels of nesting in an OVSDB message; the protocol needs fewer than ten."""

LARGEST_DHCP6 = 9000
"""Bytes of one DHCPv6 message: what fits a jumbo frame."""
LONGEST_CLIENT_ID = 255
"""Bytes of a client identifier of DHCP: an option's length is one byte."""
LONGEST_DUID = 130
"""Bytes of a DHCPv6 identifier: a type of two, and "128 octets (not including the type code)" (RFC 8415,
11.1)."""

# ---- counts ----

MOST_NICS = 8
"""Network interfaces of one VM."""
MOST_TRUNK_NICS = 32
"""Of one VM, besides: those that go by the port of another one."""
MOST_DISKS = 8
"""Disks of one VM."""
MOST_FC_LOGINS = 16
"""Ports of Fibre Channel that one NIC may be logged in with (NPIV)."""
MOST_ADDRESSES = 64
"""Static addresses of one NIC."""
MOST_OWN_ADDRESSES = 8
"""Addresses of IPv6 that a VM has made itself, of one NIC."""
LONGEST_CHASSIS = 255
"""Characters of an LLDP chassis id (802.1AB, 8.5.2.3)."""
LONGEST_RELEASE = 32
"""Characters that are kept of what an agent says of its release."""
MOST_TLVS = 128
"""Of one LLDPDU: a speaker has a few of its own, and one for each of its VLANs."""
MOST_DHCP6_OPTIONS = 64
"""Options of one DHCPv6 message, and as many inside of one option."""
MOST_DHCP6_ADDRESSES = 8
"""IA_NAs and addresses of one DHCPv6 message, and addresses leased to one NIC by DHCPv6."""
MOST_LEASES = 8
"""Leases of IPv4 that one NIC may hold at a time, under as many client identifiers: the most that a
configuration may say."""
MOST_DHCP6_RELAYS = 8
"""Relays that a DHCPv6 message has passed (HOP_COUNT_LIMIT of RFC 8415, 7.6)."""
MOST_ALLOWED = 64
"""Addresses that one NIC may take."""
MOST_PREFIXES = 16
"""Prefixes that are routed to one NIC."""
MOST_LOAD = 1_000_000_000
"""What may be told of a NIC's load: connections, microseconds, per cent."""
MOST_SUBNETS = 1000
"""Subnets, and as many vnets: every switch has entries for each subnet."""
MOST_GATEWAY_GROUPS = 64
"""Groups of servers with a gateway MAC of their own."""
MOST_PAIRS = 100_000
"""Pairs of MAC and IP that managers give for VMs to take."""
MOST_OFFERS = 8
"""Matches of one other domain that are under way here at the same time: all agents are asked in each."""
MOST_SERVERS_ASKED, MOST_SERVERS_FILLED, MOST_VMS_FILLED = 10_000, 64, 1000
"""Servers that a decision of a mobility manager goes by; and servers, and VMs and bookings on them, that a
resource manager is told in one message."""
MOST_VMS_HELD = 200_000
"""VMs and bookings that a resource manager keeps of one domain: about 90 MB."""
MOST_PREPARES = 32
"""Places for VMs of one other domain that are being looked for here at the same time."""
MOST_CHANNEL_MBPS = 400_000
"""That one server may send of VMs on their way, megabits a second: 400 Gbit/s."""
MOST_ANCHOR_SECONDS = 31_536_000
"""For which a VM's anchor may be kept, or may be idle: a year."""
MOST_IMAGE_HOLDERS = 8
"""Servers that one domain names to another as holders of an image."""
MOST_FAR = 16
"""Connections of one other domain's agents at once that fetch images from an agent."""
MOST_BOOKINGS = 10_000
"""VMs for which room is booked."""
MOST_BOOKINGS_OF_A_SERVER = 1024
"""Of these on one server, whose agent books as it likes."""
MOST_VRFS = 256
"""Routing domains."""
MOST_RELAYED = 16
"""DHCP servers to which one subnet's messages are relayed."""
MOST_HELD, MOST_HELD_OF_A_VM = 1000, 64
"""Packets to VMs whose server has not been found that are held at the same time, of all and of one VM."""
MOST_WAITING, MOST_WAITING_BYTES = 10_000, 16 << 20
"""Frames that waited for one VM at the target of a migration that is undone, and that are handed back, or at
its source, and are handed on: as many as its tap holds. Of more the first are taken."""
MOST_AT_ONCE = 1000
"""Of these, in one report."""
MOST_HOSTS = 128
"""At the edge switch of one server."""
MOST_METRIC = 65535
"""Of a router."""
MOST_SWITCHES, MOST_LINKS = 10_000, 50_000
"""Switches, and links between them, that managers give."""
LONGEST_PORT_NAME = 64
"""Characters; an interface of Linux has 15."""
MOST_STANDBY = 3
"""Uplinks of an edge besides the first."""
MOST_REPORTED = 1024
"""VMs of one server that nobody registered and its switch reported."""
MOST_REPORTS_A_SECOND = 100
"""VMs of which one server says something in a second."""
MOST_IMAGES = 128
"""Images that are published, and that one server holds something of."""
MOST_PINS = 64
"""Things that one server needs one image for."""
MOST_LISTED = 1024
"""VMs of one server, in its agent's report of what it has left."""
MOST_WORDS = 64
"""Applications, clients or VMs in one entity's profile."""
MOST_ENTITIES = 10_000
"""Entities of which a manager has said something."""
MOST_QUESTIONS = 500
"""Questions of DNS that are answered within a second."""
MOST_QUESTIONS_OF_ONE = 100
"""Of one host."""
MOST_UNKNOWN = 16
"""MAC addresses at one leaf port that no server is registered with: the last ones are kept."""
MOST_STRANGERS = 256
"""Connections at one listener whose peers have yet to show who they are; then the oldest of the address that
has most of them goes."""
CONNECTIONS_A_SECOND = 500
"""That one listener accepts; others wait in the system's queue."""
MOST_TELLINGS = 50
"""Events of one kind about one port or peer in a second; the log has what is not told."""
MOST_LOG_LINES = 20
"""Lines of one key in a second; the next one says how many were left out."""
MOST_TRACES = 8
"""Traces that wait for their turn to read switches; one at a time does."""
