"""Two joined domains with storage: an FCoE forwarder in domain a, and logins of its VMs, here and there."""

from dataclasses import replace

from retinue.core.model import Network, PortRef, Server, Service
from retinue.core.model.storage import FcLogin
from support.fabric.domains import Domains, gateway_of, nic
from support.fabric.storage import FORWARDER, FORWARDER_MAC

FORWARDER_AT = ("a-leaf1", 107)


def add_storage(net: Network, domain: str) -> None:
    """Frames of storage go between domains; domain a has a forwarder."""
    for id, peer in net.peers.items():
        net.peers[id] = replace(peer, storage=True)
    if domain == "a":
        leaf, number = FORWARDER_AT
        net.set_ports(leaf, {**net._numbers[leaf], "fcf": number})
        services = frozenset({Service.FORWARDER})
        net.put_server(Server(FORWARDER, FORWARDER_MAC, services=services, given_at=PortRef(leaf, "fcf")))


def with_storage(made: Domains) -> Domains:
    for domain, net in made.nets.items():
        add_storage(net, domain)
        made.install(domain, net.everything())
    return made


def granted(number: int) -> str:
    """What the forwarder grants to VM vm-aN: FC_ID 0101NN."""
    return f"0e:fc:00:01:01:{number:02x}"


def logged_in(domain: str, number: int) -> FcLogin:
    """Of VM vm-aN, as `domain` knows it."""
    vm, its = f"vm-a{number}", nic("a", number)
    if domain == "a":
        return FcLogin(granted(number), vm, its.mac, FORWARDER)
    return FcLogin(granted(number), vm, its.mac, gateway_of("b"), FORWARDER_MAC)
