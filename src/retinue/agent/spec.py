"""How a VM is to be run: what the controller knows of it, in the form this server's configuration wants."""

from ipaddress import IPv4Address, ip_address
from pathlib import Path

from retinue.agent.config import VMTable
from retinue.agent.records import SubnetRecord, VMRecord
from retinue.hypervisor import VMSpec
from retinue.hypervisor.taps import tap_name


def spec(vm: VMRecord, table: VMTable | None) -> VMSpec:
    """The same on every server that is configured alike: a VM moves only between machines built alike.

    Without a table others make the VMs: it can be moved, but not made.
    """
    if table is None:
        return VMSpec(id=vm.id, mac=vm.mac, port=tap_name(vm.id), kernel=Path(), initrd=Path())
    return VMSpec(
        id=vm.id,
        mac=vm.mac,
        port=tap_name(vm.id),
        kernel=Path(table.kernel),
        initrd=Path(table.initrd),
        append=kernel_command_line(vm, table),
        memory_mib=table.memory_mib,
    )


def kernel_command_line(vm: VMRecord, table: VMTable) -> str:
    """A VM with addresses from the manager sets them itself; any other asks a DHCP server."""
    hostname = "".join(c if c.isascii() and (c.isalnum() or c == "-") else "-" for c in vm.id)
    fixed = {4: "", 6: ""}
    for address in vm.addresses:
        parsed = ip_address(address)
        subnet = vm.subnets.get(address, SubnetRecord())
        length = subnet.prefixlen
        if length is None:
            length = 24 if isinstance(parsed, IPv4Address) else 64
        router = f",{subnet.gateway}" if subnet.gateway else ""
        fixed[parsed.version] = fixed[parsed.version] or f"{address}/{length}{router}"
    ipv4 = fixed[4] or ("none" if fixed[6] else "dhcp")
    words = (table.append, table.append_with_ipv6 if fixed[6] else table.append_without_ipv6)
    line = " ".join(word for word in words if word)
    for name, value in (("hostname", hostname), ("ipv4", ipv4), ("ipv6", fixed[6])):
        line = line.replace(f"{{{name}}}", value)
    return line
