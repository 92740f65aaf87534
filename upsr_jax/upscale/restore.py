"""The whole of UPSR as one function of arrays: low-resolution images to restored ones."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from upsr_jax.diffusion import Schedule, respace
from upsr_jax.models.build import apply, create_denoiser, create_estimator
from upsr_jax.models.config import ModelConfig
from upsr_jax.prior import make_prior
from upsr_jax.sampler import METHODS, draw_again, sample

Images = Float[Array | np.ndarray, "b 4*h 4*w 3"]
SIZE_MULTIPLE = 64  # pad images to it, as the released code does


class Restoration(NamedTuple):
    """A restored batch, signed and clipped, beside what it was made from (`prior.Prior`)."""

    image: Images
    bicubic: Images
    estimate: Images
    noise_weight: Images


def padded_side(side: int) -> int:
    """Round a side up to the next multiple that the networks take."""
    return -(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to sample with a trained model; None keeps what it was trained with.

    `steps` are spread evenly over those of the training, as `respace` does, `method` is one of
    `sampler.METHODS`, and `min_noise`, in 0..1, is the noise weight of pixels that the estimator is
    sure of. `fidelity`, in 0..1, blends the sample with the estimate, see `make_super_resolve`.
    Raises ValueError for values that no model takes.
    """

    steps: int | None = None
    method: str | None = None
    min_noise: float | None = None
    fidelity: float = 0.0

    def __post_init__(self) -> None:
        if self.method not in (None, *METHODS):
            raise ValueError(
                f"unknown sampling method {self.method!r}: choose one of {', '.join(METHODS)}"
            )
        for name in ("min_noise", "fidelity"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, but must lie in 0..1")


def with_sampling(config: ModelConfig, sampling: Sampling) -> ModelConfig:
    """Change how a model samples, but for the fidelity.

    Raises ValueError for what the model was not trained for.
    """
    steps, method, min_noise = sampling.steps, sampling.method, sampling.min_noise
    if (steps, method, min_noise) == (None, None, None):
        return config
    if config.network == "estimator":
        raise ValueError("this model is an estimator alone: it doesn't sample, so leave out how to")
    trained = config.sampler["method"]
    if trained == "one_step" and (method or "one_step", steps or 1) != ("one_step", 1):
        raise ValueError(
            "this model was trained to restore in one step and has not learned the others: leave "
            "out steps and sampler"
        )
    method = method or trained
    if method == "one_step":
        if steps not in (None, 1):
            raise ValueError(f"one_step makes 1 step: for {steps} choose ddim or ancestral")
        steps = None  # which this method doesn't read
    elif steps is not None:
        most = config.diffusion["steps"]
        if not 1 <= steps <= most:
            raise ValueError(
                f"this model was trained with {most} steps: choose 1 to {most} of them, not {steps}"
            )
    if min_noise is not None and config.prior["un"] == 0:
        raise ValueError("this model weighs no noise (un is 0), so leave out min_noise")
    return dataclasses.replace(
        config,
        sampler=config.sampler | {"method": method, "steps": steps or config.sampler["steps"]},
        prior=config.prior | ({} if min_noise is None else {"min_noise": float(min_noise)}),
    )


def make_super_resolve(
    config: ModelConfig,
    fidelity: float = 0.0,
) -> Callable[[Mapping[str, Any], Array, Array], Restoration]:
    """Build the function `(params, lr, noise) -> Restoration`, to be jitted by the caller.

    `params` holds "estimator" and, where config.network is "denoiser", "denoiser"; the estimator
    alone restores with its estimate. `lr` [b, h, w, 3] is signed, with sides that are multiples
    of `SIZE_MULTIPLE`; `noise` [b, 4h, 4w, 3] is standard normal and decides all that is drawn.
    `fidelity`, in 0..1, blends the sample with the estimate, which is smoother and closer to the
    ground truth on average; 1 is the estimate itself.
    """
    estimator = create_estimator(config)

    def prior_of(params: Mapping[str, Any], lr: Array):
        return make_prior(
            lambda image: apply(estimator, params["estimator"], image),
            lr,
            **config.prior,
        )

    if config.network == "estimator":

        def restore_by_estimator(params: Mapping[str, Any], lr: Array, noise: Array) -> Restoration:
            del noise
            prior = prior_of(params, lr)
            return Restoration(jnp.clip(prior.estimate, -1, 1), *prior[:3])

        return restore_by_estimator

    denoiser = create_denoiser(config)
    method = config.sampler["method"]
    schedule = Schedule.create(**config.diffusion)
    if method != "one_step":  # which starts where training did, at the last step of all
        schedule = respace(schedule, config.sampler["steps"], config.spacing)

    def restore(params: Mapping[str, Any], lr: Array, noise: Array) -> Restoration:
        prior = prior_of(params, lr)

        def denoise(x_t: Array, t: Array, condition: Array) -> Array:
            return apply(denoiser, params["denoiser"], x_t, t, condition)

        step_noise_fn = (lambda t: draw_again(noise, t)) if method == "ancestral" else None
        image = sample(schedule, denoise, prior, noise, method, step_noise_fn)
        image = jnp.clip((1 - fidelity) * image + fidelity * prior.estimate, -1, 1)
        return Restoration(image, *prior[:3])

    return restore
