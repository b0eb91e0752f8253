"""A router's subinterfaces in VRFs as its row keeps them: each a JSON document, as NICs are."""

from ipaddress import ip_address, ip_network

import msgspec

from retinue.core.model import Subinterface


class _Document(msgspec.Struct, omit_defaults=True):
    vrf: str
    vlan: int
    routes: list[str] = []
    address: str = ""


def to_document(one: Subinterface) -> str:
    """Written down."""
    address = "" if one.address is None else str(one.address)
    document = _Document(one.vrf, one.vlan, [str(prefix) for prefix in one.routes], address)
    return msgspec.json.encode(document).decode()


def from_document(text: str) -> Subinterface:
    """Read back. Raises ValueError, or msgspec's errors."""
    document = msgspec.json.decode(text, type=_Document)
    address = ip_address(document.address) if document.address else None
    return Subinterface(document.vrf, document.vlan, tuple(map(ip_network, document.routes)), address)
