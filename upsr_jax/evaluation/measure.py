"""Restore a stream of images and measure them, in batches of few shapes."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from upsr_jax.cluster.devices import fitting, local_mesh, put_whole
from upsr_jax.data.prefetch import map_ahead
from upsr_jax.data.test_sets import Example, image_seed
from upsr_jax.evaluation.metric_list import METRICS, columns, measurable
from upsr_jax.evaluation.pieces import canvas_side, group, repeat_last
from upsr_jax.evaluation.settings import Settings
from upsr_jax.evaluation.timing import Timing, make_program
from upsr_jax.models.config import ModelConfig
from upsr_jax.upscale.restore import Restoration
from upsr_jax.upscale.tiles import SCALE
from upsr_jax.upscale.upscaler import Upscaler, with_precision

MOST_WAITING = 4  # batches of restored images: their memory, and what a kill loses
SMALLER_IMAGES = "cut them into parts, or leave LPIPS out of config.eval.metrics"


class Measured(NamedTuple):
    """An image, what it was restored to (arrays [4h, 4w, 3]) and the metrics of that.

    Where there is a ground truth, `values` also holds those of bicubic upsampling, as
    `bicubic_NAME`. A metric that an image is too small for is not a number.
    """

    example: Example
    restored: Restoration
    values: dict[str, float]


class Failed(NamedTuple):
    """An image that can't be read, restored or measured, and why."""

    name: str
    error: Exception


class Meters(NamedTuple):
    """The metrics of an evaluation, made: those on devices, `rows` images at a time, and others."""

    names: list[str]
    on_devices: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] | None
    rows: int
    on_host: dict[str, Callable[[np.ndarray], float]]

    @property
    def columns(self) -> list[str]:
        """The names of all numbers of an image."""
        return columns(self.names)


def create_upscaler(
    config: ModelConfig, params: Mapping[str, Any], settings: Settings, model: str, timing: Timing
) -> Upscaler:
    """Create the upscaler that the settings describe; `model` names it in notes."""
    return Upscaler.from_params(
        with_precision(config, settings.precision, local_mesh(settings.device)),
        params,
        model,
        settings.fidelity,
        settings.per_device_batch,
        partial(make_program, timing=timing, name="networks"),
        settings.device,
        tile=settings.tile,
        overlap=settings.overlap,
        blend=settings.blend,
        parts=Restoration._fields,
    )


def create_meters(settings: Settings, timing: Timing) -> Meters:
    """Create what measures the metrics that are asked for and can be had.

    Raises ValueError if there are none.
    """
    names = measurable(settings.metrics, bool(settings.images.gt))
    mesh = local_mesh(settings.device)
    params: dict[str, Any] = {}
    functions: dict[str, dict[str, Callable[..., Any]]] = {}
    for name in names:
        metric = METRICS[name]
        if metric.needs_truth:
            params[name], function = metric.make()
            functions.setdefault(metric.program, {})[name] = function
    params = put_whole(params, mesh)
    programs = [
        make_program(partial(_measure_both, functions[program]), mesh, timing, program)
        for program in functions
    ]

    def on_devices(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {key: x for program in programs for key, x in program(params, batch).items()}

    return Meters(
        names,
        on_devices if programs else None,
        settings.per_device_batch * mesh.size,
        {name: METRICS[name].make() for name in names if not METRICS[name].needs_truth},
    )


def _measure_both(
    functions: Mapping[str, Callable[..., Any]], params: Any, batch: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Measure images and bicubic ones, one number each [b]."""
    return {
        f"{prefix}{name}": function(params[name], batch[image], batch["hr"], batch["sizes"])
        for prefix, image in (("", "image"), ("bicubic_", "bicubic"))
        for name, function in functions.items()
    }


def seed_of(settings: Settings, name: str) -> int:
    """Choose the seed of an image's noise: that of all, or one of the image's own."""
    seed = settings.images.seed
    return image_seed(seed, name) if settings.noise_by_name else seed


def restore_all(
    upscaler: Upscaler,
    read_fn: Callable[[Any], Example],
    entries: Iterable[Any],
    settings: Settings,
    timing: Timing,
) -> Generator[Measured | Failed, None, None]:
    """Read and restore images, several at once; yield them in their order, not measured yet.

    The upscaler is of no use afterwards.
    """

    def restore(entry: Any) -> Measured | Failed:
        try:
            with timing.beside():
                example = read_fn(entry)
            parts = upscaler.restore(example.lr, seed_of(settings, example.name))
        except (OSError, ValueError, FloatingPointError, MemoryError) as error:
            return Failed(entry.name, error)
        return Measured(example, Restoration(*parts), {})

    # Twice the tiles that run at once, so that a batch fills while one runs
    threads = 2 * upscaler.batch
    restored = map_ahead(restore, entries, num_workers=0, num_threads=threads, ahead=threads)
    try:
        # Not `yield from`, which would close it before the upscaler stops.
        for item in restored:  # noqa: UP028
            yield item
    finally:
        upscaler.stop()
        restored.close()


def measure_all(items: Iterable[Measured | Failed], meters: Meters) -> Iterator[Measured | Failed]:
    """Measure restored images on the devices, as soon as there is a batch of one shape."""
    if meters.on_devices is None:
        yield from items
        return
    rows = meters.rows
    for batch in group(items, canvas_of, rows, most=MOST_WAITING * rows):
        if isinstance(batch[0], Failed):
            yield batch[0]
        else:
            yield from measure_batch(batch, meters)


def canvas_of(item: Measured | Failed) -> tuple[int, ...] | None:
    """Choose the canvas, in low-resolution pixels, on which an image is measured, if it is."""
    if isinstance(item, Failed):
        return None
    return tuple(canvas_side(side) for side in item.example.lr.shape[:2])


def measure_batch(batch: list[Any], meters: Meters) -> list[Measured | Failed]:
    """Measure images that have one canvas; all fail where memory can't hold it."""
    assert meters.on_devices is not None
    height, width = canvas_of(batch[0]) or (0, 0)
    try:
        with fitting(f"metrics of {meters.rows} images of {width}x{height}", SMALLER_IMAGES):
            images = on_canvas(repeat_last(batch, meters.rows), (height, width))
            values = meters.on_devices(images)
    except MemoryError as error:
        return [Failed(item.example.name, error) for item in batch]
    return [
        item._replace(values={key: float(value[i]) for key, value in values.items()})
        for i, item in enumerate(batch)
    ]


def measure_on_host(item: Measured, meters: Meters) -> dict[str, float]:
    """Measure what is measured on the host, and return all numbers of an image."""
    image = np.asarray(item.restored.image + 1) / 2
    return item.values | {name: function(image) for name, function in meters.on_host.items()}


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
