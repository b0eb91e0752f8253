"""Changes of the pool of pairs of MAC and IP (controller/inventory/pairs.py)."""

from dataclasses import dataclass

from retinue.controller.changes import Change, Undo
from retinue.controller.state import State, Storable
from retinue.core.model.network import NOTHING, Touched
from retinue.core.model.pairs import AddressPair


@dataclass(frozen=True, slots=True)
class PairAdded(Change):
    """The manager gives a pair."""

    pair: AddressPair

    def apply(self, state: State) -> Touched:
        state.pairs[self.pair.mac] = self.pair
        return NOTHING

    def undo(self, state: State) -> Undo:
        pairs, mac, old = state.pairs, self.pair.mac, state.pairs.get(self.pair.mac)

        def put_back() -> None:
            if old is None:
                pairs.pop(mac, None)
            else:
                pairs[mac] = old

        return put_back

    def kept(self) -> tuple[Storable, ...]:
        return (self.pair,)


@dataclass(frozen=True, slots=True)
class PairRemoved(Change):
    """The manager takes it back."""

    pair: AddressPair

    def apply(self, state: State) -> Touched:
        state.pairs.pop(self.pair.mac, None)
        return NOTHING

    def dropped(self) -> tuple[Storable, ...]:
        return (self.pair,)
