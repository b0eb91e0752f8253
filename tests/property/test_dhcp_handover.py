"""Whatever a VM or a DHCP server sends, what comes out elsewhere is from and for whom it may be."""

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address

from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.core.packets import (
    BROADCAST,
    DHCP,
    FLAG_BROADCAST,
    BootOp,
    Ethernet,
    EtherType,
    MessageType,
    Option,
    build_dhcp,
    build_udp4,
    parse_dhcp_frame,
)
from support.fabric.dhcp_lab import EVERYWHERE, NOWHERE, SERVER, SERVER_AT, DhcpLab, dhcp_lab
from support.fabric.networks import GATEWAY, GATEWAY_MAC, vm_ip, vm_mac

OWN, OTHERS = vm_ip(1), vm_ip(2)
SERVER_MAC = "02:00:00:00:01:02"
addresses = st.sampled_from(
    [NOWHERE, EVERYWHERE, OWN, OTHERS, SERVER, GATEWAY]
    + [IPv4Address(text) for text in ("10.1.0.77", "10.1.0.255", "203.0.113.9", "127.0.0.1", "224.0.0.1")]
)
macs = st.sampled_from([BROADCAST, GATEWAY_MAC, vm_mac(1), vm_mac(2), SERVER_MAC, "01:00:5e:00:00:01"])
packed = addresses.map(lambda ip: ip.packed)
options = st.lists(
    st.one_of(
        st.tuples(st.just(Option.REQUESTED_ADDRESS), packed),
        st.tuples(st.just(Option.SERVER_ID), packed),
        st.tuples(st.just(Option.LEASE_TIME), st.sampled_from([b"\0\0\0\1", b"\0\0\2\x58", b"\xff" * 4])),
        st.tuples(st.sampled_from([12, 52, 55, 60, 61, 80, 82]), st.binary(min_size=1, max_size=4)),
    ),
    max_size=4,
)


@st.composite
def messages(draw: st.DrawFn, op: BootOp) -> DHCP:
    """Of one side; half-way sensible, so that many pass."""
    kinds = [kind for kind in MessageType if kind.from_server == (op is BootOp.REPLY)]
    kind = draw(st.sampled_from(kinds))
    return DHCP(
        op,
        draw(st.integers(1, 3)),
        draw(st.sampled_from([vm_mac(1)] * 4 + [vm_mac(2)])),
        flags=draw(st.sampled_from([0, FLAG_BROADCAST])),
        ciaddr=draw(addresses),
        yiaddr=draw(addresses),
        giaddr=draw(st.sampled_from([NOWHERE] * 4 + [GATEWAY])),
        options=((Option.MESSAGE_TYPE, bytes([kind])), *draw(options)),
    )


def framed(
    dhcp: DHCP, src: IPv4Address, dst: IPv4Address, src_mac: str, dst_mac: str, ports: tuple[int, int]
) -> bytes:
    packet = build_udp4(src, dst, *ports, build_dhcp(dhcp))
    return Ethernet(dst_mac, src_mac, EtherType.IPV4, packet).build()


from_vm = st.builds(
    lambda dhcp, src, dst, mac: ("vm", framed(dhcp, src, dst, vm_mac(1), mac, (68, 67))),
    messages(BootOp.REQUEST), addresses, addresses, macs,
)  # fmt: skip
from_server = st.builds(
    lambda dhcp, src, dst, mac, port: ("server", framed(dhcp, src, dst, SERVER_MAC, mac, (67, port))),
    messages(BootOp.REPLY), addresses, addresses, macs, st.sampled_from([68, 68, 67]),
)  # fmt: skip


async def told(lab: DhcpLab, sent: list[tuple[str, bytes]]) -> None:
    for vm in (1, 2):
        await lab.add(vm)
        await lab.boot(vm)
    lab.says = lambda asked: None
    for sender, frame in sent:
        lab.served.clear()
        lab.fake.heard.clear()
        may_be = {NOWHERE, *(held.ip for held in lab.fake.net.held_by("vm1"))}
        if sender == "vm":
            await lab.send(1, frame)
        else:
            lab.fake.send(*SERVER_AT, frame)
            await lab.fake.settle()
        mac = lab.fake.net.servers["dhcp"].mac
        for ethernet, datagram, dhcp in lab.served:
            assert (datagram.src in may_be, ethernet.src, dhcp.chaddr) == (True, vm_mac(1), vm_mac(1))
            assert (ethernet.dst, datagram.dst) in ((BROADCAST, EVERYWHERE), (mac, SERVER))
            assert (dhcp.giaddr, dhcp.yiaddr, dhcp.relay_agent) == (NOWHERE, NOWHERE, None)
            assert len(dict(dhcp.options)) == len(dhcp.options)
            assert replace(dhcp, yiaddr=parse_dhcp_frame(frame)[2].yiaddr) == parse_dhcp_frame(frame)[2]
        for vm, edge in ((1, 1), (2, 2)):
            for ethernet, datagram, _ in lab.heard_by(vm, edge):
                assert ethernet.dst in (vm_mac(vm), BROADCAST)
                assert (datagram.dst == EVERYWHERE) == (ethernet.dst == BROADCAST)
                assert datagram.src not in (OWN, OTHERS)
        for held in lab.fake.net.assignments.values():
            assert held.vm != "vm1" or held.mac == vm_mac(1)
        assert OTHERS not in {held.ip for held in lab.fake.net.held_by("vm1")}


@settings(max_examples=30)
@given(st.lists(st.one_of(from_vm, from_server), min_size=1, max_size=12))
def test_what_comes_out_is_from_and_for_whom_it_may_be(sent: list[tuple[str, bytes]]) -> None:
    async def story() -> None:
        lab = await dhcp_lab()
        await told(lab, sent)
        assert not lab.counted("internal errors")
        await lab.fake.stop()

    asyncio.run(story())
