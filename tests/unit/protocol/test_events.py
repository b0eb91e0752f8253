"""The types of events and their fields are complete."""

from retinue.protocol.events import FIELDS, EventType
from retinue.protocol.migrations import Order


def test_every_type_of_event_says_its_fields() -> None:
    assert set(FIELDS) == {*EventType, *Order}
