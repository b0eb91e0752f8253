"""The table of named entities: VMs, servers, services, images and roaming clients, each with its profile and
where it is.

A name is unique over all kinds, and is its entity's for as long as that is there. VMs and servers are in the
table because they are registered, an image once it is published; services, clients, and images that are not
published yet, because the manager says so here. Where an entity is,
its locator, is not written down but asked of the network: it is never old. Disks and segments of images
are found by their names, too (parts.py).
"""

from collections.abc import Collection
from typing import Any

import msgspec

from retinue.controller.context import Context
from retinue.controller.errors import RequestError
from retinue.controller.migrations.attachment import locator_of
from retinue.controller.mobility.changes import EntityRegistered, EntityRemoved
from retinue.controller.mobility.parts import Parts
from retinue.controller.mobility.resources import ResourceManager
from retinue.core.limits import MOST_ENTITIES
from retinue.core.model import DEFAULT_VRF, IP, entity_id
from retinue.core.placement import Entity, EntityKind, Profile
from retinue.protocol.errors import ErrorCode

BY_THEMSELVES = {
    EntityKind.VM: "`retinue vm add`",
    EntityKind.SERVER: "its registration as a server",
    EntityKind.DISK: "its VM's registration",
    EntityKind.SEGMENT: "its image's publication",
}
"""Kinds that are in the table because they are registered elsewhere, and how."""

_UNKNOWN = {EntityKind.VM: ErrorCode.UNKNOWN_VM, EntityKind.SERVER: ErrorCode.UNKNOWN_SERVER}
_A = {kind: f"an {kind}" if kind is EntityKind.IMAGE else f"a {kind}" for kind in EntityKind}


class Entities:
    """Registers, shows and resolves names."""

    def __init__(self, context: Context, resources: ResourceManager) -> None:
        self._net = context.net
        self._context = context
        self._of = context.state.entities
        self._resources = resources
        self.parts = Parts(context, resources)

    def kind_of(self, name: str) -> EntityKind | None:
        """What has this name; None: nothing. A roaming client is among the VMs of the network while it is
        attached somewhere."""
        if self._context.state.is_client(name):
            return EntityKind.CLIENT
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
                code = _UNKNOWN.get(one.kind, ErrorCode.UNKNOWN_ENTITY)
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
        """The VM or server was removed, and with it what was said of it. A client comes again."""
        if name in self._of and not self._context.state.is_client(name):
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
        found |= dict.fromkeys(self.parts.disks(), EntityKind.DISK)
        return sorted(name for name, its in found.items() if its is not None and kind in (None, its))

    def shown(self, name: str) -> dict[str, Any] | None:
        """The whole row, as plain values: name, kind, profile, what is measured, locator; None: no such."""
        if (part := self.parts.found(name)) is not None:
            profile = msgspec.to_builtins(Profile())
            row = {"name": name, "kind": part[0], "profile": profile}
            return {**row, "measured": part[1], "locator": part[2]}
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
            case EntityKind.CLIENT if name not in net.vms:
                return {"server": "", "addresses": []}
            case EntityKind.VM | EntityKind.CLIENT:
                return locator_of(net, net.vms[name], self._context.state.migrations.of_vm(name))
            case EntityKind.SERVER:
                address = net.servers[name].address
                return {
                    "at": str(net.location(name) or ""),
                    "addresses": [] if address is None else [str(address)],
                }
            case EntityKind.SERVICE:
                vms = self._serving(name)
                where = self._locator(vms[0], EntityKind.VM) if vms else {"addresses": []}
                return {"vm": vms[0] if vms else "", "vms": vms, **where}
            case EntityKind.IMAGE | EntityKind.DISK | EntityKind.SEGMENT:
                return {"servers": self._resources.holders(name)}

    # ---- for who sends to a name ----

    def serving(self, service: str) -> str | None:
        """The VM that a service leads to: the first of those that serve it which is there."""
        return next(iter(self._serving(service)), None)

    def _serving(self, service: str) -> list[str]:
        """No guest: another domain would choose who serves."""
        named = self._of[service].profile.served_by
        return [vm for vm in named if vm in self._net.vms and not self.is_guest(vm)]

    def is_guest(self, name: str) -> bool:
        """Whether it is a VM of another domain."""
        vm = self._net.vms.get(name)
        return vm is not None and bool(vm.home)

    def addresses(self, name: str) -> tuple[IP, ...]:
        """At which a VM or server is reached in the default VRF: link-local ones, and those of other VRFs,
        mean another host, or none, to somebody else."""
        if name in self._net.vms:
            held = self._net.held_by(name)
            addresses = [one for one in held if one.vrf == DEFAULT_VRF and one.prefix is None]
            found = (one.ip for one in addresses if not one.ip.is_link_local)
            return tuple(sorted(found, key=lambda ip: (ip.version, int(ip))))
        server = self._net.servers.get(name)
        return () if server is None or server.address is None else (server.address,)


def no_entity(name: str) -> RequestError:
    return RequestError(
        f"nothing is said of {name}; `retinue name list` shows what there is", ErrorCode.UNKNOWN_ENTITY
    )
