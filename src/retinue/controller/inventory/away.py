"""A VM that is in another domain is changed there: what is said of it here would reach nobody."""

from retinue.controller.errors import RequestError
from retinue.core.model import VM, Network
from retinue.protocol.errors import ErrorCode


def check_is_here(net: Network, vm: VM) -> None:
    """Raises RequestError for a VM behind the gateway to another domain, and for one on its way."""
    if not net.peers:
        return
    peer = next((peer for at in (vm.server, *sorted(vm.also)) if (peer := net.peer_at(at)) is not None), None)
    if peer is None:
        return
    if vm.also:
        raise RequestError(
            f"VM {vm.id} is on its way between here and domain {peer.id}; "
            "wait for its end, or cancel it first",
            ErrorCode.MIGRATION_UNDER_WAY,
        )
    raise RequestError(
        f"VM {vm.id} is in domain {peer.id}; ask there, or have it migrated here first", ErrorCode.CONFLICT
    )
