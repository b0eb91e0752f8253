"""lldpd at the other end of a cable, in namespaces of its own: what it writes, and what it reads of ours.

Run as `unshare --net --mount python lldpd_peer.py MAC FRAME [CHASSIS ADDRESS]`: lldpd says this gateway MAC
in the TLV of ours and gets the frame (hexadecimal); its chassis has this id, and its NIC this address.
Printed is JSON: the frame that it wrote, and its neighbours as lldpcli has them. It gives up root, which it
cannot do in the laboratory's user namespace: so it is not in there.
"""

import json
import socket
import subprocess
import sys
import time
from typing import Any

SOCKET = "/run/lldpd.socket"
LLDP, LIMIT = 0x88CC, 60.0
OURS = bytes.fromhex("52544e01")


def command(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def cli(*words: str) -> str:
    return command("lldpcli", "-u", SOCKET, *words)


def answers() -> bool:
    try:
        cli("show", "configuration")
    except subprocess.CalledProcessError:
        return False
    return True


def neighbours() -> list[Any]:
    """Of each: its chassis id, and its TLVs of organizations that lldpd does not know."""
    shown = json.loads(cli("-f", "json0", "show", "neighbors", "details", "hidden"))
    return [
        {
            "chassis": one["chassis"][0]["id"][0]["value"],
            "tlvs": [tlv for some in one.get("unknown-tlvs", []) for tlv in some["unknown-tlv"]],
        }
        for shown_at in shown["lldp"]
        for one in shown_at.get("interface", [])
    ]


def main(mac: str, frame: str, chassis: str = "", address: str = "") -> dict[str, Any]:
    command("mount", "-t", "tmpfs", "none", "/run")
    command("mkdir", "/run/lldpd")
    command("ip", "link", "add", "name", "its", "type", "veth", "peer", "name", "ours")
    if address:
        command("ip", "link", "set", "its", "address", address)
    for name in ("lo", "its", "ours"):
        command("ip", "link", "set", name, "up")
    end = time.monotonic() + LIMIT
    argv = ["lldpd", "-d", "-u", SOCKET, "-I", "its", "-O", "/dev/null"]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as daemon:
        try:
            while not answers() and time.monotonic() < end:
                time.sleep(0.05)
            if chassis:
                cli("configure", "system", "chassisid", chassis)
            tlv = ("oui", "52,54,4e", "subtype", "1", "oui-info", mac.replace(":", ","))
            cli("configure", "lldp", "custom-tlv", *tlv)
            cli("configure", "lldp", "tx-interval", "1")
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(LLDP)) as wire:
                wire.bind(("ours", LLDP))
                wire.settimeout(LIMIT)
                wire.send(bytes.fromhex(frame))
                cli("update")
                written = b""
                while OURS not in written or written == bytes.fromhex(frame):
                    written = wire.recv(2000)
            while not (found := neighbours()) and time.monotonic() < end:
                time.sleep(0.05)
        finally:
            daemon.terminate()
    return {"frame": written.hex(), "neighbours": found}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
