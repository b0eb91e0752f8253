"""The row of a VM that has arrived, in the table of a switch that snoops by itself.

the DHCP server has granted the lease anew      the row of MAC and address is looked for
it is there                                     the switch has seen the exchange: all is well
it is not                                       it is stored, and read back: many a switch looks at
                                                broadcasts only, and a renewal is none (RFC 2131, 4.3.2)
what fails                                      is told, and tried again while the VM is here
there is no adapter (`snooping_table`)          nobody knows
"""

import asyncio

import msgspec
import structlog

from retinue.agent.renewal.standalone.snooping_table import Row, SnoopingTable, TableError, binds

TRIES = 4
"""Until somebody has to see to it."""
AGAIN_SECONDS = 30.0

log = structlog.get_logger()


class RowsHere:
    """Sees to it that this server's switch has the rows of VMs whose leases were renewed here."""

    def __init__(self, table: SnoopingTable | None) -> None:
        self._table = table

    async def store(self, row: Row) -> bool:
        """Once; False where it has to be tried again."""
        if self._table is None:
            return True
        said = {"mac": row.mac, "ip": str(row.ip), "port": row.port}
        try:
            if binds(await self._table.rows(), row.mac, row.ip):
                return True
            await self._table.store(row)
        except TableError as error:
            log.warning("binding.not_stored", **said, error=str(error))
            return False
        log.info("binding.stored", **said)
        return True

    async def store_later(self, row: Row) -> None:
        """What could not be stored: again, till it is, or TRIES times in all; never for longer than the
        lease still is."""
        clock = asyncio.get_running_loop().time
        began, granted = clock(), row.seconds_left
        for _ in range(TRIES - 1):
            await asyncio.sleep(AGAIN_SECONDS)
            left = None if granted is None else granted - (clock() - began)
            if left is not None and left <= 0:
                return  # By now the address may be another VM's.
            if await self.store(msgspec.structs.replace(row, seconds_left=left)):
                return


__all__ = ["RowsHere"]
