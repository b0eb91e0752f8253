"""What the VM drivers read from the controller: as agents do."""

from retinue.agent.records import (
    ACTED_ON,
    Happening,
    MoveRecord,
    RecordError,
    SubnetRecord,
    VMRecord,
    record,
)
from retinue.lab.guest_line import guest_command_line

__all__ = [
    "ACTED_ON",
    "Happening",
    "MoveRecord",
    "RecordError",
    "SubnetRecord",
    "VMRecord",
    "guest_command_line",
    "record",
]
