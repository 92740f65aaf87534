"""Images in batches of few shapes, so that few programs are compiled, and shares of processes."""

import sys
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def canvas_side(side: int) -> int:
    """Choose the side of the canvas on which a low-resolution side is measured, a bit longer."""
    step = 16 if side <= 32 else 64 if side <= 512 else 256
    return -(-side // step) * step


def group(
    items: Iterable[T], key_fn: Callable[[T], Hashable], size: int, most: int = sys.maxsize
) -> Iterator[list[T]]:
    """Gather `size` items of one key at a time, in their order; the last of a key may be fewer.

    An item whose key is None goes alone. Should more than `most` wait for others of their keys, the
    largest group goes as it is.
    """
    waiting: dict[Hashable, list[T]] = defaultdict(list)
    for item in items:
        key = key_fn(item)
        waiting[key].append(item)
        if key is None or len(waiting[key]) == size:
            yield waiting.pop(key)
        elif sum(map(len, waiting.values())) > most:
            yield waiting.pop(max(waiting, key=lambda key: len(waiting[key])))
    yield from waiting.values()


def repeat_last(batch: list[T], size: int) -> list[T]:
    """Repeat the last item until there are `size`."""
    return batch + batch[-1:] * (size - len(batch))


def share(items: Sequence[T], process: int, count: int) -> Sequence[T]:
    """Take one process's part of a list: as many in a row as every other, or one less."""
    bounds = [len(items) * i // count for i in (process, process + 1)]
    return items[bounds[0] : bounds[1]]
