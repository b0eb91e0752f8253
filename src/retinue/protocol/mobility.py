"""What is said before a migration begins, so that the best server is found: the records of each message.

    who to whom                  how                                       event of it
    agent to resource manager    POST /v1/vms/{id}/profile-queries         mobility.profile_query
    hypervisor to its agent      inside the agent; told with the request   mobility.message
    agent to mobility manager    POST /v1/vms/{id}/migration-requests      mobility.request
    mobility manager to agents   event                                     mobility.match
    agents to mobility manager   POST /v1/matches/{id}/answers             mobility.answer, mobility.silent
    mobility manager             -                                         mobility.decision, or .unmatched
    mobility manager to target   event                                     mobility.initiation

A manager asks by POST /v1/migrations without a target. Everything is on the event stream in this order.
"""

from typing import Annotated

import msgspec

from retinue.core.limits import LARGEST_COUNT, LONGEST_ID, MOST_ANCHOR_SECONDS, MOST_LISTED
from retinue.core.placement import Reason

Size = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_COUNT)]
Share = Annotated[int, msgspec.Meta(ge=0, le=10_000)]
"""Hundredths of a per cent."""
Name = Annotated[str, msgspec.Meta(max_length=LONGEST_ID)]


class VMSize(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What the hypervisor gives a VM."""

    vm: Name
    memory_mib: Size
    cpus: Size = 1


class ServerReport(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/servers/{id}/profile: a server's capacity, and the use of it over the last minute.

    0 where a size is not known, None where a measurement is not.
    """

    cpus: Size = 0
    memory_mib: Size = 0
    memory_free_mib: Size | None = None
    disk_free_mib: Size | None = None
    bandwidth_mbps: Size = 0
    bandwidth_used_mbps: Size = 0
    cpu_used: Share | None = None
    cpu_pressure: Share | None = None
    memory_pressure: Share | None = None
    io_pressure: Share | None = None
    """Share of the time in which something waited (/proc/pressure, "some", avg60)."""
    vms: Annotated[list[VMSize], msgspec.Meta(max_length=MOST_LISTED)] = []


class BookBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/servers/{id}/bookings: room there for a VM that is to come."""

    vm: Name
    memory_mib: Size = 0
    cpus: Size = 0
    seconds: Annotated[float, msgspec.Meta(ge=1, le=86400)] = 300.0
    """After which the booking ends, if the VM has not come."""


class ReleaseBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/servers/{id}/releases: the VM does not come, or not there."""

    vm: Name


class AnchorValues(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """PUT /v1/anchors/{id}: what is left out stays."""

    ended: bool | None = None
    """Nothing passes the gateway for the VM any more; false: it does again."""
    idle_seconds: Annotated[float, msgspec.Meta(ge=0, le=MOST_ANCHOR_SECONDS)] | None = None
    """Without a packet for the VM, after which that is so by itself; 0: never."""
    seconds: Annotated[float, msgspec.Meta(ge=0, le=MOST_ANCHOR_SECONDS)] | None = None
    """From now on, after which it is so in any case; 0: without end."""


class ChooseBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/vms/{id}/matches: the best server, or whether this one would do."""

    server: Name = ""


class MobilityBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/vms/{id}/migration-requests: the VM should go, wherever is best."""

    reason: Reason
    measured: Share = 0
    threshold: Share = 0
    seconds: Size = 0
    """What was measured, and which threshold it had passed for how long."""
    server: Name = ""
    """The server whose agent asks."""


class AnswerBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/matches/{id}/answers: an agent's answer to a match message."""

    server: Name
    report: ServerReport
