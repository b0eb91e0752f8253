"""DHCPv6 snooping under whatever VMs and servers say, in any order: nobody gets what is another's."""

from dataclasses import replace
from ipaddress import IPv6Address
from itertools import zip_longest

from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.core.limits import MOST_DHCP6_ADDRESSES
from retinue.core.packets.dhcp6 import DHCP6, MessageType6, Relayed6, parse_dhcp6
from retinue.core.packets.dhcp6_options import IA, IAAddress
from retinue.core.snooping import Bind, Release, ToAgent
from retinue.core.snooping.dhcp6_headers import leases6
from retinue.core.snooping.dhcp6_messages import ClientMessage6, ServerMessage6, ToServers6, ToVM6
from retinue.core.snooping.dhcp6_rules import Snooper6
from retinue.core.snooping.relay6 import handed_on
from support.fabric.dhcp6 import RAPID, SERVER_DUID, add_dhcp6, duid, leased
from support.fabric.ipv6 import vm_local
from support.fabric.networks import GATEWAY6, add_vm, fabric, holding6, vm_mac, vm_port

vms = st.sampled_from((1, 2))
ips = st.sampled_from((leased(1), leased(2), leased(3), GATEWAY6, IPv6Address("fd00:9::1")))
addresses = st.builds(IAAddress, ips, st.sampled_from((0, 50)), st.sampled_from((0, 100)))
ias = st.builds(IA, st.integers(1, 10), st.lists(addresses, max_size=2, unique_by=lambda a: a.ip).map(tuple))
kinds = st.sampled_from([MessageType6.REQUEST, *(kind for kind in MessageType6 if not kind.of_relay)])
messages = st.builds(
    DHCP6,
    kinds,
    st.integers(1, 2),
    vms.map(duid),
    st.sampled_from((b"", SERVER_DUID)),
    st.just(()) | st.lists(ias, max_size=2, unique_by=lambda ia: ia.iaid).map(tuple),
    options=st.sampled_from(((), RAPID)),
).filter(lambda message: len(set(message.addresses)) == len(message.addresses))
"""Of a client or a server; most say what they may not."""
steps = st.tuples(
    vms,
    messages,
    st.sampled_from(("asks", "answers", *("honest", "fits") * 4)),
    st.integers(0, 40),
)


def honest(said: DHCP6, vm: int) -> DHCP6:
    """The message made a VM's own, of a form that may be."""
    asking = said.type in (MessageType6.SOLICIT, MessageType6.REBIND)
    kind = said.type if asking or said.type in GIVES_BACK else MessageType6.REQUEST
    server = b"" if asking else SERVER_DUID
    return replace(said, type=kind, client_id=duid(vm), server_id=server, ias=said.ias or (IA(1),))


GIVES_BACK = (MessageType6.RENEW, MessageType6.RELEASE, MessageType6.DECLINE)


def fitting(said: DHCP6, asked: DHCP6, vm: int) -> DHCP6:
    """The message made an answer to this VM's question; without addresses it grants the VM's own."""
    own = IAAddress(leased(vm), 50, 100)
    answered = tuple(
        IA(its.iaid, found.addresses if found is not None else (own,) * (at == 0))
        for at, (its, found) in enumerate(zip_longest(asked.ias, said.ias[: len(asked.ias)]))
    )
    kind = MessageType6.ADVERTISE if asked.type is MessageType6.SOLICIT else MessageType6.REPLY
    return replace(
        said, type=kind, xid=asked.xid, client_id=asked.client_id, server_id=SERVER_DUID, ias=answered
    )


@settings(max_examples=40)
@given(st.lists(steps, min_size=15, max_size=40))
def test_nobody_gets_or_loses_what_is_anothers(history: list[tuple[int, DHCP6, str, int]]) -> None:
    net = fabric()
    add_dhcp6(net)
    for number in (1, 2):
        add_vm(net, number, at=number)
    static = replace(holding6(9), ip=leased(3), mac=vm_mac(2), vm="vm2")
    net.assign(static)
    snooper, now = Snooper6(net), 1000.0
    snooper.announced.announce("vm1", vm_mac(1), leased(1), 2, "edge1", now)
    asked: dict[int, DHCP6] = {}
    for number, drawn, kind, later in history:
        now += later
        message, is_answer = drawn, kind in ("answers", "fits")
        if kind == "fits" and number in asked:
            message = fitting(drawn, asked[number], number)
        if kind == "honest":
            message = honest(drawn, number)
        if is_answer:
            circuit = f"edge{number}:{vm_port(number)}".encode()
            envelope = Relayed6(MessageType6.RELAY_REPL, 0, GATEWAY6, vm_local(number), b"", circuit)
            effects = snooper.server(ServerMessage6("dhcp", envelope, message), now)
        else:
            seen = ClientMessage6(
                f"edge{number}", vm_port(number), vm_mac(number), vm_local(number),
                IPv6Address("ff02::1:2"), message,
            )  # fmt: skip
            effects = snooper.client(seen, now)
        for effect in effects:
            match effect:
                case Release(held):
                    assert (held.vm, held.lease6 is not None) == (f"vm{number}", True)
                    net.unassign(held.ip)
                case Bind(given_):
                    assert is_answer
                    assert (given_.vm, given_.mac) == (f"vm{number}", vm_mac(number))
                    net.assign(given_)
                case ToServers6(vm, dhcp=dhcp) | ToVM6(vm, dhcp=dhcp):
                    assert (vm, isinstance(effect, ToVM6)) == (f"vm{number}", is_answer)
                    assert dhcp.client_id in (b"", duid(number))
                    if not is_answer:
                        asked[number] = dhcp
                    assert parse_dhcp6(handed_on(dhcp).build()) == handed_on(dhcp)
                case ToAgent(vm, xid):
                    assert (vm, xid) == ("vm1", 2)
                case _:
                    pass
        snooper.expire(now)
        for known in net.vms.values():
            has = leases6(net, known, known.nic)
            assert len(has) <= MOST_DHCP6_ADDRESSES
            assert all(lease.ip in net.subnets["blue6"].prefix and lease.ip != GATEWAY6 for lease in has)
    assert net.assignments[leased(3)] == static
