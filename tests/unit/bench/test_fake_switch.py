"""The bench's fake switch beside links: a probe over one comes in above, and back, as if it were well."""

import struct

from bench.scale.fakes.switch import FakeBulkSwitch, Switches
from retinue.core.packets.lldp import probe_frame
from retinue.core.pipeline.entry import PortNo
from retinue.southbound.openflow.codec import encode
from retinue.southbound.openflow.codec.wire import MessageType

FRAME = probe_frame("leaf0", "to-spine0", b"secret", 1, "00:00:de:ad:be:ef")
IN_PORT = struct.Struct("!32xI")


class Heard(FakeBulkSwitch):
    """A switch of which it is noted what it says."""

    def __init__(self, shared: Switches, id: str) -> None:
        super().__init__(shared, id, 1, {})
        self.said: list[bytes] = []

    def say(self, data: bytes) -> None:
        self.said.append(data)

    def sends(self, port: int, frame: bytes) -> None:
        self.data_received(encode.packet_out(7, frame, port))


def test_a_probe_comes_in_above_and_back() -> None:
    shared = Switches(0)
    others: list[bytes] = []
    shared.on_packet_out = lambda switch, frame: others.append(frame)
    leaf, spine = Heard(shared, "leaf0"), Heard(shared, "spine0")
    leaf.above[2] = spine, 5
    leaf.sends(2, FRAME)
    leaf.sends(PortNo.TABLE, FRAME)
    for switch, ports in ((spine, [5]), (leaf, [2, PortNo.CONTROLLER])):
        assert [IN_PORT.unpack_from(said)[0] for said in switch.said] == ports
        assert all(said[1] == MessageType.PACKET_IN and said.endswith(FRAME) for said in switch.said)
    leaf.sends(9, FRAME)
    assert len(leaf.said) == 2, "where no link is, nothing comes back"
    assert not others, "nobody takes it for DHCP"
