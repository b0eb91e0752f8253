"""What a registered VM is like, as its manager changes it: `retinue vm set`.

    of the VM     while it runs, or is to                      while it is off, or has crashed
    addresses     at once in the network; the guest has to     the same, and the guest sets them when it is
                  set them by itself                           started
    restart       at once                                      at once
    memory        refused                                      when it is started
    MAC, server   refused: its ports, its lease and its        refused
                  neighbours know it by the one, and it
                  migrates to the other

All of what is asked for is done, or nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from retinue.controller.changes import Change, VMChanged
from retinue.controller.context import Context
from retinue.controller.errors import RequestError
from retinue.controller.inventory.nic_settings import commit, replaced, still_there
from retinue.core.model import IP, VM, Assignment, Mac, Power, Restart, Subnet
from retinue.protocol.errors import ErrorCode
from retinue.protocol.vms import VMState


@dataclass(frozen=True, slots=True)
class VMChanges:
    """What is to be different; None stays as it is."""

    memory_mib: int | None = None
    addresses: tuple[IP, ...] | None = None
    """All static addresses of the first NIC."""
    restart: Restart | None = None
    mac: Mac | None = None
    server: str | None = None


class VMSettings:
    """Changes registered VMs, and has doubts about the addresses that managers give them."""

    def __init__(
        self, context: Context, ours: Callable[[str], VM], state_of: Callable[[str], VMState]
    ) -> None:
        """`ours`: a VM that a manager registered and that does not migrate; RequestError for another."""
        self._context = context
        self._net = context.net
        self._ours = ours
        self._state_of = state_of

    async def change(self, id: str, wanted: VMChanges) -> VM:
        """Change a VM; return when the switches that are connected have confirmed it.

        Raises RequestError for what cannot change now, ModelError for an address that cannot be the VM's.
        """
        vm = self._ours(id)
        self._check(vm, wanted)
        changed = replace(
            vm,
            memory_mib=vm.memory_mib if wanted.memory_mib is None else wanted.memory_mib,
            restart=vm.restart if wanted.restart is None else wanted.restart,
        )
        changes: list[Change] = [VMChanged(changed)] if changed != vm else []
        if wanted.addresses is not None and wanted.addresses != vm.nic.addresses:
            new = replace(vm.nic, addresses=wanted.addresses)
            changes += replaced(self._net, changed, vm.nic, new)
        await commit(self._context, vm.server, changes)
        return still_there(self._net, id)

    def _check(self, vm: VM, wanted: VMChanges) -> None:
        if wanted.mac not in (None, vm.nics[0].mac):
            raise RequestError(
                f"the MAC of VM {vm.id} does not change: its port, its lease and its neighbours know it by "
                f"{vm.nics[0].mac}; remove the VM, and add it with another"
            )
        if wanted.server not in (None, vm.server):
            raise RequestError(
                f"VM {vm.id} is at {vm.server}; `retinue move start {vm.id} --to {wanted.server}` takes it "
                "elsewhere"
            )
        runs = vm.power is Power.RUNNING or self._state_of(vm.id) is VMState.RUNNING
        if runs and wanted.memory_mib not in (None, vm.memory_mib):
            raise RequestError(
                f"VM {vm.id} runs, or is to: its memory changes only while it is off; "
                f"`retinue vm stop {vm.id} --wait` switches it off",
                ErrorCode.RUNNING,
            )

    # ---- doubts ----

    def doubts(self, vm: VM) -> list[str]:
        """Why static addresses of a VM may come to be another's, too, as far as can be known: sentences."""
        found = []
        for nic, ip in [(one, ip) for one in vm.nics for ip in one.addresses]:
            subnet = self._net.subnet_of(ip, self._net.vrf_of(nic))
            pool = None if subnet is None else _pool_of(subnet, ip)
            if subnet is not None and pool is not None:
                found.append(
                    f"{ip} is in {pool[0]}-{pool[1]}, which DHCP servers of subnet {subnet.id} give out: "
                    f"have them leave it out, or reserve it for {nic.mac}"
                )
            elif leased_to := self._leased_before(self._net.static(vm.id, nic, ip)):
                found.append(
                    f"{ip} was leased to VM {leased_to} by a DHCP server, which may give it out again: "
                    "have it leave the address out"
                )
        return found

    def _leased_before(self, given: Assignment) -> str:
        leases = self._context.state.ended_leases.values()
        return next((lease.vm for lease in leases if lease.key == given.key and lease.vm != given.vm), "")


def _pool_of(subnet: Subnet, ip: IP) -> tuple[IP, IP] | None:
    """The pool of the subnet that an address is in."""
    for first, last in subnet.dhcp_pools:
        if isinstance(first, IPv4Address) is isinstance(ip, IPv4Address) and int(first) <= int(ip) <= int(
            last
        ):
            return first, last
    return None
