"""The table of named entities: VMs, servers, services and images, each with its profile and where it is.

A name is unique over all kinds, and is its entity's for as long as that is there. VMs and servers are in the
table because they are registered, an image once it is published; services, and images that are not published
yet, because the manager says so here. Where an entity is,
its locator, is not written down but asked of the network: it is never old.
"""

from collections.abc import Collection
from typing import Any

import msgspec

from retinue.controller.context import Context
from retinue.controller.errors import RequestError
from retinue.controller.mobility.changes import EntityRegistered, EntityRemoved
from retinue.controller.mobility.resources import ResourceManager
from retinue.core.limits import MOST_ENTITIES
from retinue.core.model import entity_id
from retinue.core.placement import Entity, EntityKind, Profile
from retinue.protocol.errors import ErrorCode

BY_THEMSELVES = {EntityKind.VM: "`retinue vm add`", EntityKind.SERVER: "its registration as a server"}
"""Kinds that are in the table because they are registered elsewhere, and how."""

_A = {kind: f"an {kind}" if kind is EntityKind.IMAGE else f"a {kind}" for kind in EntityKind}


class Entities:
    """Registers, shows and resolves names."""

    def __init__(self, context: Context, resources: ResourceManager) -> None:
        self._net = context.net
        self._context = context
        self._of = context.state.entities
        self._resources = resources

    def kind_of(self, name: str) -> EntityKind | None:
        """What has this name; None: nothing."""
        if name in self._net.vms:
            return EntityKind.VM
        if name in self._net.servers:
            return EntityKind.SERVER
        if name in self._context.state.images:
            return EntityKind.IMAGE
        known = self._of.get(name)
        # What is said of a VM or server ends with it.
        return known.kind if known is not None and known.kind not in BY_THEMSELVES else None

    def check_free(self, name: str, kind: EntityKind) -> None:
        """Raises RequestError where something of another kind has the name."""
        other = self.kind_of(name)
        if other is not None and other is not kind:
            raise RequestError(
                f"{name} is the name of {_A[other]}: names are unique over all kinds", ErrorCode.NAME_TAKEN
            )

    def register(self, entities: Collection[Entity]) -> None:
        """All of them or, on a mistake, none (RequestError, ModelError)."""
        names = [one.name for one in entities]
        if len(set(names)) < len(names):
            raise RequestError(f"{next(n for n in names if names.count(n) > 1)} is given twice")
        for one in entities:
            entity_id(one.name, _A[one.kind])
            self.check_free(one.name, one.kind)
            if one.kind in BY_THEMSELVES and self.kind_of(one.name) is None:
                code = ErrorCode.UNKNOWN_VM if one.kind is EntityKind.VM else ErrorCode.UNKNOWN_SERVER
                raise RequestError(
                    f"there is no {one.kind} {one.name}; it comes by {BY_THEMSELVES[one.kind]}", code
                )
        if len(self._of.keys() | set(names)) > MOST_ENTITIES:
            raise RequestError(f"more than {MOST_ENTITIES} entities cannot be described")
        self._context.apply(*(EntityRegistered(one) for one in entities))

    def remove(self, name: str) -> None:
        """What is said of an entity; a service or image then is no more. Raises RequestError."""
        known = self._of.get(name)
        if known is None:
            raise no_entity(name)
        self._context.apply(EntityRemoved(known))

    def gone(self, name: str) -> None:
        """The VM or server was removed, and with it what was said of it."""
        if name in self._of:
            self._context.apply(EntityRemoved(self._of[name]))

    def restored(self) -> None:
        """The database has been read: what is said of VMs and servers that are no more goes."""
        for one in list(self._of.values()):
            if one.kind in BY_THEMSELVES and self.kind_of(one.name) is not one.kind:
                self.gone(one.name)

    # ---- showing ----

    def names(self, kind: EntityKind | None = None) -> list[str]:
        every = {*self._net.vms, *self._net.servers, *self._context.state.images, *self._of}
        found = {name: self.kind_of(name) for name in every}
        return sorted(name for name, its in found.items() if its is not None and kind in (None, its))

    def shown(self, name: str) -> dict[str, Any] | None:
        """The whole row, as plain values: name, kind, profile, what is measured, locator; None: no such."""
        kind = self.kind_of(name)
        if kind is None:
            return None
        known = self._of.get(name)
        profile = msgspec.to_builtins(Profile() if known is None else known.profile)
        return {
            "name": name,
            "kind": kind,
            "profile": profile,
            "measured": self._measured(name, kind),
            "locator": self._locator(name, kind),
        }

    def _measured(self, name: str, kind: EntityKind) -> dict[str, Any] | None:
        if kind is EntityKind.SERVER:
            return self._resources.reported(name)
        if kind is EntityKind.VM:
            memory, cpus = self._resources.size_of(name)
            return {"memory_mib": memory, "cpus": cpus}
        return None

    def _locator(self, name: str, kind: EntityKind) -> dict[str, Any]:
        net = self._net
        match kind:
            case EntityKind.VM:
                vm = net.vms[name]
                edge = net.servers[vm.server].edge
                port = net.port_of(vm.nic, edge)
                number = None if port is None else port.number
                addresses = [str(held.ip) for held in net.held_by(name)]
                return {"server": vm.server, "switch": edge, "port": number, "addresses": addresses}
            case EntityKind.SERVER:
                address = net.servers[name].address
                return {
                    "at": str(net.location(name) or ""),
                    "addresses": [] if address is None else [str(address)],
                }
            case EntityKind.SERVICE:
                vms = [vm for vm in self._of[name].profile.served_by if vm in net.vms]
                where = self._locator(vms[0], EntityKind.VM) if vms else {"addresses": []}
                return {"vm": vms[0] if vms else "", "vms": vms, **where}
            case EntityKind.IMAGE:
                return {"servers": self._resources.holders(name)}


def no_entity(name: str) -> RequestError:
    return RequestError(
        f"nothing is said of {name}; `retinue name list` shows what there is", ErrorCode.UNKNOWN_ENTITY
    )
