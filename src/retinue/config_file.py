"""Configuration files: TOML, read into typed tables of which every key is checked.

A mistake is answered with the file, the key and what was expected there. Controller, agent and laboratory
read their files this way; each defines its own tables.
"""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec


class ConfigError(Exception):
    """The file cannot be used; the message names it, the place in it and the reason."""


class ConfigTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the file. A key that is not known is an error, not ignored."""


class TlsTable(ConfigTable, frozen=True):
    """Files (PEM); relative ones are looked for beside the configuration."""

    ca: str
    """The authority whose certificates are trusted."""
    certificate: str
    """The own one, of the role that the program has."""
    key: str

    def beside(self, folder: Path) -> "TlsTable":
        """With complete paths."""
        return TlsTable(*(str(folder / file) for file in (self.ca, self.certificate, self.key)))


T = TypeVar("T", bound=ConfigTable)


def read(path: Path, kind: type[T], decode: Callable[[type, Any], Any] | None = None) -> T:
    """The whole file as a `kind`. Raises ConfigError.

    `decode` makes values of types that TOML does not know (msgspec's dec_hook).
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8: {error}") from error
    try:
        return msgspec.convert(tomllib.loads(text), kind, dec_hook=decode)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from error
