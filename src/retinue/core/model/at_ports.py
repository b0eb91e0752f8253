"""What is at which port of a switch: found by what is there, by the port, and by the switch.

Of a thousand servers with two uplinks each, a report of one leaf concerns those at this leaf; and a frame
that comes in at a port, whoever has sent it, those at this port.
"""

from collections.abc import Hashable, Iterator, Mapping, MutableMapping
from typing import TypeVar

from retinue.core.model.entities import PortRef

T = TypeVar("T", bound=Hashable)


class AtPorts(MutableMapping[T, PortRef]):
    """By what is there, the port where it is; several may be at one."""

    __slots__ = ("_at", "_by_switch")

    def __init__(self, found: Mapping[T, PortRef] | None = None) -> None:
        self._at: dict[T, PortRef] = {}
        self._by_switch: dict[str, dict[str, dict[T, None]]] = {}
        """By switch, and by port: what is there, in the order in which it came."""
        self.update(found or {})

    def __getitem__(self, what: T) -> PortRef:
        return self._at[what]

    def __setitem__(self, what: T, at: PortRef) -> None:
        self.pop(what, None)
        self._at[what] = at
        self._by_switch.setdefault(at.switch, {}).setdefault(at.port, {})[what] = None

    def __delitem__(self, what: T) -> None:
        at = self._at.pop(what)
        ports = self._by_switch[at.switch]
        del ports[at.port][what]
        if not ports[at.port]:
            del ports[at.port]
        if not ports:
            del self._by_switch[at.switch]

    def __iter__(self) -> Iterator[T]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)

    def __repr__(self) -> str:
        return f"AtPorts({self._at})"

    # ---- the other way round ----

    def at(self, port: PortRef) -> tuple[T, ...]:
        """What is at a port."""
        return tuple(self._by_switch.get(port.switch, {}).get(port.port, ()))

    def at_switch(self, switch: str) -> Iterator[tuple[T, str]]:
        """What is at a switch, each with the name of its port."""
        for port, there in self._by_switch.get(switch, {}).items():
            for what in there:
                yield what, port
