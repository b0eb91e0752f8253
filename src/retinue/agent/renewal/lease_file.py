"""Leases as an agent writes them down, shows them and tells them to other agents; and the file of them.

Ends are in seconds since the epoch by a steady clock. The file has that clock's anchor, so that a wall clock
that is set meanwhile moves no lease.
"""

import math
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path

import msgspec
import structlog

from retinue.core.lease_renewal import Lease
from retinue.core.lease_watch import KeptLease
from retinue.core.limits import LONGEST_CLIENT_ID, LONGEST_ID
from retinue.core.model import ModelError
from retinue.core.model import mac as checked_mac
from retinue.core.packets import OPTIONS_BYTES, FrameError, build_options, parse_options
from retinue.steady_clock import ClockAnchor

LONGEST_FILE = 16 << 20

log = structlog.get_logger()


class LeaseRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One lease as it is written, shown and told to other agents."""

    vm: str = ""
    mac: str
    ip: str
    server: str
    """Server identifier (option 54) of the DHCP server that granted it."""
    end: float | None = None
    """Seconds since the epoch; None: never."""
    client_id: str = ""
    """In hexadecimal."""
    next_hop: str
    options: str = ""
    """What the VM's own request had besides, as an option field in hexadecimal."""


class LeaseFile(msgspec.Struct, forbid_unknown_fields=True):
    """What the file has."""

    anchor: ClockAnchor
    leases: list[LeaseRecord]


def record_of(kept: KeptLease) -> LeaseRecord:
    lease = kept.lease
    return LeaseRecord(
        vm=kept.vm,
        mac=lease.mac,
        ip=str(lease.ip),
        server=str(lease.server),
        end=kept.end,
        client_id=lease.client_id.hex(),
        next_hop=lease.next_hop,
        options=build_options(lease.options)[:-1].hex(),
    )


def kept_of(record: LeaseRecord) -> KeptLease:
    """Raises ValueError for what is no lease; the words say what is wrong."""
    try:
        lease = Lease(
            ip=IPv4Address(record.ip),
            mac=checked_mac(record.mac),
            server=IPv4Address(record.server),
            client_id=bytes.fromhex(record.client_id),
            next_hop=checked_mac(record.next_hop),
            options=parse_options(bytes.fromhex(record.options)),
        )
    except (AddressValueError, ModelError, FrameError) as error:
        raise ValueError(str(error)) from error
    if len(record.options) > 2 * OPTIONS_BYTES or len(lease.client_id) > LONGEST_CLIENT_ID:
        raise ValueError(f"more options than a lease of {record.mac} is kept with")
    if len(record.vm) > LONGEST_ID:
        raise ValueError(f"the VM's name has more than {LONGEST_ID} characters")
    if record.end is not None and not math.isfinite(record.end):
        raise ValueError(f"the lease of {record.mac} ends at no time")
    return KeptLease(lease, record.end, record.vm)


def read(path: Path) -> tuple[ClockAnchor, list[KeptLease]] | None:
    """None where there is none. What cannot be read is left out, and said: the VMs' own DHCP will tell it
    anew."""
    try:
        if path.stat().st_size > LONGEST_FILE:
            raise ValueError(f"more than {LONGEST_FILE >> 20} MiB")
        found = msgspec.json.decode(path.read_bytes(), type=LeaseFile)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, msgspec.DecodeError) as error:
        log.warning("leases.not_read", file=str(path), error=str(error))
        return None
    leases: list[KeptLease] = []
    for record in found.leases:
        try:
            leases.append(kept_of(record))
        except ValueError as error:
            log.warning("leases.one_not_read", file=str(path), mac=record.mac, error=str(error))
    return found.anchor, leases


def write(path: Path, anchor: ClockAnchor, leases: list[KeptLease]) -> None:
    """Whole or not at all: a draft takes the file's place. A disk that is full ends no agent."""
    draft = path.with_suffix(".draft")
    try:
        draft.write_bytes(msgspec.json.encode(LeaseFile(anchor, [record_of(kept) for kept in leases])))
        draft.rename(path)
    except OSError as error:
        log.error("leases.not_written", file=str(path), error=str(error))
