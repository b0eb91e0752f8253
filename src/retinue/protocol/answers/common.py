"""What several answers have, and that of every rejection."""

import msgspec

from retinue.protocol.errors import ErrorCode

Numbers = dict[str, int]
Reasons = dict[str, Numbers]
"""By listener or server, and by reason: how many were rejected."""


class Rejected(msgspec.Struct):
    """The body of every rejection."""

    error: str
    """What is wrong and what to do, for people; it may change."""
    code: ErrorCode
    """For programs; it does not change."""


class Done(msgspec.Struct):
    ok: bool


class Removed(msgspec.Struct):
    removed: str
    """The id of what is no more."""
