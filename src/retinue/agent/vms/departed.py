"""Which VMs have been on this server, where a manager of VMs makes their ports (agent.vms.local_vm.Ports).

There is no port to make or remove, but one thing to know: libvirt forgets a VM that it has migrated away. A
VM that has been here since the server came up, and is not here any more, and whose end nobody saw, may run
elsewhere: whoever migrated it did so while no agent looked. It must not be started a second time.
"""

from collections.abc import Mapping
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class DepartedVMs:
    """Notes in `folder`, a file for each VM that has been here since the server was booted."""

    def __init__(self, folder: Path, boot: str = "") -> None:
        self._folder = folder
        self._boot = boot or BOOT_ID.read_text().strip()

    async def add(self, nic: str, mac: str, vm: str = "") -> None:
        """Note that the VM is here."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._note(vm or nic).write_text(self._boot)

    async def remove(self, nic: str) -> None:
        """Forget a VM that has ended here, or has been migrated away with the agent's knowledge."""
        self._note(nic).unlink(missing_ok=True)  # The first NIC has the VM's id; others have no note.

    async def missing(self, nics: Mapping[str, str]) -> list[str]:
        return []  # The manager of VMs sees to them.

    async def rx_frames(self, nic: str) -> int:
        return 0

    def was_here(self, vm: str) -> bool:
        try:
            return self._note(vm).read_text() == self._boot
        except OSError:
            return False

    def _note(self, vm: str) -> Path:
        return self._folder / f"{vm.replace('/', '_')}.seen"
