"""Agents and a controller of two releases: what one does not know of what the other says.

In the middle of an upgrade some agents may be newer than their controller, and some older.

    older agent      what it says is as ever: a field that a message has got since may be left out; of what it
                     hears, a field or a type of event that it does not know is nothing to it
    newer agent      says its release with each request (AGENT_HEADER): what its reports have besides, and
                     types of events that there are not, are left out

Only what our own agents report is read so. Of what people and their programs send a field that is not known
may be a mistake, or matter: it is rejected.
"""

from typing import Any

import msgspec.inspect as inspect

from retinue.core.limits import LONGEST_RELEASE
from retinue.core.text import cut, printable

AGENT_HEADER = "Retinue-Agent"
"""The release of the agent that asks, such as "0.1.0"."""


def shown_release(text: str | None) -> str:
    """What an agent has said of its release, fit to be shown; "": nothing."""
    return cut(printable(text or ""), LONGEST_RELEASE)


def is_newer(release: str, other: str) -> bool:
    """Whether a release comes after another. What is no release, such as "", comes before all."""
    return _numbers(release) > _numbers(other)


def _numbers(release: str) -> tuple[int, ...]:
    parts = release.split(".")
    return (
        tuple(int(part) for part in parts) if all(part.isascii() and part.isdigit() for part in parts) else ()
    )


def known_part(value: Any, kind: Any) -> Any:
    """JSON, decoded, without the fields that a record of this kind does not have. All else is as it was."""
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
