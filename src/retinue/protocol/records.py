"""JSON that the other side sent, as a record of this protocol."""

from ipaddress import IPv4Address, IPv6Address
from typing import Any, TypeVar

import msgspec
import msgspec.inspect as inspect

from retinue.core.text import cut, printable
from retinue.protocol.errors import RecordError

T = TypeVar("T")


def record(kind: type[T], value: Any, sender: str = "the controller") -> T:
    """Decoded JSON as a record of this protocol; fields that the record does not have are left out.

    Raises RecordError.
    """
    try:
        return msgspec.convert(value, kind, dec_hook=_address)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        # ValueError: half of a surrogate pair, which JSON has and UTF-8 has not, in a name that must be
        # shown.
        name = getattr(kind, "__name__", str(kind))
        raise RecordError(f"{sender} sent no proper {name}: {cut(printable(str(error)))}") from error


def _address(kind: type, value: Any) -> Any:
    """IP addresses are strings in JSON."""
    if kind in (IPv4Address, IPv6Address) and isinstance(value, str):
        return kind(value)
    raise ValueError(f"{value!r} is no {kind.__name__}")


def known_part(value: Any, kind: Any) -> Any:
    """JSON, decoded, without the fields that a record of this kind does not have. All else is as it was.

    For what an agent of a newer release says besides (`protocol.releases`)."""
    return _known(value, inspect.type_info(kind))


def _known(value: Any, kind: inspect.Type) -> Any:
    match value, kind:
        case dict(), inspect.StructType(fields=fields):
            types = {field.encode_name: field.type for field in fields}
            return {name: _known(one, types[name]) for name, one in value.items() if name in types}
        case dict(), inspect.DictType(value_type=type):
            return {name: _known(one, type) for name, one in value.items()}
        case list(), inspect.ListType(item_type=type) | inspect.VarTupleType(item_type=type):
            return [_known(one, type) for one in value]
        case _, inspect.UnionType(types=types):
            fits = inspect.StructType | inspect.DictType if isinstance(value, dict) else _LISTS
            found = next((one for one in types if isinstance(one, fits)), None)
            return value if found is None else _known(value, found)
        case _:
            return value


_LISTS = inspect.ListType | inspect.VarTupleType
