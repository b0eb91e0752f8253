"""A renewal without a controller of ours, for a switch that snoops by itself and is not ours.

The agent puts the request in at the VM's port; the switch, whoever made it, sees the VM renew its lease,
records the port and learns the binding from the ACK. The ACK comes out at the VM's port: there the agent
takes it, and the guest, which has asked nothing, sees nothing.
"""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient, QMPError

from retinue.agent.renewal.openflow_port import OvsPort, port_number
from retinue.agent.renewal.renewing import InjectionError, Port, renew
from retinue.agent.renewal.standalone.tap_port import TapPort
from retinue.core.lease_renewal import Lease, Renewal
from retinue.hypervisor.monitor import disconnect
from retinue.socket_addresses import short_path

NOT_HERE_YET = frozenset({"inmigrate", "prelaunch"})
"""States of a QEMU whose VM is still to come."""


GREETING_LIMIT = 10.0
"""Seconds. QEMU speaks to one client of a QMP socket at a time, and lets the next one wait."""


class ArrivalError(Exception):
    """QEMU cannot be asked whether the VM is here; the message says why."""


async def renew_at_tap(lease: Lease, xid: int, tap: str, bridge: str = "") -> Renewal:
    """Renew a lease at a VM's tap. With `bridge` the request goes in through that Open vSwitch bridge.

    Without, it goes in at the tap, for switches that read it from the kernel: Linux bridges, programs. Raises
    InjectionError.
    """
    async with TapPort(tap, xid) as at_tap:
        port: Port = OvsPort(bridge, await port_number(tap)) if bridge else at_tap
        return await renew(lease, xid, port, at_tap)


async def arrived(qmp: Path, limit: float | None, on_wait: Callable[[], None] = lambda: None) -> None:
    """Return when the VM runs in the QEMU of this QMP socket: at once, or after its RESUME.

    `on_wait` is called when there is something to wait for. Raises ArrivalError.
    """
    client = QMPClient("agent")
    try:
        async with asyncio.timeout(GREETING_LIMIT):
            with short_path(qmp) as socket:
                await client.connect(socket)
    except TimeoutError:
        raise ArrivalError(f"QMP socket {qmp}: no greeting; does somebody else speak to it?") from None
    except (QMPError, OSError) as error:
        raise ArrivalError(f"QMP socket {qmp}: {error}") from error
    try:
        async with asyncio.timeout(limit):
            with client.listener(("RESUME", "SHUTDOWN")) as heard:
                answer: Any = await client.execute("query-status")
                status = answer["status"]
                if status == "running":
                    return
                if status not in NOT_HERE_YET:
                    raise ArrivalError(f"QMP socket {qmp}: the VM is {status}, it neither runs nor arrives")
                on_wait()
                event: Mapping[str, Any] = await heard.get()
                if event["event"] == "SHUTDOWN":
                    raise ArrivalError(f"QMP socket {qmp}: the VM has ended")
    except TimeoutError:
        raise ArrivalError(f"QMP socket {qmp}: the VM has not arrived in {limit:.0f} s") from None
    except (QMPError, OSError, EOFError) as error:
        raise ArrivalError(f"QMP socket {qmp}: {error or type(error).__name__}") from error
    finally:
        await disconnect(client)


__all__ = ["ArrivalError", "InjectionError", "arrived", "renew_at_tap"]
