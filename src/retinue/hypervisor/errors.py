"""What goes wrong with a hypervisor."""

import asyncio

from retinue.host.errors import HostError


class HypervisorError(HostError):
    """The hypervisor did not do what it was asked; the message says what, for which VM, and why."""


class HandedOverError(HypervisorError):
    """The target does not say that the VM runs, though it may: the source must not run it again."""


def reason_of(error: BaseException, limit: float) -> str:
    """Why a migration failed; `limit`: the seconds that it had."""
    if isinstance(error, TimeoutError):
        return f"not done within {limit:.0f} s"
    return "it was called off" if isinstance(error, asyncio.CancelledError) else str(error)
