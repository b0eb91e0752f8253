"""Ask for an address by ARP and wait for the answer. Run inside a node, as a file, nothing of ours loaded.

Usage: arp.py INTERFACE OWN_ADDRESS ADDRESS TRIES. Prints the MAC that answered; exit code 1 if none did.
Each try waits a quarter of a second for its answer (a request is sent again as a kernel would, only sooner).
"""

import socket
import struct
import sys
import time

ETHERTYPE_ARP = 0x0806
WAIT = 0.25


def ask(interface: str, own: str, wanted: str, tries: int) -> str | None:
    """The MAC address that answers for `wanted`, or None (RFC 826)."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE_ARP)) as wire:
        wire.bind((interface, ETHERTYPE_ARP))
        mac = wire.getsockname()[4]
        sender, target = socket.inet_aton(own), socket.inet_aton(wanted)
        header = b"\xff" * 6 + mac + struct.pack("!HHHBBH", ETHERTYPE_ARP, 1, 0x0800, 6, 4, 1)
        request = (header + mac + sender + bytes(6) + target).ljust(60, b"\0")
        for _ in range(tries):
            wire.send(request)
            end = time.monotonic() + WAIT
            while (left := end - time.monotonic()) > 0:
                wire.settimeout(left)
                try:
                    frame = wire.recv(2048)
                except TimeoutError:
                    break
                if len(frame) >= 42 and frame[20:22] == b"\0\2" and frame[28:32] == target:
                    return frame[22:28].hex(":")
    return None


if __name__ == "__main__":
    answer = ask(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
    if answer is not None:
        print(answer)
    sys.exit(answer is None)
