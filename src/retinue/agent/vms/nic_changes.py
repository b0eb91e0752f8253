"""NICs put into and taken out of a VM that is here: its ports, and its machine if it runs.

What the machine and the bridge have is compared with what the controller says that the VM is to have, so that
the same step mends what an earlier one, or an earlier agent, has not come to do.
"""

from collections.abc import Callable, Collection

import structlog

from retinue.agent.vms import nic_ports
from retinue.agent.vms.local_vm import LocalVM, Ports
from retinue.core.migration.presence import Plugged, Running
from retinue.hypervisor import VMSpec
from retinue.protocol.nics import NICRecord
from retinue.protocol.vms import VMRecord

log = structlog.get_logger()


async def carry_out(
    vm: LocalVM, before: Collection[NICRecord], ports: Ports, spec: Callable[[VMRecord], VMSpec]
) -> None:
    """Let the VM have the NICs of its record; `before` are those that it had. Raises HostError.

    One that migrates is left alone: the controller changes no NICs then.
    """
    machine, wanted = vm.machine, spec(vm.record).more_nics
    if not isinstance(vm.presence, Plugged | Running):
        return
    gone = list(before)
    if machine is not None:
        gone += [NICRecord(nic.id, nic.mac) for nic in machine.spec.nics]
    for nic in await nic_ports.add_missing(ports, vm.record):
        log.info("nic.port_made", vm=vm.id, nic=nic)
    if machine is not None and (
        machine.spec.more_nics != wanted or nic_ports.have_changed(before, vm.record)
    ):
        log.info("nic.changed", vm=vm.id, nics=[nic.id for nic in wanted])
        kept = nic_ports.ids(vm.record)
        await machine.set_nics(wanted, {nic.id for nic in gone if nic.id not in kept})
    await nic_ports.remove_others(ports, gone, vm.record)
