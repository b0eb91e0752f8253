"""The agent's configuration file.

TOML; every key is checked, and a mistake is answered with the file, the key and what was expected.

    server = "server1"                    # the id the controller knows this server by
    controller = "https://192.0.2.1:8080"
    listen = "192.0.2.3:7800"             # other agents bring VMs here; port 0: any
    bridge = "br0"                        # the edge switch
    folder = "/var/lib/retinue/agent"     # sockets and logs of VMs

    [vm]                                  # how VMs are run
    kernel = "/boot/vmlinuz"
    initrd = "/boot/initrd.img"
    append = "quiet hostname={hostname} ip={ipv4}"    # ipv4: dhcp, none, or ADDRESS/LENGTH,GATEWAY
    append_with_ipv6 = "ip6={ipv6}"
    append_without_ipv6 = "ipv6.disable=1"
    memory_mib = 128
    accelerator = "kvm"
    wrapper = ["nice", "-n", "5"]         # put before QEMU's command line

    [libvirt]                             # libvirt runs the VMs of this server
    uri = "qemu:///system"
    control = "qemu+tls://server1.example/system"     # how other servers' libvirts reach this one
    folder = "/var/lib/libvirt/retinue"   # consoles and sockets of VMs; the same on all servers
    seen_at = ""                          # that folder as the agent sees it, where libvirt is in a container
    user = "libvirt-qemu"                 # whose the QEMUs are; left out: the agent's own

    [tls]                                 # see `retinue pki`
    ca = "/etc/retinue/ca.pem"
    certificate = "/etc/retinue/agent.pem"
    key = "/etc/retinue/agent.key"

With [libvirt] the [vm] table says how VMs are made that are booked here: without `wrapper`, and `accelerator`
is "kvm" or "tcg". Left out, none can be booked, but those that others make are moved and followed. Without
`control` no VM can be brought here.

Without [tls] the agent starts only where `plaintext = true` says that this is meant.
"""

import tomllib
from pathlib import Path

import msgspec

from retinue.hypervisor import HypervisorError
from retinue.hypervisor.libvirt_control import transport

KINDS = {"tcg": "qemu", "kvm": "kvm"}
"""By accelerator, what libvirt calls a domain of it."""


class AgentConfigError(Exception):
    """The file cannot be used; the message names it, the place in it and the reason."""


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class VMTable(_Table, frozen=True):
    kernel: str
    initrd: str
    append: str = ""
    append_with_ipv6: str = ""
    append_without_ipv6: str = ""
    memory_mib: int = 128
    accelerator: str = "tcg"
    wrapper: list[str] = []


class LibvirtTable(_Table, frozen=True):
    uri: str = "qemu:///system"
    control: str = ""
    folder: str = "/var/lib/libvirt/retinue"
    seen_at: str = ""
    user: str = ""


class TlsTable(_Table, frozen=True):
    ca: str
    certificate: str
    key: str


class AgentConfig(_Table, frozen=True):
    """The whole file."""

    server: str
    controller: str
    listen: str
    folder: str
    bridge: str
    vm: VMTable | None = None
    libvirt: LibvirtTable | None = None
    tls: TlsTable | None = None
    plaintext: bool = False

    @property
    def endpoint(self) -> tuple[str, int]:
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


def load(path: Path) -> AgentConfig:
    """Raises AgentConfigError."""
    try:
        config = msgspec.convert(tomllib.loads(path.read_text()), AgentConfig)
    except OSError as error:
        raise AgentConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise AgentConfigError(f"{path}: {error}") from error
    host, _, port = config.listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise AgentConfigError(f"{path}: listen: {config.listen!r} is not HOST:PORT")
    if problem := _contradiction(config):
        raise AgentConfigError(f"{path}: {problem}")
    if config.tls is None and not config.plaintext:
        raise AgentConfigError(
            f"{path}: there is no [tls]: make certificates with `retinue pki`, or say `plaintext = true` "
            "if nobody but you is on that network"
        )
    return config


def _contradiction(config: AgentConfig) -> str:
    """What the tables about VMs do not agree on; "" when they do."""
    vm, libvirt = config.vm, config.libvirt
    if libvirt is None:
        return "" if vm is not None else "there is neither [vm] nor [libvirt]: nothing could run VMs here"
    if vm is not None and vm.wrapper:
        return "vm.wrapper: libvirt makes QEMU's command line, nothing can be put before it"
    if vm is not None and vm.accelerator not in KINDS:
        return f"vm.accelerator: with libvirt it is {' or '.join(KINDS)}, not {vm.accelerator!r}"
    for key, value in (("folder", libvirt.folder), ("seen_at", libvirt.seen_at)):
        if value and not value.startswith("/"):
            return f"libvirt.{key}: {value!r} is not an absolute path"
    if libvirt.control:
        try:
            transport(libvirt.control)
        except HypervisorError as error:
            return f"libvirt.control: {error}"
    return ""
