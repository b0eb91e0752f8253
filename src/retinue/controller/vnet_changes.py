"""Changes of gateway groups, VRFs, vnets and subnets. Made like all others (controller/changes.py)."""

from collections.abc import Iterator
from dataclasses import dataclass

from retinue.controller.changes import Change, Published, Undo
from retinue.controller.state import State, Storable
from retinue.core.model import GatewayGroup, Subnet, Vnet, Vrf
from retinue.core.model.network import Touched
from retinue.protocol.events import EventType


@dataclass(frozen=True, slots=True)
class GatewayGroupRegistered(Change):
    """A group of servers with a gateway MAC of their own was given by the manager."""

    group: GatewayGroup

    def apply(self, state: State) -> Touched:
        return state.net.put_gateway_group(self.group)

    def undo(self, state: State) -> Undo:
        net, old = state.net, state.net.gateway_groups.get(self.group.id)
        return lambda: net.remove_gateway_group(self.group.id) if old is None else net.put_gateway_group(old)

    def kept(self) -> tuple[Storable, ...]:
        return (self.group,)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.GATEWAY_GROUP_REGISTERED, {"group": self.group}


@dataclass(frozen=True, slots=True)
class GatewayGroupRemoved(Change):
    """A gateway group went, which no server was in any more."""

    group: GatewayGroup

    def apply(self, state: State) -> Touched:
        return state.net.remove_gateway_group(self.group.id)

    def dropped(self) -> tuple[Storable, ...]:
        return (self.group,)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.GATEWAY_GROUP_REMOVED, {"group": self.group}


@dataclass(frozen=True, slots=True)
class VrfRegistered(Change):
    """A routing domain was given by the manager."""

    vrf: Vrf

    def apply(self, state: State) -> Touched:
        return state.net.put_vrf(self.vrf)

    def undo(self, state: State) -> Undo:
        net, known = state.net, self.vrf.id in state.net.vrfs
        return lambda: None if known else net.remove_vrf(self.vrf.id)

    def kept(self) -> tuple[Storable, ...]:
        return (self.vrf,)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.VRF_REGISTERED, {"vrf": self.vrf}


@dataclass(frozen=True, slots=True)
class VrfRemoved(Change):
    """A routing domain went, which had no vnets any more."""

    vrf: Vrf

    def apply(self, state: State) -> Touched:
        return state.net.remove_vrf(self.vrf.id)

    def undo(self, state: State) -> Undo:
        return lambda: state.net.put_vrf(self.vrf)

    def dropped(self) -> tuple[Storable, ...]:
        return (self.vrf,)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.VRF_REMOVED, {"vrf": self.vrf}


@dataclass(frozen=True, slots=True)
class VnetRegistered(Change):
    """A vnet was given, or changed, by the manager."""

    vnet: Vnet

    def apply(self, state: State) -> Touched:
        return state.net.put_vnet(self.vnet)

    def undo(self, state: State) -> Undo:
        net, old = state.net, state.net.vnets.get(self.vnet.id)
        return lambda: net.remove_vnet(self.vnet.id) if old is None else net.put_vnet(old)

    def kept(self) -> tuple[Storable, ...]:
        return (self.vnet,)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.VNET_REGISTERED, {"vnet": self.vnet}


@dataclass(frozen=True, slots=True)
class VnetRemoved(Change):
    """A vnet went, which had no subnets any more."""

    vnet: Vnet

    def apply(self, state: State) -> Touched:
        return state.net.remove_vnet(self.vnet.id)

    def undo(self, state: State) -> Undo:
        return lambda: state.net.put_vnet(self.vnet)

    def dropped(self) -> tuple[Storable, ...]:
        return (self.vnet,)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.VNET_REMOVED, {"vnet": self.vnet}


@dataclass(frozen=True, slots=True)
class SubnetRegistered(Change):
    """A subnet was given, or changed, by the manager."""

    subnet: Subnet

    def apply(self, state: State) -> Touched:
        return state.net.add_subnet(self.subnet)

    def undo(self, state: State) -> Undo:
        net, old = state.net, state.net.subnets.get(self.subnet.id)
        return lambda: net.put_back_subnet(self.subnet.id, old)

    def kept(self) -> tuple[Storable, ...]:
        return (self.subnet,)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.SUBNET_REGISTERED, {"subnet": self.subnet}


@dataclass(frozen=True, slots=True)
class SubnetRemoved(Change):
    """A subnet went, of which no address was used any more."""

    subnet: Subnet

    def apply(self, state: State) -> Touched:
        return state.net.remove_subnet(self.subnet.id)

    def dropped(self) -> tuple[Storable, ...]:
        return (self.subnet,)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.SUBNET_REMOVED, {"subnet": self.subnet}
