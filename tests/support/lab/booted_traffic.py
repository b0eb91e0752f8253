"""Traffic from outside a booted site to one of its VMs, and back, every packet of it counted."""

from retinue_lab.measure.traffic_process import TrafficProcess
from support.lab.booted_site import ROUTER, BootedSite
from support.lab.losses import lost_spans

PPS = 200


async def flowing(site: BootedSite, address: str) -> TrafficProcess:
    """From the router."""
    traffic = await TrafficProcess.start(site.popen, ROUTER, address, pps=PPS, seconds=600)
    await traffic.flowing(60)
    return traffic


async def nothing_lost(traffic: TrafficProcess, *, but: int = 0) -> None:
    """End it. Nor may anything have come twice, or its connection of TCP have broken. `but`: so many that
    Open vSwitch in user space may drop of what is for a tunnel while a tap comes or goes."""
    figures, record = await traffic.finish(early=True)
    print(figures, lost_spans(record))
    assert figures.lost <= but and figures.duplicated == 0, (figures, lost_spans(record))
    assert figures.tcp_survived, figures.tcp_problem
