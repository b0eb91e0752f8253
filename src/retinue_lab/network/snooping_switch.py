"""A switch that snoops DHCP by itself, with no controller: small, and made from nothing of ours.

    python snooping_switch.py --vm-port tap-vm1 --vm-port tap-vm2 --trusted up0 --control /run/switch

The independent switch of tests and of the comparison: it stands for a vendor's, which we cannot have here.

It forwards by MAC address. From a VM's port it drops everything for which it has no binding of IP, MAC and
port, but for DHCP clients' messages and ARP probes. It learns bindings only from the DHCP it sees: the port
from a request, address and MAC from the ACK that answers it. DHCP servers' messages count only from the
trusted port. What it does it says on standard output, an object a line. At its control port, a Unix socket,
its table is read, and rows are stored and deleted: a JSON object a line.
"""

import argparse
import json
import select
import socket
import struct
import sys
import time

ETH_P_ALL = 3
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC, PACKET_IGNORE_OUTGOING = 263, 1, 1, 23
BROADCAST = b"\xff" * 6
IPV4, ARP = 0x0800, 0x0806
REQUEST, DECLINE, ACK, NAK, RELEASE = 3, 4, 5, 6, 7
PATIENCE = 60.0


def text_of(mac: bytes) -> str:
    return mac.hex(":")


QUIET = False
"""Whether the rest is left unsaid."""


def say(event: str, **what: object) -> None:
    if not QUIET or event == "ready":
        print(json.dumps({"event": event, "at": time.time(), **what}), flush=True)


class Dhcp:
    """What the switch reads of a DHCP message."""

    def __init__(self, data: bytes) -> None:
        self.op = data[0]
        self.xid = data[4:8]
        self.ciaddr, self.yiaddr = data[12:16], data[16:20]
        self.chaddr = data[28:34]
        options: dict[int, bytes] = {}
        at = 240
        while at + 1 < len(data) and data[at] != 255:
            if data[at] == 0:
                at += 1
                continue
            options[data[at]] = data[at + 2 : at + 2 + data[at + 1]]
            at += 2 + data[at + 1]
        self.kind = options.get(53, b"\0")[0]
        self.seconds = int.from_bytes(options.get(51, b""), "big")
        self.unicast_renewal = self.kind == REQUEST and not {50, 54} & options.keys()


def dhcp_in(frame: bytes) -> tuple[Dhcp | None, bool]:
    """The DHCP message in a frame, and whether it goes to a server."""
    if len(frame) < 42 or frame[12:14] != IPV4.to_bytes(2, "big") or frame[23] != 17:
        return None, False
    start = 14 + (frame[14] & 15) * 4
    sport, dport = struct.unpack_from("!HH", frame, start)
    if (sport, dport) not in ((68, 67), (67, 68)) or len(frame) < start + 8 + 241:
        return None, False
    return Dhcp(frame[start + 8 :]), dport == 67


class SnoopingSwitch:
    def __init__(self, vm_ports: list[str], trusted: str) -> None:
        self.sockets = {name: self._open(name) for name in (*vm_ports, trusted)}
        self.names = {wire.fileno(): name for name, wire in self.sockets.items()}
        self.vm_ports, self.trusted = vm_ports, trusted
        self.broadcasts_only = False
        """Like many a switch it learns nothing from messages of a renewal, which are no broadcasts."""
        self.control: socket.socket | None = None
        self.port_of_mac: dict[bytes, str] = {}
        self.asked: dict[tuple[bytes, bytes], tuple[str, float]] = {}
        self.bindings: dict[bytes, tuple[bytes, str, float]] = {}
        """By IP: MAC, port, and when it ends."""

    @staticmethod
    def _open(name: str) -> socket.socket:
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        wire.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        wire.bind((name, ETH_P_ALL))
        index = socket.if_nametoindex(name)
        promiscuous = struct.pack("IHH8s", index, PACKET_MR_PROMISC, 0, b"")
        wire.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, promiscuous)
        return wire

    def listen(self, path: str) -> None:
        """The control port: one question a connection."""
        self.control = socket.socket(socket.AF_UNIX)
        self.control.bind(path)
        self.control.listen()

    def answer(self) -> None:
        assert self.control is not None
        asking, _ = self.control.accept()
        asking.settimeout(1.0)
        with asking, asking.makefile("rwb") as lines:
            asked = json.loads(lines.readline())
            if asked["do"] == "delete":
                address = socket.inet_aton(asked["ip"])
                mac, port, _ = self.bindings.get(address, (b"", "", 0.0))
                if (text_of(mac), port) == (asked["mac"], asked["port"]):
                    del self.bindings[address]
                    say("deleted", ip=asked["ip"], mac=asked["mac"], port=port)
            elif asked["do"] == "store":
                mac, until = (
                    bytes.fromhex(asked["mac"].replace(":", "")),
                    time.monotonic() + asked["seconds_left"],
                )
                self.bindings[socket.inet_aton(asked["ip"])] = (mac, asked["port"], until)
                self.port_of_mac[mac] = asked["port"]
                say("stored", ip=asked["ip"], mac=asked["mac"], port=asked["port"])
            now = time.monotonic()
            rows = [
                {"ip": socket.inet_ntoa(ip), "mac": text_of(mac), "port": port, "seconds_left": until - now}
                for ip, (mac, port, until) in self.bindings.items()
                if until > now
            ]
            lines.write(json.dumps({"rows": rows}).encode() + b"\n")

    def run(self) -> None:
        poll = select.poll()
        if self.control is not None:
            poll.register(self.control, select.POLLIN)
        for wire in self.sockets.values():
            poll.register(wire, select.POLLIN)
        say("ready", ports=list(self.sockets))
        while True:
            for fd, _ in poll.poll(1000):
                if self.control is not None and fd == self.control.fileno():
                    self.answer()
                    continue
                name = self.names[fd]
                self.take(name, self.sockets[name].recv(65535))

    def take(self, port: str, frame: bytes) -> None:
        dhcp, to_server = dhcp_in(frame)
        if port == self.trusted:
            self.port_of_mac[frame[6:12]] = port
            if dhcp is not None and not to_server:
                self.server_says(dhcp, frame)
            else:
                self.forward(port, frame)
        elif dhcp is not None:
            self.client_says(port, dhcp, to_server, frame)
        elif self.is_bound(port, frame):
            self.port_of_mac[frame[6:12]] = port
            self.forward(port, frame)
        else:
            say("dropped", port=port, mac=text_of(frame[6:12]), type=int.from_bytes(frame[12:14], "big"))

    def client_says(self, port: str, dhcp: Dhcp, to_server: bool, frame: bytes) -> None:
        if not to_server or dhcp.op != 1 or dhcp.chaddr != frame[6:12]:
            say("dropped", port=port, mac=text_of(frame[6:12]), why="spoofed DHCP")
            return
        now = time.monotonic()
        self.asked[dhcp.xid, dhcp.chaddr] = (port, now + PATIENCE)
        say(
            "recorded", port=port, mac=text_of(dhcp.chaddr), kind=dhcp.kind,
            xid=int.from_bytes(dhcp.xid, "big"), renewal=dhcp.unicast_renewal, unicast=frame[:6] != BROADCAST,
        )  # fmt: skip
        if dhcp.kind in (RELEASE, DECLINE):
            self.bindings.pop(dhcp.ciaddr, None)
        self.send(self.trusted, frame)

    def server_says(self, dhcp: Dhcp, frame: bytes) -> None:
        port, until = self.asked.get((dhcp.xid, dhcp.chaddr), ("", 0.0))
        if time.monotonic() > until:
            say("dropped", port=self.trusted, why="nobody asked")
            return
        ip = socket.inet_ntoa(dhcp.yiaddr)
        if self.broadcasts_only and dhcp.ciaddr != b"\0\0\0\0":
            say("not looked at", ip=ip)
        elif dhcp.kind == ACK and dhcp.yiaddr != b"\0\0\0\0":
            self.bindings[dhcp.yiaddr] = (dhcp.chaddr, port, time.monotonic() + dhcp.seconds)
            self.port_of_mac[dhcp.chaddr] = port
            say("bound", ip=ip, mac=text_of(dhcp.chaddr), port=port, seconds=dhcp.seconds)
        elif dhcp.kind == NAK:
            for address in [a for a, (mac, _, _) in self.bindings.items() if mac == dhcp.chaddr]:
                del self.bindings[address]
            say("rejected", mac=text_of(dhcp.chaddr), port=port)
        self.send(port, frame)

    def is_bound(self, port: str, frame: bytes) -> bool:
        ethertype = int.from_bytes(frame[12:14], "big")
        if ethertype == ARP and len(frame) >= 42:
            sender = frame[28:32]
            if sender == b"\0\0\0\0" and frame[22:28] == frame[6:12]:
                return True
            if frame[22:28] != frame[6:12]:
                return False
        elif ethertype == IPV4 and len(frame) >= 34:
            sender = frame[26:30]
        else:
            return False
        mac, at, until = self.bindings.get(sender, (b"", "", 0.0))
        return (mac, at) == (frame[6:12], port) and time.monotonic() < until

    def forward(self, port: str, frame: bytes) -> None:
        to = self.port_of_mac.get(frame[:6])
        if to is not None:
            if to != port:
                self.send(to, frame)
        elif frame[0] & 1 or port != self.trusted:
            for name in self.sockets:
                if name != port and (frame[0] & 1 or name == self.trusted):
                    self.send(name, frame)

    def send(self, port: str, frame: bytes) -> None:
        try:
            self.sockets[port].send(frame)
        except OSError as error:  # a tap without its VM
            say("not sent", port=port, why=str(error))


def main() -> None:
    parser = argparse.ArgumentParser(description="A DHCP-snooping switch.")
    parser.add_argument("--vm-port", action="append", default=[], metavar="INTERFACE")
    parser.add_argument("--trusted", required=True, metavar="INTERFACE")
    parser.add_argument("--control", metavar="PATH")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--broadcasts-only", action="store_true")
    wanted = parser.parse_args()
    global QUIET
    QUIET = wanted.quiet
    try:
        switch = SnoopingSwitch(wanted.vm_port, wanted.trusted)
        switch.broadcasts_only = wanted.broadcasts_only
        if wanted.control is not None:
            switch.listen(wanted.control)
        switch.run()
    except OSError as error:
        sys.exit(f"snooping switch: {error}")


if __name__ == "__main__":
    main()
