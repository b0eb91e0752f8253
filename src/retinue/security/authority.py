"""A certificate authority in a folder: makes itself, issues certificates for roles, renews them.

    FOLDER/ca.pem, ca.key               the authority; ca.key never leaves the operator's machine
    FOLDER/ROLE-NAME.pem, ROLE-NAME.key what it issued, with its key

Keys are EC P-256. The folder is its owner's alone (0700), keys are 0600. Nothing is remembered elsewhere:
what was issued is what lies there.
"""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from retinue.security.identity import Identity, IdentityError, PeerRole, check_name, identity_of_uris, uri
from retinue.security.key_files import KeyFileError, read_key, write

CA_DAYS = 3650
DAYS = 397
"""A year and a month; the most that common TLS libraries take of a server."""
CLOCK_SKEW = timedelta(minutes=5)


class PkiError(Exception):
    """It cannot be done; the message says what and why, and what to do."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate in the folder. Times are in UTC."""

    file: Path
    label: str
    """The name the file and the common name have."""
    identity: Identity
    addresses: tuple[str, ...]
    """Host names and IP addresses at which it may serve."""
    serial: int
    not_before: datetime
    not_after: datetime
    fingerprint: str
    """SHA-256 of the certificate, hexadecimal."""

    @property
    def key(self) -> Path:
        return self.file.with_suffix(".key")


class Authority:
    """An authority, with all that it has issued."""

    def __init__(self, folder: Path) -> None:
        """The authority that lies in `folder`. Raises PkiError when there is none."""
        self.folder = folder
        self.certificate = _read_certificate(folder / "ca.pem", "`retinue pki init` makes an authority")

    @classmethod
    def create(cls, folder: Path, name: str = "retinue", days: int = CA_DAYS) -> "Authority":
        """Make an authority in a folder, which may exist already. Raises PkiError when it holds one."""
        if (folder / "ca.pem").exists() or (folder / "ca.key").exists():
            raise PkiError(f"there is an authority in {folder} already; a new one needs a folder of its own")
        with _files(folder):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
            key = ec.generate_private_key(ec.SECP256R1())
            subject = _subject(f"{name} authority")
            certificate = (
                _begin(subject, subject, key.public_key(), days)
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(_usage(signs_certificates=True), critical=True)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
                .sign(key, hashes.SHA256())
            )
            _write_key(folder / "ca.key", key)
            write(folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        return cls(folder)

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def ends(self) -> datetime:
        return self.certificate.not_valid_after_utc

    def issue(
        self,
        role: PeerRole,
        label: str,
        *,
        names: Collection[str] = (),
        addresses: Sequence[str] = (),
        days: int = DAYS,
        again: bool = False,
    ) -> Issued:
        """A new key and its certificate. `names`: whom it may speak for; left out, `label`.

        `addresses`: where it serves, for those that connect to it; a controller needs them. `again`: in the
        place of one that lies there. Raises PkiError.
        """
        try:
            uris = [uri(role, name) for name in names or (label,)]
            hosts = [_host(text) for text in addresses]
            check_name(label)
        except (IdentityError, ValueError) as error:
            raise PkiError(str(error)) from error
        if role in (PeerRole.CONTROLLER, PeerRole.MOBILITY) and not hosts:
            whose = "a controller's" if role is PeerRole.CONTROLLER else "a mobility or resource manager's"
            raise PkiError(
                f"{whose} certificate needs the addresses at which it is reached: --address ADDRESS"
            )
        if hosts and role not in (PeerRole.CONTROLLER, PeerRole.MOBILITY, PeerRole.AGENT):
            raise PkiError(f"a {role} serves nobody: its certificate has no addresses")
        path = self._path(role, label)
        if path.exists() and not again:
            raise PkiError(f"{path} exists already; `retinue pki renew {role} {label}` issues it anew")
        ends = datetime.now(UTC) + timedelta(days=days)
        if days < 1 or ends > self.ends:
            raise PkiError(f"{days} days: the authority itself ends on {self.ends:%Y-%m-%d}")
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else [])]
        names_in_it = [*(x509.UniformResourceIdentifier(text) for text in uris), *hosts]
        certificate = (
            _begin(_subject(label, role), self.certificate.subject, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names_in_it), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.certificate.public_key()),  # type: ignore[arg-type]
                critical=False,
            )
            .sign(self._key(), hashes.SHA256())
        )
        with _files(self.folder):
            # Complete before either is put in place: a reader in between finds the old pair, or a mismatch
            # that the next reading mends, but never half a file.
            _write_key(path.with_suffix(".key"), key)
            write(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        return _issued(path, certificate)

    def renew(self, old: Issued, days: int = DAYS) -> Issued:
        """The same once more, with a new key and a new end. Raises PkiError."""
        return self.issue(
            old.identity.role,
            old.label,
            names=sorted(old.identity.names),
            addresses=old.addresses,
            days=days,
            again=True,
        )

    def get(self, role: PeerRole, label: str) -> Issued:
        """Raises PkiError when it was not issued."""
        path = self._path(role, label)
        return _issued(path, _read_certificate(path, f"`retinue pki issue {role} {label}` makes it"))

    def issued(self) -> list[Issued]:
        """Everything that lies in the folder, by file name. Raises PkiError for what cannot be read."""
        with _files(self.folder):
            paths = sorted(path for path in self.folder.glob("*.pem") if path.name != "ca.pem")
        return [_issued(path, _read_certificate(path, "it was not made here")) for path in paths]

    def _path(self, role: PeerRole, label: str) -> Path:
        return self.folder / f"{role}-{label}.pem"

    def _key(self) -> ec.EllipticCurvePrivateKey:
        path = self.folder / "ca.key"
        try:
            key = read_key(path)
        except KeyFileError as error:
            raise PkiError(str(error)) from error
        if key.public_key() != self.certificate.public_key():
            raise PkiError(f"{path} is not the key of {self.ca}")
        return key


def holder(path: Path) -> tuple[PeerRole | None, datetime]:
    """The role a certificate gives its holder (None: none of ours), and its end. Raises PkiError."""
    certificate = _read_certificate(path, "`retinue pki issue` makes it")
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        role = identity_of_uris(names.get_values_for_type(x509.UniformResourceIdentifier)).role
    except (x509.ExtensionNotFound, IdentityError):
        role = None
    return role, certificate.not_valid_after_utc


# ---- parts of a certificate ----


def _begin(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _subject(label: str, role: PeerRole | None = None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "retinue")]
    if role is not None:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role))
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, label)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        if not text or not all(c.isascii() and (c.isalnum() or c in "-.") for c in text):
            raise ValueError(f"{text!r} is neither an IP address nor a host name") from None
        return x509.DNSName(text)


# ---- files ----


def _issued(path: Path, certificate: x509.Certificate) -> Issued:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        identity = identity_of_uris(names.get_values_for_type(x509.UniformResourceIdentifier))
        label = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    except (x509.ExtensionNotFound, IdentityError, IndexError) as error:
        raise PkiError(f"{path} was not made by `retinue pki`: {error}") from error
    ips: list[IPv4Address | IPv6Address] = [
        ip for ip in names.get_values_for_type(x509.IPAddress) if isinstance(ip, IPv4Address | IPv6Address)
    ]
    return Issued(
        file=path,
        label=str(label),
        identity=identity,
        addresses=(*names.get_values_for_type(x509.DNSName), *map(str, ips)),
        serial=certificate.serial_number,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def _read_certificate(path: Path, advice: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError as error:
        raise PkiError(f"there is no certificate {path}; {advice}") from error
    except OSError as error:
        raise PkiError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise PkiError(f"{path} is no certificate (PEM)") from error


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    data = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write(path, data, 0o600)


@contextlib.contextmanager
def _files(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PkiError(f"{error.filename or folder}: {error.strerror}") from error
