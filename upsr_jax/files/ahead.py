"""A function computed ahead of its use, in order, and no further ahead than memory allows."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def run_ahead(
    executor: Executor, function: Callable[[A], B], items: Iterable[A], ahead: int
) -> Iterator[B]:
    """Yield function(item) of every item, in their order, with up to `ahead` of them begun.

    Raises what the function raises, and what the executor does.
    """
    items = iter(items)
    begun = deque(executor.submit(function, item) for item in itertools.islice(items, ahead))
    while begun:
        yield begun.popleft().result()
        begun.extend(executor.submit(function, item) for item in itertools.islice(items, 1))
