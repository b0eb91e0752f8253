"""The smaller form of `make prove` (see tests/prove): all header values, in some moments of some networks."""

import pytest

pytest.importorskip("z3", reason="make install-prove")

from prove import words
from prove.moments import moments
from prove.networks import NETWORKS
from prove.properties import Tally
from prove.run import examine


@pytest.mark.parametrize(
    ("network", "name"),
    [
        ("small", "at rest"),
        ("small", "diverted: stage 1"),
        ("small", "copied: done"),
        ("small", "returned: stage 2"),
        ("small", "source_closed: stage 1"),
        ("small", "settled: done"),
        ("tiers", "at rest"),
        ("macs", "at rest"),
        ("macs", "diverted: stage 3"),
        ("dual", "at rest"),
        ("vnets", "at rest"),
        ("tenants", "at rest"),
        ("tenants", "copied: done"),
        ("routed", "at rest"),
        ("uplinks", "by the second uplink: stage 1"),
        ("vxlan", "at rest"),
        ("ways_out", "copied: done"),
        ("flooded", "diverted: stage 1"),
        ("isolated", "at rest"),
        ("service", "at rest"),
        ("service", "diverted: stage 1"),
    ],
)
def test_every_frame_has_the_fate_it_should_have(network: str, name: str) -> None:
    moment = next(one for one in moments(NETWORKS[network]()) if one.name.startswith(name))
    tally = Tally()
    for found in examine(moment, tally):
        pytest.fail(words.text(found))
    assert tally.fates > 300
    assert tally.honest >= 6
