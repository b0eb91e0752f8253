"""What the controller rejects because it contradicts what there is, and what keeps it from going on."""

from retinue.core.model import ModelError
from retinue.protocol.errors import ErrorCode


class RequestError(ModelError):
    """The message says what is wrong and what to do; `code` says it to programs."""

    code = ErrorCode.CONFLICT

    def __init__(self, message: str, code: ErrorCode | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


def no_vm(id: str) -> RequestError:
    return RequestError(f"there is no VM {id}; `retinue vm list` shows those there are", ErrorCode.UNKNOWN_VM)


def no_server(id: str) -> RequestError:
    return RequestError(
        f"there is no server {id}; `retinue server list` shows those there are", ErrorCode.UNKNOWN_SERVER
    )


def no_image(name: str) -> RequestError:
    return RequestError(
        f"there is no image {name}; `retinue image list` shows those there are", ErrorCode.UNKNOWN_IMAGE
    )


class StoreError(Exception):
    """What the controller knows cannot be kept, or read back; the message has the reason and what to do."""
