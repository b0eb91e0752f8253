"""Where mistakes are made: the pure core's judgements, and the shell's files that say who may say what."""

from pathlib import Path

MODULES = (
    "retinue.core.pipeline.edge",
    "retinue.core.pipeline.responders.arp",
    "retinue.core.pipeline.underlay.fabric",
    "retinue.core.pipeline.underlay.fabric_switches",
    "retinue.core.pipeline.compiler",
    "retinue.core.pipeline.diff",
    "retinue.core.pipeline.knowledge",
    "retinue.core.snooping.dhcp_rules",
    "retinue.core.snooping.headers",
    "retinue.core.snooping.questions",
    "retinue.core.snooping.handover",
    "retinue.core.lease_renewal",
    "retinue.core.snooping.relay",
    "retinue.core.migration.states",
    "retinue.core.migration.placement",
    "retinue.core.migration.precopy",
    "retinue.core.model.network",
    "retinue.core.model.view",
    "retinue.core.model.constraints",
    "retinue.controller.external_migrations",
    "retinue.controller.switches.installer",
    "retinue.controller.api.access",
)
TESTS = ("tests/unit", "tests/property")
PER_MODULE = 22
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
