"""Owners: what has entries of its own, and is computed again when a change touches it.

    switch     what it has whatever VMs there are
    server     the ways to it, and to what is behind it
    vm         who may send what from its ports, and the ways to its addresses
    vnet       that floods: from each of its VMs to each other
    anycast    an address: the ways to the nearest of the VMs that have it
    prefix     one that is routed to a NIC: what switches hold of it wherever that NIC is

An owner's entries carry a hash of it in their cookies (`core.pipeline.cookies`), by which they are known on a
switch. So neither kind nor id of what stays may change from one version of the controller to the next
without need: entries would be taken for nobody's, and be replaced.
"""

from dataclasses import dataclass
from ipaddress import ip_network

from retinue.core.model.addresses import Prefix


@dataclass(frozen=True, slots=True, order=True)
class Owner:
    """Something that has entries of its own: which kind, and which of it."""

    kind: str
    id: str

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"

    @staticmethod
    def of_prefix(prefix: Prefix, vrf: str) -> "Owner":
        """Of a prefix that is routed to a NIC of this VRF."""
        return Owner("prefix", f"{vrf} {prefix}")

    @property
    def prefix(self) -> tuple[Prefix, str]:
        """What a prefix's owner is of: the prefix, and its VRF. No address has a space in it."""
        vrf, _, text = self.id.rpartition(" ")
        return ip_network(text), vrf


Touched = frozenset[Owner]
"""Those that a change touched."""
NOTHING: Touched = frozenset()
