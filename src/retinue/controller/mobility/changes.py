"""Changes of what is said of entities, and of how targets were chosen (see controller/changes.py)."""

from collections.abc import Iterator
from dataclasses import dataclass

from retinue.controller.changes import Change, Published, Undo
from retinue.controller.state import State, Storable
from retinue.core.model.network import NOTHING, Touched
from retinue.core.placement import Entity, Placement
from retinue.protocol.events import EventType


@dataclass(frozen=True, slots=True)
class EntityRegistered(Change):
    """The manager has said something of an entity; it takes the place of what was said before."""

    entity: Entity

    def apply(self, state: State) -> Touched | None:
        if state.entities.get(self.entity.name) == self.entity:
            return None
        state.entities[self.entity.name] = self.entity
        return NOTHING

    def undo(self, state: State) -> Undo:
        name, old = self.entity.name, state.entities.get(self.entity.name)

        def back() -> None:
            if old is None:
                state.entities.pop(name, None)
            else:
                state.entities[name] = old

        return back

    def kept(self) -> tuple[Storable, ...]:
        return (self.entity,)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.ENTITY_REGISTERED, {"entity": self.entity}


@dataclass(frozen=True, slots=True)
class EntityRemoved(Change):
    """Nothing is said of an entity any more: a service or image is no more, a VM or server was removed."""

    entity: Entity

    def apply(self, state: State) -> Touched:
        state.entities.pop(self.entity.name, None)
        return NOTHING

    def dropped(self) -> tuple[Storable, ...]:
        return (self.entity,)

    def events(self, state: State) -> Iterator[Published]:
        yield EventType.ENTITY_REMOVED, {"entity": self.entity}


@dataclass(frozen=True, slots=True)
class PlacementKept(Change):
    """The target of a migration was chosen: how, is kept. The decision itself was published when it fell."""

    placement: Placement

    def apply(self, state: State) -> Touched:
        state.placements[self.placement.migration] = self.placement
        return NOTHING

    def kept(self) -> tuple[Storable, ...]:
        return (self.placement,)


@dataclass(frozen=True, slots=True)
class PlacementForgotten(Change):
    """Its migration is not remembered any longer, or too many have been chosen for since."""

    placement: Placement

    def apply(self, state: State) -> Touched:
        state.placements.pop(self.placement.migration, None)
        return NOTHING

    def dropped(self) -> tuple[Storable, ...]:
        return (self.placement,)
