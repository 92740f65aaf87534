"""Write down everything that the numbers of an evaluation depend on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from upsr_jax.cluster.devices import local_mesh
from upsr_jax.cluster.environment import program
from upsr_jax.evaluation.metric_list import METRICS
from upsr_jax.evaluation.settings import Settings
from upsr_jax.metrics.intervals import LEVEL, RESAMPLES
from upsr_jax.models.config import USUAL, ModelConfig
from upsr_jax.upscale.restore import SIZE_MULTIPLE
from upsr_jax.upscale.upscaler import OVERLAP, with_precision


def fingerprint(params: Mapping[str, Any]) -> str:
    """Hash the weights, so that results tell whose they are."""
    sha256 = hashlib.sha256()
    for name, leaf in sorted(flatten_dict(params, sep="/").items()):
        sha256.update(name.encode())
        sha256.update(np.asarray(leaf).tobytes())
    return sha256.hexdigest()[:16]


def collect_settings(
    config: ModelConfig, params: Mapping[str, Any], settings: Settings, metrics: Sequence[str]
) -> dict[str, Any]:
    """Collect, ready for JSON, all that an evaluation's numbers depend on, but for the images.

    An evaluation may only go on in a folder that was begun with the very same.
    """
    images, mesh = settings.images, local_mesh(settings.device)
    keys = ("noise_by_name", "per_device_batch", "tile", "overlap", "blend", "fidelity")
    found: dict[str, Any] = {
        "program": program(),
        "model": settings.model,
        "weights": fingerprint(params),
        "network": config.network,
        "dtype": with_precision(config, settings.precision, mesh).dtype,
        "device": mesh.devices.flat[0].device_kind,
        # pyright knows no settings of jax
        "precision": jax.config.jax_default_matmul_precision or "default",  # pyright: ignore
        **{key: getattr(images, key) for key in ("gt", "lr", "seed")},
        **{key: getattr(settings, key) for key in keys},
        "metrics": {name: METRICS[name].version for name in metrics},
    }
    if not images.lr:
        degradation = json.dumps(images.degradation, sort_keys=True).encode()
        found["crop_size"] = images.crop_size
        found["degradation"] = hashlib.sha256(degradation).hexdigest()[:12]
    if config.network == "denoiser":
        sampling = config.sampling()
        method = found["sampler"] = sampling.pop("method")
        found |= sampling | ({"steps": 1} if method == "one_step" else {})
        found |= config.prior | {"diffusion": config.diffusion}
    return found


def describe_protocol(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Say in words what `collect_settings` has collected."""
    truth, lr = settings["gt"] or "none", settings["lr"]
    if not lr:
        truth += f", centre squares of at most {settings['crop_size']} pixels"
        lr = (
            f"degraded here, seed {settings['seed']}, config.degradation of SHA-256 "
            f"{settings['degradation']}"
        )
    cut = {}
    if settings["gt"] and settings["lr"]:
        cut["cut"] = (
            "up to 3 pixels at right and bottom of a ground truth, to 4 times the low resolution"
        )
    sampler: dict[str, Any] = {"sampler": "none, the estimate itself"}
    if settings["network"] == "denoiser":
        keys = ("sampler", "steps", "spacing", "un", "min_noise", *USUAL["prior"])
        sampler = {key: settings[key] for key in keys if key in settings}
        diffusion = sorted(settings["diffusion"].items())
        sampler["diffusion"] = ", ".join(f"{key} {value}" for key, value in diffusion)
    tile, stride = settings["tile"], settings["tile"] - settings["overlap"]
    blend = {"mean": "averaged", "feather": "blended by ramps"}[settings["blend"]]
    as_upscale = (settings["overlap"], settings["blend"], settings["noise_by_name"]) == (
        *(OVERLAP, "feather", False),
    )
    return {
        "program": settings["program"],
        "model": settings["model"] or "the workdir's",
        "weights": settings["weights"],
        "ground truth": truth,
        "low resolution": lr,
        **cut,
        **sampler,
        "fidelity": settings["fidelity"],
        "seed": settings["seed"],
        "pictures": "those of `upsr upscale` with this seed, tile and arithmetic"
        if as_upscale
        else "not those of `upsr upscale`, whose noise or tiles are others",
        "noise": "of each image from the seed and its name"
        if settings["noise_by_name"]
        else "one field for all images, from the seed",
        "arithmetic": f"{settings['dtype']} on {settings['device']}, {settings['precision']} "
        "precision of matrix products",
        "batch of a device": settings["per_device_batch"],
        "padding": f"by reflection at right and bottom to multiples of {SIZE_MULTIPLE}",
        "tiling": f"sides above {tile}: tiles of {tile}, stride {stride}, the last moved inward, "
        f"{blend} where they overlap",
        "colours": "RGB, read with 8 bits",
        "border": "none is cut off",
        "rounding": "metrics on the clipped float result; written images rounded to 8 bits",
        "intervals": f"percentiles by scipy.stats.bootstrap, {LEVEL:.0%}, {RESAMPLES} resamples, "
        "seed 0",
        **settings["metrics"],
    }
