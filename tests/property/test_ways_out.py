"""Several routers lead outside: in every state, switch by switch, what goes out comes to one, once."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retinue.core.model import Network, PortRef, Server, Service
from retinue.core.model.network import NOTHING, Touched
from retinue.core.model.ways import router_to, routers_beside, way_to
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.underlay import underlay_of
from support.examples import examples
from support.fabric.networks import GATEWAY_MAC, add_vm, fabric, vm_ip, vm_mac
from support.fabric.world import OUTSIDE, FabricWorld, udp_frame

ALL, PART = IPv4Network("0.0.0.0/0"), IPv4Network("198.51.100.0/24")
ROUTERS = ("router", "router2", "router3")


def second(number: int, leaf: str, metric: int, *routes: IPv4Network) -> Server:
    return Server(
        f"router{number}", f"02:00:00:00:0{number}:01", IPv4Address(f"10.0.0.{number}"),
        services=frozenset({Service.ROUTER}), routes=routes, given_at=PortRef(leaf, f"router{number}"),
        metric=metric,
    )  # fmt: skip


def add_router(net: Network, router: Server) -> None:
    at = router.given_at
    assert at is not None
    number = 90 + int(router.id.removeprefix("router"))
    net.set_ports(at.switch, net._numbers[at.switch] | {at.port: number})
    net.put_server(router)


@settings(deadline=None, max_examples=examples(20), suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_goes_out_comes_to_one_router_once_in_every_state(data: st.DataObject) -> None:
    leaves = data.draw(st.integers(1, 3), label="leaves")
    cores = data.draw(st.sampled_from([0, 0, 2]), label="cores")
    by_mac = data.draw(st.booleans(), label="spines know MACs alone")
    net = fabric(leaves, 2, (1, leaves), cores, by_mac=by_mac)
    metrics = st.integers(0, 2)
    net.put_server(replace(net.servers["router"], metric=data.draw(metrics)))
    on = st.integers(1, leaves).map(lambda n: f"leaf{n}")
    add_router(net, second(2, data.draw(on), data.draw(metrics), ALL))
    add_router(net, second(3, data.draw(on), data.draw(metrics), PART, ALL))
    for vm in (1, 2):
        add_vm(net, vm, at=vm)
    world = FabricWorld(net)

    def go_out(ways: set[str]) -> None:
        ports = {(at.switch, net.port_number(at)) for way in ways if (at := net.servers[way].given_at)}
        for vm in (1, 2):
            frame = udp_frame(vm_mac(vm), GATEWAY_MAC, vm_ip(vm), OUTSIDE)
            for sent in world.send(vm, vm, frame):
                assert len(sent.arrivals) == 1, f"not once: {sent}"
                assert sent.arrivals[0][:2] in ports, f"by {sent.arrivals}, not {ways}"
            world.reaches(vm, vm, 3 - vm, {3 - vm})

    def change(what: str, router: str) -> Touched:
        match what:
            case "lost":
                return net.lose_router(router, "its port has no link")
            case "returned":
                return net.return_router(router)
            case "fenced":
                return net.unfence(router) if router in net.fenced else net.fence(router)
            case _:
                server = net.servers[router]
                return net.put_server(replace(server, metric=(server.metric + 1) % 3))

    steps = st.tuples(st.sampled_from(["lost", "returned", "fenced", "metric"]), st.sampled_from(ROUTERS))
    go_out({way_to(net, PART)})
    for what, router in data.draw(st.lists(steps, max_size=8), label="steps"):
        ways = {way_to(net, PART)}
        touched = change(what, router)
        if net.fenced >= {way_to(net, PART)}:
            # It was the operator's word that no router is there.
            world.apply(touched)
            continue
        ways |= {way_to(net, PART)}
        near = underlay_of(net).near(way_to(net, PART))
        was = what != "fenced" and not net.fenced & ways
        if was:
            world.apply(touched, [near], lambda ways=ways: go_out(ways))  # type: ignore[misc]
        else:
            world.apply(touched, [near])
        go_out({way_to(net, PART)})
        fresh = Compiler(net)
        fresh.update(net.everything())
        assert world.compiler.programs == fresh.programs


def test_which_one_is_the_way() -> None:
    """The least metric, then the id; one that is there before one that is not; each prefix by itself."""
    net = fabric(2, 2, (1, 2))
    add_router(net, second(2, "leaf1", 5, ALL, PART))
    assert (way_to(net, ALL), way_to(net, PART)) == ("router", "router2")
    assert (router_to(net, OUTSIDE), router_to(net, vm_ip(1))) == ("router2", "router")
    assert routers_beside(net, "router") == {"router2"} and not routers_beside(net, "server1")
    net.put_server(replace(net.servers["router"], metric=6))
    assert way_to(net, ALL) == "router2"
    assert net.lose_router("router2", "its port has no link") != NOTHING
    assert net.lose_router("router2", "it has not answered") == NOTHING
    assert (way_to(net, ALL), way_to(net, PART)) == ("router", "router2"), "none else leads there"
    net.lose_router("router", "its port has no link")
    assert way_to(net, ALL) == "router2", "nobody is there: as if all were"
    net.return_router("router")
    net.set_ports("leaf2", {name: n for name, n in net._numbers["leaf2"].items() if name != "router"})
    assert way_to(net, ALL) == "router2", "one whose port has gone is not there"
    net.remove_server("router2")
    assert (way_to(net, ALL), way_to(net, PART), net.lost_routers) == ("router", "", {})


def test_a_prefix_that_is_said_twice_is_one() -> None:
    net = fabric(2, 2, (1, 2))
    net.put_server(replace(net.servers["router"], routes=(ALL, ALL)))
    net.put_server(replace(net.servers["router"], routes=(ALL,)))
    net.put_server(replace(net.servers["router"], routes=()))
    assert way_to(net, ALL) == ""


def test_a_router_that_cannot_be_placed_is_no_way() -> None:
    net = fabric(2, 2, (1, 2))
    net.put_server(replace(second(2, "leaf1", 0, ALL), given_at=None))
    net.put_server(replace(net.servers["router"], metric=3))
    assert way_to(net, ALL) == "router"
    touched = net.detect("router2", PortRef("leaf1", "p1"))
    assert way_to(net, ALL) == "router2"
    assert {owner.id for owner in touched} >= {"router", "router2"}
