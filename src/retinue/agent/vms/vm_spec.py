"""How a VM is to be run: what the controller knows of it, in the form this server's configuration wants."""

from ipaddress import IPv4Address, ip_address
from pathlib import Path

from retinue.agent.config import VMTable
from retinue.core.model import Restart
from retinue.host.taps import tap_name
from retinue.hypervisor import DiskSpec, NICSpec, VMSpec
from retinue.protocol.nics import NICRecord, SubnetRecord
from retinue.protocol.vms import VMRecord


def spec(vm: VMRecord, table: VMTable | None, disks: tuple[DiskSpec, ...] = ()) -> VMSpec:
    """The same on every server that is configured alike: a VM migrates only between machines built alike.

    Without a table others make the VMs: a VM can be migrated, but not made.
    """
    first, *others = vm.all_nics
    more = tuple(
        NICSpec(nic.id, nic.hardware_mac, tap_name(nic.id), nic.slot, nic.mtu or vm.mtu) for nic in others
    )
    if table is None:
        tap = tap_name(vm.id)
        return VMSpec(vm.id, first.hardware_mac, tap, Path(), Path(), memory_mib=0, more_nics=more)
    return VMSpec(
        id=vm.id,
        mac=first.hardware_mac,
        port=tap_name(vm.id),
        kernel=Path(table.kernel),
        initrd=Path(table.initrd),
        append=kernel_command_line(vm, table),
        mtu=first.mtu or vm.mtu,
        memory_mib=vm.memory_mib or table.memory_mib,
        restart_on_crash=vm.restart is Restart.ON_CRASH,
        more_nics=more,
        disks=disks,
    )


def kernel_command_line(vm: VMRecord, table: VMTable) -> str:
    """A VM with addresses from the manager sets them itself; any other asks a DHCP server."""
    hostname = "".join(c if c.isascii() and (c.isalnum() or c == "-") else "-" for c in vm.id)
    first, *others = vm.all_nics
    ipv4, ipv6 = _addresses_of(first)
    words = [table.append, table.append_with_ipv6 if ipv6 else table.append_without_ipv6]
    for number, nic in enumerate(others, 1) if table.append_each_nic else ():
        its_ipv4, its_ipv6 = _addresses_of(nic)
        words.append(_filled(table.append_each_nic, nic=str(number), ipv4=its_ipv4, ipv6=its_ipv6))
    line = " ".join(word for word in words if word)
    return _filled(line, hostname=hostname, ipv4=ipv4, ipv6=ipv6)


def _addresses_of(nic: NICRecord) -> tuple[str, str]:
    """What {ipv4} and {ipv6} stand for."""
    fixed = {4: "", 6: ""}
    for address in nic.addresses:
        parsed = ip_address(address)
        subnet = nic.subnets.get(address, SubnetRecord())
        length = subnet.prefixlen
        if length is None:
            length = 24 if isinstance(parsed, IPv4Address) else 64
        router = f",{subnet.gateway}" if subnet.gateway else ""
        fixed[parsed.version] = fixed[parsed.version] or f"{address}/{length}{router}"
    return fixed[4] or ("none" if fixed[6] else "dhcp"), fixed[6]


def _filled(line: str, **values: str) -> str:
    for name, value in values.items():
        line = line.replace(f"{{{name}}}", value)
    return line
