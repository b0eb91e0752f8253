"""Packets over time around the moment a VM is resumed at the target, drawn as SVG: a lane for each system.

Each request is a dot: across, when it was sent; upwards, how long its reply took. One without a reply is a
stroke in the strip above the dots. The grey band is the VM's pause. The picture brings its own background, a
dark one where the reader's screen is dark. Pure.
"""

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from retinue_lab.compare.report.records import Dot
from retinue_lab.compare.report.summary import Trace

WIDTH, MARGIN = 880, 16
LEFT, RIGHT = 236, 20
"""The lanes' distance from the edges; what they are called is to their left."""
TOP, BOTTOM = 84, 56
LANE, STRIP, GAP = 70, 14, 12
"""Heights: of a lane, of its strip of requests without a reply, and between lanes."""
FROM_MS, TO_MS = -200.0, 300.0
STEP_MS = 50
HIGHEST_MS = 200.0
"""The scale ends there: what took longer is drawn at the top, for else one slow reply would flatten all."""
CHARACTERS = 30
"""As many fit beside a lane."""

NAMES = ("back", "lane", "line", "pause", "ink", "faint", "answered", "lost")
LIGHT = ("#ffffff", "#f6f8fa", "#d1d9e0", "#d3d9e0", "#1f2328", "#59636e", "#0969da", "#cf222e")
DARK = ("#0d1117", "#161b22", "#3d444d", "#3d444d", "#f0f6fc", "#9da7b3", "#58a6ff", "#ff6a61")


def drawn(traces: Sequence[Trace]) -> str:
    """An SVG document; with nothing to show, one that says so."""
    height = TOP + max(1, len(traces)) * (LANE + GAP) - GAP + BOTTOM
    scale = _scale(dot.answer_ms for t in traces for dot in t.dots if dot.answer_ms is not None)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="Helvetica, Arial, sans-serif" font-size="12">',
        f"<style>{_style(LIGHT)}\n@media (prefers-color-scheme: dark) {{ {_style(DARK)} }}</style>",
        f'<rect class="back" width="{WIDTH}" height="{height}" rx="6"/>',
        f'<text class="ink" x="{MARGIN}" y="28" font-size="16" font-weight="bold">'
        "A VM is moved: what becomes of each request to it</text>",
        *_legend(56),
    ]
    if not traces:
        parts.append(f'<text class="ink" x="{MARGIN}" y="{TOP + 30}">Nothing was measured.</text>')
    for number, trace in enumerate(traces):
        parts += _lane(trace, TOP + number * (LANE + GAP), scale)
    parts += _axis(TOP, height - BOTTOM)
    return "\n".join([*parts, "</svg>", ""])


def _style(palette: Sequence[str]) -> str:
    colours = dict(zip(NAMES, palette, strict=True))
    fills = " ".join(f".{name} {{ fill: {colour} }}" for name, colour in colours.items())
    strokes = " ".join(f".{name} {{ stroke: {colours[name]}; fill: none }}" for name in ("line", "lost"))
    return f"{fills} {strokes}"


def _legend(y: float) -> Iterator[str]:
    dot, stroke, band = MARGIN + 4, MARGIN + 268, MARGIN + 420
    yield f'<circle class="answered" cx="{dot}" cy="{y - 4}" r="3"/>'
    yield f'<text class="ink" x="{dot + 10}" y="{y}">a request; the higher, the later its reply</text>'
    yield f'<path class="lost" stroke-width="2" d="M{stroke} {y - 10}v12"/>'
    yield f'<text class="ink" x="{stroke + 8}" y="{y}">one that had no reply</text>'
    yield f'<rect class="pause" x="{band}" y="{y - 11}" width="14" height="14"/>'
    yield f'<text class="ink" x="{band + 20}" y="{y}">the VM is paused</text>'


def _scale(answers: Iterator[float]) -> float:
    """The next of 10, 20, 50, 100, 200 ms."""
    slowest = max(answers, default=0.0)
    return next((step for step in (10.0, 20.0, 50.0, 100.0) if slowest <= step), HIGHEST_MS)


def _x(ms: float) -> float:
    return LEFT + (ms - FROM_MS) / (TO_MS - FROM_MS) * (WIDTH - LEFT - RIGHT)


def _lane(trace: Trace, top: float, scale: float) -> Iterator[str]:
    dots = [dot for dot in trace.dots if FROM_MS <= dot.at_ms <= TO_MS]
    pause = max(FROM_MS, -trace.pause_ms)
    yield f'<rect class="lane" x="{LEFT}" y="{top}" width="{WIDTH - LEFT - RIGHT}" height="{LANE}" rx="3"/>'
    yield (
        f'<rect class="pause" x="{_x(pause):.1f}" y="{top}" width="{_x(0) - _x(pause):.1f}" height="{LANE}"/>'
    )
    yield f'<path class="line" d="M{LEFT} {top + STRIP}H{WIDTH - RIGHT}"/>'
    for number, (text, look) in enumerate(_labels(trace, dots)):
        yield f'<text class="{look}" x="{MARGIN}" y="{top + 20 + 18 * number}">{escape(text)}</text>'
    floor, ceiling = top + LANE - 5, top + STRIP + 5
    for ms, y in ((0.0, floor), (scale, ceiling)):
        text = f"{ms:.0f} ms"
        yield f'<text class="faint" x="{LEFT - 6}" y="{y + 4}" text-anchor="end" font-size="11">{text}</text>'
    for dot in dots:
        if dot.answer_ms is None:
            yield f'<path class="lost" stroke-width="1.4" d="M{_x(dot.at_ms):.1f} {top + 1}v{STRIP - 2}"/>'
        else:
            y = floor - min(dot.answer_ms, scale) / scale * (floor - ceiling)
            yield f'<circle class="answered" cx="{_x(dot.at_ms):.1f}" cy="{y:.1f}" r="1.7"/>'


def _labels(trace: Trace, dots: Sequence[Dot]) -> Iterator[tuple[str, str]]:
    """The lines beside a lane, and how each looks."""
    answers = [dot.answer_ms for dot in dots if dot.answer_ms is not None]
    lost = len(dots) - len(answers)
    yield trace.system[:CHARACTERS], 'ink" font-weight="bold'
    flow = f", 1 of {trace.flows} flows" if trace.flows > 1 else ""
    yield f"{trace.pps}/s of {trace.size} bytes{flow or f', run {trace.run}'}", "faint"
    yield f"{lost} lost" + (f", slowest reply {max(answers):.0f} ms" if answers else ""), "ink"


def _axis(top: float, bottom: float) -> Iterator[str]:
    for ms in range(int(FROM_MS), int(TO_MS) + 1, STEP_MS):
        x = _x(ms)
        yield f'<path class="line" d="M{x:.1f} {bottom}v5"/>'
        place = f'x="{x:.1f}" y="{bottom + 18}" text-anchor="middle"'
        yield f'<text class="faint" {place} font-size="11">{ms}</text>'
    yield f'<path class="line" stroke-dasharray="3 3" d="M{_x(0):.1f} {top - 6}V{bottom}"/>'
    yield (
        f'<text class="faint" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{bottom + 40}" text-anchor="middle">'
        "when the request was sent, in ms after the VM was resumed at its new place (RESUME)</text>"
    )
