"""The bench of packet-ins: what a VM's start costs is counted, and is the same in a larger network."""

from bench import packet_ins


async def test_a_start_costs_its_dhcp_and_one_question_for_each_partner_whatever_the_network() -> None:
    small = await packet_ins.measure(2, 2, 1, 1)
    large = await packet_ins.measure(50, 2, 1, 1)
    assert small.ours == {"dhcp_client": 4, "dhcp_server": 4, "vm_arp": 4}
    assert (large.ours, large.flow_mods) == (small.ours, small.flow_mods)


def test_reactive_control_asks_at_each_switch_of_the_way_and_for_each_pair() -> None:
    here, there, far = (packet_ins.Guest(n, server, 10 + n) for n, server in enumerate((0, 1, 45)))
    five, questions = 5 * 3, 2 * 2
    pairs = [(here, there), (here, far)]
    edges_and_leaf, with_a_spine = 3, 5
    switches = 2 * (edges_and_leaf + with_a_spine)
    each, (first, entries) = packet_ins.reactive([here, there, far], pairs)
    assert each == five + questions + switches
    assert (first, entries) == (five + questions + 2 * len(pairs), switches)
    assert packet_ins.reactive([here, there, far], [*pairs, (there, here)])[0] == each + 2, (
        "they know the way"
    )
