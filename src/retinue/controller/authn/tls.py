"""What protects each listener: its TLS context, or none where the operator wants none; and the tokens."""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from retinue.config_file import ConfigError
from retinue.controller.config import Config
from retinue.controller.config_tables import LISTENERS
from retinue.security.authority import PkiError, holder
from retinue.security.contexts import TlsFilesError, reload_certificate, server_context
from retinue.security.identity import PeerRole
from retinue.security.tokens import TokenError, Tokens


@dataclass(slots=True)
class TlsConfig:
    contexts: dict[str, ssl.SSLContext]
    """By listener; one without speaks plain text."""
    files: tuple[Path, Path, Path] | None
    """Authority, certificate and key."""
    tokens: Tokens
    ends: datetime | None
    """When the certificate ends that the controller shows."""

    @property
    def rest_is_open(self) -> bool:
        """Whoever reaches the REST interface may command it: plain text, and no tokens are asked for."""
        return "rest" not in self.contexts and not len(self.tokens)

    def reload(self) -> None:
        """Read certificate, authority and tokens again, for connections to come.

        Raises ConfigError; what was in use stays.
        """
        try:
            self.tokens.reload()
            if self.files is None:
                return
            for context in self.contexts.values():
                reload_certificate(context, *self.files)
            _, self.ends = holder(self.files[1])
        except (TokenError, TlsFilesError, PkiError) as error:
            raise ConfigError(str(error)) from error


def protection(config: Config) -> TlsConfig:
    """Read the files the configuration names. Raises ConfigError."""
    try:
        tokens = Tokens(Path(config.rest.tokens) if config.rest.tokens else None)
        if config.tls is None:
            return TlsConfig({}, None, tokens, None)
        ca, certificate, key = Path(config.tls.ca), Path(config.tls.certificate), Path(config.tls.key)
        contexts = {
            # At the REST interface a token will do instead of a certificate.
            name: server_context(
                ca, certificate, key, certificate_needed=not (name == "rest" and len(tokens))
            )
            for name in LISTENERS
            if name not in config.listen.plaintext
        }
        role, ends = holder(certificate)
    except (TokenError, TlsFilesError, PkiError) as error:
        raise ConfigError(str(error)) from error
    if role not in (None, PeerRole.CONTROLLER):
        raise ConfigError(
            f"{certificate} is a {role}'s certificate; `retinue pki issue controller` makes one"
        )
    if ends < datetime.now(UTC):
        raise ConfigError(
            f"{certificate} ended on {ends:%Y-%m-%d}, nobody would believe it: renew it (`retinue pki renew`)"
        )
    return TlsConfig(contexts, (ca, certificate, key), tokens, ends)
