"""The one error of what a server provides."""


class HostError(Exception):
    """A program, tap or switch of this server did not do what it was asked; the message says what."""
