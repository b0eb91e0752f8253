"""What an entry says that it is for is what it does, on every switch."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from retinue.core.model import Network, Role, Subnet, Vnet
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.cookies import SENT_UP_BY, Reason, reason_of
from retinue.core.pipeline.entry import CONTROLLER, Flow
from support.fabric.dhcp6 import add_dhcp6
from support.fabric.domains import Domains
from support.fabric.networks import add_vm, fabric, holding6, server
from support.fabric.storage import add_forwarder, login
from support.fabric.tenants import add_tenants


def everything() -> Network:
    """Both families, DHCPv6, tenants, a vnet of smaller packets, and a VM that is on its way."""
    net = fabric()
    net.switches["edge1"] = replace(net.switches["edge1"], vdp=True)
    add_dhcp6(net)
    add_tenants(net)
    net.put_server(replace(server(9), edge=""))
    net.put_vnet(Vnet("narrow", mtu=1400))
    net.add_subnet(Subnet("narrow", IPv4Network("10.9.0.0/24"), IPv4Address("10.9.0.254"), vnet="narrow"))
    for number in (1, 2, 3):
        add_vm(net, number, number)
        net.assign(holding6(number))
    net.set_vm_port("vm1", "edge2", net.vm_ports["vm1"]["edge1"])
    away = replace(net.vms["vm1"], server="server2", also=frozenset({"server1"}), copied_to="server1")
    net.put_vm(away)
    net.detected.pop("server3")  # Nobody knows where that is.
    add_forwarder(net)
    net.log_in(login(1))
    return net


@pytest.fixture(scope="module")
def entries() -> list[tuple[Role, Flow]]:
    """With the role of the switch that has each; another domain is behind a gateway of the second network."""
    found: list[tuple[Role, Flow]] = []
    for net in (everything(), Domains(1, 1).nets["a"]):
        compiler = Compiler(net)
        compiler.update(net.everything())
        for id, program in compiler.programs.items():
            role = net.switches[id].role
            found.extend((role, entry) for entry in program.values() if isinstance(entry, Flow))
    return found


def test_what_goes_on_is_there_to_forward(entries: list[tuple[Role, Flow]]) -> None:
    onward = [f for _, f in entries if CONTROLLER not in f.actions and (f.actions or f.goto is not None)]
    assert onward
    assert [f for f in onward if reason_of(f.cookie) is not Reason.FORWARD] == []


def test_what_is_dropped_without_a_word_is_not_for_the_controller(entries: list[tuple[Role, Flow]]) -> None:
    for reason in (Reason.QUIET, Reason.UNROUTABLE):
        drops = [f for _, f in entries if reason_of(f.cookie) is reason]
        assert drops
        assert [f for f in drops if f.actions or f.goto is not None] == []


def test_what_is_sent_up_says_why_and_its_switch_may(entries: list[tuple[Role, Flow]]) -> None:
    sent = [(role, reason_of(f.cookie)) for role, f in entries if CONTROLLER in f.actions]
    assert {reason for _, reason in sent} == set(SENT_UP_BY)
    assert [one for one in sent if one[1] is None or one[0] not in SENT_UP_BY[one[1]]] == []
