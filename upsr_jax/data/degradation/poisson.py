"""Poisson counts whose means are levels of 8 bits, by Walker's alias method.

doi 10.1145/355744.355749. NumPy's generator takes three to seven times as long for an image, where
every pixel may have a mean of its own.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int16, Integer, UInt8, UInt32
from scipy.special import gammaln, xlogy

BINS = 512  # counts from here on have a probability under 1e-40, at the largest mean of 256
CHANCE_BITS = 23  # of packed tables; 9 are left for a count


class AliasTables(NamedTuple):
    """A distribution over counts for each level, cut into equal bins of two counts at most.

    Bin k is the interval [k, k + 1): up to `limit` it stands for the count k, then for k + `step`.
    """

    limit: Float64[np.ndarray, "256 bins"]
    step: Int16[np.ndarray, "256 bins"]


def draw_counts(
    rng: np.random.Generator, levels: UInt8[np.ndarray, "*shape"], photons: int
) -> Integer[np.ndarray, "*shape"]:
    """Draw counts of mean photons * level / 255, for 256 photons at most."""
    limit, step = alias_tables(photons)
    place = rng.random(levels.shape) * BINS
    count = place.astype(np.int32)
    cell = levels * np.int32(BINS) + count
    return count + (place >= limit.take(cell)) * step.take(cell)


@lru_cache
def alias_tables(photons: int) -> AliasTables:
    """Build the tables: in each row, what the fullest bin has too much fills up the emptiest."""
    mean = photons * np.arange(256)[:, np.newaxis] / 255
    count = np.arange(BINS)
    share = BINS * np.exp(xlogy(count, mean) - mean - gammaln(count + 1))
    limit = np.tile(count + 1.0, (256, 1))
    step = np.zeros((256, BINS), np.int16)
    row = np.arange(256)
    for _ in range(BINS - 1):
        emptiest, fullest = np.nanargmin(share, axis=1), np.nanargmax(share, axis=1)
        limit[row, emptiest] = emptiest + share[row, emptiest]
        step[row, emptiest] = fullest - emptiest
        share[row, fullest] -= 1 - share[row, emptiest]
        share[row, emptiest] = np.nan  # done
    return AliasTables(limit, step)


def packed_tables() -> UInt32[np.ndarray, "9 256 bins"]:
    """Pack the tables of 1, 2, 4, ..., 256 photons into a word for each bin.

    Its upper bits are the other count, its lower ones the chance of the bin's own, out of 2^23.
    """
    words = []
    for photons in 2 ** np.arange(9):
        limit, step = alias_tables(int(photons))
        own = np.arange(BINS)
        chance = np.rint((limit - own) * 2**CHANCE_BITS).clip(0, 2**CHANCE_BITS - 1)
        words.append((own + step << CHANCE_BITS) + chance.astype(int))
    return np.stack(words).astype(np.uint32)
