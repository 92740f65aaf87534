"""Batches of few shapes out of images of any size, and back to images.

An image's own size decides to what shape it is padded or in which tiles it is cut, so neither its
result nor the programs that are compiled depend on what else there is to do. Sizes are those of
low-resolution images.
"""

import itertools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float32, UInt8

from upsr_jax.upscale.restore import SIZE_MULTIPLE
from upsr_jax.upscale.tiles import pad_reflect, tile_grid

SCALE = 4
OVERLAP = 64  # of the released test's tiles: 512 pixels, 448 apart
SMALL_SIDES = (16, 32)  # canvases of metrics, which may be smaller than what the networks take

T = TypeVar("T")


class Piece(NamedTuple):
    """A tile of an image, or the whole of a small one, padded; `corners` are of all its tiles."""

    name: str
    size: tuple[int, int]  # of the image
    corners: list[tuple[int, int]]
    index: int  # of this tile
    pixels: UInt8[np.ndarray, "h w 3"]


def check_sides(sides: Sequence[int]) -> None:
    """Raise ValueError unless `sides` are ascending multiples of 64 that leave room for overlap."""
    if (
        not sides
        or list(sides) != sorted(set(sides))
        or any(side <= 0 or side % SIZE_MULTIPLE for side in sides)
        or sides[-1] <= OVERLAP
    ):
        raise ValueError(
            f"config.eval.sides is {tuple(sides)}, but must be ascending multiples of "
            f"{SIZE_MULTIPLE}, the last of them, the side of a tile, above {OVERLAP}"
        )


def piece_side(side: int, sides: Sequence[int]) -> int:
    """Choose the side that an image is padded to, or that of its tiles if it is larger than all."""
    return next((choice for choice in sides if choice >= side), sides[-1])


def canvas_side(side: int, sides: Sequence[int]) -> int:
    """Choose the side of the canvas on which an image is measured: whole tiles, if it has any."""
    tile = sides[-1]
    if side > tile:
        stride = tile - OVERLAP
        return tile + -(-(side - tile) // stride) * stride
    return piece_side(side, (*SMALL_SIDES, *sides))


def cut(name: str, image: UInt8[np.ndarray, "h w 3"], sides: Sequence[int]) -> list[Piece]:
    """Pad an image by reflection at right and bottom, or cut it in tiles where it is too large."""
    height, width = image.shape[:2]
    shape = piece_side(height, sides), piece_side(width, sides)
    padded = pad_reflect(image, max(height, shape[0]), max(width, shape[1]))
    rows, columns = (
        tile_grid(length, tile, OVERLAP if length > tile else 0)
        for length, tile in zip(padded.shape, shape, strict=False)
    )
    corners = list(itertools.product(rows, columns))
    return [
        Piece(
            name, (height, width), corners, i, padded[top : top + shape[0], left : left + shape[1]]
        )
        for i, (top, left) in enumerate(corners)
    ]


def assemble(
    results: Iterable[tuple[Piece, Sequence[Float32[np.ndarray, "H W 3"]]]],
) -> Iterator[tuple[str, list[Float32[np.ndarray, "H W 3"]]]]:
    """Put the results of pieces together; yield name and arrays of an image when it is whole.

    Tiles are averaged where they overlap, in the order of their corners; padding is cut off.
    """
    sums: dict[str, list[np.ndarray]] = {}
    for piece, arrays in results:
        height, width = (SCALE * side for side in piece.size)
        if len(piece.corners) == 1:
            yield piece.name, [array[:height, :width] for array in arrays]
            continue
        shape = arrays[0].shape
        if piece.index == 0:
            full = max(height, shape[0]), max(width, shape[1]), 3
            sums[piece.name] = [np.zeros(full, np.float32) for _ in arrays]
        top, left = (SCALE * start for start in piece.corners[piece.index])
        for total, array in zip(sums[piece.name], arrays, strict=True):
            total[top : top + shape[0], left : left + shape[1]] += array
        if piece.index == len(piece.corners) - 1:
            counts = _overlaps(piece.corners, shape[:2], sums[piece.name][0].shape[:2])
            totals = sums.pop(piece.name)
            for total in totals:
                total /= counts
            yield piece.name, [total[:height, :width] for total in totals]


def _overlaps(
    corners: Sequence[tuple[int, int]], tile: Sequence[int], full: Sequence[int]
) -> Float32[np.ndarray, "H W 1"]:
    counts = np.zeros((*full, 1), np.float32)
    for top, left in corners:
        counts[SCALE * top :, SCALE * left :][: tile[0], : tile[1]] += 1
    return counts


def group(
    items: Iterable[T], key_fn: Callable[[T], Any], size: int, most: int = sys.maxsize
) -> Iterator[list[T]]:
    """Gather `size` items of one key at a time, in their order; the last of a key may be fewer.

    Should more than `most` wait for others of their keys, the largest group goes as it is.
    """
    waiting: dict[Any, list[T]] = defaultdict(list)
    for item in items:
        key = key_fn(item)
        waiting[key].append(item)
        if len(waiting[key]) == size:
            yield waiting.pop(key)
        elif sum(map(len, waiting.values())) > most:
            yield waiting.pop(max(waiting, key=lambda key: len(waiting[key])))
    yield from waiting.values()


def fill(batch: list[T], size: int) -> list[T]:
    """Repeat the last item until there are `size`."""
    return batch + batch[-1:] * (size - len(batch))


def share(items: Sequence[T], process: int, count: int) -> Sequence[T]:
    """Take one process's part of a list: as many in a row as every other, or one less."""
    bounds = [len(items) * i // count for i in (process, process + 1)]
    return items[bounds[0] : bounds[1]]
