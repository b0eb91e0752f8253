"""Which links of the fabric lead up: those that are there, to switches from which all below is reached.

A select group spreads packets over a leaf's links without a look at them. So a link that is not sound is
left out of it: one without a carrier, at whichever end, or one that loses frames; and so is a spine that has
such a link to any other leaf, for the sender's leaf does not know for which leaf a packet is. What a switch
has not told of yet counts as there.
"""

from collections.abc import Callable, Iterable

from retinue.core.model.entities import Link
from retinue.core.model.view import NetworkView

Sound = Callable[[NetworkView, Link], bool]


def upward_ports(net: NetworkView, switch: str) -> list[int]:
    """Numbers of a leaf's ports by which it sends to spines, or of a spine's to cores, in the order of names.

    Where no way is whole, those whose own link is sound. Where none is, those with a carrier, by the same
    choice: a link that loses some is more than none. Where none has one, all that there are.
    """
    return _Links(net).upward_ports(switch)


def all_upward_ports(net: NetworkView) -> dict[str, list[int]]:
    """`upward_ports` of each switch with links up. Each link is looked at once, however many switches."""
    links = _Links(net)
    return {switch: links.upward_ports(switch) for switch in links.above}


def leads_up(net: NetworkView, switch: str) -> bool:
    """True for a switch with a port to another above it; one that has told no ports yet has those that were
    laid out."""
    return switch in leading_up(net, links_above(net, switch))


def leading_up(net: NetworkView, links: Iterable[Link]) -> set[str]:
    """The switches at the lower ends of these links of which `leads_up` is true."""
    lower = (link.lower for link in links)
    return {at.switch for at in lower if not net.has_told_ports(at.switch) or net.port_number(at) is not None}


def spines_above(net: NetworkView, leaf: str) -> set[str]:
    """To which a leaf has links, be they well or not."""
    return {link.upper.switch for link in links_above(net, leaf)}


def links_above(net: NetworkView, switch: str) -> list[Link]:
    """By which a switch leads up, be they well or not."""
    return [link for link in net.links_at(switch) if link.lower.switch == switch]


def is_sound(net: NetworkView, link: Link) -> bool:
    """It has a carrier, and loses no frames."""
    return link.lower not in net.lost_links and has_carrier(net, link)


def has_carrier(net: NetworkView, link: Link) -> bool:
    """False once a switch at either end has said that the port has no link, or is no longer there."""
    return not any(
        net.is_down(end) or (net.has_told_ports(end.switch) and net.port_number(end) is None)
        for end in (link.lower, link.upper)
    )


def lead_on(net: NetworkView, leaf: str) -> bool:
    """False for a leaf that has links up, and none that is sound: what comes to it gets nowhere else."""
    above = links_above(net, leaf)
    return not above or any(is_sound(net, link) for link in above)


class _Links:
    """The links of a network as it is now, by the switches at both ends."""

    def __init__(self, net: NetworkView) -> None:
        self._net = net
        self.above: dict[str, list[Link]] = {}
        """By the lower switch."""
        self._below: dict[str, list[Link]] = {}
        """By the upper one."""
        self._whole: dict[tuple[str, Sound], bool] = {}
        for link in net.links:
            self.above.setdefault(link.lower.switch, []).append(link)
            self._below.setdefault(link.upper.switch, []).append(link)

    def upward_ports(self, switch: str) -> list[int]:
        net = self._net
        links = sorted(self.above.get(switch, ()), key=lambda one: one.lower)
        numbers = {one: number for one in links if (number := net.port_number(one.lower)) is not None}
        for sound in (is_sound, has_carrier):
            good = [one for one in numbers if sound(net, one)]
            whole = [one for one in good if self._is_whole(one.upper.switch, sound)]
            if good:
                return [numbers[one] for one in whole or good]
        return list(numbers.values())

    def _is_whole(self, switch: str, sound: Sound) -> bool:
        """All that is below it is reached, and what is above it by one way at least."""
        key = switch, sound
        if key not in self._whole:
            self._whole[key] = self._look_whether_whole(switch, sound)
        return self._whole[key]

    def _look_whether_whole(self, switch: str, sound: Sound) -> bool:
        if not all(sound(self._net, one) for one in self._below[switch]):
            return False
        above = self.above.get(switch)
        return not above or any(
            sound(self._net, one) and self._is_whole(one.upper.switch, sound) for one in above
        )
