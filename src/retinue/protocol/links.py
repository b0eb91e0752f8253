"""Links between switches, as the controller shows them."""

from enum import StrEnum


class LinkShown(StrEnum):
    WELL = "well"
    LOST = "lost"
    """It loses frames though both ends have a carrier: it is used only where there is no better way."""
    RETURNING = "returning"
    """It loses none any more, and is used again when that has been so for a while."""
    NO_CARRIER = "no carrier"
    IDLE = "idle"
    """Nothing is sent up by it: it is new, and not all is in place at its ends, or it is about to be removed.
    """
    UNKNOWN = "unknown"
    """It is not probed: a switch is away, or slow, or links are never probed."""
