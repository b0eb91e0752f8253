"""What a VM's message costs does not grow with the number of bindings."""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NoReturn

from hypothesis import given
from hypothesis import strategies as st

from retinue.core.model import VM, Address, Assignment
from retinue.core.packets import ack, discover, offer, request
from retinue.core.packets.dhcp6 import DHCP6, MessageType6, Relayed6
from retinue.core.snooping import Bind, ClientMessage, Rejected, ServerMessage, Snooper, ToServers, ToVM
from retinue.core.snooping.dhcp6_questions import Question6, Questions6
from support.fabric import networks

SERVER = IPv4Address("10.1.0.2")


class Unscanned(dict[Address, Assignment]):
    """Asked for one value at a time; who walks through all is caught."""

    def _scanned(self, *_: Any) -> NoReturn:
        raise AssertionError("walked through all bindings")

    values = items = keys = _scanned

    def __iter__(self) -> Iterator[Address]:
        self._scanned()


def test_an_exchange_looks_at_no_other_bindings() -> None:
    net = networks.fabric()
    for number in range(1, 20):
        networks.add_vm(net, number, at=1)
        net.assign(replace(networks.assignment(number), client_id=bytes([0, number])))
    networks.add_vm(net, 50, at=1, bound=False)
    net.assignments = Unscanned(net.assignments)
    snooper, mac = Snooper(net), networks.vm_mac(50)

    def said(client_id: bytes) -> list[object]:
        asked = discover(mac, 7, client_id=client_id)
        return list(snooper.client(ClientMessage("edge1", networks.vm_port(50), mac, asked), 1000.0))

    assert said(b"\0made up") == [ToServers("vm50")]
    assert said(bytes([0, 7])) == [Rejected("the DHCP client identifier of vm7", "vm50", spoofed=True)]
    first = discover(mac, 7)
    assert snooper.server(ServerMessage("dhcp", offer(first, networks.vm_ip(50), SERVER, 60)), 1000.0) == [
        ToVM("vm50")
    ]
    asked = request(mac, 7, networks.vm_ip(50), SERVER)
    snooper.client(ClientMessage("edge1", networks.vm_port(50), mac, asked), 1000.0)
    bind, _ = snooper.server(ServerMessage("dhcp", ack(asked, networks.vm_ip(50), SERVER, 60)), 1000.0)
    assert isinstance(bind, Bind)


def test_an_answer_of_dhcpv6_is_looked_for_among_the_questions_of_its_transaction_alone() -> None:
    questions, looked = Questions6(), list[str]()

    class Asked(Question6):
        def is_answered_by(self, envelope: Relayed6, answer: DHCP6) -> bool:
            looked.append(self.vm)
            return super().is_answered_by(envelope, answer)

    peer = IPv6Address("fe80::1")
    for number in range(1, 50):
        asked = DHCP6(MessageType6.RENEW, 1000 + number, bytes([0, 1, number]))
        questions.ask(Asked(f"vm{number}", networks.vm_mac(number), asked, peer, f"vm{number}", 0.0))
    answer = DHCP6(MessageType6.REPLY, 1007, bytes([0, 1, 7]), b"\0\1server")
    envelope = Relayed6(MessageType6.RELAY_REPL, 0, peer, peer, b"", b"vm7")
    found = questions.answered_by(envelope, answer, 1.0)
    assert found is not None
    assert (found.vm, looked) == ("vm7", ["vm7"])
    questions.forget(found)
    assert questions.answered_by(envelope, answer, 1.0) is None
    questions.expire(100.0)
    assert not list(questions)


ends = st.none() | st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.0])


@given(st.lists(st.tuples(st.integers(1, 6), ends, st.booleans()), max_size=60), st.lists(ends, max_size=4))
def test_the_next_end_is_that_of_the_lease_that_ends_first(
    history: list[tuple[int, float | None, bool]], looks: list[float | None]
) -> None:
    net = networks.fabric()
    net.put_vm(VM.with_one_nic("vm1", networks.vm_mac(1), "server1"))
    for last, end, takes_back in history:
        ip = IPv4Address(f"10.1.0.{10 + last}")
        if takes_back:
            net.unassign(ip)
        else:
            net.assign(replace(networks.assignment(1, end), ip=ip))
        left = [a.lease_end for a in net.assignments.values() if a.lease_end is not None]
        assert net.next_lease_end() == min(left, default=None)
        for now in looks:
            ended = {a for a in net.assignments.values() if a.lease_end is not None and now is not None
                     and a.lease_end <= now}  # fmt: skip
            assert set(net.leases_ended(-1.0 if now is None else now)) == ended
            assert len(net.leases_ended(-1.0 if now is None else now)) == len(ended)


def test_a_lease_renewed_over_and_over_costs_no_memory() -> None:
    net = networks.fabric()
    networks.add_vm(net, 1, at=1, bound=False)
    for second in range(5000):
        net.assign(networks.assignment(1, 1e6 + second))
    assert len(net._lease_ends) < 200
    assert net.next_lease_end() == 1e6 + 4999


steps = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.sampled_from([b"", b"a", b"b", b"c"]), st.booleans()),
    max_size=30,
)


@given(steps)
def test_identifiers_are_known_by_what_is_held(history: list[tuple[int, int, bytes, bool]]) -> None:
    """Whatever is assigned, renewed under another identifier, taken back, or goes with its VM."""
    net = networks.fabric()
    for number in (1, 2, 3):
        net.put_vm(VM.with_one_nic(f"vm{number}", networks.vm_mac(number), "server1"))
    for vm, last, client_id, takes_back in history:
        ip = IPv4Address(f"10.1.0.{last}") + 10
        holder = net.assignments.get(ip)
        if takes_back:
            net.unassign(ip)
        elif holder is None or holder.vm == f"vm{vm}":
            net.assign(replace(networks.assignment(vm), ip=ip, client_id=client_id))
        for known in (b"a", b"b", b"c", b"d"):
            expected = {a.vm for a in net.assignments.values() if a.client_id == known}
            assert net.vms_known_as(known) == expected
    net.remove_vm("vm1")
    assert all("vm1" not in net.vms_known_as(known) for known in (b"a", b"b", b"c"))
    for held in list(net.assignments):
        net.unassign(held)
    assert not net._held_as
