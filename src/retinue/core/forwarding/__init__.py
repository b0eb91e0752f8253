"""What becomes of a frame: switches with our entries run on it, byte for byte as Open vSwitch does.

`header` is what a switch sees in a frame and writes back, `switch` the tables of one, `fabric` many joined by
cables. `tests/lab/test_fake_agrees_with_ovs.py` holds it against real ones.
"""

from retinue.core.forwarding.fabric import Delivery, End, Fabric, Hop, Loop
from retinue.core.forwarding.header import CannotRunError
from retinue.core.forwarding.switch import (
    AmbiguousMatch,
    Choose,
    Result,
    SwitchTables,
    every_choice,
    first,
)

__all__ = [
    "AmbiguousMatch",
    "CannotRunError",
    "Choose",
    "Delivery",
    "End",
    "Fabric",
    "Hop",
    "Loop",
    "Result",
    "SwitchTables",
    "every_choice",
    "first",
]
