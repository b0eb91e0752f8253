"""Which links of the fabric lead up: those that are there, to switches from which all below is reached.

A select group spreads packets over a leaf's links without a look at them. So a link that is not sound is
left out of it: one without a carrier, at whichever end, or one that loses frames; and so is a spine that has
such a link to any other leaf, for the sender's leaf does not know for which leaf a packet is. What a switch
has not told of yet counts as there.
"""

from collections.abc import Callable

from retinue.core.model.entities import Link
from retinue.core.model.view import NetworkView

Sound = Callable[[NetworkView, Link], bool]


def upward_ports(net: NetworkView, switch: str) -> list[int]:
    """Numbers of a leaf's ports by which it sends to spines, or of a spine's to cores, in the order of names.

    Where no way is whole, those whose own link is sound. Where none is, those with a carrier, by the same
    choice: a link that loses some is more than none. Where none has one, all that there are.
    """
    links = sorted((one for one in net.links if one.lower.switch == switch), key=lambda one: one.lower)
    numbers = {one: number for one in links if (number := net.port_number(one.lower)) is not None}
    for sound in (is_sound, has_carrier):
        good = [one for one in numbers if sound(net, one)]
        whole = [one for one in good if _is_whole(net, one.upper.switch, sound)]
        if good:
            return [numbers[one] for one in whole or good]
    return list(numbers.values())


def is_sound(net: NetworkView, link: Link) -> bool:
    """It has a carrier, and loses no frames."""
    return link.lower not in net.lost_links and has_carrier(net, link)


def has_carrier(net: NetworkView, link: Link) -> bool:
    """False once a switch at either end has said that the port has no link, or is no longer there."""
    return not any(
        net.is_down(end) or (net.has_told_ports(end.switch) and net.port_number(end) is None)
        for end in (link.lower, link.upper)
    )


def _is_whole(net: NetworkView, switch: str, sound: Sound) -> bool:
    """All that is below it is reached, and what is above it by one way at least."""
    below = (one for one in net.links if one.upper.switch == switch)
    if not all(sound(net, one) for one in below):
        return False
    above = [one for one in net.links if one.lower.switch == switch]
    return not above or any(sound(net, one) and _is_whole(net, one.upper.switch, sound) for one in above)
