"""The events that a controller has published, for tests that look back."""

from retinue.controller.event_ring import Event
from retinue.controller.events import EventBus


def recent(bus: EventBus, type_prefix: str = "", limit: int = 100) -> list[Event]:
    """The last events whose type begins so, the oldest first."""
    return [event for event in bus._ring if event.type.startswith(type_prefix)][-limit:]
