"""Logins of Fibre Channel over Ethernet: which MAC a NIC may send storage frames from, and to whom."""

from dataclasses import dataclass

from retinue.core.model.addresses import Mac

FPMA_PREFIX = "0e:fc:"
"""A fabric-provided MAC is FC-MAP and FC_ID; FC-MAP is 0E-FC-00 to 0E-FC-FF (FC-BB-5, 7.7)."""
LOWEST_FC_ID, HIGHEST_FC_ID = 0x010000, 0xEFFFFF
"""Of ports of nodes: domains 1 to 239 (FC-FS)."""


@dataclass(frozen=True, slots=True)
class FcLogin:
    """A VN_Port: a forwarder has granted it to a NIC, and until it ends the NIC may send from its MAC."""

    mac: Mac
    """Its FPMA. FC-MAP is the fabric's, so no two ports of one fabric have the same."""
    vm: str
    nic: Mac
    """The NIC's own MAC, under which it logged in."""
    forwarder: str
    """The server that granted it; of a guest the gateway to its home, where the forwarder is."""
    forwarder_mac: Mac = ""
    """Of the forwarder at a guest's home; "": that server's own."""

    @property
    def fc_id(self) -> int:
        return fc_id_of(self.mac)


def fc_id_of(mac: Mac) -> int:
    """The low half of an FPMA."""
    return int(mac.replace(":", "")[6:], 16)


def is_granted_mac(mac: Mac, fc_id: int) -> bool:
    """Whether a forwarder may give this MAC with this FC_ID."""
    in_range = LOWEST_FC_ID <= fc_id <= HIGHEST_FC_ID
    return mac.startswith(FPMA_PREFIX) and fc_id_of(mac) == fc_id and in_range
