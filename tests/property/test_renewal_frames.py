"""Every renewal we build is read as one by scapy and tshark, and is answered as one; nothing else is."""

import shutil
import subprocess
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP
from scapy.layers.dhcp import DHCP as SCAPY_DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import PcapWriter

from retinue.core.lease_renewal import (
    BACK_OFF,
    AnswerReceived,
    Lease,
    RenewalState,
    Waited,
    begin,
    request_frame,
    step,
)
from retinue.core.model import Mac
from retinue.core.packets import DHCP, MessageType, ack, dhcp_frame, nak, parse_dhcp, parse_dhcp_frame
from retinue.core.snooping import relay

NAMES = {12: "hostname", 60: "vendor_class_id", 77: "user_class", 81: "client_FQDN"}
"""Scapy's names of options."""
hosts = st.integers(1 << 24, (224 << 24) - 1).map(IPv4Address)
macs = st.binary(min_size=5, max_size=5).map(lambda five: "52:" + five.hex(":"))
xids = st.integers(0, 0xFFFFFFFF)
leases = st.builds(
    Lease,
    ip=hosts,
    mac=macs,
    server=hosts,
    client_id=st.just(b"") | st.binary(min_size=2, max_size=32),
    next_hop=macs,
    options=st.lists(
        st.tuples(st.sampled_from([12, 60, 77, 81]), st.binary(min_size=1, max_size=40)),
        unique_by=lambda option: option[0],
    ).map(tuple),
)


@given(leases, xids, st.integers(0, 100_000))
def test_scapy_reads_a_renewal(lease: Lease, xid: int, secs: int) -> None:
    frame = request_frame(lease, xid, secs)
    read = Ether(frame)
    assert (read.src, read.dst) == (lease.mac, lease.next_hop)
    assert (read[IP].src, read[IP].dst) == (str(lease.ip), str(lease.server))
    assert (read[UDP].sport, read[UDP].dport) == (68, 67)
    bootp = read[BOOTP]
    assert (bootp.op, bootp.htype, bootp.hlen, bootp.hops, bootp.xid) == (1, 1, 6, 0, xid)
    assert (bootp.secs, int(bootp.flags)) == (min(secs, 0xFFFF), 0)
    assert (bootp.ciaddr, bootp.yiaddr, bootp.siaddr, bootp.giaddr) == (str(lease.ip), *["0.0.0.0"] * 3)
    assert bootp.chaddr[:6].hex(":") == lease.mac
    names = [option if isinstance(option, str) else option[0] for option in read[SCAPY_DHCP].options]
    others = [NAMES[code] for code, _ in lease.options]
    expected = ["message-type", *(["client_id"] if lease.client_id else []), *others, "param_req_list", "end"]
    assert [name for name in names if name != "pad"] == expected
    for layer in (IP, UDP):
        checksum = read[layer].chksum
        again = Ether(frame)
        del again[layer].chksum
        assert Ether(bytes(again))[layer].chksum == checksum


events = st.lists(
    st.sampled_from(["ack", "nak", "wait", "other xid", "other server", "other VM", "its own"]), max_size=20
)


@given(leases, xids, events)
def test_whatever_comes_a_renewal_ends_by_its_answer_or_after_its_waits(
    lease: Lease, xid: int, coming: list[str]
) -> None:
    """It never sends more often than agreed, and only an answer of its server decides."""
    now = 0.0
    this, _ = begin(lease, xid, now)
    for kind in coming:
        asked = parse_dhcp_frame(request_frame(lease, xid))[2]
        answers: dict[str, DHCP] = {
            "ack": ack(asked, lease.ip, lease.server, 60),
            "nak": nak(asked, lease.server),
            "other xid": ack(_with(asked, xid=xid ^ 1), lease.ip, lease.server, 60),
            "other server": ack(asked, lease.ip, IPv4Address(int(lease.server) ^ 1), 60),
            "other VM": ack(_with(asked, chaddr="52:00:00:00:00:00"), lease.ip, lease.server, 60),
            "its own": asked,
        }
        before = this
        if kind == "wait":
            now = this.wait_until
            this, _ = step(this, Waited(), now)
        else:
            this, _ = step(this, AnswerReceived(answers[kind]), now)
        if before.state.ended or (kind not in ("ack", "nak", "wait") and lease.mac != "52:00:00:00:00:00"):
            assert this == before
        elif kind in ("ack", "nak"):
            assert this.state is (RenewalState.ACKED if kind == "ack" else RenewalState.REJECTED)
        assert this.sent <= len(BACK_OFF)


def _with(dhcp: DHCP, xid: int | None = None, chaddr: Mac | None = None) -> DHCP:
    return replace(dhcp, xid=dhcp.xid if xid is None else xid, chaddr=chaddr or dhcp.chaddr)


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=120)


@given(leases, xids, hosts, names, names)
def test_relayed_and_back_a_message_is_what_it_was(
    lease: Lease, xid: int, giaddr: IPv4Address, circuit: str, remote: str
) -> None:
    """Nothing but giaddr, hops and option 82 changes; and option 82 survives the wire."""
    asked = parse_dhcp_frame(request_frame(lease, xid))[2]
    told = relay.toward_server(asked, giaddr, circuit, remote)
    assert told is not None
    frame = dhcp_frame(told, lease.next_hop, lease.mac, giaddr, lease.server, 67, 67)
    read = parse_dhcp_frame(frame)[2]
    assert read == told
    assert relay.toward_client(read) == _as_relayed(asked, giaddr)
    assert read.message_type is MessageType.REQUEST
    scapy = {o[0] for o in Ether(frame)[SCAPY_DHCP].options if isinstance(o, tuple)}
    assert "relay_agent_information" in scapy


def _as_relayed(asked: DHCP, giaddr: IPv4Address) -> DHCP:
    return replace(asked, giaddr=giaddr, hops=asked.hops + 1)


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_reads_a_renewal_and_complains_of_nothing(tmp_path: Path) -> None:
    variants = [
        Lease(IPv4Address("10.1.0.101"), "52:54:00:00:00:01", IPv4Address("10.1.0.2"), client_id, hop)
        for client_id in (b"", b"\x01\x52\x54\x00\x00\x00\x01", b"\x00vm1")
        for hop in ("00:00:de:ad:be:ef", "ff:ff:ff:ff:ff:ff")
    ]
    path = tmp_path / "renewals.pcap"
    with PcapWriter(str(path), linktype=1) as writer:
        for number, lease in enumerate(variants):
            writer.write(request_frame(lease, 0xDEADBEEF, number))
    fields = (
        "dhcp.type", "dhcp.option.dhcp", "dhcp.id", "dhcp.secs", "dhcp.hops", "dhcp.ip.client",
        "dhcp.ip.relay", "dhcp.option.requested_ip_address", "dhcp.option.dhcp_server_id",
        "ip.checksum.status", "udp.checksum.status", "_ws.expert",
    )  # fmt: skip
    argv = ["tshark", "-n", "-r", str(path), "-T", "fields", "-o", "udp.check_checksum:TRUE"]
    argv += ["-o", "ip.check_checksum:TRUE", *(word for f in fields for word in ("-e", f))]
    read = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split("\t") for line in read] == [
        ["1", "3", "0xdeadbeef", str(n), "0", "10.1.0.101", "0.0.0.0", "", "", "1", "1", ""]
        for n in range(len(variants))
    ]


def test_padding_is_that_of_bootp() -> None:
    """RFC 1542, 2.1: at least 300 bytes."""
    lease = Lease(IPv4Address("10.1.0.101"), "52:54:00:00:00:01", IPv4Address("10.1.0.2"))
    assert len(request_frame(lease, 1)) == 14 + 20 + 8 + 300
    assert parse_dhcp(request_frame(lease, 1)[42:]).xid == 1
