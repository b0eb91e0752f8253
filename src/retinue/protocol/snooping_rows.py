"""The rows that a switch with a snooping table of its own has made, as an adapter reports them."""

from typing import Annotated

import msgspec

from retinue.core.limits import LARGEST_COUNT, LONGEST_ID, MOST_AT_ONCE


class RowBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One row: this MAC uses this address at this port."""

    mac: Annotated[str, msgspec.Meta(max_length=17)]
    ip: Annotated[str, msgspec.Meta(max_length=39)]
    port: Annotated[str, msgspec.Meta(max_length=LONGEST_ID)]
    """The port's name, as the switch has it."""
    seconds_left: Annotated[float, msgspec.Meta(ge=0, le=LARGEST_COUNT)] | None = None
    """Until it ends by itself; null: no end is known."""


class RowsBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/switches/{id}/rows: the whole table of the switch, as it is now."""

    rows: Annotated[list[RowBody], msgspec.Meta(max_length=MOST_AT_ONCE)]
