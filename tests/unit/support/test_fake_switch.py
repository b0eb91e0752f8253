"""The fake switch and fabric do what the entries say, and reject what a switch rejects."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from retinue.core.packets import (
    ARP,
    ZERO_MAC,
    Ethernet,
    arp_reply,
    arp_request,
    build_udp4,
    checksum,
    parse,
    parse_udp4,
)
from retinue.core.pipeline.entry import (
    Action,
    Change,
    DecTtl,
    Field,
    Flow,
    Group,
    Meter,
    Output,
    PortNo,
    RegMove,
    SetField,
    ToGroup,
    match,
    set_field,
)
from support.fakes.switch import (
    AmbiguousMatch,
    BadEntry,
    Delivery,
    FakeFabric,
    FakeSwitch,
    Loop,
    every_choice,
)

VM1, VM2, GATEWAY = "52:54:00:00:00:01", "52:54:00:00:00:02", "00:00:de:ad:be:ef"
IP1, IP2 = IPv4Address("10.0.0.5"), IPv4Address("10.0.0.6")
ARP_TYPE, IPV4_TYPE = 0x0806, 0x0800
CONTROLLER = Output(PortNo.CONTROLLER)


def udp(ttl: int = 64, dport: int = 9, dst: IPv4Address = IP2, vlan: int | None = None) -> bytes:
    return Ethernet(GATEWAY, VM1, IPV4_TYPE, build_udp4(IP1, dst, 7, dport, b"payload!", ttl), vlan).build()


def switch(*flows: Flow, groups: tuple[Group, ...] = (), meters: tuple[Meter, ...] = ()) -> FakeSwitch:
    made = FakeSwitch("s")
    made.apply(Change(add=flows, groups=groups, meters=meters))
    return made


def flow(
    *actions: Action, table: int = 0, priority: int = 10, goto: int | None = None, **terms: object
) -> Flow:
    return Flow(table, priority, match(**terms), tuple(actions), goto=goto)  # type: ignore[arg-type]


def out(made: FakeSwitch, frame: bytes, in_port: int = 1) -> tuple[tuple[int, bytes], ...]:
    return made.receive(frame, in_port).outputs


class TestMatching:
    def test_nothing_matches_nothing_happens(self) -> None:
        result = switch(flow(Output(2), in_port=7)).receive(udp(), 1)
        assert (result.outputs, result.to_controller, result.matched) == ((), (), ())

    def test_highest_priority_wins(self) -> None:
        made = switch(
            flow(Output(2), priority=1),
            flow(Output(3), priority=3, in_port=1),
            flow(Output(4), priority=2, eth_src=VM1),
        )
        assert out(made, udp()) == ((3, udp()),)
        assert out(made, udp(), in_port=9) == ((4, udp()),)

    def test_an_entry_without_actions_drops(self) -> None:
        made = switch(flow(Output(2), priority=1), flow(priority=2, eth_src=VM1))
        result = made.receive(udp(), 1)
        assert result.outputs == ()
        assert [f.priority for f in result.matched] == [2]

    def test_tables(self) -> None:
        made = switch(flow(goto=5), flow(Output(2), goto=6, table=5), flow(Output(3), table=6))
        result = made.receive(udp(), 1)
        assert result.outputs == ((2, udp()), (3, udp()))
        assert [f.table for f in result.matched] == [0, 5, 6]

    def test_a_miss_in_a_later_table_keeps_what_was_sent(self) -> None:
        assert out(switch(flow(Output(2), goto=5)), udp()) == ((2, udp()),)

    def test_masks(self) -> None:
        made = switch(flow(Output(2), eth_type=IPV4_TYPE, ipv4_dst=IPv4Network("10.0.0.4/30")))
        assert out(made, udp(dst=IPv4Address("10.0.0.7")))
        assert not out(made, udp(dst=IPv4Address("10.0.0.8")))

    def test_group_addresses(self) -> None:
        made = switch(flow(Output(2), eth_dst=(1 << 40, 1 << 40)))
        assert out(made, arp_request(VM1, IP1, IP2))
        assert not out(made, udp())

    def test_ipv4_entry_does_not_match_arp_of_the_same_addresses(self) -> None:
        made = switch(flow(Output(2), eth_type=IPV4_TYPE, ipv4_dst=IP2))
        assert out(made, udp())
        assert not out(made, arp_request(VM1, IP1, IP2))

    def test_arp_fields(self) -> None:
        made = switch(flow(Output(2), eth_type=ARP_TYPE, arp_op=1, arp_spa=IP1, arp_tpa=IP2, arp_sha=VM1))
        assert out(made, arp_request(VM1, IP1, IP2))
        assert not out(made, arp_request(VM2, IP1, IP2))
        assert not out(made, arp_reply(ARP(1, VM2, IP2, ZERO_MAC, IP1), VM1))

    def test_cut_off_arp_has_no_fields(self) -> None:
        """As Open vSwitch: what is not there is zero. Entries that name no ARP field, or zero, match."""
        short = arp_request(VM1, IP1, IP2)[:41]
        assert not out(switch(flow(Output(2), eth_type=ARP_TYPE, arp_tpa=IP2)), short)
        assert out(switch(flow(Output(2), eth_type=ARP_TYPE)), short) == ((2, short),)
        assert out(switch(flow(Output(2), eth_type=ARP_TYPE, arp_spa=0)), short)

    @pytest.mark.parametrize("cut", [15, 33, 41])
    def test_cut_off_udp_has_no_ports(self, cut: int) -> None:
        made = switch(flow(Output(2), eth_type=IPV4_TYPE, ip_proto=17, udp_dst=9))
        assert out(made, udp())
        assert not out(made, udp()[:cut])

    @pytest.mark.parametrize(("flags", "port"), [(0x2000, 2), (0x2001, 3), (0x0001, 3)])
    def test_only_the_first_fragment_has_ports(self, flags: int, port: int) -> None:
        frame = bytearray(udp())
        frame[20:22] = flags.to_bytes(2, "big")
        made = switch(
            flow(Output(2), eth_type=IPV4_TYPE, ip_proto=17, udp_dst=9),
            flow(Output(3), priority=1, eth_type=IPV4_TYPE, ip_proto=17),
        )
        assert [port for port, _ in out(made, bytes(frame))] == [port]

    def test_tagged_frame_has_the_type_behind_the_tag(self) -> None:
        frame = udp(vlan=5)
        assert out(switch(flow(Output(2), eth_type=IPV4_TYPE, ipv4_src=IP1)), frame) == ((2, frame),)
        assert out(switch(flow(Output(2), vlan_vid=0x1005)), frame)
        assert not out(switch(flow(Output(2), vlan_vid=0)), frame)
        assert out(switch(flow(Output(2), vlan_vid=0)), udp())

    def test_less_than_an_ethernet_header_is_dropped(self) -> None:
        assert not out(switch(flow(Output(2))), bytes(13))
        assert out(switch(flow(Output(2))), bytes(14))

    def test_neighbour_solicitation(self) -> None:
        target = bytes.fromhex("fe80" + "00" * 13 + "01")
        icmp = bytes((135, 0, 0, 0, 0, 0, 0, 0)) + target + bytes((1, 1)) + bytes.fromhex("525400000001")
        ip = bytes((0x60, 0, 0, 0, 0, len(icmp), 58, 255)) + target + target
        frame = Ethernet(GATEWAY, VM1, 0x86DD, ip + icmp).build()
        terms = {"eth_type": 0x86DD, "ip_proto": 58, "icmpv6_type": 135}
        number = int.from_bytes(target, "big")
        assert out(switch(flow(Output(2), **terms, ipv6_nd_target=number, ipv6_nd_sll=VM1)), frame)
        assert not out(switch(flow(Output(2), **terms, ipv6_nd_target=number + 1)), frame)

    def test_two_entries_that_differ_are_ambiguous(self) -> None:
        made = switch(flow(Output(2), in_port=1), flow(Output(3), eth_src=VM1))
        with pytest.raises(AmbiguousMatch, match="both match"):
            made.receive(udp(), 1)
        assert out(made, udp(), in_port=2) == ((3, udp()),)

    def test_two_entries_that_agree_are_not(self) -> None:
        assert len(out(switch(flow(Output(2), in_port=1), flow(Output(2), eth_src=VM1)), udp())) == 1

    def test_who_told_the_controller_matters(self) -> None:
        made = switch(
            replace(flow(CONTROLLER, in_port=1), cookie=1), replace(flow(CONTROLLER, eth_src=VM1), cookie=2)
        )
        with pytest.raises(AmbiguousMatch):
            made.receive(udp(), 1)


class TestActions:
    def test_not_out_of_the_port_it_came_from(self) -> None:
        made = switch(flow(Output(1), Output(2)))
        assert out(made, udp(), in_port=1) == ((2, udp()),)

    def test_back_when_told_so_by_name(self) -> None:
        assert out(switch(flow(Output(PortNo.IN_PORT))), udp(), in_port=1) == ((1, udp()),)

    def test_local_port_is_a_port(self) -> None:
        made = switch(flow(Output(PortNo.LOCAL), priority=1), flow(Output(3), in_port=PortNo.LOCAL))
        assert out(made, udp()) == ((PortNo.LOCAL, udp()),)
        assert out(made, udp(), in_port=PortNo.LOCAL) == ((3, udp()),)

    def test_to_the_controller_as_it_is_at_that_point(self) -> None:
        made = switch(
            replace(flow(CONTROLLER, set_field(Field.ETH_DST, VM2), CONTROLLER, Output(2)), cookie=77)
        )
        result = made.receive(udp(), 1)
        changed = Ethernet(VM2, VM1, IPV4_TYPE, parse(udp()).payload).build()
        assert result.to_controller == ((77, 1, udp()), (77, 1, changed))
        assert result.outputs == ((2, changed),)

    def test_each_output_sends_what_was_changed_before_it(self) -> None:
        made = switch(flow(Output(2), set_field(Field.ETH_SRC, VM2), Output(3)))
        assert [parse(frame).src for _, frame in out(made, udp())] == [VM1, VM2]

    def test_arp_answer(self) -> None:
        """Request in, reply out, without the controller."""
        made = switch(
            flow(
                RegMove(Field.ETH_SRC, Field.ETH_DST),
                set_field(Field.ETH_SRC, GATEWAY),
                set_field(Field.ARP_OP, 2),
                RegMove(Field.ARP_SHA, Field.ARP_THA),
                set_field(Field.ARP_SHA, GATEWAY),
                RegMove(Field.ARP_SPA, Field.ARP_TPA),
                set_field(Field.ARP_SPA, IP2),
                Output(PortNo.IN_PORT),
                eth_type=ARP_TYPE,
                arp_op=1,
                arp_tpa=IP2,
            )
        )
        asked = ARP(1, VM1, IP1, ZERO_MAC, IP2)
        assert out(made, arp_request(VM1, IP1, IP2)) == ((1, arp_reply(asked, GATEWAY)),)

    def test_ttl(self) -> None:
        made = switch(flow(DecTtl(), Output(2), eth_type=IPV4_TYPE))
        assert out(made, udp(ttl=64)) == ((2, udp(ttl=63)),)
        assert out(made, udp(ttl=2)) == ((2, udp(ttl=1)),)

    @pytest.mark.parametrize("ttl", [0, 1])
    def test_ttl_runs_out(self, ttl: int) -> None:
        made = switch(
            flow(Output(3), DecTtl(), Output(2), goto=5, eth_type=IPV4_TYPE), flow(Output(4), table=5)
        )
        assert out(made, udp(ttl=ttl)) == ((3, udp(ttl=ttl)),)

    @pytest.mark.parametrize("protocol", [1, 6, 17])
    def test_checksums_stay_right(self, protocol: int) -> None:
        if protocol == 17:
            packet = build_udp4(IP1, IP2, 7, 9, b"odd")
        else:
            l4 = bytearray(bytes(range(20, 45)))
            l4[12] = 0x50
            at = 16 if protocol == 6 else 2
            l4[at : at + 2] = b"\0\0"
            pseudo = IP1.packed + IP2.packed + bytes((0, 6, 0, len(l4))) if protocol == 6 else b""
            l4[at : at + 2] = checksum(pseudo + l4).to_bytes(2, "big")
            head = bytearray(build_udp4(IP1, IP2, 7, 9, bytes(len(l4) - 8))[:20])
            head[9], head[10:12] = protocol, b"\0\0"
            head[10:12] = checksum(bytes(head)).to_bytes(2, "big")
            packet = bytes(head + l4)
        ports = {6: (Field.TCP_SRC, Field.TCP_DST), 17: (Field.UDP_SRC, Field.UDP_DST)}
        to = (
            [SetField(name, 0xABCD) for name in ports[protocol]]
            if protocol in ports
            else [SetField(Field.ICMPV4_TYPE, 0), SetField(Field.ICMPV4_CODE, 9)]
        )
        made = switch(
            flow(
                set_field(Field.IPV4_SRC, IPv4Address("192.168.77.1")),
                set_field(Field.IPV4_DST, IPv4Address("172.16.255.254")),
                DecTtl(),
                *to,
                Output(2),
                eth_type=IPV4_TYPE,
                ip_proto=protocol,
            )
        )
        [(_, sent)] = out(made, Ethernet(GATEWAY, VM1, IPV4_TYPE, packet).build())
        ip, l4_sent = sent[14:34], sent[34 : 14 + len(packet)]
        assert ip[12:20] == IPv4Address("192.168.77.1").packed + IPv4Address("172.16.255.254").packed
        assert (ip[8], checksum(ip)) == (63, 0)
        assert l4_sent[:4] == (b"\xab\xcd\xab\xcd" if protocol in ports else b"\x00\x09" + l4_sent[2:4])
        pseudo = ip[12:20] + bytes((0, protocol, 0, len(l4_sent))) if protocol in ports else b""
        assert checksum(pseudo + l4_sent) == 0

    def test_metadata(self) -> None:
        made = switch(
            flow(SetField(Field.METADATA, 0xF5), goto=1),
            flow(Output(2), table=1, metadata=(0xF0, 0xF0)),
            flow(Output(3), table=1, priority=1),
        )
        assert out(made, udp()) == ((2, udp()),)

    def test_meter_passes_until_told_otherwise(self) -> None:
        made = switch(replace(flow(CONTROLLER), meter=4), meters=(Meter(4, 10, 10),))
        assert made.receive(udp(), 1).to_controller
        made.exhausted.add(4)
        assert not made.receive(udp(), 1).to_controller

    def test_packet_out(self) -> None:
        made = switch()
        assert made.packet_out(udp(), (Output(3), Output(1))).outputs == ((3, udp()), (1, udp()))
        assert made.packet_out(udp(), (Output(PortNo.IN_PORT),), in_port=3).outputs == ((3, udp()),)


class TestGroups:
    group = Group(1, ((set_field(Field.ETH_DST, VM1), Output(2)), (Output(3),)))

    def test_one_bucket_is_chosen(self) -> None:
        made = switch(flow(ToGroup(1)), groups=(self.group,))
        assert made.receive(udp(), 1, choose=lambda n: n - 1).outputs == ((3, udp()),)

    def test_each_choice(self) -> None:
        made = switch(flow(ToGroup(1), ToGroup(1)), groups=(self.group,))
        found = every_choice(lambda choose: made.receive(udp(), 1, choose))
        assert sorted([port for port, _ in r.outputs] for r in found) == [[2, 2], [2, 3], [3, 2], [3, 3]]

    def test_a_bucket_changes_its_own_copy(self) -> None:
        made = switch(flow(ToGroup(1), Output(4)), groups=(self.group,))
        assert [parse(frame).dst for _, frame in out(made, udp())] == [VM1, GATEWAY]

    def test_a_bucket_is_a_set_and_sends_last(self) -> None:
        bucket = (Output(2), set_field(Field.ETH_DST, VM1), DecTtl())
        made = switch(flow(ToGroup(1)), groups=(Group(1, (bucket,)),))
        [(port, frame)] = out(made, udp(ttl=9))
        assert (port, parse(frame).dst, parse_udp4(parse(frame).payload).ttl) == (2, VM1, 8)

    def test_ttl_is_of_ip_alone(self) -> None:
        """No match stands before a bucket: what its action is not for passes unchanged."""
        asked = arp_request(VM1, IP1, IP2)
        made = switch(flow(ToGroup(1)), groups=(Group(1, ((DecTtl(), Output(2)),)),))
        assert out(made, asked) == ((2, asked),)
        assert not out(made, udp(ttl=1))

    def test_no_buckets(self) -> None:
        assert not out(switch(flow(ToGroup(1)), groups=(Group(1, ()),)), udp())

    def test_not_back_out_of_the_port_it_came_from(self) -> None:
        assert not out(switch(flow(ToGroup(1)), groups=(Group(1, ((Output(1),),)),)), udp())


class TestChanges:
    def test_add_overwrites_by_key(self) -> None:
        made = switch(flow(Output(2), in_port=1))
        made.apply(Change(add=(flow(Output(3), in_port=1),)))
        assert len(made.flows) == 1
        assert out(made, udp()) == ((3, udp()),)

    def test_remove_by_key(self) -> None:
        made = switch(flow(Output(2), in_port=1), flow(Output(3), priority=1))
        made.apply(Change(remove=(flow(in_port=1),)))
        assert out(made, udp()) == ((3, udp()),)
        made.apply(Change(remove=(flow(in_port=1), flow(priority=1))))
        assert not made.flows

    def test_leases_end(self) -> None:
        lasting, ending = flow(Output(2), priority=1), replace(flow(Output(3)), expires_at=100.0)
        made = switch(lasting, ending)
        assert made.expire(99.9) == ()
        assert made.expire(100.0) == (ending,)
        assert out(made, udp()) == ((2, udp()),)

    def test_removing_a_group_or_meter_removes_its_flows(self) -> None:
        made = switch(
            flow(ToGroup(1), in_port=1),
            replace(flow(Output(2), in_port=2), meter=5),
            flow(Output(2), in_port=3),
            groups=(Group(1, ()),),
            meters=(Meter(5, 1, 1),),
        )
        made.apply(Change(remove_groups=(1,), remove_meters=(5,)))
        assert list(made.flows) == [flow(in_port=3).key]
        assert (made.groups, made.meters) == ({}, {})

    def test_all_or_nothing(self) -> None:
        made = switch(flow(Output(2)))
        bad = flow(ToGroup(9), in_port=1)
        with pytest.raises(BadEntry, match="there is no group 9"):
            made.apply(
                Change(add=(flow(Output(5), in_port=2), bad), remove=(flow(),), groups=(Group(3, ()),))
            )
        assert (list(made.flows), made.groups) == ([flow().key], {})

    @pytest.mark.parametrize(
        ("bad", "says"),
        [
            (flow(ipv4_dst=IP1), "IPV4_DST needs ETH_TYPE 0x800"),
            (flow(eth_type=ARP_TYPE, ipv4_dst=IP1), "IPV4_DST needs"),
            (flow(eth_type=IPV4_TYPE, udp_dst=67), "UDP_DST needs IP_PROTO 0x11"),
            (flow(arp_op=1), "ARP_OP needs"),
            (flow(ip_proto=17), "IP_PROTO needs"),
            (flow(DecTtl()), "IP_PROTO needs"),
            (flow(set_field(Field.IPV4_SRC, IP1), eth_type=ARP_TYPE), "IPV4_SRC needs"),
            (flow(RegMove(Field.ARP_SHA, Field.ETH_DST)), "ARP_SHA needs"),
            (flow(RegMove(Field.ARP_SPA, Field.ARP_THA), eth_type=ARP_TYPE), "differ in width"),
            (flow(set_field(Field.ETH_TYPE, 5)), "cannot be set"),
            (flow(SetField(Field.ARP_OP, 256), eth_type=ARP_TYPE), "does not fit 8 bits"),
            (flow(goto=0), "later table"),
            (flow(goto=254), "later table"),
            (flow(table=254), "out of range"),
            (flow(priority=65536), "out of range"),
            (flow(Output(PortNo.FLOOD)), "no output to port"),
            (flow(Output(0)), "no output to port"),
            (replace(flow(), meter=3), "no meter 3"),
            (replace(flow(), cookie=1 << 64), "64 bits"),
            (Flow(0, 1, ((Field.ETH_DST, 1, None), (Field.IN_PORT, 1, None))), "not sorted"),
            (Flow(0, 1, ((Field.IN_PORT, 1, None), (Field.IN_PORT, 1, None))), "names one twice"),
            (Flow(0, 1, ((Field.ETH_DST, 3, 2),)), "outside its mask"),
            (Flow(0, 1, ((Field.ETH_DST, 0, 0),)), "leave the field"),
            (Flow(0, 1, ((Field.ETH_DST, 1, (1 << 48) - 1),)), "leave the field, or the mask"),
            (Flow(0, 1, ((Field.ETH_TYPE, 0, 0xFF00),)), "cannot have a mask"),
            (Flow(0, 1, ((Field.ETH_DST, 1 << 48, None),)), "does not fit 48 bits"),
        ],
    )
    def test_rejected(self, bad: Flow, says: str) -> None:
        with pytest.raises(BadEntry, match=says):
            switch(bad)

    def test_groups_of_groups_are_not_known(self) -> None:
        with pytest.raises(BadEntry, match="no group 2"):
            switch(groups=(Group(2, ()), Group(1, ((ToGroup(2),),))))


class TestFabric:
    def fabric(self) -> FakeFabric:
        """leaf1 and leaf2 joined by two spines; a host at port 1 of each leaf, spines at 8 and 9."""
        made = FakeFabric()
        for leaf, port in (("leaf1", 1), ("leaf2", 2)):
            made.add(leaf).apply(
                Change(
                    add=(flow(ToGroup(1), in_port=1), flow(Output(1), priority=1)),
                    groups=(Group(1, ((Output(8),), (Output(9),))),),
                )
            )
            for spine, up in (("spine1", 8), ("spine2", 9)):
                made.add(spine)
                made.cable((leaf, up), (spine, port))
        for spine in ("spine1", "spine2"):
            made[spine].apply(Change(add=(flow(Output(2), in_port=1), flow(Output(1), in_port=2))))
        return made

    def test_across(self) -> None:
        sent = self.fabric().send("leaf1", 1, udp())
        assert sent.arrivals == (("leaf2", 1, udp()),)
        assert [(hop.switch, hop.in_port) for hop in sent.hops] == [("leaf1", 1), ("spine1", 1), ("leaf2", 8)]
        assert sent.to_controller == ()

    def test_every_path(self) -> None:
        paths = self.fabric().all_paths("leaf1", 1, udp())
        assert sorted(path.hops[1].switch for path in paths) == ["spine1", "spine2"]
        assert {path.arrivals for path in paths} == {(("leaf2", 1, udp()),)}

    def test_copies_of_a_frame_are_all_followed(self) -> None:
        made = self.fabric()
        made["leaf1"].apply(Change(add=(flow(Output(8), Output(9), Output(3), CONTROLLER, in_port=1),)))
        sent = made.send("leaf1", 1, udp())
        assert sorted(end[:2] for end in sent.arrivals) == [("leaf1", 3), ("leaf2", 1), ("leaf2", 1)]
        assert sent.to_controller == (("leaf1", 0, 1, udp()),)

    def test_dropped(self) -> None:
        made = self.fabric()
        made["spine1"].apply(Change(remove=(flow(in_port=1),)))
        assert made.send("leaf1", 1, udp()).arrivals == ()

    def test_loop(self) -> None:
        made = self.fabric()
        made["leaf2"].apply(Change(add=(flow(Output(PortNo.IN_PORT), priority=1),)))
        made["leaf1"].apply(Change(add=(flow(Output(PortNo.IN_PORT), priority=1),)))
        with pytest.raises(Loop, match="leaf1:1 > spine1:1 > leaf2:8 > spine1:2"):
            made.send("leaf1", 1, udp())

    def test_packet_out(self) -> None:
        made = self.fabric()
        assert made.packet_out("leaf1", udp(), (Output(8), Output(1))) == Delivery(
            arrivals=(("leaf1", 1, udp()), ("leaf2", 1, udp())),
            hops=made.send("leaf1", 1, udp()).hops[1:],
        )

    def test_a_port_has_one_cable(self) -> None:
        made = self.fabric()
        with pytest.raises(ValueError, match="has a cable already"):
            made.cable(("leaf1", 8), ("spine2", 7))
        with pytest.raises(ValueError, match="no such switch"):
            made.cable(("leaf9", 8), ("spine2", 7))
        with pytest.raises(ValueError, match="itself"):
            made.cable(("leaf1", 7), ("leaf1", 7))
