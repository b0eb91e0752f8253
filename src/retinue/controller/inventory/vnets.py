"""The VMs' networks as managers give them: gateway groups, VRFs, vnets and subnets, while all runs.

A change adds or takes entries of its subnet alone, and what is in use is not removed: nobody else's packet is
touched by it.
"""

from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import replace

from retinue.controller.changes import Change
from retinue.controller.context import Context
from retinue.controller.errors import RequestError, are_new, is_there
from retinue.controller.vnet_changes import (
    GatewayGroupRegistered,
    GatewayGroupRemoved,
    SubnetRegistered,
    SubnetRemoved,
    VnetRegistered,
    VnetRemoved,
    VrfRegistered,
    VrfRemoved,
)
from retinue.core.model import GatewayGroup, Mac, ModelError, PortRef, Role, Server, Subnet, Vnet, Vrf
from retinue.core.model.fabric_checks import forwards
from retinue.core.model.network import Owner
from retinue.core.model.vrfs import free_tag
from retinue.protocol.errors import ErrorCode


class VnetInventory:
    """Registers vnets and subnets: each call makes all of what it is asked for or, on a mistake, nothing."""

    def __init__(
        self,
        context: Context,
        changed: Callable[[str], None] = lambda vnet: None,
        unknown: Callable[[], Mapping[Mac, PortRef]] = dict,
    ) -> None:
        """`changed` is called with the id of a vnet that is new, or another from now on. `unknown`: MACs of
        hosts that nobody has registered, and where they were seen."""
        self._context = context
        self._unknown = unknown
        self._changed = changed
        self._net = context.net

    async def add_gateway_groups(self, groups: Collection[GatewayGroup]) -> None:
        """Returns when the switches that are there have confirmed it. Raises ModelError."""
        are_new("gateway group", [group.id for group in groups], self._net.gateway_groups)
        unknown = self._unknown()
        for group in groups:
            if group.mac in unknown:
                at = unknown[group.mac]
                raise RequestError(
                    f"gateway group {group.id}: a host at {at} has the MAC {group.mac}; choose another"
                )
        await self._context.commit(*(GatewayGroupRegistered(group) for group in groups))

    async def set_default_group(self, id: str, default: bool) -> None:
        """Whether servers that say no group are in this one, instead of another that they were in.

        Returns when the switches that are there have confirmed it. Raises ModelError.
        """
        groups = self._net.gateway_groups
        is_there("gateway group", id, id in groups, ErrorCode.UNKNOWN_GATEWAY_GROUP)
        before, after = self._net.default_group, replace(groups[id], default=default)
        if after == groups[id]:
            return
        if default:
            _all_take(self._context, id, "servers in no group cannot go")
        others = [replace(groups[before], default=False)] if default and before else []
        await self._context.commit(*(GatewayGroupRegistered(group) for group in (*others, after)))

    async def remove_gateway_group(self, id: str) -> None:
        """Raises ModelError while servers are in it, or an edge may still send to its MAC."""
        is_there("gateway group", id, id in self._net.gateway_groups, ErrorCode.UNKNOWN_GATEWAY_GROUP)
        for server in self._net.servers.values():
            edge = Owner("switch", server.edge)
            if server.edge and server.id not in self._net.fenced and not self._context.is_programmed(edge):
                raise RequestError(
                    f"gateway group {id} stays for now: {server.edge} has not confirmed that it sends "
                    "nothing to its MAC; `retinue switch list` shows the switches",
                    ErrorCode.PARTY_AWAY,
                )
        await self._context.commit(GatewayGroupRemoved(self._net.gateway_groups[id]))

    async def add_vrfs(self, vrfs: Mapping[str, int]) -> None:
        """By id, the tag of each, or 0 for a free one. Returns when the switches that are there have
        confirmed it. Raises ModelError."""
        are_new("VRF", list(vrfs), self._net.vrfs)
        taken = {vrf.tag for vrf in self._net.vrfs.values()} | set(vrfs.values())
        given: list[Vrf] = []
        for id, tag in vrfs.items():
            given.append(Vrf(id, tag or free_tag(taken)))
            taken.add(given[-1].tag)
        await self._context.commit(*(VrfRegistered(vrf) for vrf in given))

    async def remove_vrf(self, id: str) -> None:
        """Raises ModelError while it has vnets."""
        is_there("VRF", id, id in self._net.vrfs, ErrorCode.UNKNOWN_VRF)
        await self._context.commit(VrfRemoved(self._net.vrfs[id]))

    async def add_vnets(self, vnets: Collection[Vnet], isolated: Container[str] = ()) -> None:
        """`isolated`: ids of those that get a VRF of their own. Raises ModelError."""
        are_new("vnet", [vnet.id for vnet in vnets], self._net.vnets)
        changes: list[Change] = []
        for vnet in vnets:
            if vnet.vrf != vnet.id and vnet.vrf in isolated:
                raise _alone(vnet)
            changes += self._registered(vnet, vnet.id in isolated)
        committed = self._context.commit(*changes)
        for vnet in vnets:
            self._changed(vnet.id)
        await committed

    async def set_vnet(self, vnet: Vnet, isolated: bool = False) -> None:
        """Returns when the switches that are there have confirmed it. Raises ModelError."""
        is_there("vnet", vnet.id, vnet.id in self._net.vnets, ErrorCode.UNKNOWN_VNET)
        was_isolated, known = self._net.is_isolated(vnet.id), self._net.vnets[vnet.id]
        if was_isolated and isolated and vnet.vlan != known.vlan:
            raise RequestError(
                f"vnet {vnet.id} is isolated, and its frames have VLAN {known.vlan} between switches; "
                "to give it another, remove it and add it"
            )
        changes = self._registered(vnet, isolated)
        if was_isolated and not isolated and vnet.vrf != known.vrf:
            changes += self._own_vrf_removed(known)
        committed = self._context.commit(*changes)
        self._changed(vnet.id)
        await committed

    async def remove_vnet(self, id: str) -> None:
        """The VRF of one that is isolated goes with it. Raises ModelError while it has subnets."""
        is_there("vnet", id, id in self._net.vnets, ErrorCode.UNKNOWN_VNET)
        changes: list[Change] = [VnetRemoved(self._net.vnets[id])]
        if self._net.is_isolated(id):
            changes += self._own_vrf_removed(self._net.vnets[id])
        await self._context.commit(*changes)

    def _own_vrf_removed(self, vnet: Vnet) -> list[Change]:
        """One that stands in the configuration file is there without vnets, too."""
        is_configured = f"vrf {vnet.vrf}" in self._net.configured
        return [] if is_configured else [VrfRemoved(self._net.vrfs[vnet.vrf])]

    def _registered(self, vnet: Vnet, isolated: bool) -> list[Change]:
        """What makes a vnet, and before it the VRF of one that is isolated. Raises ModelError."""
        self._is_taken_by_switches(vnet)
        if not isolated:
            if vnet.vrf != vnet.id and self._net.is_isolated(vnet.vrf):
                raise _alone(vnet)
            return [VnetRegistered(vnet)]
        vrf, alone = vnet.isolated()
        others = sorted(one.id for one in self._net.vnets.values() if one.vrf == vrf.id and one.id != vnet.id)
        if others:
            raise RequestError(f"vnet {vnet.id} is not isolated: vnet {others[0]} is in VRF {vrf.id}, too")
        made: list[Change] = [] if self._net.vrfs.get(vrf.id) == vrf else [VrfRegistered(vrf)]
        return [*made, VnetRegistered(alone)]

    def _is_taken_by_switches(self, vnet: Vnet) -> None:
        known = self._net.vnets.get(vnet.id)
        if vnet.mtu > self._net.mtu and (known is None or known.mtu != vnet.mtu):
            raise ModelError(
                f"vnet {vnet.id}: MTU {vnet.mtu} is more than the {self._net.mtu} that switches take; "
                "`mtu` in the controller's configuration says so"
            )

    async def add_subnets(self, subnets: Collection[Subnet]) -> None:
        """Returns when the switches that are there have confirmed it. Raises ModelError."""
        are_new("subnet", [subnet.id for subnet in subnets], self._net.subnets)
        await self._context.commit(*(SubnetRegistered(subnet) for subnet in subnets))

    async def set_subnet(self, subnet: Subnet) -> None:
        """Raises ModelError where what uses it would be left outside."""
        is_there("subnet", subnet.id, subnet.id in self._net.subnets, ErrorCode.UNKNOWN_SUBNET)
        await self._context.commit(SubnetRegistered(subnet))

    async def remove_subnet(self, id: str) -> None:
        """Raises ModelError while an address of it is used."""
        is_there("subnet", id, id in self._net.subnets, ErrorCode.UNKNOWN_SUBNET)
        await self._context.commit(SubnetRemoved(self._net.subnets[id]))


def _alone(vnet: Vnet) -> RequestError:
    return RequestError(
        f"vnet {vnet.id}: VRF {vnet.vrf} is that of vnet {vnet.vrf} alone, which is isolated; "
        "`retinue vrf add` makes one for several"
    )


def check_gateway(context: Context, server: Server) -> None:
    """Leaves and spines take the MAC of a server's new gateway group, before an edge sends anything to it.

    Raises RequestError where one has not confirmed that it does.
    """
    known = context.net.servers.get(server.id)
    if known is None or server.gateway_group in ("", known.gateway_group):
        return
    _all_take(context, server.gateway_group, f"server {server.id} cannot go")


def _all_take(context: Context, group: str, who_cannot_go: str) -> None:
    for switch in context.net.switches.values():
        if switch.role is Role.EDGE or not forwards(context.net, switch.id):
            continue
        if not context.is_programmed(Owner("switch", switch.id)):
            raise RequestError(
                f"{who_cannot_go} into gateway group {group}: {switch.id} has "
                "not confirmed that it takes the group's MAC; `retinue switch list` shows the switches",
                ErrorCode.PARTY_AWAY,
            )
