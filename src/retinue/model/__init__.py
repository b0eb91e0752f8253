"""What exists: switches, servers, subnets, VMs, ports, bindings and moves, as frozen values.

Addresses are kept in the form people write: a MAC is six lower-case hex pairs joined by colons, an IP is
an `ipaddress` object. Times are seconds since the epoch, always handed in. Imports nothing else of ours.
"""

from retinue.model.addresses import IP, Mac, ModelError, is_multicast, mac, mac_from_int, mac_to_int
from retinue.model.binding import Binding, BindingKind, Holding, Origin
from retinue.model.network import Network
from retinue.model.things import (
    VM,
    Link,
    PortRef,
    PortStatus,
    Role,
    Server,
    Service,
    Subnet,
    Switch,
    Trust,
    VMPort,
)

__all__ = [
    "IP",
    "VM",
    "Binding",
    "BindingKind",
    "Holding",
    "Link",
    "Mac",
    "ModelError",
    "Network",
    "Origin",
    "PortRef",
    "PortStatus",
    "Role",
    "Server",
    "Service",
    "Subnet",
    "Switch",
    "Trust",
    "VMPort",
    "is_multicast",
    "mac",
    "mac_from_int",
    "mac_to_int",
]
