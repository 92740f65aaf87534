"""Evaluate a model again and again while it is trained."""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import zip_longest
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
from jax.experimental import multihost_utils

from upsr_jax.cluster.devices import local_mesh, localize
from upsr_jax.data.degradation.host import to_bytes, to_unit
from upsr_jax.data.test_sets import Example, find_entries, make_read_fn
from upsr_jax.evaluation.measure import (
    Failed,
    Measured,
    create_meters,
    create_upscaler,
    measure_all,
    measure_on_host,
    restore_all,
)
from upsr_jax.evaluation.pieces import share
from upsr_jax.evaluation.pyiqa_scores import measure_by
from upsr_jax.evaluation.settings import Settings
from upsr_jax.evaluation.timing import Timing
from upsr_jax.models.config import ModelConfig


class Report(NamedTuple):
    """Mean of each metric, the metrics of each image, and a picture of the first images.

    A mean is over the images that the metric could be measured for; without one it is left out.
    `means` and `rows` also hold the metrics of bicubic upsampling, as `bicubic_NAME`.
    """

    means: dict[str, float]
    rows: dict[str, dict[str, float]]
    picture: np.ndarray


class Evaluator:
    """Evaluate params during training; keeps images and compiled programs.

    Every process restores its share and receives all numbers. `gather_fn` puts a whole copy of the
    params, however they are split in training, on every device. `pyiqa` are functions of picture
    files, by the names of their metrics, for such evaluations as take their time.
    """

    def __init__(
        self,
        config: ModelConfig,
        settings: Settings,
        gather_fn: Callable[[Any], Any],
        pyiqa: Mapping[str, Callable[..., float]] | None = None,
    ):
        self.settings = settings
        self.pyiqa = pyiqa or {}
        self.entries = find_entries(settings.images)[: settings.images.max_images]
        self.timing = Timing()
        self.meters = create_meters(settings, self.timing)
        read_fn = make_read_fn(settings.images)
        own = share(self.entries, jax.process_index(), jax.process_count())
        self.examples = [read_fn(entry) for entry in own]
        self.gather_fn = gather_fn
        # The params come with a call.
        self.upscaler = create_upscaler(config, {}, settings, "", self.timing)

    def __call__(
        self, params: Mapping[str, Any], stop_fn: Callable[[], bool], with_pyiqa: bool = True
    ) -> Report | None:
        """Restore and measure every image; None as soon as `stop_fn` says so.

        All processes ask it together, after every image, and it must tell all of them the same.
        """
        pyiqa = self.pyiqa if with_pyiqa else {}
        keys = [*self.meters.columns, *pyiqa]
        values = np.zeros((len(self.entries), len(keys)), np.float32)
        numbers = {entry.name: i for i, entry in enumerate(self.entries)}
        strips = {}
        local = localize(self.gather_fn(params), local_mesh())
        upscaler = dataclasses.replace(self.upscaler, params=local)
        restored = restore_all(upscaler, _as_it_is, self.examples, self.settings, self.timing)
        rounds = range(-(-len(self.entries) // jax.process_count()))  # on every process as many
        with closing(restored):
            for _, item in zip_longest(rounds, measure_all(restored, self.meters)):
                if isinstance(item, Failed):
                    raise item.error  # training doesn't go on without a number
                if item is not None:
                    number = numbers[item.example.name]
                    row = measure_on_host(item, self.meters)
                    if pyiqa:
                        image = np.asarray(item.restored.image)
                        row |= measure_by(pyiqa, item.example.name, image)
                    values[number] = [row[key] for key in keys]
                    if number < self.settings.pictures:
                        strips[number] = picture_strip(item)
                if stop_fn():
                    return None
        values = multihost_utils.process_allgather(values[None], tiled=True).sum(axis=0)
        rows = {
            name: dict(zip(keys, map(float, row), strict=True))
            for name, row in zip(numbers, values, strict=True)
        }
        found = {key: x[np.isfinite(x)] for key, x in zip(keys, values.T, strict=True)}
        means = {key: float(x.mean(dtype=np.float64)) for key, x in found.items() if len(x)}
        return Report(means, rows, stack_strips([strips[number] for number in sorted(strips)]))


def _as_it_is(example: Example) -> Example:
    return example


def picture_strip(item: Measured) -> np.ndarray:
    """Put LR, bicubic, estimate, noise weight, result and ground truth side by side, 8 bits."""
    example, restored = item.example, item.restored
    panels = [
        to_unit(example.lr).repeat(4, axis=0).repeat(4, axis=1),
        *((x + 1) / 2 for x in (restored.bicubic, restored.estimate)),
        restored.noise_weight,
        (restored.image + 1) / 2,
    ]
    truth = [] if example.hr is None else [example.hr]
    return np.concatenate([*(to_bytes(panel) for panel in panels), *truth], axis=1)


def stack_strips(strips: list[np.ndarray]) -> np.ndarray:
    """Stack strips below each other, narrower ones filled with white."""
    width = max((strip.shape[1] for strip in strips), default=1)
    white = (255, 255, 255)
    filled = [
        cv2.copyMakeBorder(s, 0, 0, 0, width - s.shape[1], cv2.BORDER_CONSTANT, value=white)
        for s in strips
    ]
    return np.concatenate(filled or [np.full((1, width, 3), 255, np.uint8)])
