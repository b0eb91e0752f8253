"""docs/virsh.md, typed word by word on machines that systemd has booted: from nothing to a VM of libvirt's
that somebody's `virsh migrate --live` moves.

What is not the page's: libvirt's VM is emulated, and boots the laboratory's guest; Open vSwitch forwards in
user space, and is told the way to other servers, as docs/networks.md has it.
"""

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from retinue.hypervisor.libvirt.domain_xml import GUEST_OFFLOADS, HOST_OFFLOADS
from retinue_lab.guest.image import command_line
from support.lab import booted
from support.lab.booted_site import CONTROLLER, FIRST, NETWORK, BootedSite, in_user_space, main_pid
from support.lab.booted_ssh import trust
from support.lab.booted_traffic import flowing, nothing_lost
from support.pages import section

why_not = booted.missing()
pytestmark = [
    pytest.mark.lab,
    pytest.mark.long,
    pytest.mark.alone,
    pytest.mark.skipif(why_not != "", reason=why_not),
]

PAGE = "docs/virsh.md"
VM, ADDRESS = "00000000-0000-4000-8000-000000000001", "10.1.0.1"
SETUP_LIMIT = 900.0


def off(end: str, offloads: tuple[str, ...]) -> str:
    return f"<{end} " + " ".join(f"{one}='off'" for one in offloads) + "/>"


OFF = off("host", HOST_OFFLOADS) + off("guest", GUEST_OFFLOADS)
"""Open vSwitch in user space drops what has no checksum yet."""
GUEST = {
    "type='kvm'": "type='qemu'",
    "/boot/vmlinuz": "/srv/guest/vmlinuz",
    "/boot/initrd.img": "/srv/guest/initrd",
    "console=ttyS0": command_line(f"{ADDRESS}/24,10.1.0.254", hostname="web"),
    "<serial type='pty'/>": "<serial type='file'><source path='/var/lib/libvirt/qemu/web.console'/></serial>",
    "<model type='virtio'/>": f"<model type='virtio'/><driver>{OFF}</driver>",
}
"""The laboratory's guest, in place of what the page's domain boots."""
_LIBVIRT = """
echo 'host_uuid_source = "machine-id"' >> /etc/libvirt/libvirtd.conf
systemctl restart libvirtd
"""
"""Containers of one machine: by default libvirt would take them for the same host."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, debs: Path) -> Iterator[BootedSite]:
    folder = tmp_path_factory.mktemp("booted")
    with booted.machines(folder / "machines") as machines:
        machines.network(NETWORK)
        machines.boot((CONTROLLER, *FIRST))
        site = BootedSite(machines, folder / "tools")
        trust(site)
        for server in site.servers.values():
            server.sh(_LIBVIRT)
        (site.controller.files / "root/packages").mkdir()
        for deb in debs.glob("*.deb"):
            (site.controller.files / "root/packages" / deb.name).write_bytes(deb.read_bytes())
        yield site


def written(heading: str, kind: str) -> str:
    """The file that the page shows under a heading."""
    (text,) = re.findall(rf"^```{kind}\n(.*?)^```", section(PAGE, heading), re.M | re.S)
    return str(text)


def typed(site: BootedSite, heading: str) -> str:
    """Type what is indented under a heading, on the controller's machine, in one shell; what it said."""
    prose = re.sub(r"^```.*?^```", "", section(PAGE, heading), flags=re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^ {4}(\S.*)$", prose, re.MULTILINE)
    assert lines, heading
    before = ASKING if heading not in BEFORE else ""
    began = time.monotonic()
    said = site.controller.sh("\n".join((before, *lines)), limit=SETUP_LIMIT)
    TOOK[heading] = time.monotonic() - began
    return said


BEFORE = ("What is there", "Install", "Set up")
ASKING = "\n".join(re.findall(r"^ {4}((?:cd|export) .*)$", section(PAGE, "Set up"), re.MULTILINE))
"""What is typed once in the shell in which the page goes on."""
TOOK: dict[str, float] = {}
"""Seconds, by heading."""


def test_from_nothing_to_a_network_that_is_well(site: BootedSite) -> None:
    typed(site, "What is there")
    typed(site, "Install")
    (site.controller.files / "root/site.toml").write_text(in_user_space(written("The file", "toml")))
    assert "All is as it should be." in typed(site, "Set up")
    for name in FIRST:
        assert main_pid(site.servers[name], "retinue-agent") != 0


def test_a_vm_of_libvirts_is_known_by_its_interface(site: BootedSite) -> None:
    domain = written("A VM of libvirt's", "xml")
    for old, new in GUEST.items():
        assert old in domain
        domain = domain.replace(old, new)
    (site.controller.files / "root/web.xml").write_text(domain)
    assert ADDRESS in typed(site, "A VM of libvirt's")
    site.until("vm", "show", VM, until="running")


def test_virsh_moves_it_and_the_network_follows(site: BootedSite) -> None:
    said = typed(site, "Move it")
    assert "server1" in said and "server2" in said, said
    site.until("move", "list", until=" done ")
    assert site.servers["server1"].run("virsh", "list", "--all", "--name").strip() == ""
    assert site.servers["server2"].run("virsh", "list", "--name").strip() == "web"


async def test_retinue_moves_it_back_and_what_it_is_sent_arrives(site: BootedSite) -> None:
    traffic = await flowing(site, ADDRESS)
    said = await asyncio.to_thread(typed, site, "And lose nothing")
    assert "web" in said, said
    assert site.servers["server2"].run("virsh", "list", "--all", "--name").strip() == ""
    assert site.servers["server1"].run("virsh", "list", "--name").strip() == "web"
    # Taps come and go beside the tunnel that the traffic takes: see the page, what was measured.
    await nothing_lost(traffic, but=5)
