"""LLDP (IEEE 802.1AB-2016), as far as a leaf tells an edge the gateway's MAC by it, and what VDP says there.

An LLDPDU is a list of TLVs, each with seven bits of type and nine of length: chassis id, port id and time to
live, in this order and each once, then others in any order, then the end of the list. What is carried besides
stands in organizationally specific TLVs (type 127). Two are read here:

* IEEE 802.1Qbg's EVB TLV (00-80-C2, subtype 0x0D): its sender's mode is "EVB Bridge" or "EVB Station". A
  bridge that speaks VDP to the servers below it announces itself by this one.
* The gateway's MAC: 802.1Qbg has no field for it (US 9,515,930: "down from the ToR using an extension in a
  First Hop protocol like the IEEE 802.1Qbg"). `GATEWAY_OUI` is no company's: it has the bit that says
  "locally administered", so that anybody may send it. `lldpcli configure lldp custom-tlv` does.
"""

from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b

from retinue.core.limits import MOST_TLVS
from retinue.core.model import Mac
from retinue.core.packets.errors import FrameError
from retinue.core.packets.ethernet import ZERO_MAC, Ethernet, EtherType, mac_bytes, mac_text

NEAREST_BRIDGE: Mac = "01:80:c2:00:00:0e"
"""The one of LLDP's three groups that no kind of bridge forwards (802.1Q, tables 8-1 to 8-3): :03 passes
two-port relays, :00 passes provider bridges and those of Linux that have no spanning tree."""
EVB_OUI, EVB_SUBTYPE = b"\x00\x80\xc2", 0x0D
EVB_BYTES = 5
GATEWAY_OUI, GATEWAY_SUBTYPE = b"\x52\x54\x4e", 1
"""The letters RTN."""
PROBE_SUBTYPE = 2
PROBE_MARK_BYTES = 16
SHORTEST_FRAME = 60
"""Bytes of an Ethernet frame, without its checksum."""
_MANDATORY = 3
_LONGEST = 511


class Tlv(IntEnum):
    """Of the types that are read here."""

    END = 0
    CHASSIS_ID = 1
    PORT_ID = 2
    TTL = 3
    ORGANIZATIONAL = 127


class EvbMode(IntEnum):
    """The two upper bits of the EVB TLV's fourth byte."""

    NOT_SUPPORTED = 0
    STATION = 1
    BRIDGE = 2


CHASSIS_MAC = 4
"""Subtype "MAC address" of a chassis id."""
CHASSIS_LOCAL, PORT_LOCAL = 7, 7
"""Subtypes "locally assigned" of the two ids."""


@dataclass(frozen=True, slots=True)
class Organizational:
    """One TLV of an organization's own."""

    oui: bytes
    subtype: int
    info: bytes


@dataclass(frozen=True, slots=True)
class Lldp:
    """One LLDPDU. Ids have their subtype as first byte."""

    chassis_id: bytes
    port_id: bytes
    ttl: int
    """Seconds; 0: what the sender said before is no longer so."""
    organizational: tuple[Organizational, ...] = ()

    @property
    def chassis(self) -> str:
        """The chassis id as people write it: a MAC, a text such as a system's UUID, else hexadecimal."""
        kind, value = self.chassis_id[:1], self.chassis_id[1:]
        if kind == bytes([CHASSIS_MAC]) and len(value) == 6:
            return mac_text(value)
        if value.isascii() and (text := value.decode("ascii")).isprintable():
            return text
        return value.hex()

    @property
    def gateway_mac(self) -> Mac | None:
        """What it says of the gateway's MAC, None where it says nothing. Raises FrameError."""
        found = [one.info for one in self.organizational if _is(one, GATEWAY_OUI, GATEWAY_SUBTYPE)]
        if not found:
            return None
        if len(found) > 1:
            raise FrameError("an LLDPDU tells the gateway's MAC twice")
        if len(found[0]) != 6:
            raise FrameError(f"a gateway's MAC of {len(found[0])} bytes")
        mac = mac_text(found[0])
        if found[0][0] & 1 or mac == ZERO_MAC:
            raise FrameError(f"{mac} cannot be a gateway's MAC")
        return mac

    @property
    def evb_mode(self) -> int | None:
        """What it says that its sender is, None where it says nothing. Raises FrameError."""
        found = [one.info for one in self.organizational if _is(one, EVB_OUI, EVB_SUBTYPE)]
        if not found:
            return None
        if len(found) > 1 or len(found[0]) != EVB_BYTES:
            raise FrameError("an EVB TLV that is not as 802.1Q has it")
        return found[0][3] >> 6

    def build(self) -> bytes:
        """Its bytes. Raises FrameError for an id that is too long, or a time to live that is none."""
        if not 0 <= self.ttl <= 0xFFFF:
            raise FrameError(f"a time to live of {self.ttl} s does not fit 16 bits")
        parts = [
            _tlv(Tlv.CHASSIS_ID, self.chassis_id),
            _tlv(Tlv.PORT_ID, self.port_id),
            _tlv(Tlv.TTL, self.ttl.to_bytes(2, "big")),
            *(
                _tlv(Tlv.ORGANIZATIONAL, one.oui + bytes([one.subtype]) + one.info)
                for one in self.organizational
            ),
            _tlv(Tlv.END, b""),
        ]
        return b"".join(parts)


def from_leaf(leaf: str, port: str, mac: Mac, ttl: int) -> Lldp:
    """What a leaf of ours says to the server at one of its ports."""
    evb = Organizational(EVB_OUI, EVB_SUBTYPE, bytes([0, 0, 0, EvbMode.BRIDGE << 6, 0]))
    gateway = Organizational(GATEWAY_OUI, GATEWAY_SUBTYPE, mac_bytes(mac))
    chassis, at = bytes([CHASSIS_LOCAL]) + leaf.encode(), bytes([PORT_LOCAL]) + port.encode()
    return Lldp(chassis, at, ttl, (evb, gateway))


def probe_frame(switch: str, port: str, secret: bytes, number: int, src: Mac) -> bytes:
    """What the controller has a switch send by a port, to see whether it comes in at the other end.

    Servers see those of their own uplinks. So the secret is not in it: what is made of it and of all the rest
    is, and tells nobody how another one, of whichever link, would look. At most 64 bytes of a secret.
    """
    counted = number.to_bytes(8, "big")
    made = blake2b(f"{switch}:{port}:".encode() + counted, digest_size=PROBE_MARK_BYTES, key=secret).digest()
    mark = Organizational(GATEWAY_OUI, PROBE_SUBTYPE, made + counted)
    chassis, at = bytes([CHASSIS_LOCAL]) + switch.encode(), bytes([PORT_LOCAL]) + port.encode()
    # TTL 0: who keeps a table of neighbours keeps nothing of it. No frame is shorter: no port pads it.
    return lldp_frame(Lldp(chassis, at, 0, (mark,)), src).ljust(SHORTEST_FRAME, b"\0")


def lldp_frame(said: Lldp, src: Mac) -> bytes:
    return Ethernet(NEAREST_BRIDGE, src, EtherType.LLDP, said.build()).build()


def parse_lldp(data: bytes) -> Lldp:
    """Read an LLDPDU, which may be followed by padding. Raises FrameError for what 802.1AB has discarded."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while True:
        if at == len(data):
            break  # The end of the PDU ends the list, too.
        if len(data) - at < 2:
            raise FrameError("an LLDPDU ends within the header of a TLV")
        head = int.from_bytes(data[at : at + 2], "big")
        kind, length = head >> 9, head & _LONGEST
        value = data[at + 2 : at + 2 + length]
        if len(value) < length:
            raise FrameError(f"an LLDPDU ends within a TLV of type {kind}")
        if kind == Tlv.END:
            if length:
                raise FrameError("the last TLV of an LLDPDU has a value")
            break
        found.append((kind, value))
        if len(found) > MOST_TLVS:
            raise FrameError(f"an LLDPDU of more than {MOST_TLVS} TLVs")
        at += 2 + length
    return _of_tlvs(found)


def _of_tlvs(found: list[tuple[int, bytes]]) -> Lldp:
    kinds = [kind for kind, _ in found]
    if kinds[:_MANDATORY] != [Tlv.CHASSIS_ID, Tlv.PORT_ID, Tlv.TTL]:
        raise FrameError("an LLDPDU does not begin with chassis id, port id and time to live")
    if any(kind in (Tlv.CHASSIS_ID, Tlv.PORT_ID, Tlv.TTL) for kind in kinds[_MANDATORY:]):
        raise FrameError("an LLDPDU has a chassis id, port id or time to live twice")
    (_, chassis), (_, port), (_, ttl) = found[:_MANDATORY]
    for what, value in (("chassis id", chassis), ("port id", port)):
        if not 2 <= len(value) <= 256:
            raise FrameError(f"an LLDPDU's {what} of {len(value)} bytes")
    if len(ttl) != 2:
        raise FrameError(f"an LLDPDU's time to live of {len(ttl)} bytes")
    own = []
    for kind, value in found[_MANDATORY:]:
        if kind == Tlv.ORGANIZATIONAL:
            if len(value) < 4:
                raise FrameError("an organization's TLV without its OUI and subtype")
            own.append(Organizational(value[:3], value[3], value[4:]))
    return Lldp(chassis, port, int.from_bytes(ttl, "big"), tuple(own))


def _is(one: Organizational, oui: bytes, subtype: int) -> bool:
    return (one.oui, one.subtype) == (oui, subtype)


def _tlv(kind: Tlv, value: bytes) -> bytes:
    if len(value) > _LONGEST:
        raise FrameError(f"{len(value)} bytes do not fit a TLV")
    return (kind << 9 | len(value)).to_bytes(2, "big") + value
