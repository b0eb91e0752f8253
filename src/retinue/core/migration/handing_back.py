"""What waited for a VM at its target when the migration is undone: which of it the source has not got.

The VM's traffic goes to the target from the diversion on, and waits there. Once the VM is paused the source
gets copies, and what is copied is marked: it waits at the target under the source MAC that the copies have
(`Underlay.copy_source`), for the same actions of one entry make both. So each frame that waits without the
mark is one that nobody else has. The target's agent takes these out of the taps (`not_copied`), in order and
so many, and the controller hands them to the VM where it is (`addressed`).
"""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address

from retinue.core.limits import LARGEST_FRAME
from retinue.core.migration.record import MigrationState
from retinue.core.model import DEFAULT_VNET, IP, NIC, VM, Mac, is_multicast
from retinue.core.model.link_local import link_local
from retinue.core.model.network import Network
from retinue.core.packets import Ethernet, EtherType, FrameError, parse

HANDED_BACK_IN = frozenset({MigrationState.ROLLING_BACK, MigrationState.UNDONE})
"""States in which what waits for the VM at either end is for it at its source."""
_IPV4_HEADER, _IPV6_HEADER = 20, 40


def not_copied(frames: Iterable[bytes], copies_from: Mac) -> list[bytes]:
    """Those frames, in order, that are IP and of which no copy was made. Others nobody misses: primers."""
    return [frame for frame in frames if _is_missed(frame, copies_from)]


def _is_missed(frame: bytes, copies_from: Mac) -> bool:
    try:
        ethernet = parse(frame)
    except FrameError:
        return False
    return ethernet.src != copies_from and _destination(ethernet) is not None


def in_batches(frames: Iterable[bytes], room: int) -> Iterator[list[bytes]]:
    """The frames in order, so many at a time as have no more than `room` bytes together, one at the least."""
    batch: list[bytes] = []
    size = 0
    for frame in frames:
        if batch and size + len(frame) > room:
            yield batch
            batch, size = [], 0
        batch.append(frame)
        size += len(frame)
    if batch:
        yield batch


def addressed(net: Network, vm: VM, frame: bytes) -> tuple[NIC, bytes] | None:
    """The NIC whose address the frame is for, and the frame as the VM gets it from its gateway.

    None for what is for no address that the VM holds, nor one of a prefix that is routed to it, nor flooded
    in a vnet of it: an agent's word does not make it the VM's.
    """
    try:
        ethernet = parse(frame)
    except FrameError:
        return None
    ip = _destination(ethernet)
    if ip is None or len(frame) > LARGEST_FRAME:
        return None
    if is_multicast(ethernet.dst):
        return _flooded(net, vm, ethernet, frame)
    # A switch hands a frame over with the MAC that goes with the address; of two VRFs each has its own.
    its = (one for one in vm.nics if one.speaks_as(ip) == ethernet.dst and _is_led_to(net, vm, one, ip))
    nic = next(its, None)
    vlan = 0 if nic is None else net.vlan_in_trunk(nic)
    if nic is None or not nic.enabled or vlan != (ethernet.vlan or 0):
        return None
    gateway = net.gateway_mac_of(net.servers[vm.server])
    handed = Ethernet(nic.speaks_as(ip), gateway, ethernet.ethertype, ethernet.payload, vlan or None)
    return nic, handed.build()


def _flooded(net: Network, vm: VM, ethernet: Ethernet, frame: bytes) -> tuple[NIC, bytes] | None:
    """As it was sent. Of several NICs in vnets that flood, that of the vnet in which its sender is."""
    sender = net.vm_of_mac(ethernet.src)
    its = None if sender is None else sender.nic_with(ethernet.src)
    for nic in vm.nics:
        if its is not None and nic.vnet == its.vnet and net.vnets[nic.vnet or DEFAULT_VNET.id].floods:
            return (nic, frame) if nic.enabled and its != nic else None
    return None


def _is_led_to(net: Network, vm: VM, nic: NIC, ip: IP) -> bool:
    holds = any(assignment.ip == ip for assignment in net.assignments_of(vm, nic))
    return holds or any(ip in prefix for prefix in net.prefixes_of(vm, nic)) or ip == link_local(nic.mac)


def _destination(ethernet: Ethernet) -> IP | None:
    """Of an IP packet, without a tag or with that of a trunk."""
    packet = ethernet.payload
    match ethernet.ethertype:
        case EtherType.IPV4 if len(packet) >= _IPV4_HEADER:
            return IPv4Address(packet[16:20])
        case EtherType.IPV6 if len(packet) >= _IPV6_HEADER:
            return IPv6Address(packet[24:40])
    return None
