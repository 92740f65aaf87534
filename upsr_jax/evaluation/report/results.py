"""Results of an evaluation: read, ranked, named, formatted and compared."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from upsr_jax.evaluation.report.rendering import Cell, format_number
from upsr_jax.files.whole import parse_json
from upsr_jax.metrics.intervals import Interval, bootstrap

RESULTS = "results.json"


TEXT = str | None
CAPPED = (
    "Capped are images that equal the ground truth, as flat ones may: PSNR has no number for them "
    "and 80 dB are taken, which lift the mean."
)
INTERVAL = {"mean": float, "low": float, "high": float, "images": int}
IMAGE = {"lr": TEXT, "gt": TEXT, "sha256": str}
# What is read of results.json; see `fits`.
FORM = {
    "protocol": {str: str | int | float | None},
    "metrics": {str: bool},
    "means": {str: INTERVAL},
    "images": {str: IMAGE},
    "broken": {str: str},
    "timing": {"seconds": float, str: int | float},
}


def read_results(folder: Path) -> dict[str, Any]:
    """Read the results.json of an evaluation; raise ValueError if it is not there or not whole."""
    file = folder / RESULTS
    try:
        results = parse_json(file.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: no results.json; run the evaluation to its end") from error
    except ValueError as error:
        raise ValueError(f"{file}: damaged ({error}); run the evaluation again") from error
    if not fits(results, FORM) or not all(
        fits(row, dict.fromkeys({key, f"bicubic_{key}"} & row.keys(), float | None))
        for row in results["images"].values()
        for key in results["metrics"]
    ):
        raise ValueError(f"{file}: not what an evaluation writes; run the evaluation again")
    return results


def fits(value: Any, form: Any) -> bool:
    """Tell whether a value of JSON is of a type, or an object with these keys and values of them.

    The value of the key `str` is for all keys that a form doesn't name. Numbers are never infinite
    or so large that a mean of them would be.
    """
    if not isinstance(form, dict):
        return isinstance(value, form) and (type(value) is not float or abs(value) < 1e99)
    return (
        isinstance(value, dict)
        and form.keys() - {str} <= value.keys()
        and all(fits(each, form.get(key, form.get(str, object))) for key, each in value.items())
    )


def value_of(row: Mapping[str, Any], metric: str) -> float | None:
    value = row.get(metric)
    return None if value is None or math.isnan(value) else value


def mean_of(results: Mapping[str, Any], metric: str) -> float | None:
    interval = results["means"].get(metric)
    return interval and interval["mean"]


def count_of(results: Mapping[str, Any], metric: str) -> str:
    """Say over how many images a mean is, and how many of them have the most that there is."""
    means = results["means"]
    count, total = means.get(metric, {}).get("images", 0), len(results["images"])
    capped = {
        "": means.get(metric, {}).get("capped"),
        " of bicubic": means.get(f"bicubic_{metric}", {}).get("capped"),
    }
    parts = [f"{number:,} capped{of}" for of, number in capped.items() if number]
    return ", ".join([f"{count:,}" if count == total else f"{count:,} of {total:,}", *parts])


def rank(results: Mapping[str, Any], metric: str) -> list[str]:
    """Sort the names of all images that have this metric, the best first."""
    values = {name: value_of(row, metric) for name, row in results["images"].items()}
    known = {name: value for name, value in values.items() if value is not None}
    return sorted(known, key=known.__getitem__, reverse=results["metrics"][metric])


def common_images(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """List the images of two results that have one name and came from the same files.

    Where only one of them had the ground truth as well, the name must do.
    """

    def same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
        alike = (ours.get("gt") is None) == (theirs.get("gt") is None)
        return not alike or ours.get("sha256") == theirs.get("sha256")

    ours, theirs = first["images"], other["images"]
    return [name for name in ours if name in theirs and same(ours[name], theirs[name])]


def paired_difference(
    first: Mapping[str, Any], other: Mapping[str, Any], metric: str
) -> Interval | None:
    """Average other - first over the images that both have; None if there is none."""
    pairs = [
        [value_of(results["images"][name], metric) for results in (first, other)]
        for name in common_images(first, other)
    ]
    differences = np.array([b - a for a, b in pairs if a is not None and b is not None])
    return bootstrap(differences) if differences.size else None


def label_of(metric: str) -> str:
    """Write out the name of a metric, or PACKAGE:NAME of one that another package measured."""
    package, _, name = metric.rpartition(":")
    label = name.upper().replace("_", "-")
    return f"{label} ({package})" if package else label


def heading_of(metric: str, higher_is_better: bool) -> str:
    return f"{label_of(metric)} {'↑' if higher_is_better else '↓'}"


def headings_of(metrics: Mapping[str, bool]) -> list[str]:
    return [heading_of(metric, higher) for metric, higher in metrics.items()]


def digits_of(results: Mapping[str, Any], metric: str) -> int:
    return 3 if abs(mean_of(results, metric) or 0) >= 10 else 4


def tone_of(difference: float, higher_is_better: bool) -> str:
    if difference == 0:
        return ""
    return "better" if (difference > 0) == higher_is_better else "worse"


def difference_cell(
    value: float | None, base: float | None, digits: int, higher_is_better: bool
) -> Cell:
    """Format value - base, its sign and its tone."""
    if value is None or base is None:
        return Cell("")
    difference = value - base
    return Cell(format_number(difference, digits, "+"), tone=tone_of(difference, higher_is_better))


def format_range(interval: Mapping[str, float], digits: int, sign: str = "-") -> str:
    low, high = (format_number(interval[end], digits, sign) for end in ("low", "high"))
    return f"[{low}, {high}]"
