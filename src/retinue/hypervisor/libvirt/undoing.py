"""A migration through libvirt that fails: how it has ended at its source, and what is taken back.

A VM that was stopped for post-copy, and that never ran at its target, is its source's again. libvirt (9.0)
takes nothing back from the stop on: it leaves the VM paused ("post-copy failed"), with its migration's job
open, and resumes it at nobody's word. QEMU has it as it was until the target runs it, and runs it again when
it is told to cancel; but only while its stream is open, so the agent keeps that (`LibvirtHost.kept`), and
reads it for nobody. So QEMU itself is told, by libvirt's way to its monitor.
"""

import asyncio
from enum import Enum, auto
from typing import Any

import structlog

from retinue.host.errors import HostError
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.libvirt.connection import STATE_RUNNING, LibvirtHost

GIVEN_BACK = (STATE_RUNNING, 11)
"""VIR_DOMAIN_RUNNING_POSTCOPY_FAILED, at a source."""
RESUME_LIMIT = 10.0
LOOK_SECONDS = 0.02

log = structlog.get_logger()


class Outcome(Enum):
    """How libvirt's migration ended."""

    STAYS = auto()
    MIGRATED = auto()
    UNKNOWN = auto()
    """libvirt here cannot be asked, or has the VM no more."""


async def take_back(host: LibvirtHost, vm: str) -> None:
    """Run it again here; a libvirtd that is away for a moment is waited for. Raises HypervisorError."""
    if vm not in host.kept:
        raise HypervisorError(
            f"VM {vm} was stopped for post-copy, and its stream ended with the agent that had it: QEMU on "
            f"{host.name} runs it no more. End it (`virsh destroy {vm}`), and start it anew"
        )
    try:
        async with asyncio.timeout(RESUME_LIMIT):
            await _run_again(host, vm)
    except TimeoutError as error:
        raise HypervisorError(
            f"VM {vm} was stopped for post-copy, and QEMU does not run it again within {RESUME_LIMIT:.0f} s"
        ) from error
    finally:
        host.let_go(vm)
    log.warning("migration.taken_back_from_postcopy", vm=vm)


async def _run_again(host: LibvirtHost, vm: str) -> None:
    cancelled = False
    host.is_ours_to_resume(vm)
    while True:
        try:
            domain = await host.domain(vm)
            if domain is not None:
                if not cancelled:
                    # See QemuMachine.cancel_migration: one that answers holds its big lock no longer.
                    await host.monitor(domain, "query-status")
                    if (stream := host.kept.get(vm)) is not None:
                        stream.let_wait()
                    await host.monitor(domain, "migrate_cancel")
                    cancelled = True
                if (await host.monitor(domain, "query-status"))["running"]:
                    return
                await host.monitor(domain, "cont")
        except HostError:  # The migration has not let go of the guest yet; or libvirtd is away.
            await asyncio.sleep(LOOK_SECONDS)
        else:
            if domain is None:
                raise HypervisorError(f"VM {vm} was stopped for post-copy, and has ended on {host.name}")


async def check_that_it_may_go(host: LibvirtHost, domain: Any, vm: str) -> None:
    """Raises HypervisorError for a VM that was taken back from post-copy.

    libvirt (9.0) has the job of that migration open until the domain ends: it is marked (`asyncPaused`), as
    one that can be continued, and nothing takes that away but QEMU's telling that the migration goes on. Nor
    does a libvirtd that is started anew, which reads it of the domain's status file.
    """
    if tuple(await host.call(domain.state)) == GIVEN_BACK:
        raise HypervisorError(
            f"VM {vm} was taken back from a migration by post-copy that failed, and libvirt on {host.name} "
            f"moves it no more: stop it, without its guest (`retinue vm stop {vm} --hard`), and start it "
            "anew; or, that its guest goes on, take `asyncPaused` out of its status file (docs/libvirt.md, "
            "post-copy)"
        )
