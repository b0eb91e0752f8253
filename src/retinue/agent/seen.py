"""Which VMs have been on this server, where a manager of VMs makes their ports (kept.Ports).

There is no port to make or remove, but one thing to know: libvirt forgets a VM that it has moved away. A VM
that has been here since the server came up, and is not here any more, and whose end nobody saw, may run
elsewhere: whoever moved it did so while no agent looked. It must not be started a second time.
"""

from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Seen:
    """Written down in `folder`, a file for each VM."""

    def __init__(self, folder: Path, boot: str = "") -> None:
        self._folder = folder
        self._boot = boot or BOOT_ID.read_text().strip()

    async def add(self, vm: str, mac: str) -> None:
        """It is here."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._note(vm).write_text(self._boot)

    async def remove(self, vm: str) -> None:
        """It has ended here, or has been moved away with everybody's knowledge."""
        self._note(vm).unlink(missing_ok=True)

    async def come(self, vm: str) -> int:
        return 0

    def was_here(self, vm: str) -> bool:
        try:
            return self._note(vm).read_text() == self._boot
        except OSError:
            return False

    def _note(self, vm: str) -> Path:
        return self._folder / f"{vm.replace('/', '_')}.seen"
