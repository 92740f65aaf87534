"""Check a config before anything is done with it: each key has one reader, each reader its keys."""

import difflib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from upsr_jax.data.degradation.host import (
    random_blur,
    random_factor,
    random_noise,
    random_sinc,
)
from upsr_jax.data.sources import TFDS
from upsr_jax.diffusion import Schedule
from upsr_jax.evaluation.metric_list import METRICS, measurable
from upsr_jax.files.find import check_local
from upsr_jax.models.atd import ATD
from upsr_jax.models.swin_unet import SwinUNet
from upsr_jax.prior import make_prior
from upsr_jax.sampler import METHODS
from upsr_jax.train.optimizer import create_optimizer, create_schedule
from upsr_jax.train.sharding import create_mesh
from upsr_jax.upscale.upscaler import check_tile

# Blocks that are the keyword arguments of one function.
CALLS: dict[str, Callable[..., Any]] = {
    "model": SwinUNet,
    "estimator": ATD,
    "diffusion": Schedule.create,
    "prior": make_prior,
    "schedule": create_schedule,
    "optimizer": create_optimizer,
    "mesh": create_mesh,
    **{f"degradation.{order}.blur": random_blur for order in ("first", "second")},
    **{f"degradation.{order}.resize": random_factor for order in ("first", "second")},
    **{f"degradation.{order}.noise": random_noise for order in ("first", "second")},
    "degradation.final.sinc": random_sinc,
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
    "degradation": {"first", "second", "final"},
    "degradation.first": {"blur", "resize", "noise", "jpeg_quality"},
    "degradation.second": {"blur", "resize", "noise"},
    "degradation.final": {"sinc", "jpeg_quality"},
    "data": {
        *("folders", "weights", "pairs", "batch_size", "crop_size", "scale", "rotation"),
        *("use_sharp", "num_threads", "num_workers", "max_bad_fraction"),
    },
    "pretrained": {"estimator", "denoiser"},
    "loss": {"lpips_weight", "lpips_jitter", "released_lpips_range"},
    "train": {
        *("steps", "microbatches", "remat", "ema_decay", "log_every", "checkpoint_every"),
        *("keep_checkpoints", "keep_every", "keep_best", "eval_every"),
        *("max_bad_steps", "allow_changes"),
    },
    "eval": {
        *("model", "gt", "lr", "source", "crop_size", "max_images", "pictures", "seed"),
        *("noise_by_name", "metrics", "per_device_batch", "tile", "overlap", "blend", "fidelity"),
    },
}

# What changes updates, but no example: a run may go on with other values if asked to.
ALLOWABLE = ("schedule", "optimizer.clip_norm", "optimizer.weight_decay")


def check_config(config: ConfigDict) -> None:
    """Raise ValueError for a key that nothing reads or that is missing, or a value out of range."""
    _check_block("", config)
    _check_values(flatten(config.to_dict()))
    check_tile(config.eval.tile, config.eval.overlap)
    data, settings = config.data, config.eval
    folders = *data.folders, *data.pairs, *config.pretrained.values(), settings.model
    check_local(*(str(folder).removeprefix(TFDS) for folder in folders), settings.gt, settings.lr)


def check_training(config: ConfigDict, mesh: Mesh | AbstractMesh) -> None:
    """Raise ValueError if training can't split its batch over `mesh`, or has not what it keeps by.

    To be asked after `check_config`, which is for evaluation too.
    """
    data, train = config.data, config.train
    if data.batch_size % (mesh.size * train.microbatches):
        raise ValueError(
            f"a batch of {data.batch_size} can't be split evenly over {mesh.size} devices and "
            f"{train.microbatches} microbatches: set config.data.batch_size to a multiple of their "
            "product"
        )
    if not train.keep_best:
        return
    measured = measurable(config.eval.metrics, bool(config.eval.gt))
    if train.keep_best not in measured:
        raise ValueError(
            f"config.train.keep_best is {train.keep_best!r}, but config.eval measures "
            f"{', '.join(measured)}"
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


class Rule(NamedTuple):
    """What a value must be, in words and as a test."""

    wish: str
    holds: Callable[[Any], bool]


def _at_least(least: int, meaning: str = "") -> Rule:
    return Rule(f"at least {least}{meaning}", lambda value: value >= least)


def _one_of(*choices: str) -> Rule:
    names = ", ".join(choice or "''" for choice in choices)
    return Rule(f"one of {names}", lambda value: value in choices)


def _ascending(lowest: float | int, highest: float | int, wish: str, odd: bool = False) -> Rule:
    def holds(ends: Sequence[Any]) -> bool:
        low, high = ends
        return lowest <= low <= high <= highest and not (odd and (low % 2 == 0 or high % 2 == 0))

    return Rule(f"two {wish}, the smaller one first", holds)


SHARE = Rule("in 0..1", lambda value: 0 <= value <= 1)
DECAY = Rule("at least 0 and below 1", lambda value: 0 <= value < 1)
POSITIVE = Rule("above 0", lambda value: value > 0)
ODD_SIZES = _ascending(1, 51, "odd sizes in 1..51", odd=True)
AMOUNTS = _ascending(0, float("inf"), "numbers from 0 on")
# A random exponent is drawn from below 1 or from above, and so is a factor.
AROUND_1 = Rule("two numbers above 0 with 1 between", lambda ends: 0 < ends[0] <= 1 <= ends[1])

RULES = {
    "network": _one_of("denoiser", "estimator"),
    "dtype": _one_of("float32", "bfloat16", "float64"),
    "seed": Rule("a whole number in 0..4294967295", lambda seed: 0 <= seed < 2**32),
    "model.shift_mask": _one_of("released", "swin"),
    "diffusion.end": Rule("above 0 and at most 1", lambda end: 0 < end <= 1),
    "diffusion.power": POSITIVE,
    "diffusion.min_noise_level": POSITIVE,
    "prior.un": _at_least(0, ", which gives all pixels the same noise"),
    "prior.min_noise": SHARE,
    "sampler.method": _one_of(*METHODS),
    "sampler.steps": _at_least(1),
    "data.pairs": Rule(
        "a folder of ground truth and one of low-resolution images, or ()",
        lambda pairs: len(pairs) in (0, 2),
    ),
    "data.batch_size": _at_least(1),
    "data.crop_size": Rule("a multiple of 4 from 16 on", lambda size: size >= 16 and size % 4 == 0),
    "data.scale": Rule(
        "two factors above 0 and at most 1, the smaller one first",
        lambda ends: len(ends) == 2 and 0 < ends[0] <= ends[1] <= 1,
    ),
    "data.rotation": Rule(
        "0 to 45 degrees, as crops are flipped and transposed too",
        lambda degrees: 0 <= degrees <= 45,
    ),
    "data.num_workers": _at_least(0),
    "data.num_threads": _at_least(0),
    "data.max_bad_fraction": SHARE,
    "loss.lpips_weight": _at_least(0),
    "eval.max_images": _at_least(1),
    "eval.pictures": _at_least(1),
    "eval.per_device_batch": _at_least(1),
    "eval.metrics": Rule(
        f"some of {', '.join(METRICS)}", lambda names: names and set(names) <= set(METRICS)
    ),
    "eval.fidelity": SHARE,
    "eval.blend": _one_of("feather", "mean"),
    "schedule.learning_rate": POSITIVE,
    "schedule.warmup_steps": _at_least(0),
    "schedule.decay_steps": _at_least(0, ", which is a constant rate"),
    "schedule.final_learning_rate": _at_least(0),
    "optimizer.b1": DECAY,
    "optimizer.b2": DECAY,
    "optimizer.weight_decay": _at_least(0),
    "optimizer.clip_norm": _at_least(0, ", which doesn't clip"),
    "train.steps": _at_least(1),
    "train.microbatches": _at_least(1),
    "train.ema_decay": DECAY,
    "train.log_every": _at_least(1),
    "train.checkpoint_every": _at_least(1),
    "train.keep_checkpoints": _at_least(1),
    "train.keep_every": _at_least(0, ", which keeps none"),
    "train.keep_best": _one_of(*METRICS, ""),
    "train.eval_every": _at_least(0, ", which is never"),
    "train.max_bad_steps": _at_least(0),
    "train.allow_changes": Rule(
        f"some of {', '.join(ALLOWABLE)}, or ()", lambda names: set(names) <= set(ALLOWABLE)
    ),
}
DEGRADATION_RULES = {  # by the end of the name
    **dict.fromkeys(("prob", "sinc_prob", "gaussian_prob", "gray_prob"), SHARE),
    "sizes": ODD_SIZES,
    "bell_probs": Rule(
        "six probabilities of sum 1",
        lambda probs: len(probs) == 6 and min(probs) >= 0 and abs(sum(probs) - 1) < 1e-6,
    ),
    "blur.sigma": _ascending(0.01, float("inf"), "numbers of pixels from 0.01 on"),
    "noise.sigma": AMOUNTS,
    "poisson_scale": AMOUNTS,
    "beta_generalized": AROUND_1,
    "beta_plateau": AROUND_1,
    "factor": AROUND_1,
    "jpeg_quality": _ascending(0, 100, "qualities in 0..100"),
}


def _check_values(values: dict[str, Any]) -> None:
    """Raise ValueError, naming the wish, for the first value, by its path, that can't be."""
    for name, value in values.items():
        rule = RULES.get(name)
        if name.startswith("degradation."):
            ends = (end for end in DEGRADATION_RULES if name.endswith(f".{end}"))
            rule = DEGRADATION_RULES.get(next(ends, ""))
        if rule and not _holds(rule, value):
            raise ValueError(f"config.{name} is {value!r}: it must be {rule.wish}")
    for order in ("first", "second"):
        path = f"degradation.{order}.resize"
        up, down = (values.get(f"{path}.{way}_prob", 0) for way in ("up", "down"))
        if min(up, down) < 0 or up + down > 1 + 1e-6:
            raise ValueError(
                f"config.{path} has up_prob {up} and down_prob {down}: they must be at least 0 and "
                "of a sum of at most 1"
            )
    if values["data.pairs"] and (min(values["data.scale"]) < 1 or values["data.rotation"]):
        raise ValueError(
            f"config.data has scale {values['data.scale']} and rotation {values['data.rotation']}: "
            "they must be (1.0, 1.0) and 0.0 for pairs"
        )
    levels = [values[f"model.{key}"] for key in ("multipliers", "num_res_blocks")]
    if len(levels[0]) != len(levels[1]):
        raise ValueError(
            f"config.model has multipliers {levels[0]} and num_res_blocks {levels[1]}: give one "
            "of each for every level"
        )


def _holds(rule: Rule, value: Any) -> bool:
    try:
        return bool(rule.holds(value))
    except (TypeError, ValueError, IndexError):  # of another type, or another number of values
        return False
