"""The configuration files of the two managers; every key is checked."""

from pathlib import Path

import msgspec

from retinue.config_file import ConfigError, ConfigTable, TlsTable, read
from retinue.core.limits import ID, ID_IN_WORDS
from retinue.core.text import quoted
from retinue.socket_addresses import endpoint


class DoorTable(ConfigTable, frozen=True):
    """[[domain]]: a domain that the resource manager serves."""

    id: str
    listen: str
    """host:port of its door for this domain."""
    ca: str
    """The file with the domain's authority: who shows a certificate of it speaks of this domain."""
    offers_to: list[str] = []
    """Domains for whose VMs its servers may be offered."""


class ResourceConfig(ConfigTable, frozen=True):
    """The resource manager's file."""

    tls: TlsTable
    domain: list[DoorTable]


class MobilityConfig(ConfigTable, frozen=True):
    """The mobility manager's file, of one domain."""

    listen: str
    """host:port of its door for the domain's controller."""
    resources: str
    """https://HOST:PORT of the resource manager's door for the domain."""
    tls: TlsTable
    """`ca` is the domain's authority, whose controller is let in."""
    resources_ca: str = ""
    """The authority of the resource manager's certificate, if that is another."""


def load_resource(path: Path) -> ResourceConfig:
    """Raises ConfigError."""
    found = read(path, ResourceConfig)
    ids = [one.id for one in found.domain]
    if not ids:
        raise ConfigError(f"{path}: name the domains that it serves, a table [[domain]] each")
    for one in found.domain:
        if not ID.fullmatch(one.id) or ids.count(one.id) > 1:
            why = "is given twice" if ids.count(one.id) > 1 else f"is no name: {ID_IN_WORDS}"
            raise ConfigError(f"{path}: domain {quoted(one.id)} {why}")
        _check_endpoint(path, f"domain {one.id}: listen", one.listen)
        if unknown := sorted({*one.offers_to} - {*ids}):
            raise ConfigError(f"{path}: domain {one.id}: offers_to: {quoted(unknown[0])} is not served here")
    folder = path.parent
    tables = [msgspec.structs.replace(one, ca=str(folder / one.ca)) for one in found.domain]
    _check_authorities(path, tables)
    return ResourceConfig(found.tls.beside(folder), tables)


def load_mobility(path: Path) -> MobilityConfig:
    """Raises ConfigError."""
    found = read(path, MobilityConfig)
    _check_endpoint(path, "listen", found.listen)
    if not found.resources.startswith("https://"):
        raise ConfigError(f"{path}: resources: {quoted(found.resources)} is no https://HOST:PORT")
    tls = found.tls.beside(path.parent)
    other = str(path.parent / found.resources_ca) if found.resources_ca else tls.ca
    return msgspec.structs.replace(found, tls=tls, resources_ca=other)


def _check_authorities(path: Path, tables: list[DoorTable]) -> None:
    """With one authority for two doors who is of one domain would be let in at the other's, and speak of
    that."""
    whose: dict[bytes, str] = {}
    for one in tables:
        try:
            known = Path(one.ca).read_bytes()
        except OSError:  # Which is told where it is used.
            known = str(Path(one.ca).resolve()).encode()
        if (other := whose.setdefault(known, one.id)) != one.id:
            raise ConfigError(
                f"{path}: domain {one.id}: ca: it is domain {other}'s, too, so that each could speak of the "
                "other; a domain has an authority of its own"
            )


def _check_endpoint(path: Path, key: str, text: str) -> None:
    try:
        endpoint(text)
    except ValueError as error:
        raise ConfigError(f"{path}: {key}: {error}") from error
