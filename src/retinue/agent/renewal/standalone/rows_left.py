"""What a switch that snoops by itself still has of VMs that have left: told, and deleted where it can be.

the agent where the VM is now has renewed       the row is left at this server's switch
the VM still has a machine here                 waited for: its port is its own until then
there is an adapter (`snooping_table`)          the rows of MAC and address are deleted, and read back;
                                                what fails is told, and tried again
there is none                                   it is told until when the switch lets the old port speak
"""

import asyncio
from collections.abc import Callable, Collection
from ipaddress import IPv4Address

import structlog

from retinue.agent.renewal.standalone.snooping_table import SnoopingTable, TableError
from retinue.core.model import Mac

TRIES = 4
"""Until somebody has to see to it."""
AGAIN_SECONDS = 30.0

log = structlog.get_logger()


class RowsLeft:
    """Follows up the rows of VMs that are elsewhere by now."""

    def __init__(
        self,
        table: SnoopingTable | None,
        here: Callable[[], Collection[Mac]],
        seconds_left: Callable[[Mac], float | None],
    ) -> None:
        """`here`: the MACs that VMs of this server have; `seconds_left`: of the lease that was seen here."""
        self._table, self._here, self._seconds_left = table, here, seconds_left
        self._waiting: dict[Mac, IPv4Address] = {}
        """Renewed elsewhere, with a machine that is still here."""
        self._tasks: dict[Mac, asyncio.Task[None]] = {}

    def renewed_elsewhere(self, mac: Mac, ip: IPv4Address, server: str) -> None:
        """The agent of another server has renewed this VM's lease there."""
        log.info("binding.moved", mac=mac, ip=str(ip), server=server)
        self._waiting[mac] = ip
        self.look()

    def back(self, macs: Collection[Mac]) -> None:
        """VMs have arrived here: what the switch has of them is theirs."""
        for mac in macs:
            self._waiting.pop(mac, None)
            if (task := self._tasks.pop(mac, None)) is not None:
                task.cancel()

    def look(self) -> None:
        """VMs have gone from here."""
        here = self._here()
        for mac in [mac for mac in self._waiting if mac not in here]:
            ip = self._waiting.pop(mac)
            self._tasks[mac] = asyncio.create_task(self._clear(mac, ip), name=f"row of {mac}")

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _clear(self, mac: Mac, ip: IPv4Address) -> None:
        if self._table is None:
            log.warning("binding.left", mac=mac, ip=str(ip), seconds_left=self._seconds_left(mac))
            return
        for turn in range(TRIES):
            if turn:
                await asyncio.sleep(AGAIN_SECONDS)
            try:
                left = [row for row in await self._table.rows() if (row.mac, row.ip) == (mac, ip)]
                for row in left:
                    await self._table.delete(row)
            except TableError as error:
                seconds = self._seconds_left(mac)
                log.warning("binding.left", mac=mac, ip=str(ip), seconds_left=seconds, error=str(error))
                continue
            log.info("binding.removed", mac=mac, ip=str(ip), ports=[row.port for row in left])
            return


__all__ = ["RowsLeft"]
