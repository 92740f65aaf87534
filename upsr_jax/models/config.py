"""What a model is beside its weights: its networks, and how it diffuses and samples."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from upsr_jax.diffusion import SPACINGS, Schedule
from upsr_jax.models.atd import ATD
from upsr_jax.models.rules import (
    BOOL,
    POSITIVE,
    SHARE,
    Rule,
    arguments,
    at_least,
    check_keys,
    check_values,
    one_of,
    several,
    whole,
)
from upsr_jax.models.swin_unet import SwinUNet
from upsr_jax.prior import make_prior
from upsr_jax.sampler import METHODS

KEYS = {
    "model": arguments(SwinUNet),
    "estimator": arguments(ATD),
    "diffusion": arguments(Schedule.create),
    "prior": arguments(make_prior),
    "sampler": {"method", "steps", "spacing"},
}
# What models are and do that don't say otherwise. It isn't written into their folders, which stay
# those that earlier versions read and write.
USUAL = {
    "prior": {"estimate": "network", "condition": "estimate"},
    "sampler": {"spacing": "released"},
}
# The bounds are far above all that was ever trained: what they keep out is a typing error or an
# attack, which would take hours or all memory before anything else stops it.
SIZE, FEW = whole(1, 4096), whole(1, 16)
RULES = {
    "network": one_of("denoiser", "estimator"),
    "dtype": one_of("float32", "bfloat16", "float64"),
    "model.width": whole(32, 4096, multiple=32),
    "model.multipliers": several(FEW, 6),
    "model.num_res_blocks": several(FEW, 6),
    "model.swin_depth": FEW,
    "model.swin_embed_dim": whole(32, 4096, multiple=32),
    "model.swin_head_dim": SIZE,
    "model.mlp_ratio": FEW,
    "model.window_size": whole(2, 64),
    "model.head_width": SIZE,
    "model.nominal_size": SIZE,
    "model.shift_mask": one_of("released", "swin"),
    "model.residual": BOOL,
    "estimator.embed_dim": SIZE,
    "estimator.depths": several(FEW, 16),
    "estimator.num_heads": SIZE,
    "estimator.window_size": whole(2, 64),
    "estimator.category_size": SIZE,
    "estimator.num_tokens": SIZE,
    "estimator.reduced_dim": SIZE,
    "estimator.convffn_kernel_size": Rule(
        "an odd number in 1..31", lambda size: type(size) is int and size in range(1, 32, 2)
    ),
    "estimator.mlp_ratio": Rule("above 0 and at most 16", lambda ratio: 0 < ratio <= 16),
    "diffusion.steps": whole(2, 10_000),
    "diffusion.kappa": POSITIVE,
    "diffusion.power": POSITIVE,
    "diffusion.min_noise_level": POSITIVE,
    "diffusion.end": Rule("above 0 and at most 1", lambda end: 0 < end <= 1),
    "prior.un": at_least(0, ", which gives all pixels the same noise"),
    "prior.min_noise": SHARE,
    "prior.estimate": one_of("network", "bicubic"),
    "prior.condition": one_of("estimate", "bicubic"),
    "sampler.method": one_of(*METHODS),
    "sampler.steps": whole(1, 10_000),
    "sampler.spacing": one_of(*SPACINGS),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What decides a model's pictures beside its weights; nobody changes the blocks' values.

    `network` is "denoiser" or "estimator", whose estimate is the picture; `dtype` that of the
    networks' arithmetic. The blocks hold the arguments of SwinUNet (`model`), ATD (`estimator`),
    `Schedule.create` (`diffusion`) and `make_prior` (`prior`), and the method of `sampler.sample`
    with the steps that `respace` keeps, and how. A folder with one network has no block of the
    other. `of` checks it all.
    """

    network: str
    dtype: str
    diffusion: dict[str, Any]
    prior: dict[str, Any]
    sampler: dict[str, Any]
    model: dict[str, Any] | None = None
    estimator: dict[str, Any] | None = None

    @classmethod
    def of(cls, config: Any) -> "ModelConfig":
        """Take what makes up a model from a mapping or ConfigDict; lists become tuples.

        Raises ValueError for a key that is missing or unknown, or a value that can't be.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names[:-2] if name not in config]
        if missing:
            raise ValueError(f"config.{missing[0]} is missing")
        fields, values = {}, {}
        for name in filter(config.__contains__, names):
            fields[name] = _plain(config[name])
            if name in KEYS:
                usual = USUAL.get(name, {})
                block = usual | fields[name] if hasattr(fields[name], "keys") else fields[name]
                check_keys(name, block, KEYS[name])
                values |= {f"{name}.{key}": value for key, value in block.items()}
                fields[name] = {
                    key: value
                    for key, value in block.items()
                    if key not in usual or usual[key] != value
                }
            else:
                values[name] = fields[name]
        check_values((path, value, RULES[path]) for path, value in values.items())
        check_together(values)
        return cls(**fields)

    @property
    def parts(self) -> list[str]:
        """Name the networks that the model needs."""
        if self.network == "estimator" or self.prior.get("estimate") == "bicubic":
            return [self.network]
        return ["estimator", self.network]

    @property
    def spacing(self) -> str:
        """Name how `respace` chooses the steps that it keeps."""
        return self.sampler.get("spacing", USUAL["sampler"]["spacing"])

    def sampling(self) -> dict[str, Any]:
        """Tell how it samples, for notes and protocols: the spacing only if steps are left out."""
        told = {key: self.sampler[key] for key in ("method", "steps")}
        if told["method"] != "one_step" and told["steps"] < self.diffusion["steps"]:
            told["spacing"] = self.spacing
        return told

    def as_dict(self) -> dict[str, Any]:
        """Give what there is as nested dicts, ready for JSON."""
        return {key: value for key, value in vars(self).items() if value is not None}


def check_together(values: Mapping[str, Any]) -> None:
    """Raise ValueError where values of a model, by their paths, don't go with each other."""
    steps, most = values["sampler.steps"], values["diffusion.steps"]
    if steps > most:
        raise ValueError(f"config.sampler.steps is {steps}, more than the {most} of the diffusion")
    if (values["network"], values["prior.estimate"]) == ("estimator", "bicubic"):
        raise ValueError(
            "config.prior.estimate is bicubic, which is no network, where config.network is the "
            "estimator: set it to network"
        )
    if "model.width" in values:
        levels = [values[f"model.{key}"] for key in ("multipliers", "num_res_blocks")]
        if len(levels[0]) != len(levels[1]):
            raise ValueError(
                f"config.model has multipliers {levels[0]} and num_res_blocks {levels[1]}: give "
                "one of each for every level"
            )
    for whole_key, part_key in (
        ("model.swin_embed_dim", "model.swin_head_dim"),
        ("estimator.embed_dim", "estimator.num_heads"),
    ):
        whole_value, part = values.get(whole_key, 0), values.get(part_key, 1)
        if whole_value % part:
            raise ValueError(
                f"config.{whole_key} is {whole_value}, but must be a multiple of {part_key}, {part}"
            )


def _plain(value: Any) -> Any:
    if hasattr(value, "items"):
        return {key: _plain(item) for key, item in sorted(value.items())}
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value
