"""What the values of a config may be, so that a slip ends a run before it begins."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What a value must be, in words and as a test."""

    wish: str
    holds: Callable[[Any], bool]


def _at_least(least: int, meaning: str = "") -> Rule:
    return Rule(f"at least {least}{meaning}", lambda value: value >= least)


def _one_of(*choices: str) -> Rule:
    return Rule(f"one of {', '.join(choices)}", lambda value: value in choices)


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
    "sampler.steps": _at_least(1),
    "data.pairs": Rule(
        "a folder of ground truth and one of low-resolution images, or ()",
        lambda pairs: len(pairs) in (0, 2),
    ),
    "data.batch_size": _at_least(1),
    "data.num_workers": _at_least(0),
    "data.num_threads": _at_least(0),
    "data.max_bad_fraction": SHARE,
    "loss.lpips_weight": _at_least(0),
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
    "train.eval_every": _at_least(0, ", which is never"),
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


def check_values(values: dict[str, Any], methods: Sequence[str]) -> None:
    """Raise ValueError, naming the wish, for the first of `values` that can't be.

    `values` are all of a config by their path, `methods` the ways to sample.
    """
    rules = RULES | {"sampler.method": _one_of(*methods)}
    for name, value in values.items():
        rule = rules.get(name)
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
