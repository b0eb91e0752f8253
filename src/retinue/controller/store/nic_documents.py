"""A VM's NICs as its row keeps them: each a JSON document, which may have more fields in a later version.

A row of a file that had no such column has one NIC, by the columns `mac` and `addresses`.
"""

from ipaddress import ip_address, ip_network

import msgspec

from retinue.core.model import NIC, Allowed, mac
from retinue.core.model.nic import mirror_port


class _Document(msgspec.Struct, omit_defaults=True):
    mac: str
    port_id: str
    addresses: list[str] = []
    vnet: str = ""
    enabled: bool = True
    slot: int = 1
    rate: int = 0
    allowed: list[tuple[str, str]] = []
    """Each with the MAC as whose the NIC speaks for it, or ""."""
    trusted: bool = False
    prefixes: list[str] = []
    trunk: str = ""
    mac_changes: bool = False
    initial_mac: str = ""
    mirror: str = ""
    anycast: list[str] = []
    load: int = 0


def to_document(nic: NIC) -> str:
    """Written down."""
    addresses = [str(address) for address in nic.addresses]
    allowed = [(str(one.ip), one.mac) for one in nic.allowed]
    prefixes = [str(prefix) for prefix in nic.prefixes]
    document = _Document(
        *(nic.mac, nic.port_id, addresses, nic.vnet, nic.enabled, nic.slot, nic.rate, allowed),
        *(nic.trusted, prefixes, nic.trunk, nic.mac_changes, nic.initial_mac, nic.mirror),
        *([str(ip) for ip in nic.anycast], nic.load),
    )
    return msgspec.json.encode(document).decode()


def from_document(text: str) -> NIC:
    """Read back. Raises ValueError, or msgspec's errors."""
    document = msgspec.json.decode(text, type=_Document)
    return NIC(
        mac(document.mac),
        document.port_id,
        tuple(map(ip_address, document.addresses)),
        document.vnet,
        document.enabled,
        document.slot,
        document.rate,
        tuple(Allowed(ip_address(ip), mac(as_mac) if as_mac else "") for ip, as_mac in document.allowed),
        document.trusted,
        document.trunk,
        tuple(map(ip_network, document.prefixes)),
        document.mac_changes,
        mac(document.initial_mac) if document.initial_mac else "",
        mirror_port(document.mirror),
        tuple(map(ip_address, document.anycast)),
        document.load,
    )
