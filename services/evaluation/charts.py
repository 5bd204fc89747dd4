"""Small plots as inline SVG: text in, text out, no library and no script.

A chart library would be megabytes of script in every report, or a fetch from a CDN; these are three shapes.
"""

from collections.abc import Mapping, Sequence
from html import escape

Point = tuple[float, float]

COLOURS = ("#0b6e99", "#c4622d", "#5b7f2b", "#7a4fa3")  # told apart by the colour-blind, too; defined here only
_WIDTH = 640
_LABEL = 200
_FONT = 'font-family="system-ui, sans-serif" font-size="12"'


def dots(rows: Sequence[tuple[str, float, float, float, int]], *, percent: bool = False) -> str:
    """A line for each (label, value, low, high, colour): a dot with its interval. Percentages are drawn from 0 to 100, other
    figures from a fifth below the lowest to 1."""
    height = 22 * len(rows) + 30
    left, right = _LABEL, _WIDTH - 90
    begin = 0.0 if percent else int(min([0.8, *(low for _, _, low, _, _ in rows)]) * 5) / 5
    x = _scale(begin, 1.0, left, right)
    ticks = [begin + (1 - begin) * t / 5 for t in range(6)]
    parts = [_line(x(t), 4, x(t), height - 24, "grid") for t in ticks]
    parts += [_text(x(t), height - 8, f"{t:.0%}" if percent else f"{t:.2f}", "middle") for t in ticks]
    for i, (label, value, low, high, colour) in enumerate(rows):
        y, paint = 16 + 22 * i, COLOURS[colour % len(COLOURS)]
        parts += [
            _text(left - 10, y + 4, label, "end"),
            f'<line x1="{x(low):.1f}" y1="{y}" x2="{x(high):.1f}" y2="{y}" stroke="{paint}" stroke-width="3" opacity="0.45"/>',
            f'<circle cx="{x(value):.1f}" cy="{y}" r="5" fill="{paint}"/>',
            _text(right + 14, y + 4, f"{value:.1%}" if percent else f"{value:.3f}", "start"),
        ]
    return _svg(height, parts, "; ".join(f"{label} {value:.3f}" for label, value, *_ in rows))


def lines(series: Mapping[str, Sequence[Point]], *, x_label: str, y_label: str) -> str:
    """One line a name, through its points; names stand in a legend. The y axis ends at 1 where all points are below."""
    points = [p for of in series.values() for p in of]
    if not points:
        return ""
    height, left, right, top, bottom = 260, 60, _WIDTH - 20, 30, 210
    x0, x1 = min(p[0] for p in points), max(p[0] for p in points)
    y0 = int(min(0.8, min(p[1] for p in points)) * 5) / 5  # to the fifth below: the ticks are round numbers
    x, y = _scale(x0, x1, left, right), _scale(y0, max(1.0, *(p[1] for p in points)), bottom, top)
    parts = []
    for t in range(5):
        value = y0 + (1.0 - y0) * t / 4
        parts += [_line(left, y(value), right, y(value), "grid"), _text(left - 8, y(value) + 4, f"{value:.2f}", "end")]
    steps = int(x1 - x0) if 1 <= x1 - x0 <= 10 and float(x1 - x0).is_integer() else 5
    for t in range(steps + 1):
        value = x0 + (x1 - x0) * t / steps
        parts.append(_text(x(value), bottom + 18, f"{value:,.0f}", "middle"))
    for i, (name, of) in enumerate(series.items()):
        paint = COLOURS[i % len(COLOURS)]
        path = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in of)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{paint}" stroke-width="2"/>')
        parts.append(f'<rect x="{left + 130 * i}" y="8" width="12" height="12" fill="{paint}"/>')
        parts.append(_text(left + 130 * i + 18, 18, name, "start"))
    parts += [_text((left + right) / 2, height - 8, x_label, "middle"), _text(right, 18, y_label, "end")]
    return _svg(height, parts, f"{y_label} by {x_label}: {', '.join(series)}")


def histogram(values: Sequence[float], *, x_label: str, bins: int = 10) -> str:
    """How many of the values, 0 to 1, lie in each of ``bins`` equal parts."""
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, max(0, int(value * bins)))] += 1
    height, left, right, top, bottom = 200, 60, _WIDTH - 20, 20, 150
    most = max(1, *counts)
    x, y = _scale(0, bins, left, right), _scale(0, most, bottom, top)
    parts = [_line(left, bottom, right, bottom, "grid")]
    for i, number in enumerate(counts):
        parts.append(
            f'<rect x="{x(i) + 2:.1f}" y="{y(number):.1f}" width="{x(1) - x(0) - 4:.1f}" height="{bottom - y(number):.1f}" '
            f'fill="{COLOURS[0]}"/>'
        )
        if number:
            parts.append(_text((x(i) + x(i + 1)) / 2, y(number) - 4, str(number), "middle"))
    parts += [_text(x(i), bottom + 18, f"{i / bins:.1f}", "middle") for i in range(0, bins + 1, 2)]
    parts.append(_text((left + right) / 2, height - 8, x_label, "middle"))
    return _svg(height, parts, f"{x_label}: {counts}")


def _scale(low: float, high: float, start: float, end: float) -> "_Scale":
    return _Scale(low, high, start, end)


class _Scale:
    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._span, self._start, self._length = low, (high - low) or 1.0, start, end - start

    def __call__(self, value: float) -> float:
        return self._start + (value - self._low) / self._span * self._length


def _svg(height: float, parts: Sequence[str], said: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img" aria-label="{escape(said)}">'
        + "".join(parts)
        + "</svg>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {_FONT}>{escape(text)}</text>'
