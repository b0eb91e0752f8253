"""Packets over time around the moment a VM runs on at its new place, drawn as SVG: one panel for each system.

Each request is a dot: across, when it was sent; upwards, how long its reply took. One without a reply is a
stroke at the top. The grey band is the VM's pause. Pure.
"""

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from retinue.lab.compare_records import Dot
from retinue.lab.compare_report import Trace

WIDTH, PANEL, LEFT, RIGHT, TOP, BOTTOM, GAP = 900, 130, 60, 20, 40, 50, 34
FROM_MS, TO_MS = -200.0, 300.0
STEP_MS = 100
COLOURS = {"answered": "#1f77b4", "lost": "#d62728", "pause": "#dddddd", "ink": "#333333"}


def drawn(traces: Sequence[Trace]) -> str:
    """An SVG document; with nothing to show, one that says so."""
    height = TOP + max(1, len(traces)) * (PANEL + GAP) + BOTTOM
    top = max((dot.answer_ms for t in traces for dot in t.dots if dot.answer_ms is not None), default=0.0)
    scale = _round_up(top)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12" fill="{COLOURS["ink"]}">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="15">'
        "Requests around the switch-over: how long each reply took</text>",
    ]
    if not traces:
        parts.append(f'<text x="{LEFT}" y="{TOP + 20}">Nothing was measured.</text>')
    for number, trace in enumerate(traces):
        parts += _panel(trace, TOP + number * (PANEL + GAP) + 16, scale)
    parts.append(
        f'<text x="{WIDTH / 2}" y="{height - 12}" text-anchor="middle">'
        "sent, in ms after the VM ran on at its new place (RESUME); grey: the VM stood still; "
        f'<tspan fill="{COLOURS["lost"]}">red: no reply</tspan></text>'
    )
    return "\n".join([*parts, "</svg>", ""])


def _round_up(ms: float) -> float:
    """The next of 10, 20, 50, 100, 200 ... ms."""
    step = 10.0
    while True:
        for factor in (1, 2, 5):
            if ms <= step * factor:
                return step * factor
        step *= 10


def _x(ms: float) -> float:
    return LEFT + (ms - FROM_MS) / (TO_MS - FROM_MS) * (WIDTH - LEFT - RIGHT)


def _panel(trace: Trace, top: float, scale: float) -> Iterator[str]:
    bottom = top + PANEL
    lost = sum(dot.answer_ms is None for dot in trace.dots)
    title = (
        f"{trace.system}: {trace.pps}/s of {trace.size} octets, run {trace.run}, {lost} without a reply here"
    )
    start = max(FROM_MS, -trace.pause_ms)
    yield f'<text x="{LEFT}" y="{top - 4}">{escape(title)}</text>'
    yield (
        f'<rect x="{_x(start):.1f}" y="{top}" width="{_x(0) - _x(start):.1f}" height="{PANEL}" '
        f'fill="{COLOURS["pause"]}"/>'
    )
    frame = f'width="{WIDTH - LEFT - RIGHT}" height="{PANEL}" fill="none" stroke="#888"'
    yield f'<rect x="{LEFT}" y="{top}" {frame}/>'
    for ms in range(int(FROM_MS), int(TO_MS) + 1, STEP_MS):
        yield f'<path d="M{_x(ms):.1f} {bottom}v4" stroke="#888"/>'
        yield f'<text x="{_x(ms):.1f}" y="{bottom + 15}" text-anchor="middle" font-size="10">{ms}</text>'
    for label in (0.0, scale):
        y = bottom - label / scale * PANEL
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" font-size="10">{label:.0f} ms</text>'
    yield from _dots(trace.dots, top, bottom, scale)


def _dots(dots: Sequence[Dot], top: float, bottom: float, scale: float) -> Iterator[str]:
    for dot in dots:
        if not FROM_MS <= dot.at_ms <= TO_MS:
            continue
        x = _x(dot.at_ms)
        if dot.answer_ms is None:
            yield f'<path d="M{x:.1f} {top}v12" stroke="{COLOURS["lost"]}"/>'
        else:
            y = bottom - min(dot.answer_ms, scale) / scale * PANEL
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.6" fill="{COLOURS["answered"]}"/>'
