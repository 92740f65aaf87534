"""Arithmetic of tiles, on the host: where they lie, how they are blended, what noise they see."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Float32, Shaped

SCALE = 4
NOISE_BLOCK = 256


def tile_grid(length: int, tile: int, overlap: int) -> list[int]:
    """List where the tiles of one axis start: neighbours overlap, the last is moved inward.

    Raises ValueError if a tile does not fit the axis or is no longer than the overlap.
    """
    if not 0 <= overlap < tile <= length:
        raise ValueError(f"overlap {overlap} < tile {tile} <= length {length} does not hold.")
    return [*range(0, length - tile, tile - overlap), length - tile]


def tile_side(length: int, tile: int, overlap: int) -> int:
    """Choose the side of an axis' tiles: of at most `tile`, that which computes fewest pixels.

    The axis must be longer than `tile`. A last tile that is moved inward computes again what its
    neighbour does: 512 pixels take three tiles of 256 that overlap by 32, or three of 192. Sides
    are multiples of 64 from 128 on, since at a tile's edge the networks see less of what is around.
    """
    sides = [side for side in range(tile, 127, -64) if side > overlap] or [tile]
    return min(sides, key=lambda side: side * len(tile_grid(length, side, overlap)))


def tile_weights(
    starts: Sequence[int], tile: int, overlap: int, blend: str
) -> Float32[np.ndarray, "n tile"]:
    """Weigh each tile along one axis, so that the weights sum to 1 in every place.

    `blend` is "feather", ramps over the overlap and none at the ends, or "mean", the same weight
    for all tiles in a place.
    """
    weights = np.ones((len(starts), tile))
    if blend == "feather":
        ramp = np.minimum(np.arange(1, tile + 1) / (overlap + 1), 1)
        weights[1:] *= ramp
        weights[:-1] *= ramp[::-1]
    elif blend != "mean":
        raise ValueError(f"blend is {blend!r}: choose feather or mean")
    total = np.zeros(starts[-1] + tile)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + tile] += weight
    for start, weight in zip(starts, weights, strict=True):
        weight /= total[start : start + tile]
    return weights.astype(np.float32)


def blend_bands(
    tiles: Iterator[Float[np.ndarray, "th tw c"]],
    tops: Sequence[int],
    lefts: Sequence[int],
    shape: tuple[int, int],
    overlap: int,
    blend: str,
) -> Iterator[Float32[np.ndarray, "rows w c"]]:
    """Blend tiles of `shape`, given row by row, and yield the picture in bands from top to bottom.

    Only one row of tiles is held, whatever the height of the picture. See `tile_weights`.
    """
    height, width = shape
    row_weights = tile_weights(tops, height, overlap, blend)
    column_weights = tile_weights(lefts, width, overlap, blend)
    rest = None  # of the row of tiles above, not whole yet
    for row, top in enumerate(tops):
        band = None
        for column, left in enumerate(lefts):
            weight = np.outer(row_weights[row], column_weights[column])
            tile = weight[..., None] * next(tiles)
            if band is None:
                band = np.zeros((height, lefts[-1] + width, tile.shape[-1]), np.float32)
                if rest is not None:
                    band[: len(rest)] = rest
            band[:, left : left + width] += tile
        assert band is not None
        done = tops[row + 1] - top if row + 1 < len(tops) else height
        yield band[:done]
        rest = band[done:]


def pad_reflect(
    image: Shaped[np.ndarray, "h w c"], height: int, width: int
) -> Shaped[np.ndarray, "height width c"]:
    """Extend an image right and bottom by reflection, back and forth as often as needed."""
    if image.shape[:2] == (height, width):
        return image  # which may be large, and is not copied
    rows = _reflect(image.shape[0], height)
    columns = _reflect(image.shape[1], width)
    return image[rows][:, columns]


def noise_window(
    seed: int, top: int, left: int, height: int, width: int
) -> Float32[np.ndarray, "height width 3"]:
    """Cut a window out of the endless field of Gaussian noise that a seed stands for.

    Fixed blocks have a random stream each, counted by block row and column, so a pixel's noise does
    not depend on the window it is drawn with.
    """
    rows = range(top // NOISE_BLOCK, (top + height - 1) // NOISE_BLOCK + 1)
    columns = range(left // NOISE_BLOCK, (left + width - 1) // NOISE_BLOCK + 1)
    strips = [np.concatenate([_noise_block(seed, row, c) for c in columns], axis=1) for row in rows]
    field = np.concatenate(strips)
    top, left = top - rows[0] * NOISE_BLOCK, left - columns[0] * NOISE_BLOCK
    return field[top : top + height, left : left + width]


def _noise_block(seed: int, row: int, column: int) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, row, column]))
    return generator.standard_normal((NOISE_BLOCK, NOISE_BLOCK, 3), np.float32)


def _reflect(length: int, padded: int) -> np.ndarray:
    period = max(2 * length - 2, 1)
    index = np.arange(padded) % period
    return np.minimum(index, period - index)
