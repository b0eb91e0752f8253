"""The one error of the store."""


class StoreError(Exception):
    """What the controller knows cannot be kept, or read back; the message says why and what to do."""
