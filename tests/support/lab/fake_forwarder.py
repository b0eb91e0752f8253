"""A fake FCoE forwarder for tests, at one interface: it grants logins, and sends storage frames back.

    python -m support.lab.fake_forwarder INTERFACE

No Fibre Channel: it knows no sessions and no disks. Each storage frame that comes is printed, and goes back
to its sender: "storage SRC MARK". The mark is the first eight bytes after the header of Fibre Channel.
"""

import socket
import struct
import sys

from retinue.core.packets import Ethernet, EtherType, FrameError, parse
from retinue.core.packets.ethernet import mac_bytes, mac_text
from retinue.core.packets.fip import (
    ADVERTISEMENT,
    ALL_FORWARDERS,
    FLAG_FORWARDER,
    FLAG_FPMA,
    REPLY,
    Command,
    Descriptor,
    Fip,
    LinkService,
    Operation,
    mac_descriptor,
    parse_fip,
)

ETH_P_ALL, SOL_PACKET, ADD_MEMBERSHIP, MULTICAST = 3, 263, 1, 0
MARK = slice(38, 46)
"""In the payload: after 13 bytes, the start of frame and a header of Fibre Channel."""


class Forwarder:
    def __init__(self, interface: str) -> None:
        self.wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self.wire.bind((interface, 0))
        group = struct.pack(
            "IHH8s", socket.if_nametoindex(interface), MULTICAST, 6, mac_bytes(ALL_FORWARDERS)
        )
        self.wire.setsockopt(SOL_PACKET, ADD_MEMBERSHIP, group)
        self.mac = mac_text(self.wire.getsockname()[4])

    def run(self) -> None:
        print("ready", flush=True)
        while True:
            data, origin = self.wire.recvfrom(65536)
            if origin[2] == socket.PACKET_OUTGOING:
                continue
            try:
                frame = parse(data)
                if frame.ethertype == EtherType.FCOE:
                    self.storage(frame)
                elif frame.ethertype == EtherType.FIP:
                    self.fip(frame.src, parse_fip(frame.payload))
            except FrameError as error:
                print(f"bad {error}", flush=True)

    def storage(self, frame: Ethernet) -> None:
        print(f"storage {frame.src} {frame.payload[MARK].hex()}", flush=True)
        self.send(Ethernet(frame.src, self.mac, EtherType.FCOE, frame.payload))

    def fip(self, node: str, said: Fip) -> None:
        service = said.service
        print(f"fip {node} {said.operation} {said.subcode}", flush=True)
        if said.operation == Operation.DISCOVERY:
            flags = FLAG_FPMA | FLAG_FORWARDER
            self.say(node, Fip(Operation.DISCOVERY, ADVERTISEMENT, flags, (mac_descriptor(self.mac),)))
        elif service is not None:
            granted = "0e:fc:00:01:01:" + node[-2:]
            fc_id = int(granted.replace(":", "")[6:], 16)
            yes = LinkService(Descriptor(service.kind), Command.ACCEPT, fc_id, 0xFFFFFE, service.exchange)
            named = ((service.kind, yes.build()), mac_descriptor(granted))
            self.say(node, Fip(Operation.LINK_SERVICE, REPLY, FLAG_FPMA, named))

    def say(self, node: str, said: Fip) -> None:
        self.send(Ethernet(node, self.mac, EtherType.FIP, said.build()))

    def send(self, frame: Ethernet) -> None:
        self.wire.send(frame.build())


if __name__ == "__main__":
    Forwarder(sys.argv[1]).run()
