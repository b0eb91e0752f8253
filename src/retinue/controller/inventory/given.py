"""Things that managers give by their ids: whether one is there already, or not."""

from collections import Counter
from collections.abc import Collection, Container

from retinue.controller.errors import RequestError
from retinue.core.model import ModelError
from retinue.protocol.errors import ErrorCode


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
