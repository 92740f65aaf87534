"""How sure a mean over images is: bootstrap intervals."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

RESAMPLES = 10_000
LEVEL = 0.95


class Interval(NamedTuple):
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: Float[np.ndarray, " n"], seed: int = 0) -> Interval:
    """Average values and bound the mean by percentiles of means of resamples, 95% of them.

    Efron and Tibshirani, "An introduction to the bootstrap", 1993, section 13.3. The same seed
    gives the same interval. Raises ValueError if there is no value.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        raise ValueError("a mean needs at least one value")
    rng = np.random.default_rng(seed)
    chunk = max(1, min(RESAMPLES, 10**6 // len(values)))  # resamples that fit into little memory
    means = np.concatenate(
        [
            values[rng.integers(len(values), size=(min(chunk, RESAMPLES - i), len(values)))].mean(1)
            for i in range(0, RESAMPLES, chunk)
        ]
    )
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def mean_over(rows: Iterable[Mapping[str, float | None]], key: str) -> dict[str, Any] | None:
    """Average a column over the rows that have a number there, and count them; None for none.

    A row may lack the column or hold None in it.
    """
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values:
        return None
    return {**bootstrap(np.array(values))._asdict(), "images": len(values)}
