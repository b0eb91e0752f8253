"""Storage with real ends (test_san), where VXLAN joins the leaves over an IP network of others.

Target, forwarder and both servers of the initiator have a leaf each: all storage is in tunnels.
"""

from collections.abc import Iterator

import msgspec
import pytest

from lab.test_san import (
    VMS,
    test_a_kernels_initiator_migrates_under_load_and_fibre_channel_does_not_notice,
    wires,
)
from retinue_lab.sandbox.handle import LabHandle
from retinue_lab.topology.parts import ForwarderPart
from retinue_lab.topology.topology_file import check, load
from support.lab.start import boot, lab_of

__all__ = ["test_a_kernels_initiator_migrates_under_load_and_fibre_channel_does_not_notice", "wires"]

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.long]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHandle]:
    forwarder = ForwarderPart(leaf="leaf4", mac="02:00:00:00:0f:01")
    network = msgspec.structs.replace(load("vxlan"), mtu=2500, forwarder=forwarder)
    check(network)
    with lab_of(tmp_path_factory.mktemp("labs"), network, "sanvxlan") as handle:
        boot(handle, VMS)
        yield handle
