"""The DHCP client in a guest."""

from support.lab.tools import LabBench, Picks

_START = "udhcpc -f -i eth0 -s /etc/udhcpc.script -p /run/udhcpc.pid -T 1 </dev/null >/dev/null 2>&1 &"


def of_vm(vm: str) -> Picks:
    """Picks events about a VM."""
    return lambda e: e.get("vm") == vm or any(row["vm"] == vm for row in e.get("bindings", []))


async def start_udhcpc(bench: LabBench, vm: str) -> None:
    await bench.guest(vm, _START)


async def udhcpc(bench: LabBench, vm: str, number: str) -> None:
    """A signal to the client: USR1 renews, or asks anew; USR2 releases."""
    await bench.guest(vm, f"kill -{number} $(cat /run/udhcpc.pid)")
