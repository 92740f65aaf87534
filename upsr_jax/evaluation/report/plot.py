"""Scatter plots as SVG."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple


class Point(NamedTuple):
    """One evaluation in a plot."""

    name: str
    x: float
    y: float


def scatter_plot(points: Sequence[Point], x_label: str, y_label: str) -> str:
    """Draw named points as SVG; names move apart where they would cover each other."""
    width, height, left, right, top, bottom = 736, 420, 70, 190, 16, 52
    x_ticks, x_digits = _ticks([point.x for point in points])
    y_ticks, y_digits = _ticks([point.y for point in points])

    def place_x(x: float) -> float:
        return left + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (width - left - right)

    def place_y(y: float) -> float:
        return (
            height
            - bottom
            - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (height - top - bottom)
        )

    parts = [
        *(
            f'<path class="grid" d="M{place_x(x):.1f} {top}V{height - bottom}"/>'
            f'<text x="{place_x(x):.1f}" y="{height - bottom + 18}" text-anchor="middle">'
            f"{x:.{x_digits}f}</text>"
            for x in x_ticks
        ),
        *(
            f'<path class="grid" d="M{left} {place_y(y):.1f}H{width - right}"/>'
            f'<text x="{left - 8}" y="{place_y(y) + 4:.1f}" text-anchor="end">'
            f"{y:.{y_digits}f}</text>"
            for y in y_ticks
        ),
        f'<text x="{(left + width - right) / 2}" y="{height - 10}" text-anchor="middle">'
        f"{escape(x_label)}</text>",
        f'<text transform="translate(14 {(top + height - bottom) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>',
    ]
    label_y = -math.inf
    for point in sorted(points, key=lambda point: place_y(point.y)):
        x, y = place_x(point.x), place_y(point.y)
        label_y = max(y, label_y + 17)
        name = point.name if len(point.name) <= 24 else f"{point.name[:23]}…"
        parts.append(
            f'<path class="leader" d="M{x:.1f} {y:.1f}L{x + 12:.1f} {label_y:.1f}"/>'
            f'<text class="name" x="{x + 15:.1f}" y="{label_y + 4:.1f}">{escape(name)}</text>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5"><title>{escape(point.name)}: '
            f"{point.x:.4f}, {point.y:.4f}</title></circle>"
        )
    description = escape(f"{y_label} against {x_label}")
    return (
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{description}">\n{"".join(parts)}\n</svg>'
    )


def _ticks(values: Sequence[float]) -> tuple[list[float], int]:
    """Choose round numbers around all values, and the decimals they need."""
    low, high = min(values), max(values)
    span = (high - low) or max(abs(high), 1e-3) / 10
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span / 4)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [step * i for i in range(first, last + 1)], digits
