"""The bench of memory, and what it guards: how much is kept of a VM beside its entries."""

import tracemalloc

from bench import room

VMS = 120
BYTES_OF_A_VM = 4500
"""Of what is not the pipeline's: the VM, its NIC, address and port, their indexes, its rows in the edge's
database, its events."""


async def test_what_is_kept_of_a_vm_beside_its_entries_takes_a_few_kilobytes() -> None:
    controller, found, figures = await room.measure(2, VMS)
    assert not tracemalloc.is_tracing()
    assert len(controller.net.vms) == VMS
    assert all(controller.inventory.state_of(vm) == "ready" for vm in controller.net.vms)
    assert figures["live, with the fakes"] >= figures["of the controller"] > 0
    beside = {
        path: size for path, size in found.items() if path.startswith("retinue/") and "/pipeline/" not in path
    }
    assert sum(beside.values()) < BYTES_OF_A_VM * VMS, beside
