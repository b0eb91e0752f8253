"""What goes wrong with a hypervisor."""

from retinue.host.errors import HostError


class HypervisorError(HostError):
    """The hypervisor did not do what it was asked; the message says what, for which VM, and why."""


class HandedOverError(HypervisorError):
    """The target does not say that the VM runs, though it may: the source must not run it again."""
