"""A lease that a VM's NIC holds already, as a renewal leaves it; and what of it the VM has not heard."""

from dataclasses import replace
from math import inf, isinf

from retinue.core.model import Assignment
from retinue.core.packets import NO_NAME_SERVERS, Options, name_servers_text
from retinue.core.snooping.messages import Effect, ToldOtherwise
from retinue.core.snooping.questions import Question


def renewed(before: Assignment, granted: Assignment, question: Question) -> Assignment:
    """A lease that is held already, renewed. What the VM itself said, and where it runs, counts for more."""
    if question.by_agent:
        granted = replace(granted, client_id=before.client_id, options=before.options, told=before.told)
    return granted if question.runs_here else no_shorter(before, granted)


def no_shorter(before: Assignment, granted: Assignment) -> Assignment:
    """Asked for where the VM does not run: the lease can only get longer."""
    end = max(inf if a.lease_end is None else a.lease_end for a in (before, granted))
    return replace(before, lease_end=None if isinf(end) else end)


def compared(before: Assignment, granted: Assignment, now: Options) -> tuple[Assignment, list[Effect]]:
    """The lease with what the VM does not hear of: `now` are the name servers of the answer to the agent.

    What the VM was told before its lease was kept here nobody knows.
    """
    since = () if not before.told or now == before.told else now or NO_NAME_SERVERS
    granted = replace(granted, told_since=since)
    if not since or since == before.told_since:
        return granted, []
    return granted, [ToldOtherwise(before.vm, granted.ip, told_otherwise(granted))]


def told_otherwise(lease: Assignment) -> str:
    """What its VM has not heard of, for the operator; "" when there is nothing."""
    if not lease.told_since:
        return ""
    now, before = name_servers_text(lease.told_since), name_servers_text(lease.told)
    return (
        f"{lease.ip}: the DHCP server now names {now}; the VM was told {before}, and hears of it when it "
        "renews by itself"
    )
