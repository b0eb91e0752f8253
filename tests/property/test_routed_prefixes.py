"""Prefixes that come and go beside all that their entries depend on: incremental = recomputed."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.core.model import Network, PortRef, Server, Service, Subnet, Vnet
from retinue.core.model.network import NOTHING, Touched
from support.examples import examples
from support.fabric import prefixes
from support.fabric.histories import equals_recomputed
from support.fabric.networks import INFRA_GATEWAY, add_ipv6, add_vm, assignment, fabric

SERVICE = IPv4Address("10.9.9.9")
Before = tuple[dict[str, dict[str, int]], Subnet]
"""All ports as they were told, and the subnet that comes and goes."""
THINGS = (
    "routed", "delegated", "anycast", "vnet", "mtu", "router", "other router", "detect", "no router",
    "port of a router", "ports", "no ports", "no VM", "IPv6", "no IPv6",
)  # fmt: skip
STEPS = st.lists(st.tuples(st.sampled_from(THINGS), st.integers(1, 3)), max_size=12)


@settings(deadline=None, max_examples=examples(12))
@pytest.mark.parametrize("kind", ["spines", "macs", "cores", "tunnels", "one leaf"])
@given(steps=STEPS)
def test_incremental_equals_recomputed(kind: str, steps: list[tuple[str, int]]) -> None:
    leaves = 1 if kind == "one leaf" else 2
    net = fabric(
        leaves,
        0 if kind == "one leaf" else 2,
        (1, leaves, 1),
        2 * (kind == "cores"),
        over_ip=kind == "tunnels",
        by_mac=kind == "macs",
    )
    net.put_vnet(Vnet("narrow"))
    add_ipv6(net)
    for number in (1, 2):
        add_vm(net, number, number, bound=False)
    before = {switch: dict(numbers) for switch, numbers in net._numbers.items()}, net.subnets["blue6"]
    equals_recomputed(net, steps, lambda step: change(net, before, *step))


def change(net: Network, before: Before, what: str, number: int) -> Touched:
    ports, blue6 = before
    name = f"vm{number}"
    if what in ("routed", "delegated", "anycast", "vnet", "no VM") and name not in net.vms:
        return add(net, number)
    switches = [switch for switch in sorted(ports) if not switch.startswith("edge")]
    switch = switches[number % len(switches)]
    router = net.servers.get("router")
    match what:
        case "routed" | "anycast" | "vnet":
            nic = net.vms[name].nic
            changed = {
                "routed": replace(nic, prefixes=() if nic.prefixes else prefixes.of(number)),
                "anycast": replace(nic, anycast=() if nic.anycast else (SERVICE,)),
                "vnet": replace(nic, vnet="" if nic.vnet else "narrow"),
            }
            return net.change_nic(name, nic, changed[what])
        case "delegated":
            of = IPv6Network((int(IPv6Address("fd00:a::")) + (number << 64), 64))
            lease = replace(assignment(number), ip=of.network_address, prefix=of)
            return net.unassign(lease.key) if lease.key in net.assignments else net.assign(lease)
        case "no VM":
            return net.remove_vm(name)
        case "mtu":
            return net.put_vnet(replace(net.vnets["narrow"], mtu=(0, 1280, 1400)[number - 1]))
        case "router" if router is not None:
            services = frozenset() if Service.ROUTER in router.services else frozenset({Service.ROUTER})
            return net.put_server(replace(router, services=services))
        case "other router":
            mac = f"02:00:00:00:0{number}:01"
            routes = (IPv4Network("198.51.100.0/24"),)
            services = frozenset({Service.ROUTER})
            return net.put_server(
                Server("other", mac, INFRA_GATEWAY - 20 - number, services=services, routes=routes)
            )
        case "detect" if "other" in net.servers:
            leaf = sorted(name for name in ports if name.startswith("leaf"))[-(number % 2)]
            return net.detect("other", PortRef(leaf, sorted(ports[leaf])[0]))
        case "no router":
            return net.remove_server("other" if number > 1 else "router")
        case "port of a router" if router is not None and router.given_at is not None:
            at = router.given_at
            return net.set_ports(at.switch, net._numbers[at.switch] | {at.port: 90 + number})
        case "ports":
            return net.set_ports(switch, {port: n + number for port, n in ports[switch].items()})
        case "no ports":
            return net.set_ports(switch, {"p9": 9} if number > 1 else {})
        case "no IPv6":
            return net.remove_subnet(blue6.id)
        case "IPv6":
            return net.add_subnet(blue6)
        case _:
            return NOTHING


def add(net: Network, number: int) -> Touched:
    add_vm(net, number, 1 + number % 2, bound=False)
    return net.everything()
