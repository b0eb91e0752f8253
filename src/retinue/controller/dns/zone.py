"""The zone: every VM, server and service whose name a host can have, with the addresses it has now.

Nothing is copied: a record is made from the network when it is asked for, so none is ever old. A VM that
migrates keeps its addresses and therefore its records; a service is an alias of the VM that serves it.
"""

import asyncio
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Annotated

import dns.exception
import dns.name
import msgspec

from retinue.config_file import ConfigError, ConfigTable
from retinue.controller.domains.names import SharedNames
from retinue.controller.mobility.entities import Entities
from retinue.core.model import IP
from retinue.core.placement import EntityKind
from retinue.core.text import quoted
from retinue.socket_addresses import endpoint

HOST = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""A host's name of one label (RFC 1123, 2.1). DNS knows no upper case: an id that differs from another by its
case alone must not have the other's traffic, so ids with capitals are not in the zone."""
LOOK_SECONDS = 5.0
"""Pause between two looks whether the zone is still what it was."""
AT_ONCE = 200
"""Names that are looked at before the controller's other work has its turn."""
NAME_SERVER = "ns"
"""The label of the zone's name server where the configuration names none."""


class DnsTable(ConfigTable, frozen=True):
    """[dns]: names of VMs, servers and services as a zone of DNS."""

    zone: str = ""
    """The zone's name, such as "dc1.example"; "": no DNS."""
    listen: str = "127.0.0.1:5353"
    ttl: Annotated[int, msgspec.Meta(ge=0, le=86400)] = 30
    """For how many seconds others may keep an answer."""
    name_servers: list[str] = []
    """Names of the servers of the zone, as its parent zone has them."""
    transfer: list[str] = []
    """Addresses and prefixes of secondary servers, which may have the whole zone (AXFR)."""

    def checked(self) -> "DnsTable":
        """Itself. Raises ConfigError."""
        try:
            endpoint(self.listen)
            for text in (self.zone, *self.name_servers):
                if self.zone and dns.name.from_text(text) == dns.name.root:
                    raise ValueError("the root is no name here")
            for text in self.transfer:
                ip_network(text)
        except (ValueError, dns.exception.DNSException) as error:
            raise ConfigError(f"dns: {quoted(str(error))}") from error
        return self


@dataclass(frozen=True)
class Records:
    """What a name has: addresses, or the name that it is an alias of."""

    addresses: tuple[IP, ...] = ()
    alias: dns.name.Name | None = None


class Zone:
    """`origin` is its name; all names here are absolute."""

    def __init__(
        self,
        table: DnsTable,
        entities: Entities,
        clock: Callable[[], float],
        shared: SharedNames | None = None,
    ) -> None:
        """`shared`: the names of other domains in it."""
        self.ttl = table.ttl
        self.origin = dns.name.from_text(table.zone)
        named = [dns.name.from_text(text) for text in table.name_servers]
        own = dns.name.from_text(NAME_SERVER, self.origin)
        self.name_servers = tuple(named) or (own,)
        self._own = None if named else own
        self._at = endpoint(table.listen)[0]
        self._entities = entities
        self._clock = clock
        self._may_transfer = tuple(ip_network(text) for text in table.transfer)
        self.serial = int(clock()) & 0xFFFF_FFFF
        self._was = 0
        self._shared = shared
        if shared is not None:
            shared.zone, shared.own = table.zone, self._own_names

    @property
    def is_whole(self) -> bool:
        """False while it is not known yet which names other domains have in it."""
        return self._shared is None or not self._shared.missing

    def may_transfer(self, host: str) -> bool:
        """Whether a peer at this address is one of the secondary servers."""
        peer = ip_address(host.partition("%")[0])
        return any(peer in network for network in self._may_transfer)

    def records(self, name: dns.name.Name) -> Records | None:
        """Of a name below the origin; None: there is no such name."""
        name = name.canonicalize()
        if name == self._own:
            return Records(self._own_addresses())
        if len(name) != len(self.origin) + 1:
            return None
        return self._of(name.labels[0].decode("ascii", "replace"))

    def _own_names(self) -> Iterator[tuple[str, tuple[IP, ...]]]:
        """Those of this domain, each with what is reached by it."""
        for label in self._entities.names():
            found = self._of_ours(label)
            if found is not None and found.alias is not None:
                found = self._of_ours(found.alias.labels[0].decode())
            if found is not None and found.addresses:
                yield label, found.addresses

    def _of(self, label: str) -> Records | None:
        found = self._of_ours(label)
        is_server = label == NAME_SERVER and self._own is not None
        if found is not None or self._shared is None or is_server:
            return found
        addresses = self._shared.addresses(label)
        return None if addresses is None else Records(addresses)

    def _of_ours(self, label: str) -> Records | None:
        if not HOST.fullmatch(label) or (label == NAME_SERVER and self._own is not None):
            return None
        match self._entities.kind_of(label):
            case None | EntityKind.IMAGE:  # No host; one of another domain may be called so.
                return None
            case EntityKind.SERVICE:
                vm = self._entities.serving(label)
                # Where the VM's own name cannot be in the zone, the service has its addresses.
                if vm is None or not HOST.fullmatch(vm):
                    return Records(self._entities.addresses(vm) if vm is not None else ())
                return Records(alias=dns.name.from_text(vm, self.origin))
            case EntityKind.VM if self._entities.is_guest(label):
                return None  # It is its home's to name, which may have part in this zone.
            case _:
                return Records(self._entities.addresses(label))

    def every(self) -> Iterator[tuple[dns.name.Name, Records]]:
        """All names of the zone but its origin, sorted; each with what it has when it is reached."""
        if self._own is not None:
            yield self._own, Records(self._own_addresses())
        others = set() if self._shared is None else self._shared.names()
        for name in sorted({*self._entities.names(), *others}):
            found = self._of(name)
            if found is not None and found != Records():
                yield dns.name.from_text(name, self.origin), found

    @property
    def has_secondaries(self) -> bool:
        return bool(self._may_transfer)

    async def look(self) -> None:
        """Raise the serial number if the zone is not what it was (RFC 1035, 3.3.13): only secondary servers
        need it. It follows the clock, so that it is not smaller after a restart."""
        found = 0
        for number, (name, records) in enumerate(self.every()):
            found ^= hash((name, records))
            if number % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
        if found != self._was:
            self._was = found
            self.serial = max(self.serial + 1, int(self._clock())) & 0xFFFF_FFFF

    def _own_addresses(self) -> tuple[IP, ...]:
        try:
            at = ip_address(self._at)
        except ValueError:
            return ()
        return () if at.is_unspecified else (at,)
