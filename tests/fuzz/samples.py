"""Valid input of each kind."""

import json
import struct
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Any

from retinue.core.model.link_local import ALL_NODES, ALL_ROUTERS, UNSPECIFIED, link_local, solicited_node
from retinue.core.packets import (
    ARP,
    ND,
    NDOptions,
    NeighbourAdvertisement,
    NeighbourSolicitation,
    Option,
    PrefixInformation,
    Redirect,
    RouterAdvertisement,
    RouterSolicitation,
    ack,
    arp_request,
    build_ipv6,
    build_udp4,
    checksum,
    decline,
    dhcp_frame,
    discover,
    nak,
    offer,
    parse,
    release,
    renewal,
    request,
    upper_checksum,
)
from retinue.core.packets.dhcp6 import DHCP6, MessageType6, Relayed6, dhcp6_frame, renew6
from retinue.core.packets.dhcp6_options import IA, IAAddress, Option6, Status
from retinue.core.packets.lldp import Lldp, from_leaf
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.entry import Flow, Group, Meter
from retinue.southbound.openflow.codec import encode
from retinue.southbound.openflow.codec.actions import encode_buckets, encode_instructions
from retinue.southbound.openflow.codec.oxm import encode_match
from retinue.southbound.openflow.codec.wire import BundleStep, MultipartType
from support.fabric import storage
from support.fabric.networks import add_ipv6, add_vm, fabric

MAC, OTHER = "52:54:00:00:00:01", "52:54:00:00:00:02"
IP, SERVER = IPv4Address("10.1.0.101"), IPv4Address("10.1.0.2")
IP6, OTHER6 = IPv6Address("fd00:1::101"), IPv6Address("fd00:1::102")
LOCAL = link_local(MAC)


# ---- frames ----


def arp() -> list[bytes]:
    announced = ARP(2, MAC, IP, MAC, IP).build()
    return [parse(arp_request(MAC, IP, SERVER)).payload, announced]


def udp4() -> list[bytes]:
    return [build_udp4(IP, SERVER, 68, 67, b"payload"), build_udp4(IP, SERVER, 1, 2, b"")]


def dhcp() -> list[bytes]:
    """Frames of every kind of message."""
    asked = discover(MAC, 7)
    offered = offer(asked, IP, SERVER, 3600)
    wanted = request(MAC, 7, IP, SERVER)
    messages = [
        (asked, 68, 67),
        (wanted, 68, 67),
        (renewal(IP, MAC, 8), 68, 67),
        (release(IP, MAC, 9, SERVER), 68, 67),
        (decline(MAC, 9, IP, SERVER), 68, 67),
        (offered, 67, 68),
        (ack(wanted, IP, SERVER, 3600), 67, 68),
        (nak(wanted, SERVER), 67, 68),
        (wanted.with_option(Option.OVERLOAD, b"\3").with_option(61, b"\1" + bytes(6)), 68, 67),
    ]
    return [dhcp_frame(message, MAC, OTHER, IP, SERVER, *ports) for message, *ports in messages]


def dhcp6() -> list[bytes]:
    """Payloads of clients and servers, with and without addresses."""
    duid, server = b"\0\3\0\1" + bytes(6), b"\0\1\0\1" + bytes(10)
    addresses = (IAAddress(IP6, 100, 200), IAAddress(OTHER6, status=Status(0, "good")))
    ia = IA(7, addresses, 50, 80, Status(2, "no"))
    asked = ((int(Option6.ELAPSED_TIME), b"\0\1"), (6, b"\0\x17"))
    messages = [
        DHCP6(kind, 9, duid, server if kind.from_server else b"", (ia,), Status(0, "x"), asked)
        for kind in MessageType6
        if not kind.of_relay
    ]
    return [message.build() for message in (*messages, renew6(9, duid, server, ia))]


def relayed6() -> list[bytes]:
    """Envelopes, one in another."""
    inner = Relayed6(MessageType6.RELAY_FORW, 0, OTHER6, LOCAL, dhcp6()[0], b"edge1:10")
    outer = Relayed6(MessageType6.RELAY_REPL, 1, OTHER6, LOCAL, inner.build(), b"x", ((37, b"remote"),))
    return [inner.build(), outer.build()]


def dhcp6_frames() -> list[bytes]:
    ports = ((546, 547), (547, 546))
    return [dhcp6_frame(said, MAC, OTHER, IP6, OTHER6, *pair) for said in dhcp6()[:3] for pair in ports]


def ipv6() -> list[bytes]:
    """Packets with extension headers of every kind."""
    udp = struct.pack("!HHHH", 1, 2, 8, 0)
    udp = udp[:6] + upper_checksum(IP6, OTHER6, 17, udp).to_bytes(2, "big")
    options = b"\x11\0\1\4" + bytes(4)
    return [
        build_ipv6(IP6, OTHER6, 17, udp),
        build_ipv6(IP6, OTHER6, 0, b"\x3c" + options[1:] + options + udp),
        build_ipv6(IP6, OTHER6, 43, b"\x11\2\0\0" + bytes(20) + udp),
        build_ipv6(IP6, OTHER6, 44, b"\x11\0\0\1" + bytes(4) + udp),
        build_ipv6(IP6, OTHER6, 51, b"\x11\4\0\0" + bytes(20) + udp),
    ]


def fip() -> list[bytes]:
    """What nodes and a forwarder say of a login."""
    frames = (
        *(storage.solicitation(1), storage.advertisement(), storage.asks(1), storage.answers(1)),
        *(storage.keep_alive(1, of_port=True), storage.clears(1, storage.granted_mac(1))),
    )
    return [frame[14:] for frame in frames]


def lldp() -> list[bytes]:
    """What a leaf of ours says of the gateway; and another speaker, of ports and capabilities besides."""
    ours = from_leaf("leaf1", "leaf1-server1", MAC, 121)
    ends = b"\x0a\x05leaf7" + b"\x0e\x04\x00\x14\x00\x14" + b"\0\0"
    return [ours.build(), ours.build()[:-2] + ends, Lldp(b"\x04" + bytes(6), b"\x05swp1", 0).build()]


def nd() -> list[bytes]:
    """Solicitations, advertisements of neighbours, redirects."""
    with_mac = NDOptions(source_mac=MAC)
    return [
        message.build()
        for message in (
            ND(IP6, solicited_node(OTHER6), NeighbourSolicitation(OTHER6, with_mac)),
            ND(UNSPECIFIED, solicited_node(IP6), NeighbourSolicitation(IP6)),
            ND(IP6, ALL_NODES, NeighbourAdvertisement(IP6, options=NDOptions(target_mac=MAC))),
            ND(LOCAL, ALL_ROUTERS, RouterSolicitation(with_mac)),
            ND(LOCAL, IP6, Redirect(IP6, OTHER6, NDOptions(target_mac=MAC))),
        )
    ]


def router_advertisements() -> list[bytes]:
    prefixes = tuple(
        PrefixInformation(IPv6Network(text), True, True, 86400, 3600)
        for text in ("fd00:1::/64", "fd00:2::/64")
    )
    options = NDOptions(source_mac=MAC, prefixes=prefixes)
    return [
        ND(LOCAL, ALL_NODES, RouterAdvertisement(1800, 64, reachable_ms=1000, options=options)).build(),
        ND(LOCAL, IP6, RouterAdvertisement(0)).build(),
    ]


def frames() -> list[bytes]:
    """Whole frames of all these."""
    macs = bytes.fromhex("525400000002525400000001")
    with_type = [(0x0806, arp()), (0x0800, udp4()), (0x86DD, [*ipv6(), *nd(), *router_advertisements()])]
    made = [macs + kind.to_bytes(2, "big") + one for kind, found in with_type for one in found]
    return [*made, *dhcp(), made[0][:12] + b"\x81\0\0\1" + made[0][12:]]


# ---- mended: what is damaged gets its checksums right, so that it is looked at any further ----


def mended_ipv4(packet: bytes) -> bytes:
    size = (packet[0] & 15) * 4 if packet else 0
    if not 20 <= size <= len(packet):
        return packet
    head = bytearray(packet[:size])
    head[2:4] = len(packet).to_bytes(2, "big")
    head[10:12] = bytes(2)
    head[10:12] = checksum(bytes(head)).to_bytes(2, "big")
    return bytes(head) + packet[size:]


def mended_ipv6(packet: bytes) -> bytes:
    """Its length, and the checksum of ICMPv6 right behind its header."""
    if len(packet) < 48:
        return packet
    made = bytearray(packet)
    made[4:6] = (len(packet) - 40).to_bytes(2, "big")
    if made[6] == 58:
        made[42:44] = bytes(2)
        src, dst = IPv6Address(bytes(made[8:24])), IPv6Address(bytes(made[24:40]))
        made[42:44] = upper_checksum(src, dst, 58, bytes(made[40:])).to_bytes(2, "big")
    return bytes(made)


def mended_frame(frame: bytes) -> bytes:
    kind = frame[12:14]
    if kind == b"\x08\0":
        return frame[:14] + mended_ipv4(frame[14:])
    return frame[:14] + mended_ipv6(frame[14:]) if kind == b"\x86\xdd" else frame


def mended_openflow(data: bytes) -> bytes:
    """Of a version that is spoken, and as long as it says."""
    version = data[:1] if data[:1] in (b"\4", b"\5") else b"\5"
    return data if len(data) < 8 else version + data[1:2] + len(data).to_bytes(2, "big") + data[4:]


# ---- OpenFlow ----


def openflow() -> list[bytes]:
    """Messages that a switch sends, and those it is sent, with the entries of a network of every role."""
    net = fabric()
    add_ipv6(net)
    add_vm(net, 1, 1)
    compiler = Compiler(net)
    compiler.update(net.everything())
    entries = [entry for s in ("edge1", "leaf1") for entry in compiler.program(s).values()]
    flows = [entry for entry in entries if isinstance(entry, Flow)]
    groups = [entry for entry in entries if isinstance(entry, Group)]
    meters = [entry for entry in entries if isinstance(entry, Meter)]
    port = struct.pack("!IH2x6s2x16sII", 3, 40, b"abcdef", b"tap0", 0, 0)
    longest = max(flows, key=lambda flow: len(flow.match) + len(flow.actions))
    removed = struct.pack("!QHBBIIHHQQ", 1, 2, 1, 0, 2, 0, 0, 9, 1, 9) + encode_match(longest.match)
    packet = struct.pack("!IHBBQ", 1, 3, 1, 0, 7) + encode_match(longest.match[:1]) + bytes(2) + b"abc"
    described = b"".join(
        struct.pack("!HBxI", 8 + len(buckets), 1, group.id) + buckets
        for group in groups
        for buckets in [encode_buckets(group.buckets)]
    )
    return [
        encode.hello(1),
        encode.error(1, 5, 1, b"some bytes"),
        encode.echo_request(1, b"ping"),
        *(encode.flow_add(1, flow, 0.0) for flow in flows[::9]),
        encode.bundle_add(1, 1, encode.flow_add(1, longest, 0.0)),
        encode.bundle_control(1, 4, BundleStep.OPEN_REQUEST),
        *(encode.group_add(1, group) for group in groups[:1]),
        *(encode.meter_add(1, meter) for meter in meters[:1]),
        encode.packet_out(1, b"frame", 3),
        encode.role_request(1, 2, 5),
        multipart(MultipartType.FLOW, b"".join(flow_stats(flow) for flow in flows[::11])),
        multipart(MultipartType.PORT_DESC, port * 2),
        multipart(MultipartType.DESC, bytes(1056)),
        multipart(MultipartType.GROUP_DESC, described),
        multipart(MultipartType.METER, struct.pack("!IH6xIQQIIQQ", 1, 56, 1, 9, 900, 3, 4, 2, 200)),
        multipart(MultipartType.METER_CONFIG, struct.pack("!HHIHHII4x", 24, 6, 1, 1, 16, 9, 9)),
        struct.pack("!BBHI", 5, 12, 56, 1) + bytes(8) + port,
        struct.pack("!BBHI", 5, 11, 8 + len(removed), 1) + removed,
        struct.pack("!BBHI", 5, 10, 8 + len(packet), 1) + packet,
        struct.pack("!BBHIQIBB2xII", 5, 6, 32, 1, 7, 0, 254, 0, 0, 0),
    ]


def flow_stats(flow: Flow) -> bytes:
    body = encode_match(flow.match) + encode_instructions(flow)
    head = (48 + len(body), flow.table, 3, 500_000_000, flow.priority, 0, 60, 0, 0, flow.cookie, 1, 2)
    return struct.pack("!HBxIIHHHHH2xQQQ", *head) + body


def multipart(kind: int, body: bytes) -> bytes:
    return struct.pack("!BBHIHH4x", 5, 19, 16 + len(body), 1, kind, 0) + body


# ---- JSON ----

ROW = "5f8a8c2e-0000-4000-8000-00000000000"
SCHEMA: dict[str, Any] = {
    "version": "8.3.0",
    "tables": {
        "Open_vSwitch": {"columns": {"ovs_version": {"type": {"key": "string", "min": 0}}}},
        "Bridge": {
            "columns": {
                "name": {"type": "string"},
                "datapath_id": {"type": {"key": "string", "min": 0}},
                "ports": {"type": {"key": {"type": "uuid"}, "min": 0, "max": "unlimited"}},
            }
        },
        "Port": {
            "columns": {
                "name": {"type": "string"},
                "interfaces": {"type": {"key": {"type": "uuid"}, "max": "unlimited"}},
                "tag": {"type": {"key": "integer", "min": 0}},
                "trunks": {"type": {"key": "integer", "min": 0, "max": 4096}},
            }
        },
        "Interface": {
            "columns": {
                "name": {"type": "string"},
                "ofport": {"type": {"key": "integer", "min": 0}},
                "admin_state": {"type": {"key": "string", "min": 0}},
                "link_state": {"type": {"key": "string", "min": 0}},
                "external_ids": {"type": {"key": "string", "value": "string", "min": 0, "max": "unlimited"}},
            }
        },
    },
}
_CONTENTS: dict[str, Any] = {
    "Open_vSwitch": {ROW + "0": {"initial": {"ovs_version": "3.1.0"}}},
    "Bridge": {
        ROW + "1": {
            "initial": {"name": "br0", "datapath_id": "00000031", "ports": ["uuid", ROW + "2"]}
        }
    },
    "Port": {
        ROW + "2": {"initial": {"name": "tap1", "tag": 42, "interfaces": ["set", [["uuid", ROW + "3"]]]}}
    },
    "Interface": {
        ROW + "3": {
            "initial": {
                "name": "tap1", "ofport": 10, "admin_state": "up", "link_state": "up",
                "external_ids": ["map", [["iface-id", "vm1"], ["attached-mac", MAC]]],
            }
        }
    },
}  # fmt: skip


def routers() -> list[bytes]:
    """Answers of a router's adapter."""
    routes = {"10.1.0.101/32": "10.0.0.11", "10.1.0.0/24": None}
    ports = {"eth1": [2, MAC, True]}
    answers = [
        {"routes": routes, "ports": ports, "forwards": True, "strict": ["eth1"]},
        {"error": "no way"},
    ]
    return [json.dumps(answer).encode() for answer in answers]


def ovsdb_updates() -> list[bytes]:
    """Schema, first contents and an update of a switch's database, as one document."""
    update = {"Interface": {ROW + "3": {"modify": {"ofport": 11, "external_ids": ["map", [["vm-id", "v"]]]}}}}
    gone = {"Interface": {ROW + "3": {"delete": None}}, "Port": {ROW + "2": {"modify": {"name": "tap2"}}}}
    return [
        json.dumps([SCHEMA, [False, ROW + "9", _CONTENTS], ["db", ROW + "8", change]]).encode()
        for change in (update, gone)
    ]


def json_rpc() -> list[bytes]:
    messages = [
        {"method": "update3", "params": ["db", ROW + "8", _CONTENTS], "id": None},
        {"id": 1, "result": [SCHEMA], "error": None},
        {"id": "echo", "method": "echo", "params": ['a "quoted" } brace \\']},
        {"id": 2, "result": None, "error": {"error": "unknown database", "details": "x"}},
    ]
    return [json.dumps(message).encode() for message in messages]


VM: dict[str, Any] = {
    "id": "vm1", "mac": MAC, "server": "server1", "state": "registered", "addresses": [str(IP)],
    "subnets": {str(IP): {"prefixlen": 24, "gateway": "10.1.0.254"}}, "nics": [{"id": "vm1", "mac": MAC}],
}  # fmt: skip
MIGRATION: dict[str, Any] = {
    "id": "migration-1", "vm": "vm1", "source": "server1", "target": "server2", "state": "copying",
    "memory_at": "10.0.0.12:49152", "wanted_downtime": 0.3, "target_closed": False,
}  # fmt: skip
RENEWAL: dict[str, Any] = {
    "id": "renewal-1", "vm": "vm1", "server": "server1", "switch": "edge1", "port": "tap1", "port_number": 10,
    "ip": str(IP), "mac": MAC, "xid": 7, "dhcp_server": str(SERVER), "client_id": "01525400000001",
    "next_hop": OTHER, "ordered_at": 1.7e9, "options": "370103", "state": "ordered",
}  # fmt: skip


def renewals() -> list[bytes]:
    return [json.dumps(RENEWAL).encode()]


def vms() -> list[bytes]:
    return [json.dumps([VM]).encode(), json.dumps([MIGRATION]).encode()]


def events() -> list[bytes]:
    """Data of the controller's events, as agents get them."""
    data: list[dict[str, Any]] = [
        {"vm": VM, "migration": MIGRATION, "server": "server1", "reason": "operator"},
        {"vm": "vm1", "renewal": RENEWAL, "hard": True, "seconds": 5.0},
        {"server": "server1", "image": "debian", "pin": "vm1", "base": True},
        {"match": "m1", "servers": ["server1", "server2"], "vm": "vm1"},
    ]
    return [json.dumps(one).encode() for one in data]


def bodies() -> list[bytes]:
    """Bodies of what agents report and managers order."""
    report = {"event": "copying", "server": "server1", "copy_pass": 2, "remaining": 4096, "at": 1.7e9}
    ordered = {"vm": "vm1", "target_server": "server2", "reason": "operator", "downtime_ms": 300}
    added = {"id": "vm1", "server": "server1", "addresses": [str(IP), str(IP6)], "nics": [{"mac": MAC}]}
    subnet = {"id": "green", "prefix": "10.2.0.0/24", "gateway": "10.2.0.254", "vnet": "shop", "vlan": 42}
    counters = {"rejected": {"agent": {"tls": 3}}, "server": "server1"}
    traced = {"vm": "vm1", "to": str(IP), "kind": "udp", "port": 53, "ttl": 7, "live": True}
    return [json.dumps(one).encode() for one in (report, ordered, added, subnet, counters, traced)]


def between_agents() -> list[bytes]:
    """What agents say to each other: messages, memory, and the end of it."""
    said = [
        {"type": "hello", "migration": "migration-1", "vm": "vm1"},
        {"type": "chunk", "n": 3},
        {"type": "has", "chunks": [1, 2, 3]},
    ]
    made = [json.dumps(one).encode() for one in said]
    return [
        *(b"J" + len(one).to_bytes(4, "big") + one for one in made),
        b"M" + (5).to_bytes(4, "big") + b"bytes",
        b"E" + bytes(4),
    ]


def event_stream() -> list[bytes]:
    return [
        b"id: 7\nevent: vm.added\ndata: {}\n\n",
        b": still here\n\nevent: a\r\ndata: 1\r\ndata: 2\r\n\r\n",
    ]


def leases_of_peers() -> list[bytes]:
    """What an agent answers who asks for a VM's lease."""
    lease = {
        "vm": "vm1", "mac": MAC, "ip": str(IP), "server": "10.1.0.2", "end": 1.7e9, "client_id": "01ff",
        "next_hop": MAC, "options": "3c0178",
    }  # fmt: skip
    return [json.dumps({"lease": lease, "seconds_left": left}).encode() for left in (300.5, None, -4)]


def qemu_network() -> list[bytes]:
    """What QEMU's `info network` prints."""
    return [
        b"net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:09:01\n"
        b" \\ net0: index=0,type=tap,ifname=tap-guest,script=no,downscript=no\n"
    ]
