"""Counters, gauges and histograms for Prometheus, read from the controller when asked for.

Names follow Prometheus' rules: base units, `_total` for counters alone, no label with endlessly many values.
docs/operators.md explains each; deploy/prometheus has alert rules and a dashboard that use them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE

from retinue import __version__
from retinue.controller.app import Controller
from retinue.controller.counters import Count
from retinue.core.histogram import QUICK, Histogram, buckets
from retinue.patience import late

Rejected = dict[str, dict[str, int]]
"""By listener and reason: what was rejected."""
Samples = Mapping[Any, float]
"""By the values of the labels, a tuple."""


def exposition(controller: Controller, rejected: Rejected, *, leads: bool = True) -> bytes:
    """The text Prometheus scrapes. A controller that does not lead tells of itself: it knows no network."""
    registry = CollectorRegistry()
    registry.register(_Reading(controller, rejected, leads))
    return generate_latest(registry)


class _Reading:
    def __init__(self, controller: Controller, rejected: Rejected, leads: bool) -> None:
        self._controller = controller
        self._rejected = rejected
        self._leads = leads

    def collect(self) -> Iterator[Metric]:
        yield from self._controller_itself()
        if self._leads:
            yield from self._network()
            yield from self._migrations()
        yield from self._rejections()
        if self._leads:
            yield from self._images()

    def _controller_itself(self) -> Iterator[Metric]:
        # From nought on, so that the first of a kind is an increase, which alerts ask for.
        counters = self._controller.context.counters
        counted = {(kind,): counters[kind] for kind in {*map(str, Count), *counters}}
        version = {(__version__,): 1}
        yield _gauge("retinue_build_info", "Always 1; the label says which runs", version, ["version"])
        leads = "1 if this controller is the one that programs the switches, 0 if it is a standby"
        yield _gauge("retinue_leader", leads, int(self._leads))
        ending = self._controller.context.certificates.soon(self._controller.context.clock())
        text = "Certificates, of the controller and of its peers, that end within 30 days or have ended"
        yield _gauge("retinue_certificates_ending", text, len(ending))
        yield _counter("retinue_events", "What was counted, by kind", counted, ["kind"])
        yield _counter("retinue_late_seconds", "By how much the controller was late with all it does", late())

    def _network(self) -> Iterator[Metric]:
        net, context = self._controller.net, self._controller.context
        away = sum(context.agents.is_away(server) for server in net.servers)
        frames = self._controller.spoof_counts.frames
        spoofed = {(switch, reason.name.lower()): n for (switch, reason), n in frames.items()}
        yield _gauge("retinue_switches", "Switches in the configuration", len(net.switches))
        yield _gauge("retinue_switches_connected", "Switches with a session", len(context.sessions()))
        yield _gauge("retinue_links_lost", "Links between switches that lose frames", len(net.lost_links))
        yield _gauge("retinue_servers", "Servers registered", len(net.servers))
        yield _gauge("retinue_agents_away", "Servers whose agents have listened and do so no longer", away)
        managers = self._controller.mobility.deciding.managers
        silent = 0 if managers is None else sum(one["state"] == "away" for one in managers.shown().values())
        text = "Mobility and resource managers that are processes of their own, and away"
        yield _gauge("retinue_managers_away", text, silent)
        yield _gauge("retinue_vms", "VMs registered", len(net.vms))
        yield _gauge("retinue_addresses_held", "Addresses with a binding", len(net.assignments))
        waiting = sum(context.installer.pending().values())
        yield _gauge("retinue_entries_pending", "Entries that wait for a switch's confirmation", waiting)
        yield _counter("retinue_flow_mods", "Flow entries sent and confirmed", context.installer.flow_mods)
        yield _histogram(
            "retinue_change_confirmation_seconds",
            "From a change until every switch concerned has answered the barrier behind it",
            context.durations.confirmation,
        )
        yield _counter("retinue_spoofed_frames", "Frames dropped as spoofed", spoofed, ["switch", "reason"])

    def _migrations(self) -> Iterator[Metric]:
        durations = self._controller.context.durations
        under_way = sum(1 for _ in self._controller.orchestrator.migrations.under_way())
        ended = {(state,): durations.ended[state] for state in ("done", "undone")}
        yield _gauge("retinue_migrations_under_way", "Migrations that have not ended", under_way)
        yield _counter("retinue_migrations_ended", "Migrations that have ended, by how", ended, ["state"])
        for name, text, histogram in (
            ("migration", "Migrations from the start to the end, of those done", durations.migration),
            ("migration_downtime", "From the VM's stop to its resume", durations.downtime),
            ("migration_switch_over", "From the resume to all switches' confirmation", durations.switch_over),
        ):
            yield _histogram(f"retinue_{name}_seconds", text, histogram)

    def _rejections(self) -> Iterator[Metric]:
        text = "Connections and requests rejected"
        yield _counter("retinue_rejected", text, _by_two(self._rejected), ["listener", "reason"])
        by_agents = _by_two(self._controller.agent_rejections.totals())
        text = "Connections rejected by servers' agents"
        yield _counter("retinue_rejected_by_agents", text, by_agents, ["server", "reason"])

    def _images(self) -> Iterator[Metric]:
        holders = self._controller.images.holders
        reports = {name: found for name in self._controller.net.servers if (found := holders.report(name))}
        used = {(name,): report.store.used for name, report in reports.items()}
        quota = {(name,): report.store.quota for name, report in reports.items()}
        yield _gauge("retinue_image_store_bytes", "Bytes in a server's store of chunks", used, ["server"])
        yield _gauge("retinue_image_store_quota_bytes", "Bytes that it may have", quota, ["server"])
        text = "From the question for a chunk until it is stored, as agents report"
        times = HistogramMetricFamily("retinue_chunk_fetch_seconds", text, labels=["server"])
        for name, report in sorted(reports.items()):
            if len(report.fetched.counts) == len(QUICK) + 1:
                times.add_metric([name], buckets(QUICK, report.fetched.counts), report.fetched.seconds)
        yield times


def _by_two(counts: Mapping[str, Mapping[str, int]]) -> dict[tuple[str, ...], float]:
    return {(one, other): n for one, inner in counts.items() for other, n in inner.items()}


def _samples(values: float | Samples) -> Iterable[tuple[Sequence[str], float]]:
    return sorted(values.items()) if isinstance(values, Mapping) else [((), values)]


def _gauge(name: str, text: str, values: float | Samples, labels: Sequence[str] = ()) -> Metric:
    metric = GaugeMetricFamily(name, text, labels=labels)
    for given, value in _samples(values):
        metric.add_metric(given, value)
    return metric


def _counter(name: str, text: str, values: float | Samples, labels: Sequence[str] = ()) -> Metric:
    """`name` without the `_total` that it is shown with."""
    metric = CounterMetricFamily(name, text, labels=labels)
    for given, value in _samples(values):
        metric.add_metric(given, value)
    return metric


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    shown = buckets(histogram.bounds, histogram.counts)
    return HistogramMetricFamily(name, text, buckets=shown, sum_value=histogram.seconds)


__all__ = ["CONTENT_TYPE", "exposition"]
