"""What of the controller's status is read by programs, by its name."""

INTERNAL_ERRORS = "internal errors"
"""The counter of the controller's own faults."""
