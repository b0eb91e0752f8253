"""scapy and tshark, which know nothing of us, read our frames as what we mean; and we read scapy's."""

import json
import math
import shutil
import struct
import subprocess
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.dhcp import BOOTP
from scapy.layers.dhcp import DHCP as SCAPY_DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP as SCAPY_ARP
from scapy.layers.l2 import Dot1Q, Ether

from retinue.core.packets import (
    ARP,
    BROADCAST,
    DHCP,
    FLAG_BROADCAST,
    ZERO_MAC,
    ArpOp,
    Ethernet,
    EtherType,
    Option,
    ack,
    arp_reply,
    arp_request,
    build_udp4,
    decline,
    dhcp_frame,
    discover,
    mac_bytes,
    nak,
    offer,
    parse,
    parse_arp,
    parse_dhcp_frame,
    release,
    renewal,
    request,
)

VM, GATEWAY, SERVER_MAC = "52:54:00:00:00:01", "00:00:de:ad:be:ef", "02:00:00:00:00:02"
A, B, SERVER = IPv4Address("10.0.0.5"), IPv4Address("10.0.0.1"), IPv4Address("10.9.0.2")
NOBODY, EVERYBODY = IPv4Address(0), IPv4Address("255.255.255.255")
XID = 0xDEADBEEF

asked = discover(VM, XID, requested=A, client_id=b"\x01" + mac_bytes(VM))
renewing = renewal(A, VM, XID, client_id=b"\x01" + mac_bytes(VM)).with_option(
    Option.RELAY_AGENT, b"\x01\x02p3"
)
MESSAGES: dict[str, DHCP] = {
    "discover": asked,
    "offer": offer(asked, A, SERVER, 3600, ((Option.SUBNET_MASK, bytes((255, 255, 255, 0))),)),
    "request": request(VM, XID, A, SERVER),
    "renewal": renewing,
    "ack": ack(renewing, A, SERVER, 60),
    "ack for ever": ack(renewing, A, SERVER, math.inf),
    "nak": nak(renewing, SERVER, "no such lease"),
    "release": release(A, VM, XID, SERVER),
    "decline": decline(VM, XID, A, SERVER),
}


def framed(message: DHCP) -> bytes:
    if message.op == 1:
        return dhcp_frame(message, VM, BROADCAST, message.ciaddr, EVERYBODY, 68, 67)
    return dhcp_frame(message, SERVER_MAC, VM, SERVER, A, 67, 68)


def without_checksums(frame: bytes) -> Any:
    """The frame as scapy reads it, with the checksums cleared so that scapy computes them itself."""
    read = Ether(frame)
    del read[IP].chksum
    del read[UDP].chksum
    del read[IP].len
    del read[UDP].len
    return read


class TestScapy:
    @pytest.mark.parametrize("name", MESSAGES)
    def test_reads_our_dhcp_field_by_field(self, name: str) -> None:
        message = MESSAGES[name]
        bootp = Ether(framed(message))[BOOTP]
        assert (bootp.op, bootp.htype, bootp.hlen, bootp.hops) == (message.op, 1, 6, 0)
        assert (bootp.xid, bootp.secs, int(bootp.flags)) == (XID, message.secs, message.flags)
        assert (bootp.ciaddr, bootp.yiaddr) == (str(message.ciaddr), str(message.yiaddr))
        assert (bootp.siaddr, bootp.giaddr) == (str(message.siaddr), str(message.giaddr))
        assert bootp.chaddr == mac_bytes(VM) + bytes(10)
        said = {pair[0]: pair[1] for pair in bootp[SCAPY_DHCP].options if isinstance(pair, tuple)}
        assert message.message_type is not None
        assert said["message-type"] == message.message_type
        assert said.get("requested_addr") == (message.requested_address and str(message.requested_address))
        assert said.get("server_id") == (message.server_id and str(message.server_id))
        lease = 0xFFFFFFFF if message.lease_time == math.inf else message.lease_time
        assert said.get("lease_time") == lease
        assert said.get("client_id") == message.client_id
        assert len(said) == len(message.options)

    @pytest.mark.parametrize("name", MESSAGES)
    def test_computes_the_same_lengths_and_checksums(self, name: str) -> None:
        frame = framed(MESSAGES[name])
        assert bytes(without_checksums(frame)) == frame

    def test_writes_the_same_discover(self) -> None:
        theirs = (
            Ether(src=VM, dst=BROADCAST)
            / IP(src="0.0.0.0", dst="255.255.255.255", id=0, flags="DF")
            / UDP(sport=68, dport=67)
            / BOOTP(xid=XID, chaddr=mac_bytes(VM))
            / SCAPY_DHCP(
                options=[
                    ("message-type", "discover"),
                    ("client_id", b"\x01" + mac_bytes(VM)),
                    ("requested_addr", str(A)),
                    "end",
                ]
            )
        )
        used = len(bytes(theirs))
        ours = framed(asked)
        assert ours[42:used] == bytes(theirs)[42:]
        assert not any(ours[used:])

    def test_we_read_its_relayed_ack(self) -> None:
        theirs = (
            Ether(src=SERVER_MAC, dst=GATEWAY)
            / Dot1Q(vlan=100)
            / IP(src=str(SERVER), dst=str(B), ttl=9, options=b"\x01\x01\x01\x00")
            / UDP(sport=67, dport=67)
            / BOOTP(
                op=2,
                xid=XID,
                hops=1,
                secs=7,
                flags=0x8000,
                ciaddr=str(A),
                yiaddr=str(A),
                siaddr=str(SERVER),
                giaddr=str(B),
                chaddr=mac_bytes(VM),
                sname=b"boot",
                file=b"image",
            )
            / SCAPY_DHCP(
                options=[
                    ("message-type", "ack"),
                    ("server_id", str(SERVER)),
                    ("lease_time", 77),
                    "pad",
                    "end",
                ]
            )
        )
        ethernet, datagram, read = parse_dhcp_frame(bytes(theirs))
        assert (ethernet.src, ethernet.dst, ethernet.vlan) == (SERVER_MAC, GATEWAY, 100)
        assert (datagram.src, datagram.dst, datagram.dport, datagram.ttl) == (SERVER, B, 67, 9)
        assert read == DHCP(
            op=2,
            xid=XID,
            chaddr=VM,
            hops=1,
            secs=7,
            flags=FLAG_BROADCAST,
            ciaddr=A,
            yiaddr=A,
            siaddr=SERVER,
            giaddr=B,
            sname=b"boot".ljust(64, b"\0"),
            file=b"image".ljust(128, b"\0"),
            options=((53, b"\5"), (54, SERVER.packed), (51, bytes((0, 0, 0, 77)))),
        )

    def test_writes_the_same_arp(self) -> None:
        theirs = Ether(src=VM, dst=BROADCAST) / SCAPY_ARP(
            op=1, hwsrc=VM, psrc=str(A), hwdst=ZERO_MAC, pdst=str(B)
        )
        assert arp_request(VM, A, B) == bytes(theirs).ljust(60, b"\0")
        answer = Ether(src=GATEWAY, dst=VM) / SCAPY_ARP(
            op=2, hwsrc=GATEWAY, psrc=str(B), hwdst=VM, pdst=str(A)
        )
        assert arp_reply(parse_arp(parse(bytes(theirs)).payload), GATEWAY) == bytes(answer).ljust(60, b"\0")

    @pytest.mark.parametrize("size", [0, 1, 17, 18, 19, 200])
    def test_writes_the_same_udp(self, size: int) -> None:
        payload = bytes(range(size))
        theirs = IP(src=str(A), dst=str(B), id=0, flags="DF", ttl=5) / UDP(sport=1000, dport=53) / payload
        assert build_udp4(A, B, 1000, 53, payload, ttl=5) == bytes(theirs)

    def test_writes_the_same_tag(self) -> None:
        theirs = Ether(src=VM, dst=GATEWAY) / Dot1Q(vlan=300, type=0x88B5) / bytes(50)
        assert Ethernet(GATEWAY, VM, 0x88B5, bytes(50), vlan=300).build() == bytes(theirs)


def write_pcap(path: Path, frames: list[bytes]) -> None:
    """The classic file format, link type Ethernet."""
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for frame in frames:
            file.write(struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame)


FIELDS = [
    "eth.src",
    "eth.dst",
    "vlan.id",
    "ip.src",
    "ip.dst",
    "ip.ttl",
    "ip.checksum.status",
    "udp.srcport",
    "udp.dstport",
    "udp.checksum.status",
    "arp.opcode",
    "arp.src.hw_mac",
    "arp.src.proto_ipv4",
    "arp.dst.hw_mac",
    "arp.dst.proto_ipv4",
    "dhcp.type",
    "dhcp.id",
    "dhcp.hw.type",
    "dhcp.hw.len",
    "dhcp.hops",
    "dhcp.secs",
    "dhcp.flags.bc",
    "dhcp.hw.mac_addr",
    "dhcp.ip.client",
    "dhcp.ip.your",
    "dhcp.ip.server",
    "dhcp.ip.relay",
    "dhcp.option.dhcp",
    "dhcp.option.requested_ip_address",
    "dhcp.option.dhcp_server_id",
    "dhcp.option.ip_address_lease_time",
    "dhcp.option.message",
    "_ws.malformed",
]


def decode(path: Path) -> list[dict[str, str]]:
    """What tshark reads in each frame: field to value, without the fields it does not see."""
    command = ["tshark", "-n", "-r", str(path), "-T", "json"]
    for option in ("ip.check_checksum:TRUE", "udp.check_checksum:TRUE"):
        command += ["-o", option]
    for field in FIELDS:
        command += ["-e", field]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    packets = json.loads(done.stdout)
    return [{k: v[0] for k, v in packet["_source"]["layers"].items()} for packet in packets]


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_decodes_what_we_mean(tmp_path: Path) -> None:
    relayed = replace(asked, giaddr=B, hops=1, flags=FLAG_BROADCAST)
    messages = [*MESSAGES.values(), relayed]
    arps = [
        ARP(ArpOp.REQUEST, VM, A, ZERO_MAC, B),
        ARP(ArpOp.REPLY, GATEWAY, B, VM, A),
    ]
    frames = [framed(message) for message in messages]
    frames += [arp_request(VM, A, B), arp_reply(arps[0], GATEWAY)]
    frames += [Ethernet(GATEWAY, VM, EtherType.IPV4, build_udp4(A, B, 1, 9, b"odd", ttl=3), vlan=100).build()]
    path = tmp_path / "frames.pcap"
    write_pcap(path, frames)
    seen = decode(path)
    assert len(seen) == len(frames)
    assert not any("_ws.malformed" in packet for packet in seen)

    for message, packet in zip(messages, seen, strict=False):
        kind = message.message_type
        assert kind is not None
        wanted: dict[str, object] = {
            "ip.checksum.status": 1,
            "udp.checksum.status": 1,
            "udp.dstport": 67 if message.op == 1 else 68,
            "dhcp.type": message.op,
            "dhcp.id": f"{XID:#010x}",
            "dhcp.hw.type": "0x01",
            "dhcp.hw.len": 6,
            "dhcp.hops": message.hops,
            "dhcp.secs": message.secs,
            "dhcp.flags.bc": "1" if message.flags & FLAG_BROADCAST else "0",
            "dhcp.hw.mac_addr": message.chaddr,
            "dhcp.ip.client": message.ciaddr,
            "dhcp.ip.your": message.yiaddr,
            "dhcp.ip.server": message.siaddr,
            "dhcp.ip.relay": message.giaddr,
            "dhcp.option.dhcp": int(kind),
        }
        for field, value in (
            ("dhcp.option.requested_ip_address", message.requested_address),
            ("dhcp.option.dhcp_server_id", message.server_id),
            ("dhcp.option.ip_address_lease_time", message.lease_time),
            ("dhcp.option.message", message.message),
        ):
            if value is None:
                assert field not in packet, f"{kind.name}: tshark sees {field}"
            else:
                wanted[field] = 0xFFFFFFFF if value == math.inf else value
        assert {field: packet.get(field) for field in wanted} == {f: str(v) for f, v in wanted.items()}

    for arp, packet in zip(arps, seen[len(messages) :], strict=False):
        assert packet == {
            "eth.src": arp.sha,
            "eth.dst": BROADCAST if arp.op == 1 else arp.tha,
            "arp.opcode": str(int(arp.op)),
            "arp.src.hw_mac": arp.sha,
            "arp.src.proto_ipv4": str(arp.spa),
            "arp.dst.hw_mac": arp.tha,
            "arp.dst.proto_ipv4": str(arp.tpa),
        }

    assert seen[-1] == {
        "eth.src": VM,
        "eth.dst": GATEWAY,
        "vlan.id": "100",
        "ip.src": str(A),
        "ip.dst": str(B),
        "ip.ttl": "3",
        "ip.checksum.status": "1",
        "udp.srcport": "1",
        "udp.dstport": "9",
        "udp.checksum.status": "1",
    }
