"""Others' word on DHCP: tshark's reading of frames, and what Kea's log says it was asked."""

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scapy.utils import PcapWriter

from support.lab.tools import Json, LabBench

RENEWAL = {
    "dhcp.type": "1",
    "dhcp.hw.type": "0x01",
    "dhcp.hw.len": "6",
    "dhcp.hops": "0",
    "dhcp.flags": "0x0000",
    "dhcp.ip.your": "0.0.0.0",
    "dhcp.ip.server": "0.0.0.0",
    "dhcp.ip.relay": "0.0.0.0",
    "dhcp.option.dhcp": "3",
    "dhcp.option.requested_ip_address": "",
    "dhcp.option.dhcp_server_id": "",
    "udp.srcport": "68",
    "udp.dstport": "67",
    "udp.checksum.status": "1",
    "ip.checksum.status": "1",
    "_ws.expert": "",
}
"""A proper DHCPREQUEST in state RENEWING as tshark sees it, sent straight (RFC 2131, table 5)."""


def tshark(frames: Iterable[bytes], fields: Sequence[str], folder: Path) -> list[dict[str, str]]:
    """What tshark reads in each frame, by field; "" for a field that is not there,
    the first of one that is there twice (a client identifier repeats the hardware address)."""
    path = folder / "frames.pcap"
    with PcapWriter(str(path), linktype=1) as writer:
        for frame in frames:
            writer.write(frame)
    argv = ["tshark", "-n", "-r", str(path), "-T", "fields", "-E", "separator=/t", "-E", "occurrence=f"]
    argv += ["-o", "udp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"]
    for field in fields:
        argv += ["-e", field]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return [dict(zip(fields, line.split("\t"), strict=True)) for line in done.stdout.splitlines()]


def kea_log(bench: LabBench) -> str:
    return (bench.lab.directory / "logs" / "kea-dhcp4.log").read_text()


async def kea_tells_all(bench: LabBench, config: Json | None = None) -> None:
    """Let Kea log each message it is asked, with every option of it."""
    config = config or await bench.kea("config-get")
    config.pop("hash", None)
    config["Dhcp4"]["loggers"][0].update(severity="DEBUG", debuglevel=99)
    await bench.kea("config-set", config)


def asked_of_kea(log: str, xid: int) -> list[str]:
    """The messages of this transaction that Kea took in, with their options, as its log shows them."""
    found: list[str] = []
    for part in log.split("DHCP4_QUERY_DATA")[1:]:
        message = part.split("[kea-dhcp4", 1)[0]
        if f"transid={xid:#x}" in message or f"tid={xid:#x}" in message:
            found.append(message)
    return found


def dissected(frame: Any, *names: str) -> dict[str, Any]:
    """Fields of a captured frame's BOOTP layer, by scapy."""
    return {name: frame.ether["BOOTP"].getfieldval(name) for name in names}
