"""The VMs' networks as managers give them: VRFs, vnets and subnets, added, changed, removed while all runs.

A change adds or takes entries of its subnet alone, and what is in use is not removed: nobody else's packet is
touched by it.
"""

from collections import Counter
from collections.abc import Collection, Container, Mapping

from retinue.controller.context import Context
from retinue.controller.errors import RequestError
from retinue.controller.vnet_changes import (
    SubnetRegistered,
    SubnetRemoved,
    VnetRegistered,
    VnetRemoved,
    VrfRegistered,
    VrfRemoved,
)
from retinue.core.model import ModelError, Subnet, Vnet, Vrf
from retinue.core.model.vrfs import free_tag
from retinue.protocol.errors import ErrorCode


class VnetInventory:
    """Registers vnets and subnets: each call makes all of what it is asked for or, on a mistake, nothing."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._net = context.net

    async def add_vrfs(self, vrfs: Mapping[str, int]) -> None:
        """By id, the tag of each, or 0 for a free one. Returns when the switches that are there have
        confirmed it. Raises ModelError."""
        _are_new("VRF", list(vrfs), self._net.vrfs)
        taken = {vrf.tag for vrf in self._net.vrfs.values()} | set(vrfs.values())
        given: list[Vrf] = []
        for id, tag in vrfs.items():
            given.append(Vrf(id, tag or free_tag(taken)))
            taken.add(given[-1].tag)
        await self._context.commit(*(VrfRegistered(vrf) for vrf in given))

    async def remove_vrf(self, id: str) -> None:
        """Raises ModelError while it has vnets."""
        _is_there("VRF", id, id in self._net.vrfs, ErrorCode.UNKNOWN_VRF)
        await self._context.commit(VrfRemoved(self._net.vrfs[id]))

    def add_vnets(self, vnets: Collection[Vnet]) -> None:
        """Raises ModelError."""
        _are_new("vnet", [vnet.id for vnet in vnets], self._net.vnets)
        for vnet in vnets:
            self._is_taken_by_switches(vnet)
        self._context.apply(*(VnetRegistered(vnet) for vnet in vnets))

    def set_vnet(self, vnet: Vnet) -> None:
        """Raises ModelError."""
        _is_there("vnet", vnet.id, vnet.id in self._net.vnets, ErrorCode.UNKNOWN_VNET)
        self._is_taken_by_switches(vnet)
        self._context.apply(VnetRegistered(vnet))

    def remove_vnet(self, id: str) -> None:
        """Raises ModelError while it has subnets."""
        _is_there("vnet", id, id in self._net.vnets, ErrorCode.UNKNOWN_VNET)
        self._context.apply(VnetRemoved(self._net.vnets[id]))

    def _is_taken_by_switches(self, vnet: Vnet) -> None:
        if vnet.mtu > self._net.mtu:
            raise ModelError(
                f"vnet {vnet.id}: MTU {vnet.mtu} is more than the {self._net.mtu} that switches take; "
                "`mtu` in the controller's configuration says so"
            )

    async def add_subnets(self, subnets: Collection[Subnet]) -> None:
        """Returns when the switches that are there have confirmed it. Raises ModelError."""
        _are_new("subnet", [subnet.id for subnet in subnets], self._net.subnets)
        await self._context.commit(*(SubnetRegistered(subnet) for subnet in subnets))

    async def set_subnet(self, subnet: Subnet) -> None:
        """Raises ModelError where what uses it would be left outside."""
        _is_there("subnet", subnet.id, subnet.id in self._net.subnets, ErrorCode.UNKNOWN_SUBNET)
        await self._context.commit(SubnetRegistered(subnet))

    async def remove_subnet(self, id: str) -> None:
        """Raises ModelError while an address of it is used."""
        _is_there("subnet", id, id in self._net.subnets, ErrorCode.UNKNOWN_SUBNET)
        await self._context.commit(SubnetRemoved(self._net.subnets[id]))


def _are_new(kind: str, ids: Collection[str], known: Container[str]) -> None:
    for id, times in Counter(ids).items():
        if id in known:
            hint = "" if kind == "VRF" else f"; `retinue {kind} set {id}` changes it"
            raise RequestError(f"{kind} {id} is there already{hint}", ErrorCode.ALREADY_REGISTERED)
        if times > 1:
            raise ModelError(f"{kind} {id} is given twice")


def _is_there(kind: str, id: str, known: bool, code: ErrorCode) -> None:
    if not known:
        raise RequestError(
            f"there is no {kind} {id}; `retinue {kind.lower()} list` shows those there are", code
        )
