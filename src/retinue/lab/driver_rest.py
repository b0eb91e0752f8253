"""The VM drivers' side of the controller's REST interface: as agents have it."""

from retinue.agent.rest import (
    ControllerAwayError,
    HttpRest,
    RefusedError,
    Reports,
    Rest,
    parse_events,
    quoted,
)

__all__ = [
    "ControllerAwayError",
    "HttpRest",
    "RefusedError",
    "Reports",
    "Rest",
    "parse_events",
    "quoted",
]
