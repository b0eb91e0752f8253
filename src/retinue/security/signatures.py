"""Signatures of what must be believed wherever it comes from: made by a manager, checked by certificate.

A signature outlives the certificate it was made with: it counts if the certificate was good at the time that
is signed with it. Who may sign is a manager; a certificate of another authority counts for nothing.
"""

from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from retinue.security.identity import Identity, IdentityError, PeerRole, identity_of_uris
from retinue.security.key_files import KeyFileError, read_key


class SignatureError(ValueError):
    """A signature that cannot be made, or does not count; the message says why."""


def sign(data: bytes, key: Path) -> str:
    """In hexadecimal. Raises SignatureError."""
    try:
        found = read_key(key)
    except KeyFileError as error:
        raise SignatureError(str(error)) from error
    return found.sign(data, ec.ECDSA(hashes.SHA256())).hex()


def check(data: bytes, signature: str, certificate: str, ca: Path, at: float) -> Identity:
    """Who signed: a manager of this authority, whose certificate was good `at` (seconds since the epoch).

    Raises SignatureError.
    """
    try:
        theirs = x509.load_pem_x509_certificate(certificate.encode())
        ours = x509.load_pem_x509_certificate(ca.read_bytes())
        theirs.verify_directly_issued_by(ours)
        names = theirs.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        identity = identity_of_uris(names.get_values_for_type(x509.UniformResourceIdentifier))
        signed_with = theirs.public_key()
    except OSError as error:
        raise SignatureError(f"cannot read the authority {ca}: {error.strerror}") from error
    except (
        ValueError,
        TypeError,
        InvalidSignature,
        UnsupportedAlgorithm,
        x509.ExtensionNotFound,
        IdentityError,
    ) as error:
        raise SignatureError("the publisher's certificate is none of this authority's") from error
    if identity.role is not PeerRole.MANAGER:
        raise SignatureError(f"signed by {identity}: only a manager publishes")
    try:
        when = datetime.fromtimestamp(at, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise SignatureError(f"{at} is no time at which something was signed") from error
    if not theirs.not_valid_before_utc <= when <= theirs.not_valid_after_utc:
        raise SignatureError("the publisher's certificate was not good when it signed")
    if not isinstance(signed_with, ec.EllipticCurvePublicKey):
        raise SignatureError("the publisher's key is not of an elliptic curve")
    try:
        signed_with.verify(bytes.fromhex(signature), data, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError) as error:
        raise SignatureError("the signature does not match") from error
    return identity
