"""The resource manager of several domains: what each one's controller has told, and what servers have left.

Nothing is written down: after a restart each controller tells all of it anew, and until then nothing is
known.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import structlog

from retinue.core.limits import MOST_SERVERS_ASKED, MOST_VMS_HELD
from retinue.core.placement.facts import Holding, OutOfStepError, ServerFacts
from retinue.managers.door import RefusedError, Said
from retinue.protocol.errors import ErrorCode
from retinue.protocol.managers import (
    FILLINGS_PATH,
    MATCHES_PATH,
    Filled,
    Filling,
    MatchAsked,
    Matched,
    need_said,
    policy_said,
    state_said,
)
from retinue.security.identity import PeerRole

log = structlog.get_logger()


class Resources:
    """`offers_to`: by domain that is served, those for whose VMs its servers may be offered."""

    def __init__(self, offers_to: Mapping[str, Collection[str]], clock: Callable[[], float]) -> None:
        self._offers_to = offers_to
        self._clock = clock
        self.holdings = {domain: Holding() for domain in offers_to}

    def said_by(self, domain: str) -> dict[str, Said]:
        """What this domain may say."""

        async def fill(filling: Filling) -> Filled:
            return self.fill(domain, filling)

        async def match(asked: MatchAsked) -> Matched:
            return self.match(domain, asked)

        return {
            FILLINGS_PATH: (Filling, PeerRole.CONTROLLER, fill),
            MATCHES_PATH: (MatchAsked, PeerRole.MOBILITY, match),
        }

    def fill(self, domain: str, filling: Filling) -> Filled:
        """Raises RefusedError."""
        holding, before = self.holdings[domain], self.holdings[domain].whole
        kept = {} if filling.number == 0 else holding.servers
        told = [one.plain() for one in filling.servers]
        _check_room(kept | {one.server: one for one in told})
        try:
            holding.fill(
                filling.instance,
                filling.number,
                filling.policy.plain(),
                told,
                filling.gone,
                self._clock(),
                whole=filling.whole,
            )
        except OutOfStepError:
            raise RefusedError(
                f"that does not follow what was told of domain {domain}: tell all of it anew",
                ErrorCode.OUT_OF_STEP,
            ) from None
        if holding.whole and (filling.number == 0 or not before):
            log.info("managers.filled", domain=domain, servers=len(holding.servers))
        return Filled(holding.number)

    def match(self, domain: str, asked: MatchAsked) -> Matched:
        """Raises RefusedError."""
        holding, now = self.holdings[domain], self._clock()
        if not holding.counts(now):
            raise RefusedError(f"the controller of domain {domain} has not told lately what there is")
        need = holding.need_of(asked.vm)
        if need is None:
            raise RefusedError(f"nobody has told of VM {asked.vm} in domain {domain}", ErrorCode.UNKNOWN_VM)
        may = [one for one in dict.fromkeys(asked.domains) if domain in self._offers_to.get(one, ())]
        offers = [
            offer
            for one in may
            if one != domain and self.holdings[one].counts(now)
            if (offer := self.holdings[one].offer(one, need)) is not None
        ]
        if not asked.distances:  # It has no clients: far from whom?
            offers = [replace(one, distance=None) for one in offers]
        return Matched(
            need_said(need),
            policy_said(holding.policy),
            [state_said(one) for one in holding.states_for(asked.vm, asked.distances)],
            [state_said(one) for one in offers],
        )


def _check_room(servers: Mapping[str, ServerFacts]) -> None:
    """Raises RefusedError where a domain has more than is kept."""
    if len(servers) > MOST_SERVERS_ASKED:
        raise RefusedError(f"more than {MOST_SERVERS_ASKED} servers of a domain are not kept")
    if sum(len(one.hosted) + len(one.booked) for one in servers.values()) > MOST_VMS_HELD:
        raise RefusedError(f"more than {MOST_VMS_HELD} VMs and bookings of a domain are not kept")
