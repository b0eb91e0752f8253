"""Explorers over moments: one moment in this process, or all of them in several."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache

from prove import honest, words
from prove.moments import Moment, moments
from prove.networks import NETWORKS
from prove.properties import Counterexample, Tally, check, doors
from prove.reach import Explorer

SHOWN = 3
"""Counter-examples of one kind that are shown of a moment; the others are counted."""


class NothingProvedError(Exception):
    """Frames that should have been looked at were not: what was proved is about less than it says."""


@dataclass
class Result:
    """What was found of one moment."""

    network: str
    moment: str
    tally: Tally
    wrong: int = 0
    shown: list[str] = field(default_factory=list)
    """Counter-examples in words."""


def examine(moment: Moment, tally: Tally) -> Iterator[Counterexample]:
    """All that is wrong at a moment. Raises NothingProvedError when an honest pair was never looked at."""
    explorer = Explorer(moment.programs, moment.cables, moment.tunnels)
    for door in doors(moment):
        yield from check(explorer, moment, door, tally)
    missing = wanted_pairs(moment) - tally.pairs
    if missing:
        raise NothingProvedError(f"{moment.name}: no honest frames were followed of {sorted(missing)}")


def wanted_pairs(moment: Moment) -> set[tuple[str, str]]:
    """Each two NICs with addresses of one family, one of which sends to the other; and each to outside."""
    held = honest.holdings(moment.net)
    sending = [one for one in held if moment.senders[one.nic.port_id]]
    pairs = {
        (f"NIC {one.nic.port_id}", f"NIC {to.nic.port_id}")
        for one in sending
        for to in held
        if one.nic != to.nic and (one.vrf, one.ip.version) == (to.vrf, to.ip.version)
    }
    net = moment.net
    out = {vrf: router for vrf in net.vrfs if (router := honest.router_of(net, vrf)) is not None}
    pairs |= {(f"NIC {one.nic.port_id}", "outside") for one in sending if one.vrf in out}
    flooding = {one.nic.port_id: one.nic.vnet for one in sending if honest.may_flood(net, one.nic)}
    pairs |= {(f"NIC {nic}", f"vnet {vnet}") for nic, vnet in flooding.items()}
    return pairs | {(f"server {out[to.vrf].id}", f"NIC {to.nic.port_id}") for to in held if to.vrf in out}


@cache
def moments_of(network: str) -> tuple[Moment, ...]:
    return tuple(moments(NETWORKS[network]()))


def one(network: str, index: int) -> Result:
    moment = moments_of(network)[index]
    result = Result(network, moment.name, Tally())
    kinds: dict[tuple[str, str], int] = {}
    for found in examine(moment, result.tally):
        result.wrong += 1
        kind = (found.property, found.why)
        kinds[kind] = kinds.get(kind, 0) + 1
        if kinds[kind] == 1 and len(kinds) <= SHOWN:
            result.shown.append(words.text(found))
    return result


def all_of(networks: Iterable[str], processes: int) -> Iterator[Result]:
    """Every moment of these networks, as they come."""
    work = [(network, index) for network in networks for index in range(len(moments_of(network)))]
    with ProcessPoolExecutor(processes) as pool:
        running = [pool.submit(one, *item) for item in work]
        try:
            for done in running:
                yield done.result()
        finally:
            for left in running:
                left.cancel()
