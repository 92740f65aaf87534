"""The whole of UPSR as one function of arrays: low-resolution images to restored ones."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from upsr_jax.diffusion import Schedule, respace
from upsr_jax.networks import apply, create_denoiser, create_estimator
from upsr_jax.prior import make_prior
from upsr_jax.sampler import sample

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


def make_super_resolve(
    config: ConfigDict,
) -> Callable[[Mapping[str, Any], Array, Array], Restoration]:
    """Build the function `(params, lr, noise) -> Restoration`, to be jitted by the caller.

    `params` holds "estimator" and, where config.network is "denoiser", "denoiser"; the estimator
    alone restores with its estimate. `lr` [b, h, w, 3] is signed, with sides that are multiples
    of `SIZE_MULTIPLE`; `noise` [b, 4h, 4w, 3] is standard normal.
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
    schedule = respace(Schedule.create(**config.diffusion), config.sampler.steps)

    def restore(params: Mapping[str, Any], lr: Array, noise: Array) -> Restoration:
        prior = prior_of(params, lr)

        def denoise(x_t: Array, t: Array, condition: Array) -> Array:
            return apply(denoiser, params["denoiser"], x_t, t, condition)

        image = sample(schedule, denoise, prior, noise, config.sampler.method)
        return Restoration(image, *prior[:3])

    return restore
