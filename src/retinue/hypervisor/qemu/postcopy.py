"""The source's half of post-copy: the VM runs at the target, and the rest of its memory follows.

    source's QEMU             source's agent        target's agent         target's QEMU
    stops the VM, sends its   passes it on          passes it on           loads it
    state and what is missing "handed_over"    >    when it is loaded:     runs the VM
                              learns it        <    "running"
    sends the rest            passes it on     >                           takes it in
    sends it first            passes it on     <    passes it on           asks for a page
    "completed"               the end          >

Until the target is told that the VM is its own QEMU has the VM at the source as it was, and runs it again
when the migration is cancelled; but only while its stream is open: with the stream broken it waits for ever
("postcopy-paused"). So the stream of a VM that may yet be given back stays open (`QemuMachine.kept`).

After that the VM has two places. Where the way between them fails before all has gone over, or one of the two
agents, they go on by another (`recovering`, `rest_at_source`). Where there is none, or one of the two QEMUs
ends, the target ends the VM, for a guest that waits for memory that never comes cannot be told from one that
has crashed.
"""

import structlog

from retinue.core.migration.copying import Postcopy
from retinue.host.errors import HostError
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.memory_channel import Channel
from retinue.hypervisor.qemu.machine import CANNOT_POSTCOPY, QemuMachine

CAPABILITY = "postcopy-ram"

log = structlog.get_logger()


async def agree(machine: QemuMachine, channel: Channel, how: Postcopy) -> bool:
    """Whether source and target both can; QEMU is told then. Raises HypervisorError where it is required."""
    if how is Postcopy.NEVER:
        return False
    await channel.send_message("postcopy")
    answer = await channel.receive_message()
    if answer["type"] == "failed":
        raise HypervisorError(f"the target could not take the VM in: {answer.get('reason')}")
    why = "" if answer.get("ready") is True else f"the target says: {answer.get('reason', CANNOT_POSTCOPY)}"
    if not why:
        try:
            await machine.set_capability(CAPABILITY, True)
            return True
        except HostError as error:
            why = f"the source's QEMU cannot run a VM elsewhere before its memory is there: {error}"
    if how is Postcopy.REQUIRED:
        raise HypervisorError(f"post-copy was asked for, and {why}")
    log.warning("migration.by_precopy_alone", vm=machine.spec.id, reason=why)
    return False
