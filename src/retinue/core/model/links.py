"""Which links of the fabric lead up: those that are there, to switches from which all below is reached.

A select group spreads packets over a leaf's links without a look at them. So a link without a carrier, at
whichever end, is left out of it; and so is a spine that has lost a link to any other leaf, for the sender's
leaf does not know for which leaf a packet is. What a switch has not told of yet counts as there.
"""

from retinue.core.model.entities import Link
from retinue.core.model.view import NetworkView


def upward_ports(net: NetworkView, switch: str) -> list[int]:
    """Numbers of a leaf's ports by which it sends to spines, or of a spine's to cores, in the order of names.

    Where no way is whole, those with a link; where none has one, all that there are.
    """
    links = sorted((one for one in net.links if one.lower.switch == switch), key=lambda one: one.lower)
    numbers = {one: number for one in links if (number := net.port_number(one.lower)) is not None}
    linked = [one for one in numbers if has_carrier(net, one)]
    whole = [one for one in linked if _is_whole(net, one.upper.switch)]
    return [numbers[one] for one in whole or linked or numbers]


def has_carrier(net: NetworkView, link: Link) -> bool:
    """False once a switch at either end has said that the port has no link, or is no longer there."""
    return not any(
        net.is_down(end) or (net.has_told_ports(end.switch) and net.port_number(end) is None)
        for end in (link.lower, link.upper)
    )


def _is_whole(net: NetworkView, switch: str) -> bool:
    """All that is below it is reached, and what is above it by one way at least."""
    below = (one for one in net.links if one.upper.switch == switch)
    if not all(has_carrier(net, one) for one in below):
        return False
    above = [one for one in net.links if one.lower.switch == switch]
    return not above or any(has_carrier(net, one) and _is_whole(net, one.upper.switch) for one in above)
