"""Scatter plots as SVG."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from upsr_jax.evaluation.report.rendering import render


class Point(NamedTuple):
    """One evaluation in a plot."""

    name: str
    x: float
    y: float


def scatter_plot(points: Sequence[Point], x_label: str, y_label: str) -> str:
    """Draw named points as SVG; names move apart where they would cover each other."""
    width, height = 736, 420
    left, right, top, bottom = 70, width - 190, 16, height - 52
    x_ticks, x_digits = _ticks([point.x for point in points])
    y_ticks, y_digits = _ticks([point.y for point in points])

    def place_x(x: float) -> float:
        return round(left + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (right - left), 1)

    def place_y(y: float) -> float:
        return round(bottom - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - top), 1)

    places, label_y = [], -math.inf
    for point in sorted(points, key=lambda point: -point.y):
        y = place_y(point.y)
        label_y = max(y, round(label_y + 17, 1))
        places.append((place_x(point.x), y, label_y, point))
    return render(
        "plot.svg",
        **{"width": width, "height": height, "x_label": x_label, "y_label": y_label},
        **{"left": left, "right": right, "top": top, "bottom": bottom, "places": places},
        x_ticks=[(place_x(x), f"{x:.{x_digits}f}") for x in x_ticks],
        y_ticks=[(place_y(y), f"{y:.{y_digits}f}") for y in y_ticks],
    )


def _ticks(values: Sequence[float]) -> tuple[list[float], int]:
    """Choose round numbers around all values, and the decimals they need."""
    low, high = min(values), max(values)
    span, size = high - low, max(abs(high), abs(low), 1e-3)
    span = span if span > 1e-9 * size else size / 10
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span / 4)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [step * i for i in range(first, last + 1)], digits
