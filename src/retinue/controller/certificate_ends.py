"""When certificates end: the controller's own, and those that peers have shown.

One that ends is noticed by nobody until a connection breaks, which may be weeks later and is then for good.
"""

import ssl
from collections.abc import Container, Mapping
from typing import Any

from retinue.core.limits import MOST_SWITCHES
from retinue.core.model import Network
from retinue.security.identity import Identity, PeerRole

SOON = 30 * 86400.0
"""Seconds before its end from which on one is told of."""
LONG_AGO = SOON
"""Seconds since its end, after which nobody is told any more of one that belongs to no server or switch: of a
colleague who has gone, who needs none."""
MOST = 3 * MOST_SWITCHES
"""Holders whose certificates are remembered, more than there are servers and switches; who has shown one last
goes last."""
OWN = "controller"


class CertificateEnds:
    """By holder, as its certificate names it; the one shown last counts."""

    def __init__(self, net: Network) -> None:
        self._net = net
        self._own: float | None = None
        self._shown: dict[Identity, tuple[str, float]] = {}
        """The end as a certificate has it, and in seconds since the epoch: read once, of thousands."""

    def own(self, ends: float | None) -> None:
        """Seconds since the epoch; None: there is none."""
        self._own = ends

    def saw(self, identity: Identity, certificate: Mapping[str, Any]) -> None:
        """A verified one (ssl.SSLSocket.getpeercert), of who has just connected or asked."""
        said = certificate.get("notAfter")
        if not isinstance(said, str):
            return
        before = self._shown.pop(identity, None)
        if before is None or before[0] != said:
            before = said, float(ssl.cert_time_to_seconds(said))
        self._shown[identity] = before
        if len(self._shown) > MOST:
            del self._shown[next(iter(self._shown))]

    def soon(self, now: float) -> dict[str, float]:
        """By holder: the end, in seconds since the epoch, of those that end soon or have ended."""
        found = {} if self._own is None else {OWN: self._own}
        for identity, (_, ends) in self._shown.items():
            if self._is_needed(identity, now - ends):
                found[str(identity)] = ends
        return {who: ends for who, ends in sorted(found.items()) if ends - now < SOON}

    def _is_needed(self, identity: Identity, ended: float) -> bool:
        """Servers and switches that are no more need none. `ended`: seconds ago; less than 0: not yet."""
        known: dict[PeerRole, Container[str]] = {
            PeerRole.AGENT: self._net.servers,
            PeerRole.SWITCH: self._net.switches,
        }
        ids = known.get(identity.role)
        return ended < LONG_AGO if ids is None else any(name in ids for name in identity.names)
