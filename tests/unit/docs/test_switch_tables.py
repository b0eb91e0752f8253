"""The tables of entries in docs/architecture.md have the priorities and meters of the real programs."""

import itertools
from dataclasses import replace

import pytest

from retinue.core.model import Role, Server
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.entry import Flow
from retinue.core.pipeline.meters import LEAF_RATE, VMMeter
from retinue.core.pipeline.tables import Table
from support.fabric.networks import add_uplink, add_vm, fabric
from support.fabric.storage import add_forwarder, login
from support.pages import section, table, text

ARCHITECTURE = "docs/architecture.md"


# ---- the tables of switches ----


def shown_entries(heading: str) -> set[tuple[str, int]]:
    """Table and priority of each row; "1000 + length" is 1000."""
    found, name = set(), ""
    for row in table(ARCHITECTURE, heading):
        name = row["table"] or name
        found.add((name, int(row["prio"].split()[0])))
    return found


def real_entries(role: Role) -> set[tuple[str, int]]:
    """Those of a network with a fenced server, a VM that serves DHCP, one in each stage of a move, and, where
    leaves are looked at, a server with two uplinks."""
    found = set()
    for copied, forwarded in itertools.product(("", "server1"), ("", "server1")):
        net = fabric()
        nic = add_vm(net, 1, at=1).nic
        net.change_nic("vm1", nic, replace(nic, trusted=True))
        moving = add_vm(net, 2, at=2, ports_on=(1,))
        also = frozenset({"server1"})
        net.fence("server3")
        net.put_server(Server("lost", "02:00:00:00:77:77"))
        net.put_vm(replace(moving, also=also, copied_to=copied, forwarded_from=forwarded))
        add_forwarder(net)
        net.log_in(login(1))
        if role is Role.LEAF:  # What an edge with several uplinks has besides is told below its table.
            add_uplink(net, 1, 2)
        compiler = Compiler(net)
        compiler.update(net.everything())
        for switch in net.with_role(role):
            for entry in compiler.program(switch.id).values():
                if isinstance(entry, Flow) and entry.priority:
                    prefix = entry.table == Table.ROUTE and 1000 <= entry.priority <= 1032
                    found.add((Table(entry.table).name, 1000 if prefix else entry.priority))
    return found


@pytest.mark.parametrize(
    ("heading", "role"), [("Edge", Role.EDGE), ("Leaf", Role.LEAF), ("Spine", Role.SPINE)]
)
def test_the_tables_of_a_role_have_the_priorities_of_its_program(heading: str, role: Role) -> None:
    assert shown_entries(heading) == real_entries(role)


def test_tables_are_numbered_as_the_page_says() -> None:
    listed = ", ".join(f"{table.value} {table.name}" for table in Table)
    assert f"Tables are numbered {listed}." in " ".join(section(ARCHITECTURE, "Tables").split())


# ---- meters ----


def test_meters_let_through_what_the_pages_say() -> None:
    dhcp, arp, spoofing = (meter.rate for meter in VMMeter)
    page = " ".join(text(ARCHITECTURE).split())
    assert f"DHCP {dhcp} frames a second, ARP {arp}, spoofing attempts {spoofing}" in page
    assert f"let {LEAF_RATE} frames a second" in page
    security = " ".join(text("docs/security.md").split())
    assert f"{dhcp} DHCP frames, {arp} ARP requests and {spoofing} spoofed frames a second" in security
    assert f"lets through {LEAF_RATE} a second" in security
