"""JSON that the other side sent, as a record of this protocol."""

from ipaddress import IPv4Address, IPv6Address
from typing import Any, TypeVar

import msgspec

from retinue.core.text import cut, printable
from retinue.protocol.errors import RecordError

T = TypeVar("T")


def record(kind: type[T], value: Any) -> T:
    """Decoded JSON as a record of this protocol; fields that the record does not have are left out.

    Raises RecordError.
    """
    try:
        return msgspec.convert(value, kind, dec_hook=_address)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        # ValueError: half of a surrogate pair, which JSON has and UTF-8 has not, in a name that must be
        # shown.
        name = getattr(kind, "__name__", str(kind))
        raise RecordError(f"the controller sent no proper {name}: {cut(printable(str(error)))}") from error


def _address(kind: type, value: Any) -> Any:
    """IP addresses are strings in JSON."""
    if kind in (IPv4Address, IPv6Address) and isinstance(value, str):
        return kind(value)
    raise ValueError(f"{value!r} is no {kind.__name__}")
