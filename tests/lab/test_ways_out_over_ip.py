"""Two ways out of a VRF where VXLAN joins the leaves: one router is at the border's leaf, the other at a
server's."""

import pytest

from lab.test_ways_out import test_the_other_router_of_a_vrf_takes_over_both_families

__all__ = ["test_the_other_router_of_a_vrf_takes_over_both_families"]

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.long]

TOPOLOGY = "vxlan"
