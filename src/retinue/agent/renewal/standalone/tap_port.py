"""A VM's port at its tap, whatever switch it is plugged into: by Linux traffic control.

    async with TapPort("tap-vm1", xid) as port:
        await renew(lease, xid, port, port)

Two redirections, both for this one transaction only, and a pair of virtual cables (veth) beside the tap:

    agent -> veth ..> veth ingress: UDP 68 to 67 with the xid    => ingress of the tap: "from the VM"
    switch -> egress of the tap:    UDP 67 to 68 with the xid    => veth ..> agent: the VM never sees it

Everything else goes its way, the VM's own DHCP among it. All of it is gone with the port; what an agent that
was killed has left is cleared by the next one for the same tap.
"""

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from retinue.agent.renewal.openflow_port import run
from retinue.agent.renewal.renewing import InjectionError
from retinue.core.lease_renewal import AnswerReceived, Event
from retinue.core.packets import CLIENT_PORT, SERVER_PORT, BootOp, FrameError, parse_dhcp_frame

PRIORITY = "9"
"""Of our filter among those at the tap's egress."""
_ETH_P_IP = 0x0800
_IP_HEADER = 20
_XID_AT = _IP_HEADER + 8 + 4
"""Where a DHCP message in UDP in IPv4 without options has its transaction id."""
_LONGEST = 4096


class TapPort:
    """A port and its answers; `xid` is the one transaction that passes.

    Raises InjectionError. Needs the capabilities CAP_NET_ADMIN and CAP_NET_RAW.
    """

    def __init__(self, tap: str, xid: int) -> None:
        self._tap, self._xid = tap, xid
        name = "rn" + hashlib.sha256(tap.encode()).hexdigest()[:10]
        self._near, self._far = f"{name}a", f"{name}b"
        self._made_qdisc = False
        self._wire: socket.socket | None = None

    async def __aenter__(self) -> "TapPort":
        self._check_tap()
        await self._clear()
        try:
            await self._make()
        except BaseException:
            await self._clear()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._clear()

    async def send(self, frame: bytes) -> None:
        """Port.send."""
        assert self._wire is not None
        try:
            await asyncio.get_running_loop().sock_sendall(self._wire, frame)
        except OSError as error:
            raise InjectionError(f"the frame does not go into {self._tap}: {error.strerror}") from error

    async def next(self) -> Event:
        """Answers.next: the server's messages that the switch has handed out at the VM's port."""
        assert self._wire is not None
        while True:
            frame = await asyncio.get_running_loop().sock_recv(self._wire, _LONGEST)
            with contextlib.suppress(FrameError):
                _, _, dhcp = parse_dhcp_frame(frame)
                if dhcp.op == BootOp.REPLY and dhcp.xid == self._xid:
                    return AnswerReceived(dhcp)

    # ---- making and clearing ----

    def _check_tap(self) -> None:
        folder = Path(f"/sys/class/net/{self._tap}")
        if not folder.exists():
            raise InjectionError(f"there is no interface {self._tap} here; `ip link` shows those there are")
        try:
            carrier = (folder / "carrier").read_text().strip() == "1"
        except OSError:  # it is down
            carrier = False
        if not carrier:
            raise InjectionError(f"interface {self._tap} has no carrier: it is down, or no VM has it open")

    async def _make(self) -> None:
        await self._must("ip", "link", "add", self._near, "type", "veth", "peer", "name", self._far)
        for nic in (self._near, self._far):
            quiet = Path(f"/proc/sys/net/ipv6/conf/{nic}/disable_ipv6")
            if quiet.exists():
                quiet.write_text("1\n")  # Else the kernel itself would speak on it.
            await self._must("ip", "link", "set", "dev", nic, "arp", "off", "up")
        await self._must("tc", "qdisc", "add", "dev", self._near, "clsact")
        await self._redirect(self._near, "ingress", CLIENT_PORT, SERVER_PORT, "ingress", self._tap)
        self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP))
        self._wire.setblocking(False)
        self._wire.bind((self._far, _ETH_P_IP))
        code, _, said = await run(["tc", "qdisc", "add", "dev", self._tap, "clsact"])
        self._made_qdisc = code == 0
        if code != 0 and "xist" not in said and "xclusivity" not in said:  # else it is somebody's already
            raise InjectionError(f"traffic control of {self._tap}: {said}")
        await self._redirect(self._tap, "egress", SERVER_PORT, CLIENT_PORT, "egress", self._near)

    async def _redirect(self, nic: str, hook: str, sport: int, dport: int, to_hook: str, to: str) -> None:
        """Frames of our transaction, from one UDP port to the other, go to another interface instead."""
        match: list[str] = []
        for kind, value, mask, at in (
            ("u8", 0x45, 0xFF, 0),  # IPv4 without options
            ("u16", 0, 0x3FFF, 6),  # not a fragment
            ("u8", socket.IPPROTO_UDP, 0xFF, 9),
            ("u32", sport << 16 | dport, 0xFFFFFFFF, _IP_HEADER),
            ("u32", self._xid, 0xFFFFFFFF, _XID_AT),
        ):
            match += ["match", kind, f"{value:#x}", f"{mask:#x}", "at", str(at)]
        await self._must(
            *("tc", "filter", "add", "dev", nic, hook, "protocol", "ip", "prio", PRIORITY, "u32"),
            *(*match, "action", "mirred", to_hook, "redirect", "dev", to),
        )

    async def _clear(self) -> None:
        """Take away what is there of ours; what is not there is no error."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        await run(
            ["tc", "filter", "del", "dev", self._tap, "egress", "protocol", "ip", "prio", PRIORITY, "u32"]
        )
        if self._made_qdisc:
            await run(["tc", "qdisc", "del", "dev", self._tap, "clsact"])
            self._made_qdisc = False
        await run(["ip", "link", "del", "dev", self._near])

    async def _must(self, *argv: str) -> None:
        code, _, said = await run(argv)
        if code != 0:
            raise InjectionError(
                f"{_short(argv)}: {said} "
                "(needs CAP_NET_ADMIN, and of the kernel veth, clsact, u32 and mirred)"
            )


def _short(argv: Sequence[str]) -> str:
    return " ".join(argv[:6])


__all__ = ["TapPort"]
