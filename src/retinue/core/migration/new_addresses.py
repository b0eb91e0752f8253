"""What a NIC of a VM is to have from its new server on: other addresses than it had at the old one.

US 9,323,554: a manager may send "updated configuration information" of a VM that migrates, and the target's
switch gets that in the place of what the source's had. The change is part of the step that closes the source
(`states`), after which there is no way back: a migration that is undone has changed nothing.
"""

from dataclasses import dataclass, replace
from ipaddress import ip_address

from retinue.core.model import NIC, Mac


@dataclass(frozen=True, slots=True)
class NewAddresses:
    """Of one NIC; what is not said stays."""

    nic: str
    """The id of its port."""
    mac: Mac = ""
    """"": the one it has."""
    vnet: str | None = None
    addresses: tuple[str, ...] | None = None
    """All its static addresses."""


def with_new_addresses(nic: NIC, new: NewAddresses) -> NIC:
    """The NIC as it is at the target. Its port there is made with the MAC that it has at the source."""
    mac = new.mac or nic.mac
    return replace(
        nic if mac == nic.mac else nic.with_mac(mac),
        vnet=nic.vnet if new.vnet is None else new.vnet,
        addresses=nic.addresses if new.addresses is None else tuple(map(ip_address, new.addresses)),
    )
