"""TLS contexts: TLS 1.2 or later, and the peer's certificate must come from our own authority."""

import ssl
from pathlib import Path

from retinue.security.identity import IdentityError, PeerRole, identity_of


class TlsFilesError(Exception):
    """A certificate, key or authority that cannot be used; the message names the file and the reason."""


def server_context(
    ca: Path, certificate: Path, key: Path, *, certificate_needed: bool = True
) -> ssl.SSLContext:
    """For a listener. With `certificate_needed` the handshake fails without a certificate of `ca`'s; else a
    client may show none (and must authenticate in another way), but not a bad one. Raises TlsFilesError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED if certificate_needed else ssl.CERT_OPTIONAL
    # Without tickets each connection shows its certificate, and it is checked against today's date.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    return _loaded(context, ca, certificate, key)


def client_context(
    ca: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    *,
    role: PeerRole | None = None,
) -> ssl.SSLContext:
    """For a client, which checks the server's host name too. Without `ca` the system's authorities are
    trusted, without `certificate` none is shown. `role`: what the server must be by its certificate; whoever
    else has one for that host, such as an agent there, is told nothing. Raises TlsFilesError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if role is not None:
        context.sslobject_class = _of(role)
    if ca is None:
        context.load_default_certs()
    return _loaded(context, ca, certificate, key)


def _of(role: PeerRole) -> type[ssl.SSLObject]:
    """A connection whose handshake fails unless the peer is of this role: nothing has been sent by then."""

    class Checked(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            try:
                found = identity_of(self.getpeercert())
            except IdentityError as error:
                raise ssl.SSLCertVerificationError(f"who answers is no {role}: {error}") from error
            if found is None or found.role is not role:
                raise ssl.SSLCertVerificationError(f"who answers is {found or 'nobody known'}, no {role}")

    return Checked


def reload_certificate(context: ssl.SSLContext, ca: Path, certificate: Path, key: Path) -> None:
    """Use what the files hold now for connections to come. Raises TlsFilesError, and nothing has changed."""
    _loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ca, certificate, key)
    _loaded(context, ca, certificate, key)


def _loaded(
    context: ssl.SSLContext, ca: Path | None, certificate: Path | None, key: Path | None
) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for path in (ca, certificate, key):
        if path is not None and not path.is_file():
            raise TlsFilesError(f"{path}: there is no such file")
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except (ssl.SSLError, OSError) as error:
            raise TlsFilesError(
                f"{ca}: no certificate authority can be read from it: {_why(error)}"
            ) from error
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except (ssl.SSLError, OSError) as error:
            raise TlsFilesError(
                f"{certificate} and {key} are no certificate and its key: {_why(error)}"
            ) from error
    return context


def _no_password() -> str:
    """Instead of OpenSSL's question at the terminal."""
    return ""


def _why(error: OSError) -> str:
    reason = getattr(error, "reason", None) or error.strerror or str(error)
    return str(reason).lower().replace("_", " ")
