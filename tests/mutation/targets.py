"""Where mistakes are made: the pure core's judgements, and the shell's files that say who may say what."""

from pathlib import Path

MODULES = (
    "retinue.core.pipeline.edge",
    "retinue.core.pipeline.edge_ipv6",
    "retinue.core.pipeline.responders.arp",
    "retinue.core.pipeline.responders.nd",
    "retinue.core.pipeline.underlay.fabric",
    "retinue.core.pipeline.underlay.fabric_switches",
    "retinue.core.pipeline.compiler",
    "retinue.core.pipeline.diff",
    "retinue.core.pipeline.knowledge",
    "retinue.core.snooping.dhcp_rules",
    "retinue.core.snooping.headers",
    "retinue.core.snooping.pending",
    "retinue.core.snooping.questions",
    "retinue.core.snooping.handover",
    "retinue.core.snooping.relay",
    "retinue.core.snooping.own_addresses",
    "retinue.core.snooping.spoofing",
    "retinue.core.lease_renewal",
    "retinue.core.packets.nd",
    "retinue.core.packets.nd_options",
    "retinue.core.migration.states",
    "retinue.core.migration.placement",
    "retinue.core.migration.precopy",
    "retinue.core.migration.waiting",
    "retinue.core.migration.endpoint",
    "retinue.core.model.layout",
    "retinue.core.model.network",
    "retinue.core.model.view",
    "retinue.core.model.constraints",
    "retinue.core.model.nic",
    "retinue.core.model.addresses",
    "retinue.core.model.link_local",
    "retinue.core.placement.snapshot",
    "retinue.core.placement.filters",
    "retinue.core.placement.scores",
    "retinue.core.placement.decision",
    "retinue.core.placement.rebalance",
    "retinue.core.placement.pressure",
    "retinue.core.content.manifest",
    "retinue.core.content.bitmap",
    "retinue.core.content.fetch",
    "retinue.controller.external_migrations",
    "retinue.controller.switches.installer",
    "retinue.controller.api.access",
    "retinue.controller.authn.switch_authz",
    "retinue.controller.migrations.placing",
    "retinue.controller.migrations.reports",
    "retinue.controller.mobility.manager",
    "retinue.controller.mobility.resources",
    "retinue.controller.mobility.entities",
    "retinue.controller.content.images",
    "retinue.controller.content.holders",
    "retinue.controller.inventory.nics",
    "retinue.controller.inventory.nic_settings",
    "retinue.controller.inventory.vnets",
    "retinue.controller.neighbours.gateway",
    "retinue.controller.neighbours.nd_responder",
    "retinue.controller.neighbours.own_addresses",
    "retinue.controller.neighbours.taking",
    "retinue.security.identity",
    "retinue.security.tokens",
)
TESTS = ("tests/unit", "tests/property")
PER_MODULE = 8
"""Mistakes of a sample in each module; a small module may not have as many."""
PER_LINE = 2
SEED = 20261128
WANTED = 0.95
"""Share of the mistakes that tests must notice."""
JOBS = 2

ROOT = Path(__file__).parents[2]


def path_of(module: str) -> str:
    """Of a module's file, in the project."""
    return f"src/{module.replace('.', '/')}.py"
