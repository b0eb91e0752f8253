"""The agent's configuration file.

TOML; every key is checked, and a mistake is answered with the file, the key and what was expected.
docs/operators.md has an example, and the keys as operators read of them.
"""

import re
from pathlib import Path
from typing import Annotated

import msgspec

from retinue.config_file import ConfigError, ConfigTable, TlsTable, read
from retinue.core.model import ModelError, entity_id
from retinue.core.placement import PressureRule
from retinue.host.errors import HostError
from retinue.hypervisor.libvirt.migration_uri import transport
from retinue.socket_addresses import endpoint

FILLED_IN = ("hostname", "ipv4", "ipv6")
"""What stands for something of the VM's in its kernel's command line."""
KINDS = {"tcg": "qemu", "kvm": "kvm"}
"""By accelerator, what libvirt calls a domain of it."""


MOST_PEERS = 64
"""Agents that are asked for the lease of each VM that arrives."""


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
    postcopy: bool = False
    """VMs may come here by post-copy (docs/libvirt.md says what that needs)."""


class ContentTable(ConfigTable, frozen=True):
    """[content]: the images that this server holds for itself and for others."""

    folder: str = ""
    """Where; "": the folder content in the agent's own."""
    quota_mib: int = 65536
    """Of all chunks together."""
    cache: bool = False
    """This server is a cache: it runs no VMs, fetches what servers ask it for, and lets go of what nobody has
    asked for the longest where the quota is used up."""


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


class ReportTable(ConfigTable, frozen=True):
    """[report]: whom this agent tells of VMs that others make at its server, and as whose."""

    manager: str = ""
    """The URL of a manager that passes it on to the controller; "": the controller itself."""
    ca: str = ""
    """The file with the manager's authority; "": that of [tls]."""
    interface: str = ""
    """The interface whose MAC is the server's own; "": the bridge's."""


class DomainTable(ConfigTable, frozen=True):
    """[[domain]]: another domain, whose agents bring VMs here and take VMs in."""

    id: str
    ca: str
    """The file with its authority."""
    listen: str
    """Where its agents bring VMs: host:port, another than that for the own domain."""
    images: bool = False
    """Its agents fetch our images there, and images are fetched from theirs."""


class AloneTable(ConfigTable, frozen=True):
    """[alone]: without a controller of ours; the leases of VMs that others run are renewed as they arrive."""

    qmp: list[str] = []
    """QMP sockets of their QEMUs, for this agent alone; with * and ?, such as /run/vms/*.qmp."""
    libvirt: str = ""
    """The URI of the libvirtd that runs them, such as qemu:///system; "": none does."""
    peers: dict[str, str] = {}
    """By server, HOST:PORT of the agents from where VMs come: they know their leases."""
    snooping_table: str = ""
    """Socket of an adapter to the snooping table of this server's switch; "": none."""


class AgentConfig(ConfigTable, frozen=True):
    """The whole file. Without [tls] the agent starts only where `plaintext` says that this is meant."""

    server: str
    """The id by which the controller knows this server."""
    listen: str
    folder: str
    bridge: str = ""
    """The Open vSwitch bridge of the VMs' ports; "", without a controller: another kind of switch; a cache
    needs none."""
    controller: str = ""
    """Its URL, of several controllers all of theirs with commas between them; "": there is none of ours, see
    [alone]."""
    alone: AloneTable | None = None
    vm: VMTable | None = None
    libvirt: LibvirtTable | None = None
    disk_folder: str = ""
    """Where the overlays of VMs' private disks are; "": the folder disks in the agent's own."""
    disk_paths: list[str] = []
    """Folders in which the bases and shared files of VMs' disks may be that are given by a path; none: only
    images by their names. A manager cannot have a VM read, or write, any other file of the server."""
    content: ContentTable = ContentTable()
    mobility: MobilityTable = MobilityTable()
    report: ReportTable = ReportTable()
    tls: TlsTable | None = None
    plaintext: bool = False
    domain: list[DomainTable] = []

    @property
    def endpoint(self) -> tuple[str, int]:
        return endpoint(self.listen)


def load(path: Path) -> AgentConfig:
    """Raises ConfigError."""
    config = read(path, AgentConfig)
    try:
        entity_id(config.server, "a server")
    except ModelError as error:
        raise ConfigError(f"{path}: server: {error}") from error
    try:
        host, _ = endpoint(config.listen)
    except ValueError as error:
        raise ConfigError(f"{path}: listen: {error}") from error
    if host in ("0.0.0.0", "::") and config.alone is None:
        raise ConfigError(
            f"{path}: listen: {config.listen} is told to other agents as where they bring VMs: "
            "name an address of this server's, of the management network"
        )
    for url in config.controller.split(",") if config.controller else ():
        if not url.strip().startswith(("https://", "http://")):
            raise ConfigError(
                f"{path}: controller: {url.strip()!r} is no URL, such as https://192.0.2.1:8080"
            )
    for key, value in [
        ("disk_folder", config.disk_folder),
        *(("disk_paths", one) for one in config.disk_paths),
    ]:
        if value and not value.startswith("/"):
            raise ConfigError(f"{path}: {key}: {value!r} is not an absolute path")
    if problem := _contradiction(config):
        raise ConfigError(f"{path}: {problem}")
    if config.content.quota_mib < 1:
        raise ConfigError(f"{path}: content.quota_mib: {config.content.quota_mib} is no room at all")
    if config.tls is None and not config.plaintext:
        raise ConfigError(
            f"{path}: there is no [tls]: make certificates with `retinue pki`, or say `plaintext = true` "
            "if nobody but you is on that network"
        )
    if config.report.manager and not config.report.manager.startswith(("https://", "http://")):
        raise ConfigError(
            f"{path}: report.manager: {config.report.manager!r} is no URL, such as https://nms:443"
        )
    if problem := _wrong_domain(config):
        raise ConfigError(f"{path}: {problem}")
    tls = config.tls and config.tls.beside(path.parent)
    domains = [msgspec.structs.replace(domain, ca=str(path.parent / domain.ca)) for domain in config.domain]
    report = config.report
    if report.ca:
        report = msgspec.structs.replace(report, ca=str(path.parent / report.ca))
    return msgspec.structs.replace(config, tls=tls, domain=domains, report=report)


def _contradiction(config: AgentConfig) -> str:
    """What the tables about VMs do not agree on; "" when they do."""
    if config.alone is not None or not config.controller:
        return _contradiction_alone(config)
    if config.content.cache:
        other = [domain.id for domain in config.domain if not domain.images]
        kept = {"[vm]": config.vm, "[libvirt]": config.libvirt, "[[domain]] without `images`": other}
        if found := [name for name, table in kept.items() if table]:
            return f"content.cache: a cache runs no VMs: leave out {', '.join(found)}"
        return ""
    vm, libvirt = config.vm, config.libvirt
    if vm is not None and (problem := _wrong_vm(vm)):
        return problem
    if not config.bridge:
        return "bridge: which Open vSwitch bridge are the VMs' ports in?"
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


def _wrong_vm(vm: VMTable) -> str:
    """What QEMU or the kernel's command line would not take; "" when it is well."""
    if vm.accelerator.partition(",")[0] not in KINDS:
        return f"vm.accelerator: {vm.accelerator!r} is neither {' nor '.join(KINDS)}"
    for key in ("append", "append_with_ipv6", "append_without_ipv6", "append_each_nic"):
        known = {*FILLED_IN, *(("nic",) if key == "append_each_nic" else ())}
        if strange := [word for word in re.findall(r"\{(\w+)\}", getattr(vm, key)) if word not in known]:
            known_words = ", ".join(f"{{{word}}}" for word in sorted(known))
            return f"vm.{key}: nothing is filled in for {{{strange[0]}}}: it may have {known_words}"
    return ""


def _wrong_domain(config: AgentConfig) -> str:
    """What cannot be in the tables [[domain]]; "" when they are well."""
    if config.domain and config.tls is None:
        return "agents of two domains speak TLS; add the table [tls]"
    ids = [domain.id for domain in config.domain]
    for domain in config.domain:
        try:
            entity_id(domain.id, "a domain")
            endpoint(domain.listen)
        except ModelError as error:
            return str(error)
        except ValueError as error:
            return f"domain {domain.id}: listen: {error}"
        if ids.count(domain.id) > 1:
            return f"domain {domain.id} is given twice"
    return ""


def _contradiction_alone(config: AgentConfig) -> str:
    alone = config.alone
    if alone is None:
        return "there is neither controller nor [alone]: nobody would say what is to be done"
    if config.controller:
        return "[alone] is for servers without a controller: leave one of the two out"
    if config.vm is not None or config.libvirt is not None:
        return "[alone]: others run the VMs, so there is neither [vm] nor [libvirt]"
    if not alone.qmp and not alone.libvirt:
        return (
            "alone.qmp: name at least one QMP socket, such as /run/vms/*.qmp; or a libvirtd, by "
            'libvirt = "qemu:///system"'
        )
    for pattern in alone.qmp:
        if not pattern.startswith("/"):
            return f"alone.qmp: {pattern!r} is not an absolute path"
    if len(alone.peers) > MOST_PEERS:
        return f"alone.peers: {len(alone.peers)} are more than {MOST_PEERS}"
    for server, address in alone.peers.items():
        try:
            endpoint(address)
        except ValueError as error:
            return f"alone.peers: {server}: {error}"
    return ""
