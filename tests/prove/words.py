"""A counter-example in words: what is wrong, the frame, and the entries it passed."""

from collections.abc import Iterator, Mapping

from prove.properties import Counterexample
from prove.reach import Hop
from prove.wire import build
from retinue.core.model import Network
from retinue.core.pipeline.cookies import reason_of
from retinue.core.pipeline.entry import Field, Flow
from retinue.core.pipeline.priorities import PRIORITIES, TABLE_MISS
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.text import actions_text, match_text, value_text


def text(found: Counterexample) -> str:
    """The counter-example for people: what is wrong, the frame, and the entries it passed."""
    moment, fate = found.moment, found.fate
    lines = [f"{found.property}: {found.why}", f"  when      {moment.name}"]
    choices = [s for s, programs in sorted(moment.programs.items()) if len(programs) > 1 and s in fate.which]
    if choices:
        told = [f"{s} {'has' if fate.which[s] else 'has not'} the change" for s in choices]
        lines.append(f"            {', '.join(told)}")
    lines.append(f"  comes in  at {fate.at[0]} port {fate.at[1]}")
    lines.append(f"  header    {', '.join(_header(found.frame))}")
    lines.append(f"  frame     {build(found.frame).hex()}")
    longest: list[tuple[Hop, ...]] = []
    ways = {fate.hops, *(one.hops for one in fate.sent), *(one.hops for one in fate.told)}
    for hops in sorted(ways, key=len, reverse=True):
        if not any(_is_part(hops, longer) for longer in longest):
            longest.append(hops)
    for hops in longest:
        lines.append("  passes")
        for hop in hops:
            lines.append(f"    {hop.switch} from port {hop.in_port}")
            lines += [f"      {named(moment.net, hop.switch, flow)}" for flow in hop.flows]
    if fate.rival is not None:
        lines.append(f"      or {named(moment.net, fate.hops[-1].switch, fate.rival)}")
    came = ", ".join(f"{one.switch} port {one.port}" for one in fate.arrived)
    lines.append(f"  arrives   {came or 'nowhere'}{', and at the controller' if fate.told else ''}")
    return "\n".join(lines)


def _is_part(hops: tuple[Hop, ...], longer: tuple[Hop, ...]) -> bool:
    """True when one way begins as the other goes on."""
    if len(hops) > len(longer):
        return False
    last, same = hops[-1], longer[len(hops) - 1]
    return (
        hops[:-1] == longer[: len(hops) - 1]
        and (last.switch, last.in_port) == (same.switch, same.in_port)
        and last.flows == same.flows[: len(last.flows)]
    )


def _header(frame: Mapping[Field, int]) -> Iterator[str]:
    for field, value in sorted(frame.items()):
        if value:
            yield f"{field.name.lower()}={value_text(field, value)}"


def named(net: Network, switch: str, flow: Flow) -> str:
    """An entry by its table, the name of its priority, and what it is for."""
    table = Table(flow.table)
    names = PRIORITIES.get((net.switches[switch].role, table))
    name = "MISS" if flow.priority == TABLE_MISS else str(flow.priority)
    if names is not None:
        below = [one for one in names if one <= flow.priority]
        if flow.priority != TABLE_MISS and below:
            best = max(below)
            name = best.name if best == flow.priority else f"{best.name}+{flow.priority - best}"
    reason = reason_of(flow.cookie)
    told = f" ({reason.name})" if reason else ""
    return f"{table.name} {name}: {match_text(flow.match)} -> {actions_text(flow)}{told}"
