"""Counters and gauges for Prometheus, read from the controller when asked for."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from retinue.controller.app import Controller

Rejected = dict[str, dict[str, int]]
"""By listener and reason: what was rejected."""


def exposition(controller: Controller, rejected: Rejected) -> bytes:
    """The text Prometheus scrapes."""
    registry = CollectorRegistry()
    registry.register(_Reading(controller, rejected))
    return generate_latest(registry)


class _Reading:
    def __init__(self, controller: Controller, rejected: Rejected) -> None:
        self._controller = controller
        self._rejected = rejected

    def collect(self) -> Iterator[Metric]:
        net, context = self._controller.net, self._controller.context
        yield _gauge("retinue_switches_connected", "Switches with a session", len(context.sessions()))
        yield _gauge("retinue_vms", "VMs registered", len(net.vms))
        yield _gauge("retinue_addresses_held", "Addresses with a binding", len(net.assignments))
        under_way = sum(not m.state.ended for m in self._controller.orchestrator.migrations.values())
        yield _gauge("retinue_migrations_under_way", "Migrations that have not ended", under_way)
        waiting = sum(context.installer.pending().values())
        yield _gauge("retinue_entries_pending", "Entries that wait for a switch's confirmation", waiting)
        sent = CounterMetricFamily("retinue_flow_mods", "Flow entries sent and confirmed")
        sent.add_metric([], context.installer.flow_mods)
        yield sent
        spoofed = CounterMetricFamily(
            "retinue_spoofed_frames", "Frames dropped as spoofed", labels=["switch", "reason"]
        )
        for (switch, reason), count in sorted(self._controller.spoofed_frames.items()):
            spoofed.add_metric([switch, reason.name.lower()], count)
        yield spoofed
        events = CounterMetricFamily("retinue_events", "What was counted, by kind", labels=["kind"])
        for kind, count in sorted(context.counters.items()):
            events.add_metric([kind], count)
        yield events
        turned_away = CounterMetricFamily(
            "retinue_rejected", "Connections and requests rejected", labels=["listener", "reason"]
        )
        for listener, reasons in sorted(self._rejected.items()):
            for why, count in sorted(reasons.items()):
                turned_away.add_metric([listener, why], count)
        yield turned_away
        by_agents = CounterMetricFamily(
            "retinue_rejected_by_agents",
            "Connections rejected by servers' agents",
            labels=["server", "reason"],
        )
        for server, reasons in self._controller.agent_rejections.totals().items():
            for why, count in reasons.items():
                by_agents.add_metric([server, why], count)
        yield by_agents


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
