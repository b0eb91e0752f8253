"""What a client of the REST interface shows: a certificate, or a token; and which authority it trusts.

For programs it comes from the environment: RETINUE_CA, RETINUE_CERT, RETINUE_KEY, RETINUE_TOKEN. The
laboratory sets the first three for everything that runs in it.
"""

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from retinue.security.contexts import client_context

CA, CERT, KEY, TOKEN = "RETINUE_CA", "RETINUE_CERT", "RETINUE_KEY", "RETINUE_TOKEN"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What one program shows; nothing of it need be there."""

    ca: Path | None = None
    """The authority of the controller's certificate; None: the system's."""
    certificate: Path | None = None
    key: Path | None = None
    """None: the key is in the certificate's file."""
    token: str = ""

    @classmethod
    def of_environment(cls, variables: Mapping[str, str] = os.environ) -> Self:
        def path(name: str) -> Path | None:
            return Path(variables[name]) if variables.get(name) else None

        return cls(path(CA), path(CERT), path(KEY), variables.get(TOKEN, ""))

    @property
    def environment(self) -> dict[str, str]:
        """All the variables, from which `of_environment` reads the same; what there is not is empty."""
        found = {CA: self.ca, CERT: self.certificate, KEY: self.key, TOKEN: self.token}
        return {name: str(value or "") for name, value in found.items()}

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def context(self) -> ssl.SSLContext:
        """For https. Raises TlsFilesError."""
        return client_context(self.ca, self.certificate, self.key)

    def ssl_for(self, url: str) -> ssl.SSLContext | bool:
        """aiohttp's `ssl` argument for this URL: the context, or nothing special for plain http."""
        return self.context() if url.startswith("https:") else True
