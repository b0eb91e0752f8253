"""The fake switch does to every frame what a real Open vSwitch does, byte for byte.

First with entries made by hand, one for each match field and action that our pipeline uses; then with entries
and frames made from seeds, many of them cut off or damaged. The pipeline's own tests stand on the fake.
"""

import random
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6NDOptUnknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.packet import Raw

from retinue.core.packets import (
    ARP,
    Ethernet,
    arp_reply,
    arp_request,
    build_udp4,
    dhcp_frame,
    discover,
    parse_dhcp_frame,
)
from retinue.core.packets.ethernet import mac_bytes
from retinue.core.pipeline.entry import (
    Action,
    Change,
    CheckLarger,
    DecTtl,
    Field,
    Flow,
    Group,
    Meter,
    Output,
    PopVlan,
    PortNo,
    PushVlan,
    RegMove,
    Resubmit,
    SetField,
    ToGroup,
    match,
    set_field,
)
from support.fabric.sample_frames import (
    ICMP4,
    TCP4,
    UDP4,
    damaged,
    icmp,
    ipv4,
    ipv6_solicitation,
    ipv6_udp,
    some_frame,
    tcp,
)
from support.fabric.sample_frames import udp as udp_body
from support.fabric.world import tagged
from support.fakes.switch import BadEntry, FakeSwitch
from support.oracles.ovs import Observed, RealSwitch, assert_agrees

pytestmark = [pytest.mark.lab, pytest.mark.no_vms]

PORTS = [1, 2, 3, PortNo.LOCAL]
VM1, VM2, GATEWAY = "52:54:00:00:00:01", "52:54:00:00:00:02", "00:00:de:ad:be:ef"
IP1, IP2, FAR = IPv4Address("10.0.0.5"), IPv4Address("10.0.0.6"), IPv4Address("192.168.1.1")
SIX1, SIX2 = IPv6Address("fd00::5"), IPv6Address("fd00::6")
CONTROLLER, BACK = Output(PortNo.CONTROLLER), Output(PortNo.IN_PORT)


@pytest.fixture(scope="module")
def real() -> Iterator[RealSwitch]:
    with RealSwitch(PORTS) as switch:
        yield switch


class Pair:
    """A real and a fake switch with the same entries."""

    def __init__(
        self, real: RealSwitch, *flows: Flow, groups: tuple[Group, ...] = (), meters: tuple[Meter, ...] = ()
    ) -> None:
        self.real, self.fake = real, FakeSwitch("fake")
        self.fake.apply(Change(add=flows, groups=groups, meters=meters))
        real.install(flows, groups, meters)

    def frame(self, frame: bytes, in_port: int = 1) -> Observed:
        return assert_agrees(self.real, self.fake, frame, in_port)

    def out(self, frame: bytes, in_port: int = 1) -> list[tuple[int, bytes]]:
        return sorted(self.frame(frame, in_port).outputs)


def flow(*actions: Action, table: int = 0, priority: int = 10, goto: int | None = None, **terms: Any) -> Flow:
    return Flow(table, priority, match(**terms), tuple(actions), goto=goto)


def echo_answer(*turned: Action, **terms: Any) -> Flow:
    """Sends an echo back by the gateway's MAC, after what `turned` makes of its packet."""
    macs = (RegMove(Field.ETH_SRC, Field.ETH_DST), set_field(Field.ETH_SRC, GATEWAY))
    return flow(*macs, *turned, BACK, **terms)


def nd_answer() -> tuple[Flow, Flow]:
    """Turns a solicitation that has its sender's MAC into an advertisement that has the gateway's."""
    terms: dict[str, Any] = {"eth_type": 0x86DD, "ip_proto": 58}
    turned = (
        RegMove(Field.ETH_SRC, Field.ETH_DST),
        set_field(Field.ETH_SRC, GATEWAY),
        RegMove(Field.IPV6_SRC, Field.IPV6_DST),
        RegMove(Field.IPV6_ND_TARGET, Field.IPV6_SRC),
        SetField(Field.ND_RESERVED, 0xE0000000),
        SetField(Field.ND_OPTIONS_TYPE, 2),
        SetField(Field.ICMPV6_TYPE, 136),
    )
    asked: dict[str, Any] = {"icmpv6_type": 135, "ipv6_nd_target": SIX2, "nd_options_type": 1}
    told = (RegMove(Field.ETH_SRC, Field.IPV6_ND_TLL), BACK)
    return flow(*turned, goto=1, **terms, **asked), flow(*told, table=1, **terms, icmpv6_type=136)


def six(body: Any, hlim: int = 255) -> bytes:
    packet = IPv6(src=str(SIX1), dst=str(SIX2), hlim=hlim) / body
    return Ethernet(GATEWAY, VM1, 0x86DD, bytes(packet)).build()


def udp(ttl: int = 64, dst: IPv4Address = IP2, dport: int = 9, vlan: int | None = None) -> bytes:
    return Ethernet(GATEWAY, VM1, 0x0800, build_udp4(IP1, dst, 7, dport, b"payload", ttl), vlan).build()


class TestMadeByHand:
    def test_nothing_matches(self, real: RealSwitch) -> None:
        pair = Pair(real)
        assert pair.frame(udp()) == Observed((), ())

    def test_ports(self, real: RealSwitch) -> None:
        pair = Pair(real, flow(Output(1), Output(2), Output(3), Output(PortNo.LOCAL), CONTROLLER))
        for port in PORTS:
            seen = pair.frame(udp(), port)
            assert sorted(p for p, _ in seen.outputs) == [p for p in PORTS if p != port]
            assert seen.to_controller == ((0, port, udp()),)

    def test_back_out_of_the_port_it_came_from(self, real: RealSwitch) -> None:
        pair = Pair(real, flow(BACK, Output(2), BACK))
        for port in PORTS:
            pair.frame(udp(), port)
        assert pair.out(udp(), 1) == [(1, udp()), (1, udp()), (2, udp())]

    def test_priorities_and_tables(self, real: RealSwitch) -> None:
        pair = Pair(
            real,
            flow(goto=10, in_port=1),
            flow(priority=20, eth_src=VM2),
            flow(Output(2), table=10, priority=5, goto=20, eth_dst=GATEWAY),
            flow(Output(3), table=10, priority=4),
            flow(Output(PortNo.LOCAL), table=20, eth_type=0x0800),
        )
        assert [port for port, _ in pair.out(udp())] == [2, PortNo.LOCAL]
        assert [port for port, _ in pair.out(arp_request(VM1, IP1, IP2))] == [3]
        assert pair.out(arp_request(VM2, IP2, IP1)) == []
        assert pair.out(udp(), 2) == []

    def test_masks(self, real: RealSwitch) -> None:
        pair = Pair(
            real,
            flow(Output(2), priority=3, eth_dst=(1 << 40, 1 << 40)),
            flow(Output(3), priority=2, eth_type=0x0800, ipv4_dst=IPv4Network("10.0.0.4/30")),
            flow(BACK, priority=1, eth_type=0x86DD, ipv6_src=IPv6Network("fd00::/64")),
        )
        frames = [arp_request(VM1, IP1, IP2), udp(), udp(dst=FAR), ipv6_udp(), ipv6_solicitation()]
        assert [[port for port, _ in pair.out(frame)] for frame in frames] == [[2], [3], [], [1], []]

    def test_arp_answer(self, real: RealSwitch) -> None:
        pair = Pair(
            real,
            flow(
                RegMove(Field.ETH_SRC, Field.ETH_DST),
                set_field(Field.ETH_SRC, GATEWAY),
                set_field(Field.ARP_OP, 2),
                RegMove(Field.ARP_SHA, Field.ARP_THA),
                set_field(Field.ARP_SHA, GATEWAY),
                RegMove(Field.ARP_SPA, Field.ARP_TPA),
                set_field(Field.ARP_SPA, IP2),
                BACK,
                eth_type=0x0806,
                arp_op=1,
                arp_tpa=IP2,
            ),
        )
        asked = ARP(1, VM1, IP1, "00:00:00:00:00:00", IP2)
        for port in PORTS:
            assert pair.out(arp_request(VM1, IP1, IP2), port) == [(port, arp_reply(asked, GATEWAY))]
        assert pair.out(arp_request(VM1, IP1, FAR)) == []
        assert pair.out(arp_reply(asked, GATEWAY)) == []

    def test_arp_fields(self, real: RealSwitch) -> None:
        terms: dict[str, Any] = {
            "eth_type": 0x0806,
            "arp_sha": VM1,
            "arp_spa": IP1,
            "arp_tpa": IP2,
            "in_port": 1,
        }
        pair = Pair(real, flow(Output(2), **terms, arp_tha="00:00:00:00:00:00"))
        assert pair.out(arp_request(VM1, IP1, IP2)) != []
        for other in (arp_request(VM2, IP1, IP2), arp_request(VM1, IP2, IP2), arp_request(VM1, IP1, IP1)):
            assert pair.out(other) == []

    @pytest.mark.parametrize(
        "terms",
        [{}, {"arp_spa": 0}, {"arp_op": 0}, {"arp_op": 1}, {"arp_tpa": IP2}, {"arp_sha": VM1}],
    )
    def test_arp_that_is_none(self, real: RealSwitch, terms: dict[str, Any]) -> None:
        pair = Pair(real, flow(Output(2), eth_type=0x0806, **terms))
        whole = arp_request(VM1, IP1, IP2)
        for size in (14, 20, 41, 42):
            pair.frame(whole[:size])
        for at, value in ((15, 6), (16, 9), (18, 8), (19, 16), (20, 1), (21, 0), (21, 3)):
            odd = bytearray(whole)
            odd[at] = value
            pair.frame(bytes(odd))

    def test_tags_put_and_taken(self, real: RealSwitch) -> None:
        """A frame gets a tag on its way, keeps it over a group, loses it for one port and has it again."""
        vid = SetField(Field.VLAN_VID, 0x1000 | 7)
        pair = Pair(
            real,
            flow(PushVlan(), vid, goto=10, in_port=1, vlan_vid=0, eth_type=0x0800),
            flow(Output(2), DecTtl(), ToGroup(1), table=10, priority=20, eth_type=0x0800, vlan_vid=0x1007),
            flow(Output(PortNo.LOCAL), table=10, priority=10, vlan_vid=(0x1000, 0x1000)),
            flow(Output(3), table=10, priority=5),
            flow(PopVlan(), CONTROLLER, Output(1), PushVlan(), vid, BACK, in_port=2, vlan_vid=0x1007),
            flow(PushVlan(), vid, Output(1), PopVlan(), BACK, in_port=3, vlan_vid=0, priority=20),
            flow(goto=10, in_port=3),
            groups=(Group(1, ((Output(3),),)),),
        )
        assert [port for port, _ in pair.out(udp(), in_port=3)] == [1, 3]
        plain = udp()
        tagged = plain[:12] + b"\x81\x00\x00\x07" + plain[12:]
        assert pair.out(plain)[0] == (2, tagged)
        assert [port for port, _ in pair.out(udp())] == [2, 3]
        assert pair.out(udp(vlan=7)) == [], "what is admitted has no tag"
        back = pair.frame(tagged, 2)
        assert sorted(back.outputs) == [(1, plain), (2, tagged)]
        assert [frame for *_, frame in back.to_controller] == [plain]
        assert pair.out(udp(vlan=8), 3) == [(PortNo.LOCAL, udp(vlan=8))], "any other tag"
        assert pair.out(udp(vlan=8), 2) == []
        pair.frame(arp_request(VM1, IP1, IP2), 3)

    def test_echo_answer(self, real: RealSwitch) -> None:
        answering = echo_answer(
            RegMove(Field.IPV4_SRC, Field.IPV4_DST),
            set_field(Field.IPV4_SRC, FAR),
            set_field(Field.ICMPV4_TYPE, 0),
            eth_type=0x0800,
            ip_proto=1,
            icmpv4_type=8,
            ipv4_dst=FAR,
        )
        pair = Pair(real, answering)
        echo, answer = ipv4(IP1, FAR, icmp(8, b"ping!")), ipv4(FAR, IP1, icmp(0, b"ping!"))
        sent = Ethernet(GATEWAY, VM1, 0x0800, echo).build()
        assert pair.out(sent) == [(1, Ethernet(VM1, GATEWAY, 0x0800, answer).build())]
        assert pair.out(Ethernet(GATEWAY, VM1, 0x0800, answer).build()) == []

    @pytest.mark.parametrize("ttl", [0, 1, 2, 64, 255])
    def test_route(self, real: RealSwitch, ttl: int) -> None:
        route = (
            DecTtl(),
            set_field(Field.ETH_SRC, GATEWAY),
            set_field(Field.ETH_DST, VM2),
        )
        pair = Pair(
            real,
            flow(Output(3), *route, Output(2), goto=5, eth_type=0x0800, eth_dst=GATEWAY),
            flow(Output(PortNo.LOCAL), table=5),
            flow(*route, BACK, priority=20, eth_type=0x0800, in_port=2),
        )
        for port in (1, 2):
            pair.frame(udp(ttl=ttl), port)
            pair.frame(udp(ttl=ttl, vlan=9), port)

    def test_ttl_of_ipv6(self, real: RealSwitch) -> None:
        pair = Pair(real, flow(DecTtl(), Output(2), eth_type=0x86DD))
        for hops in (0, 1, 2, 64):
            frame = bytearray(ipv6_udp())
            frame[21] = hops
            pair.frame(bytes(frame))

    @pytest.mark.parametrize(
        ("protocol", "to"),
        [
            (UDP4, (SetField(Field.UDP_SRC, 4000), SetField(Field.UDP_DST, 0))),
            (TCP4, (SetField(Field.TCP_SRC, 4000), SetField(Field.TCP_DST, 65535))),
            (ICMP4, (SetField(Field.ICMPV4_TYPE, 3), SetField(Field.ICMPV4_CODE, 1))),
        ],
    )
    def test_checksums(self, real: RealSwitch, protocol: int, to: tuple[Action, ...]) -> None:
        address = (set_field(Field.IPV4_SRC, FAR), set_field(Field.IPV4_DST, IP1), DecTtl())
        pair = Pair(real, flow(*address, *to, Output(2), eth_type=0x0800, ip_proto=protocol))
        bodies = {UDP4: udp_body(b"odd"), TCP4: tcp(b"data"), ICMP4: icmp(8, b"x")}
        whole = ipv4(IP1, IP2, bodies[protocol])
        assert len(pair.out(Ethernet(GATEWAY, VM1, 0x0800, whole).build())) == 1
        without = bytearray(whole)
        without[26:28] = b"\0\0"  # UDP without a checksum stays so.
        wrong = bytearray(whole)
        wrong[10] ^= 0x55
        for packet in (without, wrong, whole[:27], whole[:19], whole + b"padding"):
            pair.frame(Ethernet(GATEWAY, VM1, 0x0800, bytes(packet)).build())

    @pytest.mark.parametrize("flags", [0, 0x4000, 0x2000, 0x2001, 0x0001])
    def test_fragments(self, real: RealSwitch, flags: int) -> None:
        pair = Pair(
            real,
            flow(Output(2), priority=3, eth_type=0x0800, ip_proto=17, udp_dst=9),
            flow(Output(3), priority=2, eth_type=0x0800, ip_proto=17, udp_src=0),
            flow(BACK, priority=1),
        )
        frame = bytearray(udp())
        frame[20:22] = flags.to_bytes(2, "big")
        pair.frame(bytes(frame))

    def test_dhcp_to_the_controller(self, real: RealSwitch) -> None:
        pair = Pair(
            real,
            Flow(
                0,
                50,
                match(in_port=1, eth_type=0x0800, ip_proto=17, udp_src=68, udp_dst=67),
                (CONTROLLER,),
                meter=7,
                cookie=0x5E71_0001_0000_0002,
            ),
            flow(Output(2), priority=1),
            meters=(Meter(7, 100000, 100000),),
        )
        message = discover(VM1, 42)
        frame = dhcp_frame(message, VM1, GATEWAY, IPv4Address(0), FAR, 68, 67)
        seen = pair.frame(frame)
        [(cookie, port, copy)] = seen.to_controller
        assert (cookie, port, seen.outputs) == (0x5E71_0001_0000_0002, 1, ())
        assert parse_dhcp_frame(copy)[2] == message
        assert pair.frame(frame, 2).outputs == ()
        assert len(pair.frame(frame, 3).outputs) == 1

    def test_controller_gets_it_as_it_is_then(self, real: RealSwitch) -> None:
        pair = Pair(
            real, flow(CONTROLLER, set_field(Field.ETH_DST, VM2), CONTROLLER, Output(2), eth_type=0x0800)
        )
        assert len(pair.frame(udp()).to_controller) == 2

    def test_groups(self, real: RealSwitch) -> None:
        group = Group(
            1, ((Output(2), set_field(Field.ETH_DST, VM2)), (set_field(Field.ETH_DST, VM1), Output(3)))
        )
        pair = Pair(
            real,
            flow(
                DecTtl(), set_field(Field.ETH_SRC, GATEWAY), ToGroup(1), Output(PortNo.LOCAL), eth_type=0x0800
            ),
            flow(ToGroup(2), priority=1),
            groups=(group, Group(2, ())),
        )
        chosen = set()
        for port in range(40):
            # Of UDP the hash takes the addresses alone; of TCP the ports too.
            packet = ipv4(IP1, IP2, tcp(b"flow", sport=1000 + port))
            seen = pair.out(Ethernet(GATEWAY, VM1, 0x0800, packet).build())
            chosen.add(seen[0][0])
            assert [number for number, _ in seen][1:] == [PortNo.LOCAL]
        assert chosen == {2, 3}, "both paths should be in use"
        pair.frame(arp_request(VM1, IP1, IP2))

    @pytest.mark.parametrize("protocol", [0, 17])
    def test_choosing_reads_the_frame_again(self, real: RealSwitch, protocol: int) -> None:
        """Into a packet of protocol 0 no change is written, and after the choice its TTL is what it was."""
        pair = Pair(
            real,
            flow(DecTtl(), ToGroup(1), DecTtl(), Output(3), eth_type=0x0800),
            groups=(Group(1, ((DecTtl(), Output(2)),)),),
        )
        packet = ipv4(IP1, IP2, (protocol, bytes(20)), ttl=2)
        frame = Ethernet(GATEWAY, VM1, 0x0800, packet).build()
        assert [port for port, _ in pair.out(frame)] == ([2, 3] if protocol == 0 else [])

    def test_ttl_in_a_bucket_is_of_ip_alone(self, real: RealSwitch) -> None:
        pair = Pair(real, flow(ToGroup(1)), groups=(Group(1, ((DecTtl(), Output(2)),)),))
        for frame in (arp_request(VM1, IP1, IP2), udp(), udp(ttl=1)):
            pair.frame(frame)

    def test_tags(self, real: RealSwitch) -> None:
        pair = Pair(
            real,
            flow(Output(2), priority=3, vlan_vid=0x1005),
            flow(Output(3), priority=2, vlan_vid=(0x1000, 0x1000), eth_type=0x0800),
            flow(BACK, priority=1, vlan_vid=0),
        )
        found = [pair.out(udp(vlan=vlan)) for vlan in (5, 6, 0, None)]
        assert [[port for port, _ in out] for out in found] == [[2], [3], [3], [1]]

    def test_a_priority_tag_is_taken_off_and_the_frame_judged_anew(self, real: RealSwitch) -> None:
        """With what was changed before; a tag behind it is not read."""
        untag = (set_field(Field.ETH_SRC, VM2), PopVlan(), Resubmit(0))
        pair = Pair(
            real,
            flow(*untag, priority=9, vlan_vid=0x1000),
            flow(DecTtl(), set_field(Field.IPV4_DST, FAR), Output(2), eth_type=0x0800, vlan_vid=0),
            flow(Output(3), priority=3, vlan_vid=0x1005),
            flow(set_field(Field.ARP_SPA, FAR), Output(2), eth_type=0x0806, vlan_vid=0),
            flow(DecTtl(), CONTROLLER, eth_type=0x86DD, vlan_vid=0),
            flow(BACK, priority=1, vlan_vid=0),
        )
        found = [pair.out(udp(vlan=vlan)) for vlan in (0, 5, None, 6)]
        assert [[port for port, _ in out] for out in found] == [[2], [3], [2], []]
        for body in (udp(vlan=5), udp(), six(b""), arp_request(VM1, IP1, IP2), udp(ttl=1)):
            pair.frame(tagged(body, 0))
            pair.frame(tagged(tagged(body, 0), 0))

    def test_metadata(self, real: RealSwitch) -> None:
        pair = Pair(
            real,
            flow(SetField(Field.METADATA, 0xF5), SetField(Field.TUNNEL_ID, 7), goto=1),
            flow(Output(2), table=1, goto=2, metadata=(0xF0, 0xF0)),
            flow(Output(3), table=2, tunnel_id=7),
        )
        assert [port for port, _ in pair.out(udp())] == [2, 3]

    @pytest.mark.parametrize(("vlan", "before"), [(None, 14), (7, 18)])
    def test_the_size_of_a_frame(self, real: RealSwitch, vlan: int | None, before: int) -> None:
        """It is noted beside the frame, which is then looked up again."""
        look = (SetField(Field.METADATA, 1), CheckLarger(before + 200, Field.METADATA, 1), Resubmit(0))
        pair = Pair(
            real,
            flow(*look, priority=9, eth_type=0x0800, metadata=0),
            flow(CONTROLLER, Output(3), priority=5, eth_type=0x0800, metadata=3),
            flow(DecTtl(), Output(2), priority=4, eth_type=0x0800, metadata=1),
            flow(BACK, priority=1),
        )
        sizes = (199, 200, 201, 1000, 200, 1)
        bodies = [ipv4(IP1, IP2, udp_body(bytes(max(0, size - 28)))) for size in sizes]
        found = [pair.out(Ethernet(GATEWAY, VM1, 0x0800, body, vlan).build()) for body in bodies]
        assert [[port for port, _ in out] for out in found] == [[2], [2], [3], [3], [2], [2]]
        assert [port for port, _ in pair.out(arp_request(VM1, IP1, IP2))] == [1]

    def test_neighbour_discovery(self, real: RealSwitch) -> None:
        terms = {"eth_type": 0x86DD, "ip_proto": 58, "icmpv6_type": 135}
        target = int.from_bytes(ipv6_solicitation()[62:78], "big")
        pair = Pair(
            real,
            flow(Output(2), priority=2, **terms, ipv6_nd_target=target, ipv6_nd_sll=VM1),
            flow(Output(3), priority=1, **terms, ipv6_nd_target=target),
        )
        whole = ipv6_solicitation()
        assert [port for port, _ in pair.out(whole)] == [2]
        for size in range(54, len(whole)):
            pair.frame(whole[:size])
        twice = ipv6_solicitation(options=2)
        assert pair.out(twice) == []

    @pytest.mark.parametrize("kind", [135, 136])
    def test_guard_of_neighbour_discovery(self, real: RealSwitch, kind: int) -> None:
        """An option that is not there is zero to a switch, and so are all of a message with one twice."""
        option = {135: "ipv6_nd_sll", 136: "ipv6_nd_tll"}[kind]
        terms: dict[str, Any] = {"eth_type": 0x86DD, "ip_proto": 58, "icmpv6_type": kind, "ip_ttl": 255}
        own, none = terms | {option: VM1}, terms | {option: 0}
        pair = Pair(
            real,
            flow(Output(2), priority=3, **own),
            flow(Output(3), priority=2, **none),
            flow(BACK, priority=1),
        )
        said = {135: ICMPv6ND_NS, 136: ICMPv6ND_NA}[kind](tgt=str(SIX1))
        mine = {135: ICMPv6NDOptSrcLLAddr, 136: ICMPv6NDOptDstLLAddr}[kind](lladdr=VM1)
        other = {135: ICMPv6NDOptDstLLAddr, 136: ICMPv6NDOptSrcLLAddr}[kind](lladdr=VM1)
        found = {
            name: [port for port, _ in pair.out(six(part))]
            for name, part in (
                ("mine", said / mine),
                ("none", said),
                ("twice", said / mine / mine),
                ("other kind", said / other),
                ("behind options", IPv6ExtHdrDestOpt() / said / mine),
                ("behind a fragment header", IPv6ExtHdrFragment(m=0) / said / mine),
                ("first of fragments", IPv6ExtHdrFragment(m=1) / said / mine),
                ("later fragment", IPv6ExtHdrFragment(offset=4, m=0) / said / mine),
            )
        }
        assert found == {
            "mine": [2], "none": [3], "twice": [3], "other kind": [3], "behind options": [2],
            "behind a fragment header": [2], "first of fragments": [2], "later fragment": [1],
        }  # fmt: skip
        assert [port for port, _ in pair.out(six(said / mine, hlim=254))] == [1]

    def test_an_answer_to_a_neighbour_solicitation(self, real: RealSwitch) -> None:
        """Whatever is in front of it, or behind its option, and however much of it there is."""
        pair = Pair(real, *nd_answer())
        asked = ICMPv6ND_NS(tgt=str(SIX2)) / ICMPv6NDOptSrcLLAddr(lladdr=VM1)
        told = ICMPv6ND_NA(tgt=str(SIX2), R=1, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=GATEWAY)
        answer = IPv6(src=str(SIX2), dst=str(SIX1), hlim=255) / told
        for port in PORTS:
            out = pair.out(six(asked), port)
            assert out == [(port, Ethernet(VM1, GATEWAY, 0x86DD, bytes(answer)).build())]
        assert pair.out(six(ICMPv6ND_NS(tgt=str(SIX2)))) == [], "without the option there is no room for one"
        assert pair.out(six(ICMPv6ND_NS(tgt=str(SIX1)) / ICMPv6NDOptSrcLLAddr(lladdr=VM1))) == []
        assert pair.out(six(told)) == [], "an answer is none to answer"
        nonce, long_nonce = ICMPv6NDOptUnknown(type=14, data=b"nonce!"), b"\x0e\x02" + bytes(14)
        source, target = ICMPv6NDOptSrcLLAddr(lladdr=VM1), ICMPv6NDOptDstLLAddr(lladdr=VM2)
        bare = ICMPv6ND_NS(tgt=str(SIX2), res=7)
        for message in (
            bare / source / nonce, bare / nonce / source, bare / Raw(long_nonce) , bare / source / target,
            bare / target / source, bare / target, bare / source / source, bare / target / target,
            bare / Raw(long_nonce + bytes(source)), IPv6ExtHdrDestOpt() / bare / source,
            IPv6ExtHdrFragment(m=0) / bare / source, bare / source / Raw(b"\x01\x00" + bytes(6)),
        ):  # fmt: skip
            pair.frame(six(message))
        wrong = bytearray(six(asked))
        wrong[57] ^= 0x55
        assert pair.out(bytes(wrong)) == pair.out(six(asked)), "its checksum is computed anew"
        for size in range(54, len(wrong)):
            pair.frame(bytes(wrong[:size]))

    def test_what_is_seen_of_flags_and_options(self, real: RealSwitch) -> None:
        terms: dict[str, Any] = {"eth_type": 0x86DD, "ip_proto": 58, "icmpv6_type": 136}
        pair = Pair(
            real,
            flow(Output(2), priority=3, **terms, nd_reserved=0xE0000000, nd_options_type=2),
            flow(Output(3), priority=2, **terms, nd_reserved=0x60000000),
            flow(BACK, priority=1, **terms, nd_options_type=0),
        )
        said, mine = ICMPv6ND_NA(tgt=str(SIX1), R=1, S=1, O=1), ICMPv6NDOptDstLLAddr(lladdr=VM1)
        other = ICMPv6NDOptSrcLLAddr(lladdr=VM1)
        messages = (said / mine, said, said / other / mine, said / mine / other, said / mine / mine,
                    ICMPv6ND_NA(tgt=str(SIX1), R=0, S=1, O=1) / mine)  # fmt: skip
        found = [[port for port, _ in pair.out(six(message))] for message in messages]
        assert found == [[2], [1], [], [2], [2], [3]], found

    def test_fragments_and_what_cannot_be_read_of_ipv6(self, real: RealSwitch) -> None:
        """A chain of headers that is cut off has no protocol, a first fragment without its ICMPv6 header no
        type."""
        terms: dict[str, Any] = {"eth_type": 0x86DD}
        pair = Pair(
            real,
            flow(Output(2), priority=5, **terms, ip_proto=0),
            flow(Output(3), priority=4, **terms, ip_proto=58, ip_frag=1, icmpv6_type=0),
            flow(BACK, priority=3, **terms, ip_frag=0),
            flow(Output(PortNo.LOCAL), priority=2, **terms, ip_proto=44, ip_frag=3),
        )
        echo = ICMPv6EchoRequest(data=b"x" * 40)
        whole, first = IPv6ExtHdrFragment(m=0), IPv6ExtHdrFragment(m=1)
        found = [
            [port for port, _ in pair.out(six(part))]
            for part in (
                echo,
                whole / echo,
                first / Raw(b"\x3a\x01" + bytes(6)),
                IPv6ExtHdrFragment(nh=60, m=1) / Raw(b"\x3a\x01" + bytes(6)),
                IPv6ExtHdrFragment(nh=60, m=1) / Raw(b"\x3a\x00" + bytes(6)),
                IPv6ExtHdrFragment(offset=4, m=1) / echo,
                first / echo,
                IPv6ExtHdrDestOpt(nh=44) / first / echo,
            )
        ]
        local = int(PortNo.LOCAL)
        assert found == [[1], [1], [], [2], [3], [local], [], []], found
        for size in range(54, 110, 3):
            pair.frame(six(IPv6ExtHdrDestOpt() / first / echo)[:size])

    def test_echo_answer_of_ipv6(self, real: RealSwitch) -> None:
        answering = echo_answer(
            RegMove(Field.IPV6_SRC, Field.IPV6_DST),
            set_field(Field.IPV6_SRC, SIX2),
            set_field(Field.ICMPV6_TYPE, 129),
            eth_type=0x86DD,
            ip_proto=58,
            icmpv6_type=128,
            ipv6_dst=SIX2,
            ip_frag=0,
        )
        pair = Pair(real, answering)
        for data in (b"", b"ping!", b"even"):
            asked = six(ICMPv6EchoRequest(id=7, seq=3, data=data), hlim=64)
            answer = IPv6(src=str(SIX2), dst=str(SIX1), hlim=64) / ICMPv6EchoReply(id=7, seq=3, data=data)
            assert pair.out(asked) == [(1, Ethernet(VM1, GATEWAY, 0x86DD, bytes(answer)).build())]
            assert pair.out(Ethernet(VM1, GATEWAY, 0x86DD, bytes(answer)).build()) == []
        pair.frame(six(IPv6ExtHdrDestOpt() / ICMPv6EchoRequest(data=b"behind")))
        pair.frame(six(IPv6ExtHdrFragment(m=1) / ICMPv6EchoRequest(data=b"12345678")))
        wrong = bytearray(six(ICMPv6EchoRequest(data=b"wrong")))
        wrong[57] ^= 0x55
        pair.frame(bytes(wrong))


# ---- from seeds ----


def some_match(rng: random.Random) -> dict[str, Any]:
    """A match that a switch takes, on values that the sample frames have."""
    terms: dict[str, Any] = {}

    def maybe(chance: float, **more: Any) -> None:
        if rng.random() < chance:
            terms.update(more)

    maybe(0.3, in_port=rng.choice(PORTS))
    maybe(0.2, eth_src=rng.choice((VM1, VM2)))
    maybe(0.2, eth_dst=rng.choice((VM1, VM2, GATEWAY, (1 << 40, 1 << 40), (0, 1 << 40))))
    maybe(0.1, vlan_vid=rng.choice((0, 0x1005, (0x1000, 0x1000))))
    address = rng.choice(
        (IP1, IP2, FAR, IPv4Network("10.0.0.0/8"), IPv4Network("10.0.0.4/30"), IPv4Address(0))
    )
    match rng.randrange(6):
        case 0:
            terms["eth_type"] = 0x0806
            maybe(0.4, arp_op=rng.randrange(3))
            maybe(0.3, arp_spa=address)
            maybe(0.3, arp_tpa=rng.choice((IP1, IP2, FAR)))
            maybe(0.2, arp_sha=rng.choice((VM1, VM2)))
            maybe(0.1, arp_tha=0)
        case 1 | 2 | 3:
            terms["eth_type"] = 0x0800
            maybe(0.3, ipv4_src=address)
            maybe(0.3, ipv4_dst=rng.choice((IP1, IP2, FAR)))
            protocol = rng.choice((0, 1, 6, 17, 17))
            maybe(0.6, ip_proto=protocol)
            if terms.get("ip_proto") == 17:
                maybe(0.5, udp_dst=rng.choice((0, 9, 67, (0, 0xFFF0))))
            elif terms.get("ip_proto") == 6:
                maybe(0.5, tcp_dst=rng.choice((0, 80)))
            elif terms.get("ip_proto") == 1:
                maybe(0.5, icmpv4_type=rng.choice((0, 8)))
        case 4:
            terms["eth_type"] = rng.choice((0x86DD, 0x86DD, 0x88B5, 0x8035, 0x05FF))
            if terms["eth_type"] == 0x86DD:
                maybe(0.5, ipv6_src=rng.choice((IPv6Network("fd00::/64"), IPv6Network("fe80::/10"))))
                maybe(0.5, ip_proto=rng.choice((0, 17, 44, 58)))
                if terms.get("ip_proto") == 58:
                    maybe(0.7, icmpv6_type=135)
                if "icmpv6_type" in terms:
                    maybe(0.3, nd_options_type=rng.choice((0, 1, 2)))
                    maybe(0.3, nd_reserved=0)
                    maybe(0.3, ipv6_nd_sll=rng.choice((VM1, 0)))
                maybe(0.3, ip_frag=rng.choice((0, 1, 3)))
                maybe(0.3, ip_ttl=rng.choice((1, 64, 255)))
        case _:
            pass
    return terms


def some_actions(rng: random.Random, terms: dict[str, Any]) -> list[Action]:
    """Actions, some of which do not fit the match: the fake rejects those."""
    choices: list[Action] = [
        Output(rng.choice(PORTS)),
        Output(rng.choice(PORTS)),
        BACK,
        CONTROLLER,
        ToGroup(rng.choice((1, 2))),
        set_field(Field.ETH_SRC, rng.choice((VM2, GATEWAY))),
        set_field(Field.ETH_DST, rng.choice((VM2, GATEWAY))),
        RegMove(Field.ETH_SRC, Field.ETH_DST),
        SetField(Field.METADATA, rng.randrange(4)),
        CheckLarger(rng.choice((40, 60, 80)), Field.METADATA, rng.randrange(2)),
    ]
    if terms.get("eth_type") in (0x0800, 0x86DD):
        choices += [DecTtl()] * 2
    if terms.get("eth_type") == 0x0800:
        choices += [
            set_field(Field.IPV4_SRC, rng.choice((FAR, IP2))),
            set_field(Field.IPV4_DST, rng.choice((FAR, IP2))),
            RegMove(Field.IPV4_SRC, Field.IPV4_DST),
        ]
    if terms.get("eth_type") in (0x0806, 0x8035):
        choices += [
            set_field(Field.ARP_OP, rng.choice((1, 2))),
            set_field(Field.ARP_SPA, FAR),
            RegMove(Field.ARP_SHA, Field.ARP_THA),
            RegMove(Field.ARP_SPA, Field.ARP_TPA),
            RegMove(Field.ETH_SRC, Field.ARP_SHA),
        ]
    match terms.get("ip_proto"):
        case 17:
            choices += [SetField(Field.UDP_DST, rng.choice((0, 4789))), RegMove(Field.UDP_SRC, Field.UDP_DST)]
        case 6:
            choices += [SetField(Field.TCP_SRC, 443)]
        case 1:
            choices += [SetField(Field.ICMPV4_TYPE, 0)]
        case 58 if terms.get("icmpv6_type") == 135:
            choices += [
                SetField(Field.ND_RESERVED, 0x60000000),
                SetField(Field.ND_OPTIONS_TYPE, 2),
                SetField(Field.ICMPV6_TYPE, 136),
                RegMove(Field.ETH_SRC, Field.IPV6_ND_SLL),
                RegMove(Field.IPV6_SRC, Field.IPV6_ND_TARGET),
            ] * 2
    return rng.choices(choices, k=rng.randrange(5))


@pytest.mark.parametrize("seed", range(10))
def test_solicitations_from_seeds(real: RealSwitch, seed: int) -> None:
    """Their options in any number and order, cut off or damaged, are answered as the real switch answers."""
    rng = random.Random(seed)
    pair = Pair(real, *nd_answer())
    for _ in range(40):
        options = b""
        for _ in range(rng.randrange(4)):
            kind, size = rng.choice((1, 1, 2, 14)), rng.choice((1, 1, 1, 2))
            mac = mac_bytes(rng.choice((VM1, VM2, "00:00:00:00:00:00")))
            options += bytes((kind, size)) + bytes(8 * (size - 1)) + mac
        asked = ICMPv6ND_NS(tgt=str(SIX2), res=rng.choice((0, 0, rng.getrandbits(32)))) / Raw(options)
        frame = six(asked)
        if rng.random() < 0.3:
            frame = damaged(rng, frame)
        pair.frame(frame, rng.choice(PORTS))


@pytest.mark.parametrize("seed", range(100))
def test_from_seeds(real: RealSwitch, seed: int) -> None:
    rng = random.Random(seed)
    fake = FakeSwitch("fake")
    groups = (
        Group(1, ((DecTtl(), Output(1)), (Output(2), set_field(Field.ETH_SRC, VM2)), (BACK,))),
        Group(2, ((Output(3),),)),
    )
    fake.apply(Change(groups=groups))
    for number in range(40):
        terms = some_match(rng)
        table = rng.choice((0, 0, 1, 2))
        onward = rng.choice((None, table + 1)) if table < 2 else None
        # Every priority of its own: which of two equal entries wins is not the fake's to know.
        made = Flow(
            table, number, match(**terms), tuple(some_actions(rng, terms)), goto=onward, cookie=number
        )
        try:
            fake.apply(Change(add=(made,)))
        except BadEntry as error:
            pytest.fail(f"entry {number} of seed {seed}: {error}")
    real.install(fake.flows.values(), groups)
    for _ in range(40):
        frame = some_frame(rng)
        if rng.random() < 0.4:
            frame = damaged(rng, frame)
        assert_agrees(real, fake, frame, rng.choice(PORTS))
