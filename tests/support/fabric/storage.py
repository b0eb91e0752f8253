"""An FCoE forwarder in a network of tests, and what fake nodes and forwarders say: frames, and no more."""

from retinue.core.model import Network, PortRef, Server, Service
from retinue.core.model.storage import FcLogin
from retinue.core.packets import ZERO_MAC, Ethernet, EtherType, mac_bytes
from retinue.core.packets.fip import (
    ADVERTISEMENT,
    ALL_ENODES,
    ALL_FORWARDERS,
    CLEAR_LINKS,
    FLAG_FORWARDER,
    FLAG_FPMA,
    KEEP_ALIVE,
    REPLY,
    REQUEST,
    SOLICITATION,
    Command,
    Descriptor,
    Fip,
    LinkService,
    Operation,
    mac_descriptor,
    vn_port_descriptor,
)
from support.fabric.networks import vm_mac

FORWARDER, FORWARDER_MAC, FORWARDER_PORT = "fcf1", "02:00:00:00:0f:01", 92
COMMANDS = {
    Descriptor.FLOGI: Command.FLOGI,
    Descriptor.FDISC: Command.FDISC,
    Descriptor.LOGO: Command.LOGO,
}
FABRIC = 0xFFFFFE


def add_forwarder(net: Network, leaf: str = "leaf2") -> None:
    net.set_ports(leaf, {**net._numbers[leaf], "fcf": FORWARDER_PORT})
    services = frozenset({Service.FORWARDER})
    net.put_server(Server(FORWARDER, FORWARDER_MAC, services=services, given_at=PortRef(leaf, "fcf")))


def granted_mac(number: int) -> str:
    """What the forwarder grants to VM N: FC_ID 0101NN."""
    return f"0e:fc:00:01:01:{number:02x}"


def login(number: int, mac: str = "") -> FcLogin:
    return FcLogin(mac or granted_mac(number), f"vm{number}", vm_mac(number), FORWARDER)


def storage_frame(src: str, dst: str, mark: bytes = b"") -> bytes:
    """An FCoE frame: SOFi3, a header of Fibre Channel by the MACs, data, EOFt."""
    header = b"\x01" + mac_bytes(dst)[3:] + b"\0" + mac_bytes(src)[3:] + bytes(16)
    body = bytes(13) + b"\x2e" + header + mark.ljust(64, b"\0") + bytes(4) + b"\x42\0\0\0"
    return Ethernet(dst, src, EtherType.FCOE, body).build()


def to_forwarder(number: int, mark: bytes = b"") -> bytes:
    return storage_frame(granted_mac(number), FORWARDER_MAC, mark)


def from_forwarder(number: int, mark: bytes = b"") -> bytes:
    return storage_frame(FORWARDER_MAC, granted_mac(number), mark)


# ---- FIP ----


def fip_frame(src: str, dst: str, said: Fip) -> bytes:
    return Ethernet(dst, src, EtherType.FIP, said.build()).build()


def solicitation(number: int) -> bytes:
    said = Fip(Operation.DISCOVERY, SOLICITATION, FLAG_FPMA, (mac_descriptor(vm_mac(number)),))
    return fip_frame(vm_mac(number), ALL_FORWARDERS, said)


def advertisement(dst: str = ALL_ENODES, src: str = FORWARDER_MAC) -> bytes:
    flags = FLAG_FPMA | FLAG_FORWARDER
    return fip_frame(src, dst, Fip(Operation.DISCOVERY, ADVERTISEMENT, flags, (mac_descriptor(src),)))


def asks(
    number: int, kind: Descriptor = Descriptor.FLOGI, exchange: int = 1, dst: str = FORWARDER_MAC
) -> bytes:
    """FLOGI, FDISC or LOGO."""
    s_id = 0x010100 + number if kind is Descriptor.LOGO else 0
    asked = LinkService(kind, COMMANDS[kind], FABRIC, s_id, exchange)
    own = granted_mac(number) if kind is Descriptor.LOGO else ZERO_MAC
    said = Fip(Operation.LINK_SERVICE, REQUEST, FLAG_FPMA, ((kind, asked.build()), mac_descriptor(own)))
    return fip_frame(vm_mac(number), dst, said)


def answers(
    number: int,
    kind: Descriptor = Descriptor.FLOGI,
    exchange: int = 1,
    *,
    mac: str = "",
    command: Command = Command.ACCEPT,
    src: str = FORWARDER_MAC,
) -> bytes:
    granted = mac or granted_mac(number)
    d_id = int(granted.replace(":", "")[6:], 16)
    answer = LinkService(kind, command, d_id, FABRIC, exchange)
    descriptors = ((kind, answer.build()), mac_descriptor(granted))
    return fip_frame(src, vm_mac(number), Fip(Operation.LINK_SERVICE, REPLY, FLAG_FPMA, descriptors))


def keep_alive(number: int, *, of_port: bool = False) -> bytes:
    """Of the node, or of its VN_Port."""
    src, named = vm_mac(number), [mac_descriptor(vm_mac(number))]
    if of_port:
        src = granted_mac(number)
        named.append(vn_port_descriptor(src))
    return fip_frame(src, FORWARDER_MAC, Fip(Operation.CONTROL, KEEP_ALIVE, FLAG_FPMA, tuple(named)))


def clears(number: int, *ports: str, src: str = FORWARDER_MAC) -> bytes:
    named = (mac_descriptor(src), *(vn_port_descriptor(port) for port in ports))
    return fip_frame(src, vm_mac(number), Fip(Operation.CONTROL, CLEAR_LINKS, 0, named))


def forgeries(number: int, victim: int) -> list[bytes]:
    """What VM `number`, which may be logged in itself, must not get through."""
    own, other = granted_mac(number), granted_mac(victim)
    return [
        storage_frame(other, FORWARDER_MAC),
        storage_frame(vm_mac(number), FORWARDER_MAC),
        storage_frame("0e:fc:00:01:01:77", FORWARDER_MAC),
        storage_frame(own, other),
        storage_frame(own, vm_mac(victim)),
        storage_frame(own, "01:10:18:01:00:02"),
        storage_frame(FORWARDER_MAC, other),
        storage_frame(FORWARDER_MAC, own),
        fip_frame(other, FORWARDER_MAC, Fip(Operation.CONTROL, KEEP_ALIVE)),
        advertisement(src=FORWARDER_MAC),
    ]
