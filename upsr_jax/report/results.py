"""Results of an evaluation: read, ranked, named, formatted and compared."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from upsr_jax.metrics import HIGHER_IS_BETTER
from upsr_jax.metrics.intervals import Interval, bootstrap
from upsr_jax.report.rendering import Cell, format_number


def read_results(folder: Path) -> dict[str, Any]:
    """Read the results.json of an evaluation; raise ValueError if it is not there or not whole."""
    file = folder / "results.json"
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: no results.json; run the evaluation to its end") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: damaged ({error}); run the evaluation again") from error
    unknown = [metric for metric in results["metrics"] if metric not in HIGHER_IS_BETTER]
    if unknown:
        known = ", ".join(HIGHER_IS_BETTER)
        raise ValueError(f"{file}: no metric is called {', '.join(unknown)}; known are {known}")
    return results


def value_of(row: Mapping[str, Any], metric: str) -> float | None:
    value = row.get(metric)
    return None if value is None or math.isnan(value) else value


def mean_of(results: Mapping[str, Any], metric: str) -> float | None:
    interval = results["means"].get(metric)
    return interval and interval["mean"]


def rank(results: Mapping[str, Any], metric: str) -> list[str]:
    """Sort the names of all images that have this metric, the best first."""
    values = {name: value_of(row, metric) for name, row in results["images"].items()}
    known = {name: value for name, value in values.items() if value is not None}
    return sorted(known, key=known.__getitem__, reverse=HIGHER_IS_BETTER[metric])


def paired_difference(
    first: Mapping[str, Any], other: Mapping[str, Any], metric: str
) -> Interval | None:
    """Average other - first over the images that both have; None if there is none."""
    pairs = [
        (value_of(first["images"][name], metric), value_of(row, metric))
        for name, row in other["images"].items()
        if name in first["images"]
    ]
    differences = np.array([b - a for a, b in pairs if a is not None and b is not None])
    differences = differences[np.isfinite(differences)]  # equal pictures have an infinite PSNR
    if not differences.size:
        return None
    return bootstrap(differences)


def label_of(metric: str) -> str:
    return metric.upper().replace("_", "-")


def heading_of(metric: str) -> str:
    return f"{label_of(metric)} {'↑' if HIGHER_IS_BETTER[metric] else '↓'}"


def digits_of(results: Mapping[str, Any], metric: str) -> int:
    return 3 if abs(mean_of(results, metric) or 0) >= 10 else 4


def tone_of(metric: str, difference: float) -> str:
    if difference == 0:
        return ""
    return "better" if (difference > 0) == HIGHER_IS_BETTER[metric] else "worse"


def difference_cell(metric: str, value: float | None, base: float | None, digits: int) -> Cell:
    """Format value - base, its sign and its tone."""
    if value is None or base is None:
        return Cell("")
    difference = value - base
    return Cell(format_number(difference, digits, "+"), tone=tone_of(metric, difference))


def format_range(interval: Mapping[str, float], digits: int, sign: str = "-") -> str:
    low, high = (format_number(interval[end], digits, sign) for end in ("low", "high"))
    return f"[{low}, {high}]"
