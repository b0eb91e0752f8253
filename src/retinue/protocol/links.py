"""Links between switches, as the controller shows them."""

from enum import StrEnum


class LinkShown(StrEnum):
    WELL = "well"
    LOST = "lost"
    """It loses frames though both ends have a carrier: it is used only where there is no better way."""
    RETURNING = "returning"
    """It loses none any more, and is used again when that has been so for a while."""
    NO_CARRIER = "no carrier"
    UNKNOWN = "unknown"
    """It is not probed: a switch is away, or slow, or links are never probed."""
