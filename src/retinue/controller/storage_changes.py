"""Changes of which NIC is logged in for storage."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from retinue.controller.changes import Change, Published, Undo
from retinue.controller.state import State, Storable
from retinue.core.model.network import Touched
from retinue.core.model.storage import FcLogin
from retinue.protocol.events import EventType


@dataclass(frozen=True, slots=True)
class FcLoggedIn(Change):
    """A forwarder has granted a port to a NIC."""

    login: FcLogin

    def apply(self, state: State) -> Touched:
        return state.net.log_in(self.login)

    def undo(self, state: State) -> Undo:
        net, mac, old = state.net, self.login.mac, state.net.fc_logins.get(self.login.mac)
        return lambda: net.log_out(mac) if old is None else net.log_in(old)

    def kept(self) -> tuple[Storable, ...]:
        return (self.login,)


@dataclass(frozen=True, slots=True)
class FcLoggedOut(Change):
    """A NIC may send from this port no more."""

    login: FcLogin
    reason: str

    def apply(self, state: State) -> Touched | None:
        return state.net.log_out(self.login.mac) or None

    def undo(self, state: State) -> Undo:
        net, old = state.net, state.net.fc_logins.get(self.login.mac)
        return lambda: None if old is None else net.log_in(old)

    def dropped(self) -> tuple[Storable, ...]:
        return (self.login,)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.STORAGE_LOGOUT, {**shown(self.login), "reason": self.reason}


def shown(login: FcLogin) -> dict[str, Any]:
    """As events and the REST interface show it."""
    return {
        "vm": login.vm,
        "nic": login.nic,
        "mac": login.mac,
        "fc_id": f"{login.fc_id:06x}",
        "forwarder": login.forwarder,
    }


__all__ = ["FcLoggedIn", "FcLoggedOut", "shown"]
