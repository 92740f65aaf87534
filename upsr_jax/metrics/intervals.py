"""How sure a mean over images is: bootstrap intervals."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

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
    gives the same interval. It has no width where values are all equal or not all finite, as PSNR
    of equal pictures is infinite elsewhere. Raises ValueError if there is no value.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        raise ValueError("a mean needs at least one value")
    mean = float(values.mean())
    if not np.isfinite(mean) or (values == values[0]).all():  # what SciPy warns of or refuses
        return Interval(mean, mean, mean)
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 10**6 // len(values)),  # resamples that fit into little memory
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def mean_over(rows: Iterable[Mapping[str, float | None]], key: str) -> dict[str, Any] | None:
    """Average a column over the rows that have a number there, and count them; None for none.

    A row may lack the column or hold None in it.
    """
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values:
        return None
    return {**bootstrap(np.array(values))._asdict(), "images": len(values)}
