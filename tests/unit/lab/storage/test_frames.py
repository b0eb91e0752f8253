"""Frames of FCoE: one that is built is read as it was meant, by us and by tshark."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from scapy.utils import wrpcap

from retinue.core.packets import FrameError
from retinue_lab.storage.frames import (
    DIRECTORY,
    FABRIC,
    LARGEST_DATA,
    FcFrame,
    RCtl,
    Type,
    parse_storage,
    port_mac,
    service_parameters,
)

PORT, FORWARDER_MAC = 0x010101, "02:00:00:00:0f:01"
PORT_MAC = port_mac(PORT).hex(":")
FRAMES = (
    FcFrame(RCtl.LINK_REQUEST, DIRECTORY, PORT, Type.LINK_SERVICE, 0x1234, b"\x03" + bytes(115)),
    FcFrame(
        *(RCtl.LINK_ANSWER, PORT, FABRIC, Type.LINK_SERVICE, 0x1234),
        service_parameters(b"\x20" + bytes(7), b"\x10" + bytes(7), of_fabric=True),
    ),
    FcFrame(RCtl.ABORT, DIRECTORY, PORT, Type.BASIC, 5, b""),
    FcFrame(0x01, PORT, DIRECTORY, 0x08, 5, bytes(LARGEST_DATA)),
)


@pytest.mark.parametrize("frame", FRAMES)
def test_what_is_built_is_read(frame: FcFrame) -> None:
    assert parse_storage(frame.on_wire(PORT_MAC, FORWARDER_MAC)) == frame


def test_the_longest_frame_is_as_long_as_it_may_be() -> None:
    assert len(FRAMES[-1].on_wire(PORT_MAC, FORWARDER_MAC)) == 2172
    with pytest.raises(FrameError, match="2113 bytes"):
        FcFrame(0x01, PORT, DIRECTORY, 0x08, 5, bytes(LARGEST_DATA + 1)).build()


def test_what_is_cut_off_is_rejected() -> None:
    with pytest.raises(FrameError, match="shorter than its headers"):
        parse_storage(FRAMES[0].on_wire(PORT_MAC, FORWARDER_MAC)[:59])


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_reads_what_we_mean(tmp_path: Path) -> None:
    path = tmp_path / "frames.pcap"
    wrpcap(str(path), [frame.on_wire(PORT_MAC, FORWARDER_MAC) for frame in FRAMES], linktype=1)
    fields = ("fc.r_ctl", "fc.d_id", "fc.s_id", "fc.type", "fc.ox_id", "fcoe.crc.status", "_ws.malformed")
    command = ["tshark", "-n", "-r", str(path), "-T", "json"]
    for field in fields:
        command += ["-e", field]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    seen = [packet["_source"]["layers"] for packet in json.loads(done.stdout)]
    for frame, packet in zip(FRAMES, seen, strict=True):
        assert "_ws.malformed" not in packet
        assert packet["fcoe.crc.status"] == ["1"], "good"
        found = [int(packet[field][0], 16) for field in ("fc.r_ctl", "fc.type", "fc.ox_id")]
        assert found == [frame.r_ctl, frame.kind, frame.exchange]
        ids = [packet[field][0].replace(".", "") for field in ("fc.d_id", "fc.s_id")]
        assert ids == [f"{frame.d_id:06x}", f"{frame.s_id:06x}"]
