"""A VM's network interfaces as managers give them, and as the controller shows them."""

from typing import Annotated

import msgspec

from retinue.core.limits import MOST_ADDRESSES, MOST_ALLOWED, MOST_LOAD, MOST_MTU, MOST_PREFIXES, MOST_RATE

Addresses = Annotated[list[str], msgspec.Meta(max_length=MOST_ADDRESSES)]


class NICBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One NIC of a VM in POST /v1/vms. A NIC without static addresses asks for one by DHCP."""

    mac: str
    id: str = ""
    """The `iface-id` of its port; "": the VM's id, for its first NIC, and one made from it for others."""
    vnet: str = ""
    addresses: Addresses = []
    enabled: bool = True
    trunk: str = ""
    """The id of the VM's NIC by whose port it goes, with the VLAN of its vnet as tag; "": it has a port."""


class AllowedBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """An address that a NIC may take when it announces it (VRRP, keepalived)."""

    address: str
    mac: str = ""
    """As whose it speaks for the address: a virtual router's. "": its own."""


class NICSetBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/vms/{id}/nics/set: what is left out stays as it is."""

    nic: str = ""
    """Its id; "": the VM's first."""
    addresses: Addresses | None = None
    vnet: str | None = None
    mac: str | None = None
    enabled: bool | None = None
    trusted: bool | None = None
    """The VM is a DHCP server, and its server messages are believed."""
    rate: Annotated[int, msgspec.Meta(ge=0, le=MOST_RATE)] | None = None
    """Kilobits a second in each direction; 0: any."""
    allowed: Annotated[list[AllowedBody], msgspec.Meta(max_length=MOST_ALLOWED)] | None = None
    prefixes: Annotated[list[str], msgspec.Meta(max_length=MOST_PREFIXES)] | None = None
    """Routed to it."""
    anycast: Addresses | None = None
    """Addresses that it has together with other NICs; what is sent to one comes to the nearest of these."""
    load: Annotated[int, msgspec.Meta(ge=0, le=MOST_LOAD)] | None = None
    """Of those that are equally near the least loaded is sent to."""
    mac_changes: bool | None = None
    """The guest may give it another MAC."""
    mirror: str | None = None
    """The port that takes a copy of its traffic, on whichever server the VM is; "": none."""


class NICRemoveBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/vms/{id}/nics/remove."""

    nic: str
    """Its id."""


class SubnetRecord(msgspec.Struct, frozen=True):
    """What a guest must know of the network that one of its static addresses is in."""

    prefixlen: int | None = None
    gateway: str = ""


class NICRecord(msgspec.Struct, frozen=True):
    """A NIC as GET /v1/vms and the events show it: the fields that an agent acts on."""

    id: str
    mac: str
    vnet: str = ""
    addresses: list[str] = []
    subnets: dict[str, SubnetRecord] = {}
    """By static address: the same may be in several VRFs, and so on several NICs."""
    enabled: bool = True
    slot: int = 1
    """Where the guest finds it in its machine."""
    mtu: Annotated[int, msgspec.Meta(ge=0, le=MOST_MTU)] = 0
    """Bytes of an IP packet that its network takes; 0: as its VM's."""
    trunk: str = ""
    """The id of the NIC by whose port it goes; it is no device of the machine. "": it has one of its own."""
    vlan: int = 0
    """The tag of its frames at that port; 0: none."""
    initial_mac: str = ""
    """The MAC with which its port was made, where it has had another one since; "": `mac`."""

    @property
    def hardware_mac(self) -> str:
        """The MAC that its machine has it with, whatever its guest has made of that."""
        return self.initial_mac or self.mac
