"""What the controller rejects because it contradicts what there is, and what keeps it from going on."""

from collections import Counter
from collections.abc import Collection, Container

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


def are_new(kind: str, ids: Collection[str], known: Container[str]) -> None:
    """Raises RequestError for an id that is known, ModelError for one that is given twice."""
    for id, times in Counter(ids).items():
        if id in known:
            hint = f"; `retinue {kind} set {id}` changes it" if kind in ("vnet", "subnet", "switch") else ""
            raise RequestError(f"{kind} {id} is there already{hint}", ErrorCode.ALREADY_REGISTERED)
        if times > 1:
            raise ModelError(f"{kind} {id} is given twice")


def is_there(kind: str, id: str, known: bool, code: ErrorCode) -> None:
    """Raises RequestError."""
    if not known:
        raise RequestError(
            f"there is no {kind} {id}; `retinue {kind.lower().split()[0]} list` shows those there are", code
        )


class StoreError(Exception):
    """What the controller knows cannot be kept, or read back; the message has the reason and what to do."""
