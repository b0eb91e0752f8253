"""Who decides what runs on a server: this agent alone, or a manager of VMs that others use, too.

The life of a VM and the two ends of a migration are the same either way (`core.migration.endpoint`). An
authority says what the agent has to look at before it carries out an order, who makes the VM's port, who
opens a migration's target, and who keeps a VM that is not migrated after all.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

from retinue.agent.vms import nic_ports
from retinue.agent.vms.local_vm import LocalVM, Ports
from retinue.core.migration.endpoint_events import Fact, Order
from retinue.hypervisor import Hypervisor, HypervisorError
from retinue.protocol.migrations import MigrationRecord
from retinue.protocol.vms import VMRecord


@dataclass(frozen=True, slots=True)
class Ruling:
    """What is to be made of an order."""

    order: Order | None
    """The order as it is to be carried out; None when it is not this agent's to carry out."""
    facts: tuple[Fact, ...] = ()
    """What has been seen, and is to be taken in first."""

    def but(self, order: Order | None) -> "Ruling":
        return replace(self, order=order)


class Authority(Protocol):
    """Every method raises HostError, and SplitBrainRiskError where a VM may run elsewhere."""

    exclusive: bool
    """Nobody but this agent makes, ends or migrates VMs here."""
    prepares_source: bool
    """A migration's target is opened from its source, after PrepareSource."""

    async def consult(self, vm: LocalVM, order: Order, migration: MigrationRecord | None) -> Ruling:
        """Look at what the hypervisor has, before an order is decided."""

    async def has_memory_to_give(self, vm: LocalVM, migration: MigrationRecord) -> bool:
        """The VM is here, and some of its memory is to go over before it is looked for any more."""

    async def make_port(self, vm: LocalVM) -> None:
        """Give a VM that is registered here its port."""

    async def make_target_port(self, vm: LocalVM) -> None:
        """See to the port of a VM that is about to come in."""

    async def keep(self, vm: LocalVM) -> bool:
        """End what migrates the VM away; True when it stays here, where it may have to be resumed."""

    def may_end(self, vm: LocalVM) -> bool:
        """The VM's machine is this agent's to end."""

    async def registered(self, record: VMRecord, vm: LocalVM | None) -> None:
        """The controller says where a VM is registered that is in no migration."""


class SplitBrainRiskError(HypervisorError):
    """The VM has been here, and went while nobody looked."""


class SoleAuthority:
    """For a hypervisor of the agent's own: what the agent has not done has not happened."""

    exclusive = True
    prepares_source = False

    def __init__(self, hypervisor: Hypervisor[Any], ports: Ports) -> None:
        self._hypervisor, self._ports = hypervisor, ports

    async def consult(self, vm: LocalVM, order: Order, migration: MigrationRecord | None) -> Ruling:
        return Ruling(order)

    async def has_memory_to_give(self, vm: LocalVM, migration: MigrationRecord) -> bool:
        return False  # What is handed over gives it as it is freed.

    async def make_port(self, vm: LocalVM) -> None:
        await nic_ports.add(self._ports, vm.record)

    async def make_target_port(self, vm: LocalVM) -> None:
        await nic_ports.add(self._ports, vm.record)

    async def keep(self, vm: LocalVM) -> bool:
        return True

    def may_end(self, vm: LocalVM) -> bool:
        return True

    async def registered(self, record: VMRecord, vm: LocalVM | None) -> None:
        pass
