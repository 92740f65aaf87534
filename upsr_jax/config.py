"""Check a config before anything is done with it: each key has one reader, each reader its keys."""

import difflib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from upsr_jax.config_values import check_values
from upsr_jax.data import degradation
from upsr_jax.diffusion import Schedule
from upsr_jax.metrics import HIGHER_IS_BETTER
from upsr_jax.models.atd import ATD
from upsr_jax.models.swin_unet import SwinUNet
from upsr_jax.optimizer import create_optimizer, create_schedule
from upsr_jax.prior import make_prior
from upsr_jax.sampler import METHODS
from upsr_jax.sharding import create_mesh

# Blocks that are the keyword arguments of one function.
CALLS: dict[str, Callable[..., Any]] = {
    "model": SwinUNet,
    "estimator": ATD,
    "diffusion": Schedule.create,
    "prior": make_prior,
    "schedule": create_schedule,
    "optimizer": create_optimizer,
    "mesh": create_mesh,
    **{f"degradation.{order}.blur": degradation.random_blur for order in ("first", "second")},
    **{f"degradation.{order}.resize": degradation.random_factor for order in ("first", "second")},
    **{f"degradation.{order}.noise": degradation.random_noise for order in ("first", "second")},
    "degradation.final.sinc": degradation.random_sinc,
}
NOT_FROM_CONFIG = {  # arguments of these functions that no config gives
    *("self", "parent", "name", "dtype", "remat"),
    *("estimate_fn", "lr", "rng", "image", "schedule"),
}
# Blocks whose keys are read one by one.
KEYS: dict[str, set[str]] = {
    "": {
        *("network", "seed", "dtype", "model", "estimator", "diffusion", "prior", "sampler"),
        *("degradation", "data", "pretrained", "loss", "schedule", "optimizer", "mesh", "train"),
        "eval",
    },
    "sampler": {"method", "steps"},
    "degradation": {"use_sharp", "first", "second", "final"},
    "degradation.first": {"blur", "resize", "noise", "jpeg_quality"},
    "degradation.second": {"blur", "resize", "noise"},
    "degradation.final": {"sinc", "jpeg_quality"},
    "data": {
        *("folders", "weights", "pairs", "batch_size", "crop_size", "scale", "rotation"),
        *("num_threads", "num_workers", "max_bad_fraction"),
    },
    "pretrained": {"estimator", "denoiser"},
    "loss": {"lpips_weight", "lpips_jitter", "released_lpips_range"},
    "train": {
        *("steps", "microbatches", "remat", "ema_decay", "log_every", "checkpoint_every"),
        *("keep_checkpoints", "keep_every", "keep_best", "eval_every"),
    },
    "eval": {
        *("model", "gt", "lr", "source", "crop_size", "max_images", "pictures", "seed"),
        *("metrics", "per_device_batch", "sides", "fidelity"),
    },
}


def check_config(config: ConfigDict) -> None:
    """Raise ValueError for a key that nothing reads or that is missing, or a value out of range."""
    _check_block("", config)
    check_values(flatten(config.to_dict()), METHODS)
    _check_keep_best(config.train)


def _check_keep_best(train: ConfigDict) -> None:
    if not train.keep_best:
        return
    if train.keep_best not in HIGHER_IS_BETTER:
        raise ValueError(
            f"config.train.keep_best is {train.keep_best!r}: it must be one of "
            f"{', '.join(HIGHER_IS_BETTER)}, or empty"
        )
    if not train.eval_every or train.eval_every % train.checkpoint_every:
        raise ValueError(
            f"config.train.keep_best = {train.keep_best!r} can keep only what is evaluated and "
            f"saved: set eval_every ({train.eval_every}) to a multiple of checkpoint_every "
            f"({train.checkpoint_every}), or keep_best to ''"
        )


def _check_block(path: str, block: Any) -> None:
    if not isinstance(block, ConfigDict):
        if block is None and path == "degradation.second":
            return  # a degradation of one order
        raise ValueError(f"config.{path} is {block!r}, but must be a block of keys")
    known = KEYS[path] if path in KEYS else arguments(CALLS[path])
    for key in block:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
            raise ValueError(f"nothing reads {_name(path, key)}: {hint}")
    for key in sorted(known - set(block)):
        raise ValueError(f"{_name(path, key)} is missing: the other configs show a value")
    for key in block:
        inner = f"{path}.{key}".lstrip(".")
        if inner in KEYS or inner in CALLS:
            _check_block(inner, block[key])


def arguments(function: Callable[..., Any]) -> set[str]:
    """Name the arguments of a function, or of a network, that a config gives."""
    return set(inspect.signature(function).parameters) - NOT_FROM_CONFIG


def config_as_json(config: ConfigDict) -> dict[str, Any]:
    """Turn a config into what JSON can hold: tuples become lists."""
    return json.loads(config.to_json_best_effort())


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name every value of nested mappings by its path: {"data.crop_size": 256, ...}."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _name(path: str, key: str) -> str:
    return ".".join(filter(None, ("config", path, key)))
