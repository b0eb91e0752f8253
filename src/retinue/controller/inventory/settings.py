"""What a registered VM is like, as its manager changes it: `retinue vm set`.

    of the VM     while it runs, or is to                      while it is off, or has crashed
    addresses     at once in the network; the guest has to     the same, and the guest sets them when it is
                  set them by itself                           started
    restart       at once                                      at once
    memory        refused                                      when it is started
    MAC           refused: its ports, its lease and its        refused
                  neighbours know it by that
    server        where an agent of ours runs it, or another   the same
                  domain is its home or has it, refused: it
                  migrates. Else its routes go there at once,
                  ahead of its own migration (`rerouted`); to
                  another host at its switch, its port changes

All of what is asked for is done, or nothing.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from retinue.controller.changes import Change, VMChanged
from retinue.controller.context import BACK_WITHIN, Context
from retinue.controller.errors import RequestError
from retinue.controller.inventory.away import check_stays_as_at_home
from retinue.controller.inventory.nic_settings import commit, still_there
from retinue.controller.nic_changes import replaced
from retinue.core.migration import at_one_place
from retinue.core.model import IP, NIC, VM, Assignment, Mac, Network, Power, Restart, Subnet
from retinue.core.model.network import NOTHING, Touched
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
    host: str = ""
    """On which of that server's hosts; "": of none that is known."""


def _goes(vm: VM, wanted: VMChanges) -> bool:
    return wanted.server is not None and (vm.server, vm.host) != (wanted.server, wanted.host)


_UNFIT: tuple[tuple[str, Callable[[Network], Collection[str]]], ...] = (
    ("fenced", lambda net: net.fenced),
    ("drained", lambda net: net.drained),
)


class VMSettings:
    """Changes registered VMs, and has doubts about the addresses that managers give them."""

    def __init__(
        self,
        context: Context,
        ours: Callable[[str], VM],
        state_of: Callable[[str], VMState],
        look_for_port: Callable[[NIC], Touched],
    ) -> None:
        """`ours`: a VM that a manager registered and that does not migrate; RequestError for another.
        `look_for_port`: which of the ports with a NIC's id is the NIC's is judged anew."""
        self._context = context
        self._net = context.net
        self._ours = ours
        self._state_of = state_of
        self._look_for_port = look_for_port

    async def change(self, id: str, wanted: VMChanges) -> VM:
        """Change a VM; return when the switches that are connected have confirmed it.

        Raises RequestError for what cannot change now, ModelError for an address that cannot be the VM's.
        """
        vm = self._ours(id)
        self._check(vm, wanted)
        changed = replace(
            self._rerouted(vm, wanted),
            memory_mib=vm.memory_mib if wanted.memory_mib is None else wanted.memory_mib,
            restart=vm.restart if wanted.restart is None else wanted.restart,
        )
        changes: list[Change] = [VMChanged(changed)] if changed != vm else []
        if wanted.addresses is not None and wanted.addresses != vm.nic.addresses:
            new = replace(vm.nic, addresses=wanted.addresses)
            check_stays_as_at_home(vm, replace(vm, nics=(new, *vm.nics[1:])))
            changes += replaced(self._net, changed, vm.nic, new)
        await commit(self._context, changed.server, changes, lambda: self._ports_of(vm, changed))
        return still_there(self._net, id)

    def _rerouted(self, vm: VM, wanted: VMChanges) -> VM:
        """The VM at the server where its manager says that it will be: new routes are set, nearest to the new
        server first, and then the old ones deleted. To another host at its switch only its port changes."""
        if not _goes(vm, wanted):
            return vm
        assert wanted.server is not None
        return at_one_place(vm, wanted.server, wanted.host)

    def _ports_of(self, vm: VM, changed: VM) -> Touched:
        """On another host its NICs have other ports, which may be there already."""
        if (vm.server, vm.host) == (changed.server, changed.host):
            return NOTHING
        return frozenset().union(*(self._look_for_port(nic) for nic in changed.nics))

    def _check(self, vm: VM, wanted: VMChanges) -> None:
        if wanted.mac not in (None, vm.nics[0].mac):
            raise RequestError(
                f"the MAC of VM {vm.id} does not change: its port, its lease and its neighbours know it by "
                f"{vm.nics[0].mac}; remove the VM, and add it with another"
            )
        if _goes(vm, wanted):
            assert wanted.server is not None
            self._check_server(vm, wanted.server)
        runs = vm.power is Power.RUNNING or self._state_of(vm.id) is VMState.RUNNING
        if runs and wanted.memory_mib not in (None, vm.memory_mib):
            raise RequestError(
                f"VM {vm.id} runs, or is to: its memory changes only while it is off; "
                f"`retinue vm stop {vm.id} --wait` switches it off",
                ErrorCode.RUNNING,
            )

    def _check_server(self, vm: VM, new: str) -> None:
        """Raises RequestError where the VM cannot be routed to this server on its manager's word alone."""
        net, agents = self._net, self._context.agents
        if new not in net.servers or not net.servers[new].edge:
            raise RequestError(f"{new} is no server that runs VMs", ErrorCode.UNKNOWN_SERVER)
        if unfit := next((word for word, some in _UNFIT if new in some(net)), ""):
            raise RequestError(f"server {new} is {unfit}: it takes no VM", ErrorCode.NOT_A_TARGET)
        if vm.home:
            raise RequestError(
                f"VM {vm.id} is a guest of domain {vm.home}, which is told where it is as it migrates alone; "
                f"`retinue move start {vm.id} --to {new}` takes it elsewhere",
                ErrorCode.NOT_A_TARGET,
            )
        for one in (vm.server, new):
            if (peer := net.peer_at(one)) is not None:
                raise RequestError(
                    f"server {one} is the gateway to domain {peer.id}; between domains VM {vm.id} goes by a "
                    f"migration alone, from the domain where it runs",
                    ErrorCode.NOT_A_TARGET,
                )
        ours = [one for one in (vm.server, new) if agents.is_known(one)]
        if ours:
            raise RequestError(
                f"VM {vm.id} is at {vm.server}, and server {ours[0]} has an agent of ours; "
                f"`retinue move start {vm.id} --to {new}` takes it elsewhere"
            )
        if not self._context.may_all_be_back():
            raise RequestError(
                f"whether {vm.server} or {new} has an agent of ours is not known yet: the controller has "
                f"just started; say it again in {BACK_WITHIN:.0f} s",
                ErrorCode.PARTY_AWAY,
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
