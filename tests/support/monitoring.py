"""A controller that has something to say of everything that is scraped, and what a dashboard asks."""

from collections.abc import Iterator
from typing import Any

from retinue.controller.app import Controller
from retinue.controller.counters import Count
from retinue.core.histogram import QUICK
from retinue.core.pipeline.cookies import Reason
from retinue.protocol.images import ChunkTimes, ImagesBody, StoreUse
from retinue.security.listener.rejections import Rejection
from support.fabric.networks import fabric


def talkative() -> Controller:
    controller = Controller(fabric(), clock=lambda: 1000.0)
    more(controller, 1)
    return controller


def more(controller: Controller, times: int) -> None:
    """Everything that is counted has been counted so often."""
    context = controller.context
    context.counters[Count.ARP_ANSWERED] = times
    for histogram in (
        context.durations.downtime,
        context.durations.migration,
        context.durations.switch_over,
        context.durations.confirmation,
    ):
        histogram.observe(0.014)
    controller.spoof_counts.frames["edge1", Reason.SPOOFED_IP] = 3 * times
    controller.agent_rejections.on_report("server1", 1.0, {Rejection.TLS: times})
    counts = [0] * len(QUICK) + [2 * times]
    report = ImagesBody("x:1", store=StoreUse(1, 2), fetched=ChunkTimes(counts, 20.0 * times))
    controller.images.holders.on_report("server1", report)


def asked(node: Any) -> Iterator[str]:
    """Every expression of a dashboard."""
    if isinstance(node, dict):
        if isinstance(node.get("expr"), str):
            yield node["expr"]
        for inner in node.values():
            yield from asked(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from asked(inner)
