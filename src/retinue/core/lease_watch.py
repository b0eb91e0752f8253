"""What a VM's own DHCP says of its lease, read beside its port: learned, renewed and ended as the VM does it.

    from the VM       REQUEST               remembered: only an answer to it counts
                      RELEASE, DECLINE      of the address that is held: the lease ends
    to the VM         ACK to the REQUEST    with an address, a lease time and a server: learned
                      NAK to the REQUEST    the lease ends
    renewed           by the agent          as the ACK says that the agent has had for the VM
    time              -                     a lease that ran out stays: the server may grant it once more

It is what an agent knows without being told: who the VM is to its DHCP server, and until when. Nothing here
lets a frame through or keeps one back; that is the switch's part, which judges by itself. So a VM that tells
lies to this book deceives nobody but itself: the worst is a request for a renewal that its DHCP server
rejects. A message for or from another hardware address than the port's is none of this VM's.
"""

import math
from dataclasses import dataclass, field, replace

from retinue.core.lease_renewal import Lease
from retinue.core.model import Mac
from retinue.core.packets import (
    DHCP,
    BootOp,
    FrameError,
    MessageType,
    kept_options,
    parse_dhcp_frame,
)

QUESTIONS_KEPT = 8
"""REQUESTs of one VM that are remembered: a guest sends one after another, with one transaction id or two."""
QUESTION_SECONDS = 60.0
"""How long an answer to a REQUEST may take."""
LEASES_KEPT = 4096
"""Of VMs that have had one here; beyond, the one that ends first is forgotten."""


@dataclass(frozen=True, slots=True)
class KeptLease:
    """A lease as the agent keeps it: all that a renewal needs, and until when it is good."""

    lease: Lease
    end: float | None
    """Seconds since the epoch, counted from when the ACK was received; None: it never ends."""
    vm: str = ""
    """Whose it is, as the hypervisor calls it; "" where nobody has said."""


@dataclass(frozen=True, slots=True)
class _Question:
    asked: DHCP
    at: float


@dataclass
class LeaseBook:
    """The leases of a server's VMs, by MAC. Methods return whether something has changed that is to be
    kept."""

    leases: dict[Mac, KeptLease] = field(default_factory=dict)
    _questions: dict[Mac, dict[int, _Question]] = field(default_factory=dict)

    # ---- what passes at a VM's port ----

    def from_vm(self, mac: Mac, frame: bytes, now: float) -> bool:
        """A frame that came out of the VM whose NIC has this MAC."""
        try:
            _, _, dhcp = parse_dhcp_frame(frame)
        except FrameError:
            return False
        if dhcp.op != BootOp.REQUEST or dhcp.chaddr != mac:
            return False
        match dhcp.message_type:
            case MessageType.REQUEST:
                self._ask(mac, dhcp, now)
            case MessageType.RELEASE:
                return self._given_back(mac, dhcp.ciaddr)
            case MessageType.DECLINE:
                return self._given_back(mac, dhcp.requested_address)
            case _:
                pass
        return False

    def to_vm(self, mac: Mac, frame: bytes, now: float, vm: str = "") -> bool:
        """A frame that the switch has handed out to the VM, whose id is `vm`."""
        try:
            ethernet, _, dhcp = parse_dhcp_frame(frame)
        except FrameError:
            return False
        question = self._questions.get(mac, {}).get(dhcp.xid)
        if dhcp.op != BootOp.REPLY or dhcp.chaddr != mac or question is None:
            return False
        if now - question.at > QUESTION_SECONDS:
            return False
        match dhcp.message_type:
            case MessageType.ACK:
                return self._granted(question.asked, dhcp, ethernet.src, now, vm)
            case MessageType.NAK:
                del self._questions[mac][dhcp.xid]
                return self._refused(question.asked)
        return False

    def _ask(self, mac: Mac, dhcp: DHCP, now: float) -> None:
        asked = self._questions.setdefault(mac, {})
        asked.pop(dhcp.xid, None)
        asked[dhcp.xid] = _Question(dhcp, now)
        while len(asked) > QUESTIONS_KEPT:
            del asked[next(iter(asked))]

    def _granted(self, asked: DHCP, ack: DHCP, via: Mac, now: float, vm: str) -> bool:
        # RFC 2131, table 3: of an ACK to a REQUEST 'yiaddr' is the "IP address assigned to client", and
        # "IP address lease time" and "Server identifier" MUST be there.
        if not int(ack.yiaddr) or ack.lease_time is None or ack.server_id is None:
            return False
        lease = Lease(
            ip=ack.yiaddr,
            mac=ack.chaddr,
            server=ack.server_id,
            client_id=asked.client_id or b"",
            next_hop=via,
            options=kept_options(asked),
        )
        del self._questions[ack.chaddr][ack.xid]
        self.keep(KeptLease(lease, end_of(now, ack.lease_time), vm))
        return True

    def _refused(self, asked: DHCP) -> bool:
        held = self.leases.get(asked.chaddr)
        if held is None or held.lease.ip not in (asked.ciaddr, asked.requested_address):
            return False
        del self.leases[asked.chaddr]
        return True

    def _given_back(self, mac: Mac, ip: object) -> bool:
        held = self.leases.get(mac)
        if held is None or held.lease.ip != ip:
            return False
        del self.leases[mac]
        return True

    # ---- what the agent does and is told ----

    def keep(self, kept: KeptLease) -> None:
        """A lease that was learned elsewhere, such as from the agent that the VM has come from."""
        self.leases.pop(kept.lease.mac, None)
        self.leases[kept.lease.mac] = kept
        if len(self.leases) > LEASES_KEPT:
            first = min(self.leases.values(), key=lambda k: math.inf if k.end is None else k.end)
            del self.leases[first.lease.mac]

    def renewed(self, lease: Lease, seconds: float, now: float, vm: str = "") -> None:
        """The agent has had an ACK for the VM: the lease is good for so many seconds from now (`math.inf`:
        for ever)."""
        before = self.leases.get(lease.mac)
        name = vm or ("" if before is None else before.vm)
        self.keep(KeptLease(lease, end_of(now, seconds), name))

    def forget_ended(self, before: float) -> None:
        """Those that ended before this time, and whom nobody has asked for since."""
        for mac in [mac for mac, kept in self.leases.items() if kept.end is not None and kept.end < before]:
            self.forget(mac)

    def forget(self, mac: Mac) -> bool:
        """The VM is gone for good."""
        self._questions.pop(mac, None)
        return self.leases.pop(mac, None) is not None

    def named(self, mac: Mac, vm: str) -> bool:
        """The hypervisor says whose MAC that is."""
        held = self.leases.get(mac)
        if held is None or held.vm == vm:
            return False
        self.leases[mac] = replace(held, vm=vm)
        return True


def end_of(now: float, seconds: float) -> float | None:
    """When a lease ends that was granted now; None: never."""
    return None if math.isinf(seconds) else now + seconds


__all__ = ["KeptLease", "LeaseBook", "end_of"]
