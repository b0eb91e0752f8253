"""The network of one size: servers, switches, VMs, and the controller's configuration file for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

PER_LEAF = 40
"""Servers under a leaf."""
SPINES = 2
DHCP_SERVER_MAC, DHCP_SERVER = "02:00:02:00:00:01", IPv4Address("10.64.0.2")
DHCP_PORT = 1000
"""The DHCP server's, of leaf0."""
_FIRST_SERVER = IPv4Address("10.0.0.10")
_FIRST_VM = IPv4Address("10.64.1.0")
_FIRST_LEASED = IPv4Address("10.100.1.0")


def _mac(prefix: str, number: int) -> str:
    return f"{prefix}:" + ":".join(f"{byte:02x}" for byte in number.to_bytes(3))


@dataclass(frozen=True, slots=True)
class VMPlan:
    id: str
    mac: str
    ip: IPv4Address


@dataclass(frozen=True, slots=True)
class SwitchPlan:
    id: str
    dpid: int
    role: str
    ports: dict[str, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """So many servers, PER_LEAF under each leaf, and VMs with one static address each, spread evenly."""

    servers: int
    vms: int

    @property
    def leaves(self) -> int:
        return -(-self.servers // PER_LEAF)

    def vm(self, number: int) -> VMPlan:
        return VMPlan(f"vm{number}", _mac("52:54:00", number), _FIRST_VM + number)

    def leasing_vm(self, number: int) -> VMPlan:
        """One that asks for its address by DHCP."""
        return VMPlan(f"d{number}", _mac("52:55:00", number), _FIRST_LEASED + number)

    def server_of(self, number: int) -> int:
        """Where VM `number` is registered."""
        return number % self.servers

    def leaf_of(self, server: int) -> int:
        return server // PER_LEAF

    def switches(self) -> Iterator[SwitchPlan]:
        for k in range(SPINES):
            yield SwitchPlan(
                f"spine{k}", 0x500000 + k, "spine", {f"to-leaf{n}": n + 1 for n in range(self.leaves)}
            )
        for k in range(self.leaves):
            ports = {f"to-spine{s}": s + 1 for s in range(SPINES)}
            here = range(k * PER_LEAF, min(self.servers, (k + 1) * PER_LEAF))
            ports |= {f"s{i}": 10 + n for n, i in enumerate(here)}
            if k == 0:
                ports["dhcp"] = DHCP_PORT
            yield SwitchPlan(f"leaf{k}", 0x100000 + k, "leaf", ports)
        for i in range(self.servers):
            yield SwitchPlan(f"edge{i}", 0x300000 + i, "edge", {"up0": 1})

    def links(self) -> Iterator[tuple[str, str, str, str]]:
        """Each leaf and its port, the spine there and its port."""
        for k in range(self.leaves):
            for s in range(SPINES):
                yield f"leaf{k}", f"to-spine{s}", f"spine{s}", f"to-leaf{k}"

    def config(self, openflow: int, ovsdb: int, rest: int) -> str:
        """The controller's configuration (TOML), with these ports to listen at."""
        at = {"openflow": openflow, "ovsdb": ovsdb, "rest": rest}
        tables = [
            'gateway_mac = "00:00:de:ad:be:ef"\nwarm_up_seconds = 0\nforward_seconds = 0\n[listen]',
            *(f'{name} = "127.0.0.1:{port}"' for name, port in at.items()),
            'plaintext = ["openflow", "ovsdb", "rest"]',
            '[[subnet]]\nid = "servers"\nprefix = "10.0.0.0/16"\ngateway = "10.0.255.254"',
            '[[subnet]]\nid = "vms"\nprefix = "10.64.0.0/10"\ngateway = "10.127.255.254"',
        ]
        for switch in self.switches():
            table = f'[[switch]]\nid = "{switch.id}"\nrole = "{switch.role}"\ndpid = "{switch.dpid:#x}"'
            tables.append(table + ('\nuplink = "up0"' if switch.role == "edge" else ""))
        for leaf, up, spine, down in self.links():
            tables.append(f'[[link]]\nleaf = "{leaf}:{up}"\nspine = "{spine}:{down}"')
        for i in range(self.servers):
            tables.append(
                f'[[server]]\nid = "server{i}"\nmac = "{_mac("02:00:01", i)}"\n'
                f'address = "{_FIRST_SERVER + i}"\nedge = "edge{i}"\nat = "leaf{self.leaf_of(i)}:s{i}"'
            )
        tables.append(
            f'[[server]]\nid = "dhcp"\nmac = "{DHCP_SERVER_MAC}"\naddress = "{DHCP_SERVER}"\n'
            'services = ["dhcp"]\nat = "leaf0:dhcp"'
        )
        return "\n".join(tables) + "\n"
