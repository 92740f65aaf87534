"""Pictures that come in bands of rows, from top to bottom, and are never whole in memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

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


def map_ahead(function: Callable[[T], R], jobs: Iterable[T]) -> Iterator[R]:
    """Map on several threads, in order, a few jobs ahead and no more, as they hold memory."""
    threads = min(8, os.cpu_count() or 1)
    ahead: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for job in jobs:
            ahead.append(pool.submit(function, job))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
