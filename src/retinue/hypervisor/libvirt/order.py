"""What libvirt is told to do in a migration of ours: by its peer-to-peer migration, the memory through us."""

from typing import Any

from retinue.hypervisor.libvirt import disk_copies, resuming
from retinue.hypervisor.libvirt.connection import LibvirtHost
from retinue.hypervisor.libvirt.directory import Memory
from retinue.hypervisor.libvirt.disk_copies import DiskCopies
from retinue.hypervisor.libvirt.disks_xml import all_are_ours
from retinue.hypervisor.libvirt.far_end import FarEnd
from retinue.hypervisor.libvirt.postcopy import FLAG as POSTCOPY

LIVE, PEER2PEER, PERSIST_DEST, UNDEFINE_SOURCE, AUTO_CONVERGE = 1, 2, 8, 16, 1 << 13
UNSAFE = 1 << 9
"""virDomainMigrateFlags."""
MIGRATE_URI = "migrate_uri"
"""VIR_MIGRATE_PARAM_URI."""


async def by_libvirt(
    host: LibvirtHost,
    domain: Any,
    control: str,
    memory: Memory,
    far: FarEnd,
    disks: DiskCopies,
    *,
    several: bool,
    postcopy: bool,
    goes_on: bool,
) -> None:
    """Return when libvirt has migrated the VM. `several`: in several passes; `goes_on`: with post-copy whose
    stream broke. Raises HypervisorError."""
    flags = LIVE | PEER2PEER
    if await host.call(domain.isPersistent):
        flags |= PERSIST_DEST | UNDEFINE_SOURCE
    if several:
        flags |= AUTO_CONVERGE
    if postcopy:
        flags |= POSTCOPY
    if goes_on:
        flags |= resuming.FLAG
    parameters: dict[str, Any] = {MIGRATE_URI: f"unix://{memory.inside}"}
    xml = await host.call(domain.XMLDesc, disk_copies.MIGRATABLE)
    if disks:
        flags |= disk_copies.NON_SHARED_INC
        parameters |= disks.parameters(xml, far.files)
    if far.shared and all_are_ours(xml, far.shared):
        flags |= UNSAFE  # libvirt takes the storage for local that it does not know.
    async with host.apart(domain) as apart:
        await host.call(apart.migrateToURI3, control, parameters, flags)
