"""The agent's configuration file.

TOML; every key is checked, and a mistake is answered with the file, the key and what was expected.
docs/operators.md has an example, and the keys as operators read of them.
"""

from pathlib import Path
from typing import Annotated

import msgspec

from retinue.config_file import ConfigError, ConfigTable, TlsTable, read
from retinue.core.placement import PressureRule
from retinue.host.errors import HostError
from retinue.hypervisor.libvirt.migration_uri import transport
from retinue.socket_addresses import endpoint

KINDS = {"tcg": "qemu", "kvm": "kvm"}
"""By accelerator, what libvirt calls a domain of it."""


class VMTable(ConfigTable, frozen=True):
    """[vm]: how VMs that are registered here are run. With [libvirt] it may be left out: then none can be
    registered, but those that others make are followed and migrated."""

    kernel: str
    initrd: str
    append: str = ""
    """The kernel's command line; {hostname} and {ipv4} (dhcp, none, or ADDRESS/LENGTH,GATEWAY) are filled
    in."""
    append_with_ipv6: str = ""
    """Added for a VM with a static IPv6 address: {ipv6} is filled in."""
    append_without_ipv6: str = ""
    append_each_nic: str = ""
    """Added for each NIC but the first: {nic} is its number, from 1, {ipv4} and {ipv6} are filled in."""
    memory_mib: int = 128
    accelerator: str = "tcg"
    """QEMU's; with libvirt one of KINDS."""
    wrapper: list[str] = []
    """Put before QEMU's command line; not with libvirt, which makes that line."""


class LibvirtTable(ConfigTable, frozen=True):
    """[libvirt]: libvirt runs the VMs of this server."""

    uri: str = "qemu:///system"
    control: str = ""
    """The URI by which other servers' libvirts reach this one; "": no VM can be brought here."""
    folder: str = "/var/lib/libvirt/retinue"
    """Consoles and sockets of VMs: the same path on all servers."""
    seen_at: str = ""
    """That folder as the agent sees it, where libvirt is in a container."""
    user: str = ""
    """The user whose the QEMUs are; "": the agent's own."""


class ContentTable(ConfigTable, frozen=True):
    """[content]: the images that this server holds for itself and for others."""

    folder: str = ""
    """Where; "": the folder content in the agent's own."""
    quota_mib: int = 65536
    """Of all chunks together."""


class MobilityTable(ConfigTable, frozen=True):
    """[mobility]: when this server asks that a VM should go, in per cent: of the time in which something
    waits for a processor or for memory (/proc/pressure, "some", avg60), of the uplink's bandwidth. 0: never.
    """

    cpu_pressure: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0
    memory_pressure: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0
    bandwidth: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0
    seconds: Annotated[int, msgspec.Meta(ge=0, le=86400)] = 60
    """For how long without a break."""
    uplink: str = ""
    """The interface to the fabric, whose bandwidth counts; "": it is not looked at."""

    def rule(self) -> PressureRule:
        cpu, memory, bandwidth = (
            round(share * 100) for share in (self.cpu_pressure, self.memory_pressure, self.bandwidth)
        )
        return PressureRule(cpu, memory, self.seconds, bandwidth)


class AgentConfig(ConfigTable, frozen=True):
    """The whole file. Without [tls] the agent starts only where `plaintext` says that this is meant."""

    server: str
    """The id by which the controller knows this server."""
    controller: str
    listen: str
    folder: str
    bridge: str
    vm: VMTable | None = None
    libvirt: LibvirtTable | None = None
    content: ContentTable = ContentTable()
    mobility: MobilityTable = MobilityTable()
    tls: TlsTable | None = None
    plaintext: bool = False

    @property
    def endpoint(self) -> tuple[str, int]:
        return endpoint(self.listen)


def load(path: Path) -> AgentConfig:
    """Raises ConfigError."""
    config = read(path, AgentConfig)
    try:
        endpoint(config.listen)
    except ValueError as error:
        raise ConfigError(f"{path}: listen: {error}") from error
    if problem := _contradiction(config):
        raise ConfigError(f"{path}: {problem}")
    if config.content.quota_mib < 1:
        raise ConfigError(f"{path}: content.quota_mib: {config.content.quota_mib} is no room at all")
    if config.tls is None and not config.plaintext:
        raise ConfigError(
            f"{path}: there is no [tls]: make certificates with `retinue pki`, or say `plaintext = true` "
            "if nobody but you is on that network"
        )
    tls = config.tls and config.tls.beside(path.parent)
    return msgspec.structs.replace(config, tls=tls)


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
        except HostError as error:
            return f"libvirt.control: {error}"
    return ""
