"""The forwarder's fabric: who is logged in, what is registered, and where each frame goes. No I/O.

One switch of Fibre Channel (domain 1), class 3, fabric-provided MACs, no zones: who may use which disk is the
target's to say. A node that logs in again has its address again, and nodes do not age.

    a node says by FIP                  it is answered
    solicitation                        an advertisement, as long as the largest frame
    FLOGI, FDISC                        accepted, with an address and the MAC made of it
    LOGO                                accepted; the others are told
    VLAN request                        no VLAN: as it came

    by FCoE, to a well-known address
    PLOGI, SCR, ECHO, LOGO              accepted
    a question to the name server       answered; the first registration is told to those that wish (RSCN)
    to another port                     forwarded there: the two MACs change, and no more
    to a port that is not logged in     a link service: rejected; anything else: dropped
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from retinue.core.model import Mac
from retinue.core.packets import Ethernet, EtherType, FrameError, mac_bytes, mac_text, parse
from retinue.core.packets.fip import (
    ADVERTISEMENT,
    ALL_ENODES,
    FLAG_FORWARDER,
    FLAG_FPMA,
    LINK_SERVICES,
    REPLY,
    REQUEST,
    SOLICITATION,
    Command,
    Descriptor,
    Fip,
    Operation,
    mac_descriptor,
    parse_fip,
)
from retinue_lab.storage import frames
from retinue_lab.storage.frames import FcFrame, NameRequest, RCtl, Type

ADVERTISED_MS = 8000
"""Between advertisements to all, in milliseconds (FKA_ADV_PERIOD): 2.5 of them without one, and a node gives
the forwarder up."""
LONGEST = 2172
"""Bytes of the longest frame; an advertisement that was asked for is as long, so that a way that takes less
is found out."""
MOST_PORTS = 250
"""Logged in at a time, or ever: addresses are not used again."""
_FIRST_ID = 0x010101
_FCOE = EtherType.FCOE.to_bytes(2, "big")
_SOLICITED, _AVAILABLE = 0x0002, 0x0004
_PRIORITY, _FABRIC_NAME, _VLAN = 1, 5, 14
"""Descriptors that only a forwarder says."""

PLOGI, LOGO, ECHO, SCR = 0x03, 0x05, 0x10, 0x62
_GPN_FT, _GID_FT, _GPN_ID, _GNN_ID, _RFT_ID = 0x0172, 0x0171, 0x0112, 0x0113, 0x0217
_REGISTRATIONS = frozenset({0x0212, 0x0213, 0x0218, 0x021F, 0x0239})
"""RPN_ID, RNN_ID, RSPN_ID, RFF_ID, RSNN_NN: taken, and not kept."""


@dataclass(slots=True)
class Port:
    """A VN_Port."""

    fc_id: int
    wwpn: bytes
    wwnn: bytes
    registered: bool = False
    """Its name is in the name server."""
    wishes: bool = False
    """To be told of changes (SCR)."""


class Fabric:
    """`mac`: the forwarder's. `note` is given a line for each thing that happens, data not among them."""

    def __init__(self, mac: Mac, note: Callable[[str], None] = lambda line: None) -> None:
        self.mac = mac
        self.ports: dict[int, Port] = {}
        self._ids: dict[bytes, int] = {}
        """By WWPN, of all that were ever logged in."""
        self._own = mac_bytes(mac)
        self._wwnn = b"\x10\0" + self._own
        self._wwpn = b"\x20\0" + self._own
        self._note = note

    def received(self, frame: bytes) -> list[bytes]:
        """What is to be sent now. Raises FrameError."""
        if frame[12:14] == _FCOE:
            d_id, s_id = frame[29:32], frame[33:36]
            here = int.from_bytes(s_id, "big") in self.ports
            if not here or frame[:12] != self._own + frames.FC_MAP + s_id:
                raise FrameError(f"from {frame[6:12].hex(':')}, which is not the MAC of port {s_id.hex()}")
            if int.from_bytes(d_id, "big") in self.ports:
                return [frames.FC_MAP + d_id + self._own + frame[12:]]
            return list(self._well_known(frames.parse_storage(frame)))
        ethernet = parse(frame)
        if ethernet.ethertype == EtherType.FIP:
            return list(self._fip(ethernet.src, parse_fip(ethernet.payload)))
        return []

    # ---- FIP ----

    def advertisement(self, to: Mac = ALL_ENODES) -> bytes:
        """To all, or to one that has asked."""
        asked = to != ALL_ENODES
        flags = FLAG_FPMA | FLAG_FORWARDER | _AVAILABLE | (_SOLICITED if asked else 0)
        named = (
            (_PRIORITY, b"\0\x80"),
            mac_descriptor(self.mac),
            (Descriptor.NAME, b"\0\0" + self._wwnn),
            (_FABRIC_NAME, b"\0\0\0" + frames.FC_MAP + self._wwnn),
            (Descriptor.KEEP_ALIVE_PERIOD, b"\0\0" + struct.pack("!I", ADVERTISED_MS)),
        )
        return self._say(to, Fip(Operation.DISCOVERY, ADVERTISEMENT, flags, named), LONGEST if asked else 0)

    def _fip(self, node: Mac, said: Fip) -> Iterator[bytes]:
        kind = (said.operation, said.subcode)
        if kind == (Operation.DISCOVERY, SOLICITATION):
            self._note(f"solicitation {node}")
            yield self.advertisement(node)
        elif kind == (Operation.VLAN, REQUEST):
            yield self._say(node, Fip(Operation.VLAN, REPLY, 0, (mac_descriptor(self.mac), (_VLAN, b"\0\0"))))
        elif kind == (Operation.LINK_SERVICE, REQUEST) and said.service is not None:
            service = said.service
            body = next(body for kind, body in said.descriptors if kind in LINK_SERVICES)
            if service.command == Command.LOGO:
                port, answer = self.ports.get(service.s_id), frames.ACCEPT
                self._note(f"logout {service.s_id:06x}")
                yield from self._gone(service.s_id)
            else:
                port = self._login(body[26:])
                answer = frames.service_parameters(self._wwpn, self._wwnn, of_fabric=True)
                self._note(f"login {node} wwpn {port.wwpn.hex(':')} as {port.fc_id:06x}")
            if port is None:
                return
            accepted = FcFrame(
                RCtl.LINK_ANSWER, port.fc_id, frames.FABRIC, Type.LINK_SERVICE, service.exchange, answer
            )
            granted = mac_descriptor(mac_text(frames.port_mac(port.fc_id)))
            named = ((service.kind, b"\0\0" + accepted.build()), granted)
            yield self._say(node, Fip(Operation.LINK_SERVICE, REPLY, FLAG_FPMA, named))

    def _login(self, asked: bytes) -> Port:
        """Raises FrameError."""
        wwpn, wwnn = asked[20:28], asked[28:36]
        if len(wwnn) < 8:
            raise FrameError("a login without the names of port and node")
        if wwpn not in self._ids and len(self._ids) >= MOST_PORTS:
            raise FrameError(f"{MOST_PORTS} ports have logged in: no address is left")
        fc_id = self._ids.setdefault(wwpn, _FIRST_ID + len(self._ids))
        self.ports[fc_id] = Port(fc_id, wwpn, wwnn)
        return self.ports[fc_id]

    def _say(self, to: Mac, said: Fip, length: int = 0) -> bytes:
        return Ethernet(to, self.mac, EtherType.FIP, said.build()).build().ljust(length, b"\0")

    # ---- well-known addresses ----

    def _well_known(self, asked: FcFrame) -> Iterator[bytes]:
        port = self.ports[asked.s_id]
        if (asked.r_ctl, asked.kind) == (RCtl.LINK_REQUEST, Type.LINK_SERVICE):
            yield self._answer(asked, RCtl.LINK_ANSWER, self._link_service(port, asked))
        elif (asked.r_ctl, asked.kind) == (RCtl.REQUEST_DATA, Type.COMMON_TRANSPORT):
            request = frames.parse_name_request(asked.data)
            was_there = port.registered
            yield self._answer(asked, RCtl.ANSWER_DATA, request.answer(self._names(port, request)))
            if port.registered and not was_there:
                yield from self._tell(port.fc_id)

    def _link_service(self, port: Port, asked: FcFrame) -> bytes:
        command = asked.data[0] if asked.data else 0
        if asked.d_id not in frames.WELL_KNOWN:
            return frames.NOT_THERE
        self._note(f"link service {command:02x} from {port.fc_id:06x} to {asked.d_id:06x}")
        if command == PLOGI:
            name = self._wwpn[:7] + bytes([asked.d_id & 0xFF])
            return frames.service_parameters(name, self._wwnn, of_fabric=False)
        if command == SCR:
            port.wishes = True
        return frames.ACCEPT if command in (SCR, LOGO, ECHO) else frames.UNSUPPORTED

    def _names(self, port: Port, asked: NameRequest) -> bytes | None:
        """What the name server tells; None: it does not."""
        if asked.service != frames.DIRECTORY_TYPE:
            return None
        known, listed = self.ports.get(asked.about), [one for one in self.ports.values() if one.registered]
        match asked.command:
            case command if command == _RFT_ID:
                port.registered = True
                return b""
            case command if command in _REGISTRATIONS:
                return b""
            case command if command == _GPN_FT and listed:
                return b"".join(_entry(one, listed) + bytes(4) + one.wwpn for one in listed)
            case command if command == _GID_FT and listed:
                return b"".join(_entry(one, listed) for one in listed)
            case command if command == _GPN_ID and known is not None:
                return known.wwpn
            case command if command == _GNN_ID and known is not None:
                return known.wwnn
        return None

    def _gone(self, fc_id: int) -> Iterator[bytes]:
        if self.ports.pop(fc_id, None) is not None:
            yield from self._tell(fc_id)

    def _tell(self, about: int) -> Iterator[bytes]:
        """Of a change, those that wish it."""
        for port in self.ports.values():
            if port.wishes and port.fc_id != about:
                self._note(f"tells {port.fc_id:06x} of {about:06x}")
                told = FcFrame(
                    *(RCtl.LINK_REQUEST, port.fc_id, frames.FABRIC_CONTROLLER, Type.LINK_SERVICE),
                    *(0x100 | about & 0xFF, frames.registered_change(about), frames.FIRST_OF_EXCHANGE),
                )
                yield told.on_wire(self.mac, mac_text(frames.port_mac(port.fc_id)))

    def _answer(self, asked: FcFrame, r_ctl: int, data: bytes) -> bytes:
        answer = FcFrame(r_ctl, asked.s_id, asked.d_id, asked.kind, asked.exchange, data)
        return answer.on_wire(self.mac, mac_text(frames.port_mac(asked.s_id)))


def _entry(port: Port, listed: list[Port]) -> bytes:
    """A port in a list: the last one has a mark."""
    return bytes([0x80 if port is listed[-1] else 0]) + port.fc_id.to_bytes(3, "big")


__all__ = ["ADVERTISED_MS", "Fabric", "Port"]
