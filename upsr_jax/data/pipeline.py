"""Training batches: example `row` of global step `step` depends on (seed, step, row) alone.

Neither hosts, threads nor restarts change it, so that a run resumes from its step number.
"""

from typing import Any

import cv2
import grain
import numpy as np
from ml_collections import ConfigDict

from upsr_jax.data import sources
from upsr_jax.data.degradation import Image, degrade, sharpen, to_unit
from upsr_jax.data.sources import Pair, PairFiles, Photo

ENDLESS = 2**48  # examples


def train_batches(
    data: ConfigDict,
    degradation: ConfigDict,
    seed: int,
    start_step: int,
    process_index: int,
    process_count: int,
) -> grain.DatasetIterator:
    """Iterate without end over this process's rows of the global batches from `start_step` on.

    A batch is {"hr": [b, crop, crop, 3], "lr": [b, crop/4, crop/4, 3], "index": int64 [b]}: signed
    float32 images, and the place of each in `list_files(data)`. Every epoch goes through all files
    in an order of its own. Close the iterator to stop its threads.

    `data` holds `folders` of photographs, which `degradation` makes pairs of, or else `pairs`, a
    folder of ground truths and one of low-resolution images; `batch_size` over all processes;
    `crop_size` of the ground truth; `num_threads`; `max_bad_fraction` (see `make_reader`).
    """
    if data.batch_size % process_count:
        raise ValueError(
            f"A batch of {data.batch_size} can't be split evenly over {process_count} processes."
        )
    if data.crop_size % 4 or data.crop_size < 16:
        raise ValueError(f"crop_size is {data.crop_size}: choose a multiple of 4 from 16 on.")
    cv2.setNumThreads(1)  # the examples are made in parallel already
    files = list_files(data)
    read_fn = sources.read_pair if data.pairs else sources.read_image
    read = sources.make_reader(files, read_fn, data.max_bad_fraction)
    order = grain.MapDataset.range(len(files)).shuffle(seed=seed).repeat()
    batch_size, crop_size = data.batch_size, data.crop_size
    local_batch_size = batch_size // process_count
    degradation_args = degradation.to_dict()

    def make_example(local_position: int) -> dict[str, np.ndarray | np.int64]:
        step, local_row = divmod(local_position, local_batch_size)
        row = process_index * local_batch_size + local_row
        rng = np.random.default_rng((seed, step, row))
        index, item = read(order[step * batch_size + row])
        if data.pairs:
            hr, lr = crop_pair(rng, item, crop_size)
        else:
            hr, lr = degrade_crop(rng, item, crop_size, **degradation_args)
        return {"hr": 2 * hr - 1, "lr": 2 * lr - 1, "index": np.int64(index)}

    examples = grain.MapDataset.range(start_step * local_batch_size, ENDLESS).map(make_example)
    buffer = grain.ReadOptions(data.num_threads, prefetch_buffer_size=2 * local_batch_size)
    return iter(examples.to_iter_dataset(buffer).batch(local_batch_size))


def list_files(data: ConfigDict) -> list[str] | list[PairFiles]:
    """List the files that the `index` of a batch counts."""
    if bool(data.folders) == bool(data.pairs):
        raise ValueError(f"Set one of folders ({data.folders}) and pairs ({data.pairs}).")
    return sources.list_pairs(*data.pairs) if data.pairs else sources.list_images(*data.folders)


def degrade_crop(
    rng: np.random.Generator, photo: Photo, size: int, use_sharp: bool, **degradation: Any
) -> tuple[Image, Image]:
    """Crop a photograph and make its low-resolution image, both unit.

    `use_sharp` sharpens the crop first, the ground truth included.
    """
    hr = to_unit(random_crop_and_flip(rng, photo, size))
    if use_sharp:
        hr = sharpen(hr)
    return hr, degrade(rng, hr, **degradation)


def random_crop_and_flip(rng: np.random.Generator, photo: Photo, size: int) -> Photo:
    """Flip, transpose, extend by reflection (101) to `size` at least, and crop a square."""
    photo = flip(photo, rng.random(3) < 0.5)
    bottom, right = (max(size - side, 0) for side in photo.shape[:2])
    if bottom or right:
        photo = np.ascontiguousarray(photo)
        photo = cv2.copyMakeBorder(photo, 0, bottom, 0, right, cv2.BORDER_REFLECT_101)
    top, left = (rng.integers(side - size, endpoint=True) for side in photo.shape[:2])
    return photo[top : top + size, left : left + size]


def crop_pair(rng: np.random.Generator, pair: Pair, size: int) -> tuple[Image, Image]:
    """Flip, transpose and crop both images of a pair alike, to `size` and `size` / 4; both unit.

    Raises ValueError where the pair is smaller than that.
    """
    height, width = pair.hr.shape[:2]
    if min(height, width) < size:
        raise ValueError(f"A ground truth of {width}x{height} pixels is under crop_size = {size}.")
    flips = rng.random(3) < 0.5
    hr, lr = flip(pair.hr, flips), flip(pair.lr, flips)
    top, left = (rng.integers(side - size // 4, endpoint=True) for side in lr.shape[:2])
    lr = lr[top : top + size // 4, left : left + size // 4]
    hr = hr[4 * top : 4 * top + size, 4 * left : 4 * left + size]
    return to_unit(hr), to_unit(lr)


def flip(photo: Photo, flips: np.ndarray) -> Photo:
    """View a photograph mirrored left to right, top to bottom and transposed, each if told so."""
    horizontal, vertical, transpose = flips
    photo = photo[:, ::-1] if horizontal else photo
    photo = photo[::-1] if vertical else photo
    return photo.swapaxes(0, 1) if transpose else photo
