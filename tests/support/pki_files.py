"""A certificate authority for tests, and TLS contexts of its parties."""

import ssl
from pathlib import Path

from retinue.security.authority import Authority
from retinue.security.contexts import client_context, server_context
from retinue.security.identity import PeerRole

SERVING = (PeerRole.CONTROLLER, PeerRole.MOBILITY, PeerRole.AGENT)


class Certificates:
    """Issues on demand; parties are written ROLE/NAME, or ROLE/NAME+NAME for several names."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.create(folder)
        self._made: dict[str, tuple[Path, Path]] = {}

    def files(self, party: str) -> tuple[Path, Path]:
        """Certificate and key."""
        if party not in self._made:
            word, _, names = party.partition("/")
            role = PeerRole(word)
            serving = ["127.0.0.1", "localhost"] if role in SERVING else []
            label, *_ = parts = names.split("+")
            issued = self.authority.issue(role, label, names=parts, addresses=serving, again=True)
            self._made[party] = (issued.file, issued.key)
        return self._made[party]

    def server(self, *, certificate_needed: bool = True) -> ssl.SSLContext:
        return server_context(
            self.authority.ca, *self.files("controller/c1"), certificate_needed=certificate_needed
        )

    def client(self, party: str | None) -> ssl.SSLContext:
        """None: it shows no certificate."""
        return client_context(self.authority.ca, *(self.files(party) if party else ()))
