"""A VM that is in another domain is changed there: what is said of it here would reach nobody. But what its
home knows it by stays as it is there, too: changed, it could not go home."""

from retinue.controller.errors import RequestError
from retinue.core.model import VM, Network
from retinue.core.model.domains import is_same_at_home
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


def check_stays_as_at_home(vm: VM, changed: VM) -> None:
    """Raises RequestError for a change of a guest after which its home would not take it back."""
    if vm.home and not is_same_at_home(vm, changed):
        raise RequestError(
            f"VM {vm.id} is a guest of domain {vm.home}, which knows it by its NICs as they are, and without "
            "disks: changed here, it could not go home. Have it migrated there, and change it there; here a "
            "NIC may be disabled, and have a rate and a mirror",
            ErrorCode.CONFLICT,
        )
