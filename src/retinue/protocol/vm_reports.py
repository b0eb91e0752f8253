"""What is said of a VM by the server where somebody made it, and by the manager who confirms it.

A report says which VM, with which MAC and addresses, and by its own physical MAC at which server (US
9,313,088: "the server 40 may directly or indirectly notify the management system 10 of a virtual MAC address
and virtual IP address of the virtual machine 50, and a physical MAC address thereof"). Directly: the
server's agent sends it to the controller. Indirectly: it sends the same to a manager, at the same path, who
passes it on.
"""

import msgspec

from retinue.protocol.nics import Addresses


class ReportedVMBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/servers/{id}/vm-reports: a VM that was made there, or, with `gone`, that is no more."""

    vm: str
    """The `iface-id` of its port, or of its first one."""
    mac: str
    """Of the NIC that is meant."""
    server_mac: str
    """The server's own."""
    addresses: Addresses = []
    """Static ones that its guest uses, all of them: held until a manager confirms them."""
    gone: bool = False


class ConfirmBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/vms/{id}/confirm: these of what was reported is true. Named each, for what the server says may
    be another by then than what the manager has seen."""

    addresses: Addresses
    """Which of the reported addresses are the VM's."""


class ReportedAddresses(msgspec.Struct):
    """What is answered to a report."""

    vm: str
    waiting: list[str]
    """Addresses that no manager has confirmed."""
