"""S3.3 on real parts: who answers for the gateway, and what a thief gets, where VXLAN joins leaves.

The tests are those of the default network that look at no link of its fabric.
"""

import pytest

from lab.test_anycast_gateway import (
    ips,
    test_a_physical_host_and_a_vm_of_its_subnet_talk_on_through_a_migration,
    test_a_service_is_found_at_the_nearest_and_no_packet_is_lost_as_members_come_and_go,
    test_a_subnet_comes_and_goes_and_nobody_elses_packet_with_it,
    test_all_leaves_share_one_gateway_and_answer_servers_too,
    test_arp_is_answered_with_the_gateways_mac_for_remote_hosts_and_the_own_for_local_ones,
    test_the_ttl_is_taken_down_once_and_ends_a_packet,
)
from lab.test_binding_theft import CASES, VMS
from lab.test_binding_theft import test_a_binding_cannot_be_stolen as cannot_be_stolen
from support.lab.tools import LabBench

__all__ = [
    "VMS",
    "ips",
    "test_a_physical_host_and_a_vm_of_its_subnet_talk_on_through_a_migration",
    "test_a_service_is_found_at_the_nearest_and_no_packet_is_lost_as_members_come_and_go",
    "test_a_subnet_comes_and_goes_and_nobody_elses_packet_with_it",
    "test_all_leaves_share_one_gateway_and_answer_servers_too",
    "test_arp_is_answered_with_the_gateways_mac_for_remote_hosts_and_the_own_for_local_ones",
    "test_the_ttl_is_taken_down_once_and_ends_a_packet",
]

pytestmark = [pytest.mark.lab, pytest.mark.long]

TOPOLOGY = "vxlan"
# In "diverted" the target's switch is halted, which here is its leaf, too: nothing of that could be read.
HERE = [case for case in CASES if case[0] != "diverted"]


@pytest.mark.parametrize(
    ("when", "thief", "location"), HERE, ids=[f"{w}-{p}".replace(" ", "-") for w, _, p in HERE]
)
async def test_a_binding_cannot_be_stolen_over_vxlan(
    bench: LabBench, when: str, thief: str, location: str
) -> None:
    await cannot_be_stolen(bench, when, thief, location)
