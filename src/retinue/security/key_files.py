"""Files of keys and other secrets: a bad one is told by name, and one is written whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec


class KeyFileError(Exception):
    """A file without a key of ours; the message names it and the reason."""


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Raises KeyFileError."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise KeyFileError(f"cannot read the key {path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise KeyFileError(f"{path} is no private key without a password") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeyFileError(f"{path} is no key of an elliptic curve")
    return key


def write(path: Path, data: bytes, mode: int, check: Callable[[Path], object] = lambda draft: None) -> None:
    """Never with wider rights than `mode`. What `check` raises of the draft leaves the file as it was.
    Raises OSError."""
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    check(draft)
    draft.rename(path)
