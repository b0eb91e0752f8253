"""What exists: switches, servers, subnets, VMs and their NICs, ports and bindings, as frozen values.

Addresses have the form people write: a MAC is six lower-case hex pairs joined by colons, an IP is
an `ipaddress` object. Times are seconds since the epoch, always handed in. Imports nothing else of ours.
"""

from retinue.core.model.addresses import (
    IP,
    Mac,
    ModelError,
    Prefix,
    entity_id,
    is_multicast,
    mac,
    mac_from_int,
    mac_to_come,
    mac_to_int,
)
from retinue.core.model.binding import Assignment, Binding, BindingKind, IAKind, Lease6, Origin
from retinue.core.model.disks import Disk, DiskFormat
from retinue.core.model.entities import (
    DEFAULT_VNET,
    VM,
    Flood,
    GatewayGroup,
    Host,
    Link,
    Peer,
    PortRef,
    PortStatus,
    Role,
    Server,
    Service,
    Subnet,
    Switch,
    Trust,
    VMPort,
    Vnet,
)
from retinue.core.model.network import Network
from retinue.core.model.nic import NIC, Allowed, port_id_of
from retinue.core.model.run_state import Ending, Power, Restart
from retinue.core.model.vrfs import DEFAULT_VRF, Address, Subinterface, Vrf, in_vrf

__all__ = [
    "DEFAULT_VNET",
    "DEFAULT_VRF",
    "IP",
    "NIC",
    "VM",
    "Address",
    "Allowed",
    "Binding",
    "BindingKind",
    "Assignment",
    "Disk",
    "DiskFormat",
    "Ending",
    "Flood",
    "GatewayGroup",
    "Host",
    "IAKind",
    "Lease6",
    "Link",
    "Mac",
    "ModelError",
    "Network",
    "Origin",
    "Peer",
    "PortRef",
    "Prefix",
    "PortStatus",
    "Power",
    "Restart",
    "Role",
    "Server",
    "Service",
    "Subinterface",
    "Subnet",
    "Switch",
    "Trust",
    "VMPort",
    "Vnet",
    "Vrf",
    "entity_id",
    "in_vrf",
    "is_multicast",
    "mac",
    "mac_from_int",
    "mac_to_come",
    "mac_to_int",
    "port_id_of",
]
