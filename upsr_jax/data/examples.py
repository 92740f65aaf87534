"""Training examples: a photograph cropped and degraded, here or on a device, or a crop of a pair.

Worker processes import this module and what it imports: it must stay free of JAX.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np

from upsr_jax.data.degradation.host import degrade, sharpen, to_bytes, to_unit
from upsr_jax.data.sources import Pair, Photo, Source, read_or_next


class Place(NamedTuple):
    """The place of an example in a run, and the number of the image it is made of."""

    step: int
    row: int  # of the global batch
    number: int


class TrainExample(NamedTuple):
    """What an image gave, the image's number, and why other images were passed over.

    That is a pair of crops, or of a photograph that a device will degrade the crop alone. The step
    and row that it is drawn by are not those of its batch where batches are mixed.
    """

    crop: Pair | Photo
    step: int
    row: int
    number: int
    rejected: list[str]


def make_example(
    source: Source,
    max_bad_fraction: float,
    seed: int,
    crop_size: int,
    scale: tuple[float, float],
    rotation: float,
    use_sharp: bool,
    degradation: Mapping[str, Any] | None,
    per_batch: bool,
    place: Place,
) -> TrainExample:
    """Make the example of a place, as (seed, step, row) draw it.

    A photograph is cropped, see `crop_photo`, and degraded, unless `degradation` is None; a pair is
    cropped. With `per_batch` the examples of a step have in common what `degrade` can draw for all
    of a batch.
    """
    rng = np.random.default_rng((seed, place.step, place.row))
    # The last number tells it from a row's: short seeds are filled up with zeros.
    shared = np.random.default_rng((seed, place.step, 0, 1)) if per_batch else None
    source = source._replace(read=partial(read_fit, source, crop_size))
    number, item, rejected = read_or_next(source, max_bad_fraction, place.number)
    if isinstance(item, Pair):
        crop = crop_pair(rng, item, crop_size)
    else:
        crop = crop_photo(rng, item, crop_size, scale, rotation, use_sharp)
        if degradation is not None:
            crop = Pair(crop, degrade(rng, crop, **degradation, shared=shared))
    return TrainExample(crop, place.step, place.row, number, rejected)


def read_fit(source: Source, size: int, index: int) -> Photo | Pair:
    """Read an image; raises ValueError for a pair, which can't be extended, under `size` pixels."""
    item = source.read(index)
    if isinstance(item, Pair) and min(item.hr.shape[:2]) < size:
        height, width = item.hr.shape[:2]
        raise ValueError(
            f"'{source.name(index)}' has {width}x{height} pixels, under crop_size = {size}."
        )
    return item


def crop_photo(
    rng: np.random.Generator,
    photo: Photo,
    size: int,
    scale: tuple[float, float],
    rotation: float,
    use_sharp: bool,
) -> Photo:
    """Crop a photograph, turned and shrunk.

    It is shrunk by a factor between those of `scale`, and half of the crops are turned by up to
    `rotation` degrees either way. `use_sharp` sharpens the crop, which is the ground truth.
    """
    side = size if scale == (1, 1) else round(size / rng.uniform(*scale))
    if rotation and rng.random() < 0.5:
        hr = random_rotated_crop(rng, photo, side, rng.uniform(-rotation, rotation))
    else:
        hr = random_crop_and_flip(rng, photo, side)
    if side != size:
        hr = cv2.resize(np.ascontiguousarray(hr), (size, size), interpolation=cv2.INTER_AREA)
    if use_sharp:
        hr = to_bytes(sharpen(to_unit(hr)))
    return hr


def random_rotated_crop(rng: np.random.Generator, photo: Photo, size: int, angle: float) -> Photo:
    """Crop as `random_crop_and_flip` does, a square turned by `angle` degrees."""
    cosine, sine = abs(np.cos(np.deg2rad(angle))), abs(np.sin(np.deg2rad(angle)))
    around = int(np.ceil(size * (cosine + sine)))
    crop = np.ascontiguousarray(random_crop_and_flip(rng, photo, around))
    matrix = cv2.getRotationMatrix2D(((around - 1) / 2, (around - 1) / 2), -angle, 1)
    matrix[:, 2] -= (around - size) / 2
    border = cv2.BORDER_REFLECT_101
    return cv2.warpAffine(crop, matrix, (size, size), flags=cv2.INTER_LANCZOS4, borderMode=border)


def random_crop_and_flip(rng: np.random.Generator, photo: Photo, size: int) -> Photo:
    """Flip, transpose, extend by reflection (101) to `size` at least, and crop a square."""
    photo = flip(photo, rng.random(3) < 0.5)
    bottom, right = (max(size - side, 0) for side in photo.shape[:2])
    if bottom or right:
        photo = np.ascontiguousarray(photo)
        photo = cv2.copyMakeBorder(photo, 0, bottom, 0, right, cv2.BORDER_REFLECT_101)
    top, left = (rng.integers(side - size, endpoint=True) for side in photo.shape[:2])
    return photo[top : top + size, left : left + size]


def crop_pair(rng: np.random.Generator, pair: Pair, size: int) -> Pair:
    """Flip, transpose and crop both images of a pair alike, to `size` and `size` / 4."""
    flips = rng.random(3) < 0.5
    hr, lr = flip(pair.hr, flips), flip(pair.lr, flips)
    top, left = (rng.integers(side - size // 4, endpoint=True) for side in lr.shape[:2])
    lr = lr[top : top + size // 4, left : left + size // 4]
    hr = hr[4 * top : 4 * top + size, 4 * left : 4 * left + size]
    return Pair(hr, lr)


def flip(photo: Photo, flips: np.ndarray) -> Photo:
    """View a photograph mirrored left to right, top to bottom and transposed, each if told so."""
    horizontal, vertical, transpose = flips
    photo = photo[:, ::-1] if horizontal else photo
    photo = photo[::-1] if vertical else photo
    return photo.swapaxes(0, 1) if transpose else photo
