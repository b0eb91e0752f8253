"""VMs that somebody made at a server, as its agent reports them: MAC, addresses, the server's own MAC.

    said of                      the VM                            its addresses
    a VM nobody knows            is registered, as by its port     held until a manager confirms them
    one that was removed, and    refused                           refused
    whose port may still stand
    a VM that is at the server   stays as it is                    the same, in place of those of before
    gone                         goes, where no manager and no     are forgotten
                                 port says otherwise
    anything else                refused                           refused

An address that is held is no binding: nothing is delivered by it, and the VM's port lets nothing pass from
it, until a manager says that it is the VM's (`confirm`). For a server may say what it likes of its own VMs,
and their addresses are not its own. What is held is the agents' to say again, to a controller that has
started anew.

What is refused is counted (Count.VM_REPORTS_REFUSED) and told by an event, and so is what exceeds
MOST_REPORTS_A_SECOND of a server.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from retinue.controller.changes import Change
from retinue.controller.context import Context
from retinue.controller.counters import Count
from retinue.controller.errors import RequestError, no_server
from retinue.controller.inventory.nic_settings import commit, still_there
from retinue.controller.inventory.vm_ports import VMPorts
from retinue.controller.nic_changes import replaced
from retinue.core.limits import MOST_REPORTS_A_SECOND
from retinue.core.model import IP, NIC, VM, Mac, ModelError
from retinue.core.model.network import Owner, Touched
from retinue.core.model.vm_constraints import check_assignment, check_vm
from retinue.core.token_bucket import TokenBucket
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import EventType


@dataclass(frozen=True, slots=True)
class Report:
    """What one server says of one VM."""

    vm: str
    mac: Mac
    server_mac: Mac
    addresses: tuple[IP, ...] = ()
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """Addresses that were said of a NIC: by whom, and with which MAC, for of another they are not true."""

    server: str
    mac: Mac
    addresses: tuple[IP, ...]


class VMReports:
    """Takes in what servers say of VMs that were made there, and what managers confirm of it."""

    def __init__(
        self,
        context: Context,
        ports: VMPorts,
        ours: Callable[[str], VM],
        forget_vm: Callable[[VM], Touched],
    ) -> None:
        """`ours`: a VM that is here and does not migrate, whoever made it; RequestError for another."""
        self._context = context
        self._net = context.net
        self._ports = ports
        self._ours = ours
        self._forget_vm = forget_vm
        self._held: dict[str, Held] = {}
        """By a NIC's port id: addresses that were reported, and are a manager's to confirm."""
        self._buckets: dict[str, TokenBucket] = {}
        """By server: how many reports are taken."""

    # ---- what servers say ----

    async def on_report(self, server: str, report: Report) -> tuple[IP, ...]:
        """Take a report in; the addresses of the VM that wait for a manager. Raises ModelError."""
        if server not in self._net.servers:
            raise no_server(server)
        try:
            self._check_rate(server)
            self._check_server(server, report)
            touched, waiting = self._gone(server, report) if report.gone else self._there(server, report)
        except ModelError as error:
            self._context.counters[Count.VM_REPORTS_REFUSED] += 1
            data = {"vm": report.vm, "server": server, "reason": str(error)}
            self._context.events.tell((server,), EventType.VM_REPORT_REFUSED, **data)
            raise
        if touched:
            await self._context.install(touched)
        return waiting

    def _check_rate(self, server: str) -> None:
        now = self._context.clock()
        if server not in self._buckets:
            self._buckets = {id: one for id, one in self._buckets.items() if id in self._net.servers}
            self._buckets[server] = TokenBucket(MOST_REPORTS_A_SECOND, now)
        if not self._buckets[server].take(now):
            raise RequestError(
                f"server {server} reports more than {MOST_REPORTS_A_SECOND} VMs a second; do so later",
                ErrorCode.TOO_OFTEN,
            )

    def _check_server(self, server: str, report: Report) -> None:
        """The physical MAC is that of the server whose agent speaks, or of one of the hosts at its switch."""
        known = self._net.servers[server]
        macs = {known.mac, *(host.mac for host in known.hosts)}
        if report.server_mac not in macs:
            raise RequestError(
                f"{report.server_mac} is no MAC of server {server}, which has {', '.join(sorted(macs))}"
            )

    def _there(self, server: str, report: Report) -> tuple[Touched, tuple[IP, ...]]:
        known = self._net.vms.get(report.vm)
        # What its port says counts: where a port is no VM's, a report makes none of it.
        anew = VM.with_one_nic(report.vm, report.mac, server, reported=True)
        vm = self._ports.as_plugged(anew) if known is None else known
        nic = vm.nic_with(report.mac)
        if known is not None and server not in known.locations:
            code = ErrorCode.MIGRATION_UNDER_WAY if self._ports.migrates(vm) else None
            raise RequestError(f"VM {vm.id} is at server {vm.server}, not at {server}", code)
        if nic is None:
            raise _another_mac(vm, report)
        self._check_addresses(vm, nic, report.addresses)
        touched: set[Owner] = set()
        if known is None:
            self._ports.check_not_removed(vm)
            touched |= self._ports.register_reported(vm)
            touched |= self._ports.look_for(vm.nic)
        said = Held(server, report.mac, report.addresses)
        if said != self._held.get(nic.port_id, Held(server, report.mac, ())):
            self._hold(nic, said)
            if waiting := self.waiting(vm, nic):
                data = {"server": server, "addresses": [str(ip) for ip in waiting]}
                self._context.events.tell(
                    (server, vm.id), EventType.VM_ADDRESSES_REPORTED, vm=self._net.vms[vm.id], **data
                )
        return frozenset(touched), self.waiting(vm, nic)

    def _check_addresses(self, vm: VM, nic: NIC, addresses: Sequence[IP]) -> None:
        """Another's address is refused at once: there is nothing that a manager could confirm."""
        new = [ip for ip in addresses if ip not in nic.addresses]
        seen = replace(nic, addresses=(*nic.addresses, *new))
        check_vm(self._net, replace(vm, nics=tuple(seen if one == nic else one for one in vm.nics)))
        for ip in new:
            holder = self._net.holder(ip, self._net.vrf_of(nic))
            if holder is not None and holder.vm != vm.id:
                raise RequestError(f"{ip} is held by VM {holder.vm}; VM {vm.id} cannot have it")
            if vm.id in self._net.vms:
                check_assignment(self._net, self._net.static(vm.id, nic, ip))

    def _gone(self, server: str, report: Report) -> tuple[Touched, tuple[IP, ...]]:
        vm = self._net.vms.get(report.vm)
        if vm is None:
            return frozenset(), ()
        if vm.server != server:
            raise RequestError(f"VM {vm.id} is at server {vm.server}, not at {server}")
        if vm.nic_with(report.mac) is None:
            raise _another_mac(vm, report)
        self.vm_gone(vm)
        if not vm.reported or not self._ports.is_gone(vm):
            return frozenset(), ()  # A manager registered it; or it goes with its port, or its migration.
        return self._forget_vm(vm), ()

    def _hold(self, nic: NIC, said: Held) -> None:
        if said.addresses:
            self._held[nic.port_id] = said
        else:
            self._held.pop(nic.port_id, None)

    def vm_gone(self, vm: VM) -> None:
        """It is no more: nothing is held for it."""
        for nic in vm.nics:
            self.nic_gone(nic.port_id)

    def nic_gone(self, port_id: str) -> None:
        """No NIC has this port id any more: nothing is held for the next one that has it."""
        self._held.pop(port_id, None)

    # ---- what managers say of it ----

    def waiting(self, vm: VM, nic: NIC) -> tuple[IP, ...]:
        """Addresses that were reported of a VM's NIC, and that no manager has confirmed.

        What a server said that the VM has left, or of another MAC than the NIC has now, is nobody's word.
        """
        held = self._held.get(nic.port_id)
        if held is None or held.server not in vm.locations or held.mac != nic.mac:
            return ()
        return tuple(ip for ip in held.addresses if ip not in nic.addresses)

    async def confirm(self, id: str, addresses: Sequence[IP]) -> VM:
        """The VM has these of what was reported; returns when the switches have confirmed it.

        Raises RequestError, ModelError for an address that another has had since.
        """
        vm = self._ours(id)
        found = {nic.port_id: self.waiting(vm, nic) for nic in vm.nics}
        all_waiting = [ip for waiting in found.values() for ip in waiting]
        for ip in addresses:
            if ip not in all_waiting:
                raise RequestError(f"VM {id}: nobody has reported {ip}; {_words(all_waiting)}")
        if not addresses:
            raise RequestError(f"VM {id}: no address is named; {_words(all_waiting)}")
        changes: list[Change] = []
        changed = vm
        for nic in vm.nics:
            new = [ip for ip in found[nic.port_id] if ip in addresses]
            if new:
                after = replace(nic, addresses=(*nic.addresses, *new))
                changes += replaced(self._net, changed, nic, after)
                changed = replace(changed, nics=tuple(after if one == nic else one for one in changed.nics))
        await commit(self._context, vm.server, changes)
        return still_there(self._net, id)


def _another_mac(vm: VM, report: Report) -> RequestError:
    return RequestError(f"VM {vm.id} has MAC {', '.join(one.mac for one in vm.nics)}, not {report.mac}")


def _words(waiting: Sequence[IP]) -> str:
    if not waiting:
        return "no reported address waits to be confirmed"
    return f"what waits to be confirmed is {', '.join(map(str, waiting))}"
