"""The one error of this package."""


class FrameError(ValueError):
    """Bytes that are not the frame they should be, or values no frame can carry; the message says why.

    Parsing raises no other exception, whatever the bytes are.
    """
