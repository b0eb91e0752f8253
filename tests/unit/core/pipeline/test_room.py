"""How much room entries take: counted in bytes that Python has handed out, which no other load changes."""

import gc
import tracemalloc

from retinue.core.model.network import Owner
from retinue.core.pipeline.compiler import Compiler
from support.fabric.networks import add_vm, fabric

VMS = 60
BYTES_OF_A_VM = 1800
"""Of its 25 entries; as objects they are 16,000."""


def test_the_entries_of_a_vm_take_a_few_kilobytes() -> None:
    net = fabric(servers_on=(1, 2))
    for number in range(1, VMS + 1):
        add_vm(net, number, at=1 + number % 2)
    compiler = Compiler(net, recent=1)
    vms = [Owner("vm", vm) for vm in net.vms]
    compiler.update(net.everything() - set(vms))
    compiler.update(vms[:10])  # The shapes, the modules.
    gc.collect()
    tracemalloc.start()
    compiler.update(vms[10:])
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < BYTES_OF_A_VM * (VMS - 10)


def test_a_vms_own_values_are_not_in_the_shape() -> None:
    """VMs with one address have one shape on each kind of switch, whichever port they have, and where."""
    net = fabric(leaves=2, servers_on=(1, 2))
    numbers = range(1, 7)
    for number in numbers:
        add_vm(net, number, at=1 + number % 2)
    vms = [Owner("vm", f"vm{number}") for number in numbers]
    compiler = Compiler(net, recent=0)
    compiler.update(net.everything() - set(vms))
    shapes = compiler._contributions._shapes
    before = len(shapes)
    compiler.update(vms)
    assert len(shapes) == before + len(("edge", "leaf", "spine"))
    for vm in vms:
        net.remove_vm(vm.id)
    compiler.update(vms)
    assert len(shapes) == before, "what nobody has is forgotten"
