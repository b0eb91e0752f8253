"""A guest's lease, renewed by its own udhcpc."""

from support.lab.guest_dhcp import udhcpc
from support.lab.tools import LabBench

OBTAINED = "grep -c obtained /run/udhcpc.log"


async def renewed_by_the_guest(bench: LabBench, vm: str) -> None:
    """Return when the guest, asked to renew, has heard an answer, and the binding's end has moved on."""
    (before,) = await bench.bindings(vm)
    obtained = int(await bench.guest(vm, OBTAINED, check=False))
    async with bench.events() as events:
        await udhcpc(bench, vm, "USR1")
        await events.until("binding.renewed", lambda e: e["bindings"][0]["vm"] == vm)
        await bench.guest(vm, f"until [ $({OBTAINED}) -gt {obtained} ]; do usleep 50000; done")
        assert not events.of("binding.removed")
    log = await bench.guest(vm, "cat /run/udhcpc.log")
    assert log.count("broadcasting discover") == 1, "the lease is the first one still"
    (after,) = await bench.bindings(vm)
    assert (after["ip"], after["confirmed"]) == (before["ip"], True)
    assert after["lease_end"] > before["lease_end"]
