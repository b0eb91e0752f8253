"""What commands send to the controller."""

from typing import Any


def left_in(**given: Any) -> dict[str, Any]:
    """The options that were given: the others stay out of what is sent."""
    return {name: value for name, value in given.items() if value is not None}
