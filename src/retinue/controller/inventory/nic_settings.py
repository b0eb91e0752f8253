"""What a manager changes of a VM's NIC, wherever the VM is: it stays so through migrations and restarts."""

from dataclasses import replace

from retinue.controller.context import Context
from retinue.controller.errors import RequestError, no_vm
from retinue.controller.nic_changes import NICChanged
from retinue.core.model import NIC, VM, Allowed, Mac
from retinue.core.pipeline.underlay import underlay_of
from retinue.protocol.errors import ErrorCode


def with_settings(vm: VM, known: VM) -> VM:
    """A VM registered anew: what was said of its NICs, and cannot be said as it is registered, stays."""
    nics = []
    for nic in vm.nics:
        old = known.nic_called(nic.port_id)
        if old is not None:
            nic = replace(nic, rate=old.rate, allowed=old.allowed, trusted=old.trusted)
        nics.append(nic)
    return replace(vm, nics=tuple(nics))


def named_nic(vm: VM, port_id: str) -> NIC:
    """The NIC of a VM with this id; "": the first. Raises RequestError."""
    nic = vm.nic_called(port_id) if port_id else vm.nic
    if nic is None:
        has = ", ".join(one.port_id for one in vm.nics)
        raise RequestError(f"VM {vm.id} has no NIC {port_id}, but {has}", ErrorCode.UNKNOWN_NIC)
    return nic


class NICSettings:
    """Changes NICs in place."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._net = context.net

    async def change(
        self,
        vm: str,
        nic: str = "",
        *,
        mac: Mac | None = None,
        enabled: bool | None = None,
        trusted: bool | None = None,
        rate: int | None = None,
        allowed: tuple[Allowed, ...] | None = None,
    ) -> VM:
        """Change what is given of a NIC ("": the first), and return when the switches have confirmed it.

        A MAC is changed where the NIC has no port: its guest would go on with the old one. Raises ModelError.
        """
        known = self._net.vms.get(vm)
        if known is None:
            raise no_vm(vm)
        old = named_nic(known, nic)
        given = {"mac": mac, "enabled": enabled, "trusted": trusted, "rate": rate, "allowed": allowed}
        new = replace(old, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
        if new == old:
            return known
        if new.mac != old.mac:
            self._may_have_another_mac(known, old)
        change = NICChanged(known, old, new, self._net.assignments_of(known, old))
        await self._context.commit(change, near=[underlay_of(self._net).near(known.server)])
        return self._net.vms[vm]

    def _may_have_another_mac(self, vm: VM, nic: NIC) -> None:
        ports = self._net.vm_ports.get(nic.port_id)
        if ports:
            raise RequestError(
                f"VM {vm.id} has a port with MAC {nic.mac} on {', '.join(sorted(ports))}; "
                f"`retinue vm stop {vm.id}` first",
                ErrorCode.CONFLICT,
            )
