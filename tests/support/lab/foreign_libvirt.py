"""A libvirtd on a server of the network with nothing of ours: it runs the VM at the tap that is there."""

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from retinue.hypervisor import VMSpec
from retinue.hypervisor.libvirt.domain_xml import Consoles, domain_xml
from retinue_lab.errors import LabError
from retinue_lab.guest.image import command_line, ensure_guest
from retinue_lab.network import libvirtd
from retinue_lab.topology.topology import SANDBOX
from retinue_lab.topology.topology_file import load
from support.lab.foreign_vm import Said
from support.lab.snooping_network import MAC, TAP, VM, SnoopingNetwork
from support.lab.tools import BOOT_PATIENCE, eventually

UUID = "00000000-0000-4000-8000-000000000009"


def libvirt_missing() -> str:
    """Why there can be none here; "" when there can."""
    try:
        libvirtd.check(load("libvirt"))
    except LabError as error:
        return str(error)
    return ""


@dataclass
class LibvirtServer:
    world: SnoopingNetwork
    node: str
    address: str
    said: Said

    @property
    def uri(self) -> str:
        return libvirtd.uri(self.node)

    @classmethod
    async def start(cls, world: SnoopingNetwork, node: str, address: str) -> "LibvirtServer":
        own, prepared = libvirtd.folder(node), world.folder / f"{node}-libvirt"
        prepared.mkdir()
        files = libvirtd.configuration(node, address, world.folder / f"{node}-libvirtd.log")
        for name, text in files.items():
            (prepared / name).write_text(text)
        folders = " ".join(str(own / name) for name in libvirtd.FOLDERS)
        hosts = f"printf '{address} {node}\n127.0.0.1 localhost\n' > {own}/hosts"
        script = f"mkdir -p {folders}; {hosts}; cp {prepared}/* {own}/etc/"
        await world.run(SANDBOX, "sh", "-ec", script)
        server = cls(world, node, address, await world.program(node, *libvirtd.again(node)))
        await eventually(server._answers)
        return server

    async def _answers(self) -> bool:
        said = await self.world.run(
            self.node, "sh", "-c", f"virsh -c '{self.uri}' list >&2 && echo yes || true"
        )
        return "yes" in said

    async def create(self) -> str:
        """Start the VM; its address, when it has one and serves."""
        xml = self.world.folder / "domain.xml"
        console = self.world.folder / "libvirt.console"
        xml.write_text(_domain(Consoles(console, self.world.folder / "libvirt.shell")))
        await self.virsh("create", str(xml))

        async def ready() -> bool:
            text = console.read_text(errors="replace") if console.exists() else ""
            return "RETINUE READY" in text and "RETINUE ADDRESS" in text

        await eventually(ready, BOOT_PATIENCE)
        return console.read_text(errors="replace").split("RETINUE ADDRESS ")[-1].split()[0]

    async def migrate(self, target: "LibvirtServer") -> None:
        await self.virsh("migrate", "--live", VM, f"qemu+tcp://{target.address}/system")

    async def virsh(self, *words: str) -> str:
        return await self.world.run(self.node, "virsh", "-c", self.uri, *words)


def _domain(consoles: Consoles) -> str:
    guest = ensure_guest()
    append = command_line("dhcp", hostname=VM)
    spec = VMSpec(UUID, MAC, TAP, Path(guest.kernel), Path(guest.initrd), append, memory_mib=96)
    domain = ElementTree.fromstring(domain_xml(spec, consoles))
    name, interface = domain.find("name"), domain.find("devices/interface")
    assert name is not None and interface is not None
    name.text = VM
    interface.set("type", "ethernet")
    for part in ("source", "virtualport", "mtu"):
        found = interface.find(part)
        assert found is not None
        interface.remove(found)
    tap = interface.find("target")
    assert tap is not None
    tap.set("managed", "no")
    return ElementTree.tostring(domain, encoding="unicode")


__all__ = ["LibvirtServer", "libvirt_missing"]
