"""Check a config before anything is done with it: each key has one reader, each reader its keys."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from upsr_jax.data.degradation.host import (
    random_blur,
    random_factor,
    random_noise,
    random_sinc,
)
from upsr_jax.data.sources import TFDS
from upsr_jax.data.test_sets import ImageSet
from upsr_jax.evaluation.metric_list import METRICS, PYIQA, measurable
from upsr_jax.evaluation.settings import Settings
from upsr_jax.files.find import check_local
from upsr_jax.models.config import ModelConfig
from upsr_jax.models.rules import (
    POSITIVE,
    SHARE,
    Rule,
    arguments,
    at_least,
    check_keys,
    check_values,
    flatten,
    one_of,
)
from upsr_jax.prior import make_prior
from upsr_jax.train.optimizer import create_optimizer, create_schedule
from upsr_jax.train.sharding import create_mesh
from upsr_jax.upscale.upscaler import PRECISIONS, check_tile

# Blocks that are the keyword arguments of one function.
CALLS: dict[str, Callable[..., Any]] = {
    "prior": make_prior,
    "schedule": create_schedule,
    "optimizer": create_optimizer,
    "mesh": create_mesh,
    **{f"degradation.{order}.blur": random_blur for order in ("first", "second")},
    **{f"degradation.{order}.resize": random_factor for order in ("first", "second")},
    **{f"degradation.{order}.noise": random_noise for order in ("first", "second")},
    "degradation.final.sinc": random_sinc,
}
# Blocks whose keys are read one by one.
KEYS: dict[str, set[str]] = {
    "": {
        *("network", "seed", "dtype", "model", "estimator", "diffusion", "prior", "sampler"),
        *("degradation", "data", "pretrained", "loss", "schedule", "optimizer", "mesh", "train"),
        *("eval", "wandb"),
    },
    "degradation": {"first", "second", "final", "simulated_jpeg"},
    "degradation.first": {"blur", "resize", "noise", "jpeg_quality"},
    "degradation.second": {"blur", "resize", "noise"},
    "degradation.final": {"sinc", "jpeg_quality"},
    "data": {
        *("folders", "weights", "pairs", "batch_size", "crop_size", "scale", "rotation"),
        *("use_sharp", "pool", "num_threads", "num_workers", "max_bad_fraction", "degrade_on"),
    },
    "pretrained": {"estimator", "denoiser", "teacher", "strict"},
    "loss": {
        *("lpips_weight", "lpips_dtype", "lpips_jitter", "released_lpips_range"),
        *("ssim_weight", "consistency_weight"),
    },
    "train": {
        *("steps", "microbatches", "remat", "ema_decay", "log_every", "checkpoint_every"),
        *("keep_checkpoints", "keep_every", "keep_best", "eval_every", "pyiqa_every"),
        *("max_bad_steps", "allow_changes"),
    },
    "eval": {field.name for kind in (Settings, ImageSet) for field in dataclasses.fields(kind)}
    - {"images", "degradation", "device"}
    | {"sets"},
    "wandb": {"mode", "project"},
}

# What changes updates, but no example: a run may go on with other values if asked to.
ALLOWABLE = ("schedule", "optimizer.clip_norm", "optimizer.weight_decay", "loss.lpips_dtype")


def check_config(config: ConfigDict) -> None:
    """Raise ValueError for a key that nothing reads or that is missing, or a value out of range."""
    _check_block("", config)
    ModelConfig.of(config)
    _check_values(flatten(config.to_dict()))
    create_schedule(**config.schedule)
    data = config.data
    pretrained = [config.pretrained[key] for key in ("estimator", "denoiser", "teacher")]
    folders = *data.folders, *data.pairs, *pretrained, config.eval.model
    check_local(*(str(folder).removeprefix(TFDS) for folder in folders))
    for values in (config.eval, *_sets(config).values()):
        check_tile(values["tile"], values["overlap"])
        check_local(values["gt"], values["lr"])


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
    measured = _measured(config)
    for metric in best_weights(train.keep_best):
        if metric not in measured:
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


def best_weights(text: str) -> dict[str, float]:
    """Read config.train.keep_best, "NAME" or "NAME=WEIGHT, NAME=WEIGHT"; none of ""."""
    parts = [part.strip().partition("=") for part in text.split(",")] if text else []
    return {name.strip(): float(weight or 1) for name, _, weight in parts}


def eval_settings(config: ConfigDict) -> Settings:
    """Take what an evaluation reads out of a config; raises ValueError for sharpened images."""
    return _settings(config, config.eval.to_dict())


def validation_settings(config: ConfigDict) -> dict[str, Settings]:
    """Take what training evaluates on: config.eval.sets by name, or else config.eval as ""."""
    sets = _sets(config) or {"": config.eval.to_dict()}
    return {name: _settings(config, values) for name, values in sets.items()}


def _sets(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """List the sets of validation, each with all keys of config.eval."""
    common = config.eval.to_dict()
    return {name: common | values for name, values in common["sets"].items()}


def _settings(config: ConfigDict, values: Mapping[str, Any]) -> Settings:
    if not values["lr"] and config.data.use_sharp:
        raise ValueError(
            "evaluation compares with unsharpened images: set config.data.use_sharp to False"
        )
    keys = {field.name for field in dataclasses.fields(ImageSet)} - {"degradation"}
    images = {key: values[key] for key in keys}
    others = {key: value for key, value in values.items() if key not in {*keys, "sets"}}
    return Settings(ImageSet(**images, degradation=config.degradation.to_dict()), **others)


def _measured(config: ConfigDict) -> list[str]:
    """Name what training measures, as its evaluations name it."""
    return [
        f"{name}/{metric}".lstrip("/")
        for name, each in validation_settings(config).items()
        for metric in (
            *measurable(each.metrics, bool(each.images.gt)),
            *(PYIQA + metric for metric in each.pyiqa),
        )
    ]


def config_as_json(config: ConfigDict) -> dict[str, Any]:
    """Turn a config into what JSON can hold: tuples become lists."""
    return json.loads(config.to_json_best_effort())


def _check_block(path: str, block: Any) -> None:
    known = KEYS[path] if path in KEYS else arguments(CALLS[path])
    check_keys(path, block, known)
    for key in known:
        inner = f"{path}.{key}".lstrip(".")
        one_order = inner == "degradation.second" and block[key] is None
        if (inner in KEYS or inner in CALLS) and not one_order:
            _check_block(inner, block[key])
    if path == "eval":
        _check_sets(block.sets)


def _check_sets(sets: Any) -> None:
    """Raise ValueError for a set of validation with a name or a key that can't be."""
    check_keys("eval.sets", sets, sets)
    for name, values in sets.items():
        if not re.fullmatch(r"[\w-]+", name) or name in ("train", "eval"):
            raise ValueError(
                f"config.eval.sets names a set {name!r}: a name is of letters, digits, _ and -, "
                "and neither train nor eval"
            )
        check_keys(f"eval.sets.{name}", values, KEYS["eval"] - {"sets", "model"}, whole=False)


def _ascending(lowest: float | int, highest: float | int, wish: str, odd: bool = False) -> Rule:
    def holds(ends: Sequence[Any]) -> bool:
        low, high = ends
        return lowest <= low <= high <= highest and not (odd and (low % 2 == 0 or high % 2 == 0))

    return Rule(f"two {wish}, the smaller one first", holds)


STEPS = Rule("whole numbers", lambda steps: all(type(step) is int for step in steps))
DECAY = Rule("at least 0 and below 1", lambda value: 0 <= value < 1)
ODD_SIZES = _ascending(1, 51, "odd sizes in 1..51", odd=True)
AMOUNTS = _ascending(0, float("inf"), "numbers from 0 on")
# A random exponent is drawn from below 1 or from above, and so is a factor.
AROUND_1 = Rule("two numbers above 0 with 1 between", lambda ends: 0 < ends[0] <= 1 <= ends[1])


def _is_best(text: str) -> bool:
    """Tell whether a text names metrics there are, of whatever sets, with positive weights."""
    return all(
        (metric.startswith(PYIQA) or metric in METRICS) and POSITIVE.holds(weight)
        for name, weight in best_weights(text).items()
        for metric in [name.rpartition("/")[2]]
    )


RULES = {
    "seed": Rule("a whole number in 0..4294967295", lambda seed: 0 <= seed < 2**32),
    "data.pairs": Rule(
        "a folder of ground truth and one of low-resolution images, or ()",
        lambda pairs: len(pairs) in (0, 2),
    ),
    "data.batch_size": at_least(1),
    "data.crop_size": Rule("a multiple of 4 from 16 on", lambda size: size >= 16 and size % 4 == 0),
    "data.scale": Rule(
        "two factors above 0 and at most 1, the smaller one first",
        lambda ends: len(ends) == 2 and 0 < ends[0] <= ends[1] <= 1,
    ),
    "data.rotation": Rule(
        "0 to 45 degrees, as crops are flipped and transposed too",
        lambda degrees: 0 <= degrees <= 45,
    ),
    "data.pool": Rule("a whole number from 0 on", lambda pool: type(pool) is int and pool >= 0),
    "data.num_workers": at_least(0),
    "data.num_threads": at_least(0),
    "data.max_bad_fraction": SHARE,
    "data.degrade_on": one_of("host", "device"),
    "loss.lpips_weight": at_least(0),
    "loss.ssim_weight": at_least(0),
    "loss.lpips_dtype": one_of("float32", "bfloat16", "float16"),
    "loss.consistency_weight": at_least(0),
    "eval.max_images": at_least(1),
    "eval.pictures": at_least(1),
    "eval.per_device_batch": at_least(1),
    "eval.metrics": Rule(
        f"some of {', '.join(METRICS)}", lambda names: names and set(names) <= set(METRICS)
    ),
    "eval.pyiqa": Rule(
        "names of metrics of pyiqa, as ('musiq',), or ()", lambda names: not isinstance(names, str)
    ),
    "eval.fidelity": SHARE,
    "eval.blend": one_of("feather", "mean"),
    "eval.precision": one_of(*PRECISIONS),
    "schedule.learning_rate": POSITIVE,
    "schedule.warmup_steps": at_least(0),
    "schedule.decay_steps": at_least(0, ", which is a constant rate"),
    "schedule.final_learning_rate": at_least(0),
    "schedule.restarts": STEPS,
    "schedule.milestones": STEPS,
    "schedule.gamma": Rule("above 0 and at most 1", lambda gamma: 0 < gamma <= 1),
    "optimizer.b1": DECAY,
    "optimizer.b2": DECAY,
    "optimizer.weight_decay": at_least(0),
    "optimizer.clip_norm": at_least(0, ", which doesn't clip"),
    "train.steps": at_least(1),
    "train.microbatches": at_least(1),
    "train.ema_decay": DECAY,
    "train.log_every": at_least(1),
    "train.checkpoint_every": at_least(1),
    "train.keep_checkpoints": at_least(1),
    "train.keep_every": at_least(0, ", which keeps none"),
    "train.keep_best": Rule(
        f"one of {', '.join(METRICS)} and {PYIQA}NAME, of a named set SET/NAME; or a mix as "
        "NAME=WEIGHT,NAME=WEIGHT, weights above 0; or ''",
        _is_best,
    ),
    "train.eval_every": at_least(0, ", which is never"),
    "train.pyiqa_every": at_least(1),
    "wandb.mode": one_of("online", "offline", ""),
    "train.max_bad_steps": at_least(0),
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
    """Raise ValueError for the first value, by its path, that can't be."""
    rules = {name: rule for name in values if (rule := _rule_of(name))}
    check_values((name, values[name], rule) for name, rule in rules.items())
    for order in ("first", "second"):
        path = f"degradation.{order}.resize"
        up, down = (values.get(f"{path}.{way}_prob", 0) for way in ("up", "down"))
        if min(up, down) < 0 or up + down > 1 + 1e-6:
            raise ValueError(
                f"config.{path} has up_prob {up} and down_prob {down}: they must be at least 0 and "
                "of a sum of at most 1"
            )
    for order in ("first", "final"):
        low, _ = quality = values[f"degradation.{order}.jpeg_quality"]
        if values["degradation.simulated_jpeg"] and not 1 <= low <= 99:
            raise ValueError(
                f"config.degradation.{order}.jpeg_quality is {quality}: the lower end of simulated "
                "qualities must be in 1..99"
            )
    if values["data.pool"] % values["data.batch_size"]:
        raise ValueError(
            f"config.data.pool is {values['data.pool']}: it must be a multiple of the batch_size, "
            f"{values['data.batch_size']}, or 0"
        )
    if values["data.pairs"] and values["data.pool"]:
        raise ValueError("config.data.pool must be 0 for pairs, which nothing degrades")
    if values["data.degrade_on"] == "device":
        if values["data.pairs"]:
            raise ValueError(
                "config.data.degrade_on must be 'host' for pairs, which nothing degrades"
            )
        if not values["degradation.simulated_jpeg"]:
            raise ValueError(
                "config.data.degrade_on is 'device', where JPEG can only be simulated: set "
                "config.degradation.simulated_jpeg to True, or degrade_on to 'host'"
            )
    if values["data.pairs"] and (min(values["data.scale"]) < 1 or values["data.rotation"]):
        raise ValueError(
            f"config.data has scale {values['data.scale']} and rotation {values['data.rotation']}: "
            "they must be (1.0, 1.0) and 0.0 for pairs"
        )
    _check_teaching(values)


def _check_teaching(values: dict[str, Any]) -> None:
    """Raise ValueError where a teacher, or what it is needed for, doesn't go with the rest."""
    weight, teacher = values["loss.consistency_weight"], values["pretrained.teacher"]
    if teacher and (values["network"], values["sampler.method"]) != ("denoiser", "one_step"):
        raise ValueError(
            f"config.pretrained.teacher is {teacher}, from which a denoiser learns to restore in "
            "one step: set config.network to denoiser and config.sampler.method to one_step, or no "
            "teacher"
        )
    if weight and not teacher:
        raise ValueError(
            f"config.loss.consistency_weight is {weight}, which is for a student and its teacher: "
            "set config.pretrained.teacher to a model folder, or the weight to 0.0"
        )
    if weight and values["model.residual"]:
        raise ValueError(
            f"config.loss.consistency_weight is {weight}, which has the network predict noise, as "
            "one with config.model.residual can't: set the weight to 0.0"
        )


def _rule_of(name: str) -> Rule | None:
    name = re.sub(r"^eval\.sets\.[^.]+", "eval", name)
    if name in RULES or not name.startswith("degradation."):
        return RULES.get(name)
    return next((rule for end, rule in DEGRADATION_RULES.items() if name.endswith(f".{end}")), None)
