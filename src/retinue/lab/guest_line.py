"""What the laboratory's guest is told at its start about its addresses."""

from ipaddress import IPv4Address, ip_address

from retinue.agent.records import SubnetRecord, VMRecord
from retinue.lab.guest import command_line


def guest_command_line(vm: VMRecord) -> str:
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
    return command_line(ipv4, hostname=hostname, address6=fixed[6])
