"""What the controller counts, since its start: `counters` of GET /v1/status, and the metric retinue_events.

docs/operators.md explains each in its table "Counters"; a test holds the two together.
"""

from collections.abc import Mapping
from enum import StrEnum

from retinue.core.pipeline.cookies import Reason
from retinue.protocol import status
from retinue.protocol.renewals import OrderState


class Count(StrEnum):
    ANCHORS_NOT_COUNTED = "packets by gateways not counted: no answer"
    ARP_ANSWERED = "ARP answered"
    ARP_UNANSWERED = "ARP not answered: nobody has the address"
    ASKED_HOME_TOO_MUCH = "questions not sent home: a guest of another domain asks too much"
    AUDITS = "audits"
    AUDITS_FAILED = "audits without a result"
    CLAIMED_VMS = "VMs claimed by another server"
    DHCP_REJECTED = "DHCP rejected"
    DHCP_FROM_UNKNOWN_SERVER = "DHCP dropped: no DHCP server is known at that port"
    DHCP_NO_SERVER = "DHCP dropped: no DHCP server to be reached"
    DHCP_TOO_MANY_RELAYS = "DHCP dropped: too many relays"
    DHCP_TOO_MUCH = "DHCP dropped: a VM asks too much of relayed subnets"
    DHCP_UNCONFIRMED = "DHCP kept back: the binding is not confirmed"
    DNS_ASKED = "DNS questions"
    DNS_REFUSED = "DNS questions refused"
    DNS_TOO_MANY = "DNS questions dropped: too many at once"
    EVENTS_LEFT_OUT = "events left out: others of the same port or peer were told"
    EXPIRED_ANSWERED = "packets whose time to live ended, answered"
    EXPIRED_UNANSWERED = "packets whose time to live ended, not answered: sender unknown, or an error itself"
    FLOODED = "frames flooded inside vnets"
    FLOOD_TOO_MUCH = "frames not flooded: a NIC sends too many"
    FRAMES_NOT_SENT = "frames not sent: switch away"
    GATEWAYS_REFUSED = "gateway MACs refused"
    HELD_DROPPED = "packets to VMs whose server is not found, dropped"
    HELD_SENT = "packets to VMs whose server was not found, sent on"
    INTERNAL_ERRORS = status.INTERNAL_ERRORS
    LOCATIONS_REJECTED = "server locations rejected"
    ND_ANSWERED = "neighbour discovery answered"
    ND_UNANSWERED = "neighbour discovery not answered: nobody has the address"
    OWN_ADDRESS_TOO_MUCH = "own addresses not bound: a VM makes too many"
    PACKET_INS_NOT_OURS = "packet-ins not ours"
    PROBES_NOT_OURS = "probes of links not ours"
    ROUTER_ADVERTISED = "router advertisements sent"
    SPOOFED_NOT_COUNTED = "spoofed frames not counted: no answer"
    SWITCH_ERRORS = "switch errors"
    TOO_BIG_ANSWERED = "packets larger than where they go takes, answered"
    TOO_BIG_FRAGMENTED = "packets larger than where they go takes, fragmented"
    TOO_BIG_UNANSWERED = "packets larger than where they go takes, not answered: as of those that ended"
    UNROUTABLE = "frames dropped: no router may forward to their destination"
    UNKNOWN_SWITCHES = "unknown switches"
    VM_REPORTS_REFUSED = "reports of VMs refused"
    ZENOH_ASKED = "zenoh questions"
    ZENOH_TOO_MANY = "zenoh questions refused: too many at once"


BAD_FRAMES = "bad {} frames"
ENTRIES_FOUND = "entries found {}"
PACKET_INS = "packet-ins {}"
RENEWALS = "renewals {}"
FAMILIES = (BAD_FRAMES, ENTRIES_FOUND, PACKET_INS, RENEWALS)
"""Counters of which there is one for each protocol, kind of difference, reason of a packet-in, and end."""


def bad_frames(protocol: str) -> str:
    """Frames of this protocol that could not be read."""
    return BAD_FRAMES.format(protocol)


def entries_found(how: str) -> str:
    """Entries that an audit found missing, changed or foreign."""
    return ENTRIES_FOUND.format(how)


def packet_ins(reason: Reason) -> str:
    """Frames that switches sent for this reason."""
    return PACKET_INS.format(reason.name.lower())


def all_packet_ins(counters: Mapping[str, int]) -> int:
    """Frames that switches sent for any reason, but for those that the controller has had sent itself."""
    found = sum(count for name, count in counters.items() if name.startswith(PACKET_INS.format("")))
    return found - counters.get(packet_ins(Reason.PROBE), 0)


def renewals(end: OrderState) -> str:
    """Renewals that ended so."""
    return RENEWALS.format(end)
