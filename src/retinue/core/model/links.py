"""Which links of the fabric lead up: those that are there, to switches from which all below is reached.

A select group spreads packets over a leaf's links without a look at them. So a link that is not sound is
left out of it: one without a carrier, at whichever end, or one that loses frames; and so is a spine that has
such a link to any other leaf, for the sender's leaf does not know for which leaf a packet is. What a switch
has not told of yet counts as there.

A link that is idle (`NetworkView.idle_links`) is as none: nothing is sent up by it, and no spine is asked to
reach a leaf by it. One that joins some of the leaves only leads not everywhere, and gets nothing from any: so
a spine or a leaf may come and go link by link.
"""

from collections.abc import Callable, Iterable
from functools import cached_property
from itertools import pairwise

from retinue.core.model.entities import Link, PortRef, Role
from retinue.core.model.view import NetworkView

Sound = Callable[[NetworkView, Link], bool]


def upward_ports(net: NetworkView, switch: str) -> list[int]:
    """Numbers of a leaf's ports by which it sends to spines, or of a spine's to cores, in the order of names.

    Where no way is whole, those that lead everywhere but for what is lost; else those whose own link is
    sound. Where none is, those with a carrier, by the same choice: a link that loses some is more than none.
    Where none has one, all that there are.
    """
    return _Links(net).upward_ports(switch)


def with_whole_ways(net: NetworkView, without: PortRef | None = None) -> set[str]:
    """The switches that reach something above by a sound link, and all from there; `without` this one."""
    links = _Links(net, without)
    return {switch for switch in links.above if links.has_whole_way(switch)}


def parts(net: NetworkView, without: PortRef | None = None) -> list[set[str]]:
    """The switches that reach each other by links that are not idle, each once; `without` this one."""
    found: list[set[str]] = []
    for link in net.links:
        if link.lower in net.idle_links or link.lower == without:
            continue
        joined = [part for part in found if link.lower.switch in part or link.upper.switch in part]
        found = [part for part in found if part not in joined]
        found.append({link.lower.switch, link.upper.switch}.union(*joined))
    return found


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


def spines_of_pod(net: NetworkView, leaf: str) -> set[str]:
    """That are joined to a leaf, or to one that is joined to one of these; be the links well or not."""
    spines: dict[str, set[str]] = {}
    for link in net.links:
        if link.lower not in net.idle_links and net.switches[link.lower.switch].role is Role.LEAF:
            spines.setdefault(link.upper.switch, set()).add(link.lower.switch)
    return next((above for leaves, above in _pods(spines) if leaf in leaves), set())


def leaves_of_pod(net: NetworkView, leaves: Iterable[str]) -> set[str]:
    """That have a spine in common with one of these."""
    spines = {link.upper.switch for leaf in leaves for link in links_above(net, leaf)}
    return {link.lower.switch for spine in spines for link in net.links_at(spine)} - spines


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
    return not above or any(is_sound(net, link) and link.lower not in net.idle_links for link in above)


class _Links:
    """The links of a network as it is now, by the switches at both ends."""

    def __init__(self, net: NetworkView, without: PortRef | None = None) -> None:
        """`without`: a link by its lower end, which is looked at as if it were idle."""
        self._net = net
        self._idle = net.idle_links if without is None else net.idle_links | {without}
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
        working = self._working(numbers) or list(numbers)
        for sound in (is_sound, has_carrier):
            good = [one for one in working if sound(net, one)]
            everywhere = [one for one in good if one.upper.switch in self._lead_everywhere]
            whole = [one for one in everywhere if self._is_whole(one.upper.switch, sound)]
            if good:
                return [numbers[one] for one in whole or everywhere or good]
        return list(numbers.values())

    def has_whole_way(self, switch: str) -> bool:
        """One at least of the ways up is sound, and reaches all that others do."""
        return any(
            is_sound(self._net, one)
            and one.upper.switch in self._lead_everywhere
            and self._is_whole(one.upper.switch, is_sound)
            for one in self._working(self.above.get(switch, ()))
        )

    def _working(self, links: Iterable[Link]) -> list[Link]:
        return [one for one in links if one.lower not in self._idle]

    @cached_property
    def _lead_everywhere(self) -> frozenset[str]:
        """The spines that lead to every leaf of their pod, and on to a core if any of the pod does; the cores
        that lead to every leaf to which any core does. Carriers and losses are not looked at."""
        spines: dict[str, set[str]] = {}
        cores: dict[str, set[str]] = {}
        for one in self._working(self._net.links):
            is_leaf = self._net.switches[one.lower.switch].role is Role.LEAF
            (spines if is_leaf else cores).setdefault(one.upper.switch, set()).add(one.lower.switch)
        below = {core: set().union(*(spines.get(one, ()) for one in leads)) for core, leads in cores.items()}
        pods = _pods(spines)
        from_cores: set[str] = set()
        for leaves, _ in pods:
            if any(not leaves.isdisjoint(reached) for reached in below.values()):
                from_cores |= leaves
        found = {core for core, reached in below.items() if from_cores <= reached}
        led_on = {spine for core in found for spine in cores[core]}
        for leaves, of_pod in pods:
            needs_core = any(one in leads for leads in cores.values() for one in of_pod)
            found |= {one for one in of_pod if spines[one] == leaves and (not needs_core or one in led_on)}
        return frozenset(found)

    def _is_whole(self, switch: str, sound: Sound) -> bool:
        """All that is below it is reached, and what is above it by one way at least."""
        key = switch, sound
        if key not in self._whole:
            self._whole[key] = self._look_whether_whole(switch, sound)
        return self._whole[key]

    def _look_whether_whole(self, switch: str, sound: Sound) -> bool:
        if not all(sound(self._net, one) for one in self._working(self._below[switch])):
            return False
        above = self._working(self.above.get(switch, ()))
        return not above or any(
            sound(self._net, one)
            and one.upper.switch in self._lead_everywhere
            and self._is_whole(one.upper.switch, sound)
            for one in above
        )


def _pods(spines: dict[str, set[str]]) -> list[tuple[set[str], set[str]]]:
    """Leaves and spines that belong together; `spines`: the leaves of each spine."""
    found: list[tuple[set[str], set[str]]] = []
    for spine, leaves in spines.items():
        joined = [pod for pod in found if not pod[0].isdisjoint(leaves)]
        found = [pod for pod in found if pod not in joined]
        found.append((leaves.union(*(one[0] for one in joined)), {spine}.union(*(one[1] for one in joined))))
    return found


def links_between(net: NetworkView, start: str, end: str) -> list[list[tuple[Link, bool]]]:
    """The sound links that a packet may take from one switch to another, without a detour: up (True) until
    both are reached, and down. Those of one list at the same distance."""
    links = _in_use(net)
    rising, ending = [{start}], [{end}]
    while not rising[-1] & ending[-1]:
        for levels in (rising, ending):
            levels.append({link.upper.switch for link in links if link.lower.switch in levels[-1]})
        if not (rising[-1] and ending[-1]):
            return []  # Nothing above leads to both.
    rising[-1] = ending[-1] = rising[-1] & ending[-1]

    def of(lower: set[str], upper: set[str], *, upwards: bool) -> list[tuple[Link, bool]]:
        there = (link for link in links if link.lower.switch in lower and link.upper.switch in upper)
        return [(link, upwards) for link in there]

    up = [of(lower, upper, upwards=True) for lower, upper in pairwise(rising)]
    down = [of(lower, upper, upwards=False) for lower, upper in pairwise(ending)]
    return [*up, *reversed(down)]


def links_to(net: NetworkView, end: str) -> list[list[tuple[Link, bool]]]:
    """As `links_between`, from every other leaf to this one."""
    links = _in_use(net)
    near = {link.upper.switch for link in links if link.lower.switch == end}
    lower = {link.lower.switch for link in links} - {end}
    leaves = {switch for switch in lower if net.switches[switch].role is Role.LEAF}
    far = lower - leaves - near
    return [
        level
        for level in (
            [(link, True) for link in links if link.lower.switch in leaves],
            [(link, True) for link in links if link.lower.switch in far],
            [(link, False) for link in links if link.lower.switch in near and far],
            [(link, False) for link in links if link.lower.switch == end],
        )
        if level
    ]


def links_up(net: NetworkView, start: str) -> list[list[tuple[Link, bool]]]:
    """The sound links that a packet may take up from a switch, each True; those of one list at the same
    distance."""
    found: list[list[tuple[Link, bool]]] = []
    links, level = _in_use(net), {start}
    while above := [link for link in links if link.lower.switch in level]:
        found.append([(link, True) for link in above])
        level = {link.upper.switch for link in above}
    return found


def _in_use(net: NetworkView) -> list[Link]:
    return [link for link in net.links if is_sound(net, link) and link.lower not in net.idle_links]
