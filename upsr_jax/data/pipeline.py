"""Training batches: example `row` of global step `step` depends on (seed, step, row) alone.

Neither hosts, worker processes, threads nor restarts change it, so that a run resumes from its step
number. OpenCV's own threads do, in the last bits: with more than one it resizes some sizes by code
that rounds otherwise. So a program that trains calls `cv2.setNumThreads(1)`, as workers do.
"""

import itertools
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import SupportsInt

import grain
import numpy as np
from jaxtyping import Float32, UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

from upsr_jax.data import sources
from upsr_jax.data.degradation.host import to_unit
from upsr_jax.data.examples import Place, TrainExample, make_example
from upsr_jax.data.prefetch import map_ahead
from upsr_jax.data.sources import Pair, Source
from upsr_jax.files.names import show

logger = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]


def train_batches(
    data: ConfigDict,
    degradation: ConfigDict,
    seed: int,
    start_step: int,
    process_index: int,
    process_count: int,
) -> Generator[Batch, None, None]:
    """Iterate without end over this process's rows of the global batches from `start_step` on.

    A batch is {"hr": [b, crop, crop, 3], "lr": [b, crop/4, crop/4, 3], "index": int64 [b]}: signed
    float32 images, and the number of each, which `example_names` turns into a name. Where
    `data.degrade_on` is "device", "hr" is uint8, and in place of "lr" there is "place", int32
    [b, 2]: the step and row that each is to be degraded by. Every epoch goes through all images in
    an order of its own. Close the generator to stop threads and workers.

    `data` holds `folders` (see `sources.open_source`) of photographs, which `degradation` makes
    pairs of, and `weights` by which they are drawn: one each, or () to draw all images alike; or
    else `pairs`, a folder of ground truths and one of low-resolution images. Then `batch_size` over
    all processes; `crop_size` of the ground truth; `scale`, the smallest and largest factor of at
    most 1 by which photographs are shrunk first; `rotation`, the most degrees by which half of
    their crops are turned either way; `use_sharp`, whether these are sharpened; `pool`, 0, or in
    how many pairs batches are mixed (see `mix`) that draw for all of a batch what `degrade` can
    draw so, as the released training did; `max_bad_fraction`
    (see `sources.read_or_next`); `num_workers`, processes that make the examples, or 0 for
    `num_threads` threads of this one.
    """
    if data.batch_size % process_count:
        raise ValueError(
            f"A batch of {data.batch_size} can't be split evenly over {process_count} processes."
        )
    low, high = data.scale
    opened = open_sources(data)
    source = sources.concatenate(opened)
    order = shuffle([source.size for source in opened], data.weights, seed)
    settings = (
        *(data.max_bad_fraction, seed, data.crop_size, (low, high), data.rotation, data.use_sharp),
        *(degradation.to_dict() if data.degrade_on == "host" else None, bool(data.pool)),
    )
    make_fn = partial(make_example, source, *settings)
    rows = data.batch_size // process_count
    own_rows = range(process_index * rows, (process_index + 1) * rows)
    batches = mix(data.batch_size, data.pool, seed, start_step)
    wanted = places(order, data.batch_size, own_rows, batches)
    ahead = 2 * max(rows, data.num_workers, data.num_threads)
    examples = map_ahead(make_fn, wanted, data.num_workers, data.num_threads, ahead)
    return stack(examples, rows, make_bad_image_log(source.size, data.max_bad_fraction))


def open_sources(data: ConfigDict) -> list[Source]:
    """Open the images of a config; raises ValueError where it says contradictory things."""
    if bool(data.folders) == bool(data.pairs):
        raise ValueError(f"Set one of folders ({data.folders}) and pairs ({data.pairs}).")
    if data.pairs:
        return [sources.open_pairs(*data.pairs)]
    return [sources.open_source(folder) for folder in data.folders]


def check_images(
    opened: Sequence[Source], data: ConfigDict, process_index: int, process_count: int
) -> None:
    """Check this process's share of all images that are files of their own, before training.

    Packed ones were decoded when they were packed. Raises ValueError as `sources.check_bad` does.
    """
    size = sum(source.size for source in opened)
    bad = []
    for source in opened:
        if source.check is None:
            continue
        numbers = range(process_index, source.size, process_count)
        find_fn = partial(find_problem, source.check)
        problems = map_ahead(find_fn, numbers, 0, data.num_threads, ahead=4 * data.num_threads)
        shown = tqdm(problems, "Checking images", len(numbers), disable=process_index > 0)
        bad += filter(None, shown)
    for problem in bad:
        logger.warning("Bad image: %s", problem)
    sources.check_bad(bad, size, data.max_bad_fraction)


def find_problem(check_fn: Callable[[int], None], number: int) -> str:
    """Say what is wrong with an image; nothing if nothing is."""
    try:
        check_fn(number)
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def example_names(data: ConfigDict, index: Iterable[SupportsInt]) -> list[str]:
    """Name the images that the `index` of a batch counts, through all sources."""
    source = sources.concatenate(open_sources(data))
    return [source.name(int(i)) for i in index]


def shuffle(
    sizes: Sequence[int], weights: Sequence[float | int], seed: int
) -> grain.MapDataset[int]:
    """Put the images of all sources, numbered through, into an endless order: epoch by epoch.

    With weights, one for each source, a source has epochs of its own, and its images come evenly
    among the others in that proportion (to within 1%).
    """
    spans = [(0, sum(sizes))]
    if weights:
        if len(weights) != len(sizes) or min(weights) <= 0:
            raise ValueError(
                f"config.data.weights is {tuple(weights)}: give a weight above 0 for each of the "
                f"{len(sizes)} folders, or () to draw all images alike."
            )
        ends = np.cumsum(sizes).tolist()
        spans = [(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    orders = [
        grain.MapDataset.range(*span).shuffle(seed=(seed + place) % 2**32).repeat()
        for place, span in enumerate(spans)
    ]
    return grain.MapDataset.mix(orders, weights or [1])


def mix(
    batch_size: int, pool: int, seed: int, start_step: int
) -> Iterator[Sequence[int] | np.ndarray]:
    """Yield for every step from `start_step` on the numbers of its batch's examples.

    Without a `pool` they are counted through. A pool keeps so many examples; each batch is drawn
    out of it and replaced by the next ones (arXiv 2107.10833, Sec. 4.1). The first batches fill it
    and are trained on as they are. It keeps numbers, not pictures, and is played through from the
    run's first step, which takes a second for 200,000.
    """
    if not pool:
        for start in itertools.count(start_step * batch_size, batch_size):
            yield range(start, start + batch_size)
    rng = np.random.default_rng((seed, 0, 0, 2))
    kept = np.arange(pool)
    for step in itertools.count():
        batch = np.arange(step * batch_size, (step + 1) * batch_size)
        if step * batch_size >= pool:
            drawn = rng.permutation(pool)[:batch_size]
            batch, kept[drawn] = kept[drawn], batch
        if step >= start_step:
            yield batch


def places(
    order: grain.MapDataset[int],
    batch_size: int,
    rows: range,
    batches: Iterable[Sequence[int] | np.ndarray],
) -> Iterator[Place]:
    """Yield the places of some rows of every batch, with the image that the order puts there."""
    for batch in batches:
        for row in rows:
            number = int(batch[row])
            yield Place(*divmod(number, batch_size), order[number])


def stack(
    examples: Generator[TrainExample, None, None], rows: int, log_bad: Callable[[list[str]], None]
) -> Generator[Batch, None, None]:
    """Stack every `rows` examples to a batch; closed, it closes them.

    Pairs become signed images; what a device is to degrade stays as it is, with its place.
    """
    with closing(examples):
        while True:
            taken = list(itertools.islice(examples, rows))
            for example in taken:
                log_bad(example.rejected)
            batch = {"index": np.array([example.number for example in taken], np.int64)}
            crops = [example.crop for example in taken]
            if isinstance(crops[0], Pair):
                hr, lr = map(np.stack, zip(*crops, strict=True))
                yield batch | {"hr": to_signed(hr), "lr": to_signed(lr)}
            else:
                place = np.array([(example.step, example.row) for example in taken], np.int32)
                yield batch | {"hr": np.stack(crops), "place": place}


def to_signed(image: UInt8[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Bring 8-bit images to [-1, 1]."""
    return 2 * to_unit(image) - 1


def make_bad_image_log(size: int, max_bad_fraction: float) -> Callable[[list[str]], None]:
    """Return a function that logs each reason it is given once.

    It raises ValueError as soon as too many of `size` images are bad.
    """
    known: dict[str, None] = {}  # in order

    def log_bad(reasons: list[str]) -> None:
        for reason in reasons:
            if reason not in known:
                known[reason] = None
                logger.warning("Skipping an image: %s", show(reason))
                sources.check_bad(known, size, max_bad_fraction)

    return log_bad
