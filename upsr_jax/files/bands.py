"""Pictures that come in bands of rows, from top to bottom, and are never whole in memory."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from upsr_jax.files.ahead import run_ahead

T = TypeVar("T")
R = TypeVar("R")


def regroup(bands: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """Cut bands [any number of rows, w, c] anew, into `rows` each; the last may have fewer."""
    held: list[np.ndarray] = []
    count = 0
    for band in bands:
        while count + len(band) >= rows:
            missing = rows - count
            yield np.concatenate([*held, band[:missing]]) if held else band[:missing]
            held, count, band = [], 0, band[missing:]
        if len(band):
            held.append(band)
            count += len(band)
    if held:
        yield np.concatenate(held)


def gather(bands: Iterable[np.ndarray], whole: np.ndarray) -> np.ndarray:
    """Fill an array with bands of its rows, each of which is held no longer; return the array."""
    top = 0
    for band in bands:
        whole[top : top + len(band)] = band
        top += len(band)
    return whole


def map_on_threads(function: Callable[[T], R], jobs: Iterable[T]) -> Iterator[R]:
    """Map on several threads, in order, a few jobs ahead and no more, as they hold memory."""
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        yield from run_ahead(pool, function, jobs, threads + 1)
