"""Restore and measure a stream of images, in batches of few shapes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from upsr_jax.cluster.devices import fitting, put_whole
from upsr_jax.data.prefetch import map_ahead
from upsr_jax.data.test_sets import Example, image_seed
from upsr_jax.evaluation.pieces import (
    SCALE,
    Piece,
    assemble,
    canvas_side,
    check_sides,
    cut,
    fill,
    group,
)
from upsr_jax.evaluation.timing import Timing, make_program
from upsr_jax.metrics import HIGHER_IS_BETTER, WITHOUT_REFERENCE, psnr_y, ssim_y
from upsr_jax.metrics.niqe import PristineModel, niqe
from upsr_jax.models.build import apply
from upsr_jax.models.lpips import ALEXNET, LPIPS, VGG16
from upsr_jax.upscale.restore import Restoration, make_super_resolve
from upsr_jax.upscale.tiles import noise_window
from upsr_jax.weights.published import load_lpips_alex, load_lpips_vgg

NIQE_FILE = Path(__file__).parents[1] / "assets" / "niqe" / "niqe_pris_params.npz"

MOST_WAITING = 4  # batches of restored images: their memory, and what a kill loses

SMALLER_TILES = "use smaller tiles (--tile or config.eval.sides)"
SMALLER_IMAGES = "cut them into parts, or leave LPIPS out of config.eval.metrics"

PIXEL_METRICS = {"psnr_y": psnr_y, "ssim_y": ssim_y}
LPIPS_METRICS = {"lpips_vgg": (VGG16, load_lpips_vgg), "lpips_alex": (ALEXNET, load_lpips_alex)}


class Measured(NamedTuple):
    """An image, what it was restored to (arrays [4h, 4w, 3]) and the metrics of that.

    Where there is a ground truth, `values` also holds those of bicubic upsampling, as
    `bicubic_NAME`. A metric that an image is too small for is not a number.
    """

    example: Example
    restored: Restoration
    values: dict[str, float]


def check_eval(settings: ConfigDict) -> None:
    """Raise ValueError if config.eval asks for what can't be done."""
    check_sides(settings.sides)
    for key in ("max_images", "pictures", "per_device_batch"):
        if settings[key] < 1:
            raise ValueError(f"config.eval.{key} is {settings[key]}, but must be at least 1")
    unknown = set(settings.metrics) - set(HIGHER_IS_BETTER)
    if unknown or not settings.metrics:
        raise ValueError(
            f"config.eval.metrics is {tuple(settings.metrics)}: choose of "
            f"{', '.join(HIGHER_IS_BETTER)}"
        )


def measurable(settings: ConfigDict) -> list[str]:
    """List the metrics of config.eval that can be had: without ground truth, few.

    Raises ValueError if none is left.
    """
    wanted = [name for name in HIGHER_IS_BETTER if name in settings.metrics]
    metrics = [name for name in wanted if settings.gt or name in WITHOUT_REFERENCE]
    if not metrics:
        raise ValueError(
            f"{', '.join(wanted)} can't be measured without a ground truth: give one, or choose "
            f"of {', '.join(WITHOUT_REFERENCE)}"
        )
    return metrics


def columns(metrics: Sequence[str]) -> list[str]:
    """Name all numbers of an image: the metrics and, where they need a ground truth, bicubic's."""
    with_reference = [name for name in metrics if name not in WITHOUT_REFERENCE]
    return [*metrics, *(f"bicubic_{name}" for name in with_reference)]


def raise_lost(name: str, error: MemoryError) -> None:
    """End an evaluation at the first image that memory can't hold."""
    raise error


def make_evaluate_fn(
    config: ConfigDict,
    metrics: Sequence[str],
    mesh: Mesh,
    timing: Timing,
    lost_fn: Callable[[str, MemoryError], None] = raise_lost,
) -> Callable[[Any, Iterable[Example]], Iterator[Measured]]:
    """Build `(params, examples) -> images, restored and measured`, as they get done.

    The devices of this process, `mesh`, share a batch; the next one is made in a thread. Host
    metrics (NIQE) are left to the caller. Images that memory can't hold are handed to `lost_fn`,
    by their names, instead.
    """
    settings = config.eval
    rows = settings.per_device_batch * mesh.size
    super_resolve = make_super_resolve(config, settings.fidelity)
    restore = make_program(
        lambda params, batch: super_resolve(params, *batch), mesh, timing, "networks"
    )
    measure = make_measure_fn(metrics, mesh, timing)

    def with_input(batch: list[Piece]) -> tuple[list[Piece], tuple[np.ndarray, np.ndarray]]:
        with timing.beside():
            return batch, stack(fill(batch, rows), settings.seed)

    def restore_all(params: Any, examples: Iterable[Example]) -> Iterator[Measured]:
        in_work: dict[str, Example] = {}

        def pieces() -> Iterator[Piece]:
            for example in examples:
                in_work[example.name] = example
                yield from cut(example.name, example.lr, settings.sides)

        def results() -> Iterator[tuple[Piece, Sequence[Any]]]:
            batches = group(pieces(), lambda piece: piece.pixels.shape, rows)
            inputs = map_ahead(with_input, batches, num_workers=0, num_threads=1, ahead=2)
            for batch, arrays in timed(inputs, timing):
                if not any(piece.name in in_work for piece in batch):
                    continue
                height, width = batch[0].pixels.shape[:2]
                try:
                    with fitting(f"{rows} tiles of {width}x{height}", SMALLER_TILES):
                        restored = restore(params, arrays)
                except MemoryError as error:
                    for name in {piece.name for piece in batch} & set(in_work):
                        del in_work[name]
                        lost_fn(name, error)
                    continue
                for piece, result in zip(batch, map(Restoration, *restored), strict=False):
                    if piece.name in in_work:
                        yield piece, result

        for name, arrays in assemble(results()):
            yield Measured(in_work.pop(name), Restoration(*arrays), {})

    def canvas(item: Measured) -> tuple[int, ...]:
        return tuple(canvas_side(side, settings.sides) for side in item.example.lr.shape[:2])

    def evaluate(params: Any, examples: Iterable[Example]) -> Iterator[Measured]:
        restored = restore_all(params, examples)
        if not settings.gt:
            yield from restored
            return
        for batch in group(restored, canvas, rows, most=MOST_WAITING * rows):
            height, width = canvas(batch[0])
            try:
                with fitting(f"metrics of {rows} images of {width}x{height}", SMALLER_IMAGES):
                    with timing.spent("move"):
                        images = on_canvas(fill(batch, rows), (height, width))
                    values = measure(images)
            except MemoryError as error:
                for item in batch:
                    lost_fn(item.example.name, error)
                continue
            for i, item in enumerate(batch):
                yield item._replace(values={key: float(value[i]) for key, value in values.items()})

    return evaluate


def stack(pieces: Sequence[Piece], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make the networks' input of pieces: signed images [b, h, w, 3], noise [b, 4h, 4w, 3]."""
    noise = []
    for piece in pieces:
        window = (*piece.corners[piece.index], *piece.pixels.shape[:2])
        noise.append(noise_window(image_seed(seed, piece.name), *(SCALE * n for n in window)))
    pixels = np.stack([piece.pixels for piece in pieces])
    return pixels.astype(np.float32) / 127.5 - 1, np.stack(noise)


def on_canvas(items: Sequence[Measured], canvas: Sequence[int]) -> dict[str, np.ndarray]:
    """Put images and ground truths, unit, on canvases that are all of one shape."""
    height, width = (SCALE * side for side in canvas)
    images = np.zeros((3, len(items), height, width, 3), np.float32)
    sizes = np.zeros((len(items), 2), np.int32)
    for i, item in enumerate(items):
        unit = (
            (item.restored.image + 1) / 2,
            np.clip((item.restored.bicubic + 1) / 2, 0, 1),
            np.asarray(item.example.hr, np.float32) / 255,
        )
        sizes[i] = item.restored.image.shape[:2]
        images[:, i, : sizes[i, 0], : sizes[i, 1]] = unit
    return dict(zip(("image", "bicubic", "hr"), images, strict=True)) | {"sizes": sizes}


def make_measure_fn(
    metrics: Sequence[str], mesh: Mesh, timing: Timing
) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """Build the function from images on canvases to metrics [b] of them and of bicubic ones."""
    pixels = {name: PIXEL_METRICS[name] for name in metrics if name in PIXEL_METRICS}
    lpips = {name: LPIPS_METRICS[name] for name in metrics if name in LPIPS_METRICS}
    params = put_whole({name: load() for name, (_, load) in lpips.items()}, mesh)

    def measure_pixels(_: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return compare(pixels, batch)

    def measure_lpips(params: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        def distance(name: str, a: jax.Array, b: jax.Array, sizes: jax.Array) -> jax.Array:
            return apply(LPIPS(LPIPS_METRICS[name][0]), params[name], 2 * a - 1, 2 * b - 1, sizes)

        # Accelerators would round a convolution's input to fewer digits than are reported.
        with jax.default_matmul_precision("highest"):
            return compare({name: partial(distance, name) for name in lpips}, batch)

    by_pixels = make_program(measure_pixels, mesh, timing, "metrics") if pixels else None
    by_lpips = make_program(measure_lpips, mesh, timing, "lpips") if lpips else None

    def measure(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = by_pixels({}, batch) if by_pixels else {}
        return values | (by_lpips(params, batch) if by_lpips else {})

    return measure


def compare(
    functions: Mapping[str, Callable], batch: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Measure images and bicubic ones, one number each [b]."""
    return {
        f"{prefix}{name}": function(batch[image], batch["hr"], batch["sizes"])
        for prefix, image in (("", "image"), ("bicubic_", "bicubic"))
        for name, function in functions.items()
    }


def host_metrics(
    metrics: Sequence[str], restored: Restoration, pristine: PristineModel
) -> dict[str, float]:
    """Measure on the host what needs no ground truth; not a number where an image is unfit."""
    if "niqe" not in metrics:
        return {}
    try:
        return {"niqe": niqe(np.asarray(restored.image + 1) / 2, pristine)}
    except ValueError:  # too small, or flat
        return {"niqe": float("nan")}


def timed(items: Iterator[Any], timing: Timing) -> Iterator[Any]:
    """Count the time that waiting for items takes as reading."""
    while True:
        with timing.spent("read"):
            item = next(items, None)
        if item is None:
            return
        yield item


def load_pristine_model() -> PristineModel:
    """Load NIQE's model of natural images that comes with this package; CREDITS.md is beside it."""
    with np.load(NIQE_FILE) as file:
        return PristineModel(file["mu_pris_param"][0], file["cov_pris_param"])
