"""What is known before sampling: a low-resolution image becomes the prior of the diffusion."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from upsr_jax.ops import bicubic_upsample, pixel_unshuffle


class Prior(NamedTuple):
    """Two signed upsampled images, the noise weight w_u of each pixel and the network's condition.

    `condition` is the pixel-unshuffled concatenation of estimate and bicubic, or of the bicubic
    twice, see `make_prior`.
    """

    bicubic: Float[Array, "b 4*h 4*w 3"]
    estimate: Float[Array, "b 4*h 4*w 3"]
    noise_weight: Float[Array, "b 4*h 4*w 3"]
    condition: Float[Array, "b h w 96"]


def make_prior(
    estimate_fn: Callable[[Float[Array, "b h w 3"]], Float[Array, "b H W 3"]],
    lr: Float[Array, "b h w 3"],
    un: float,
    min_noise: float,
    estimate: str = "network",
    condition: str = "estimate",
) -> Prior:
    """Upsample signed `lr` in two ways and weigh the noise by how much they disagree.

    `estimate_fn` is the estimator as it is: unit images in, unit images of 4x the sides out.
    w_u grows from `min_noise` where both agree to 1 where they are at least `un` apart, in unit
    range; `un` = 0 switches it off (w_u = 1). arXiv 2503.18512, Sec. 3 and App. B.

    For ablations: with `estimate` "bicubic" there is no estimator, `estimate_fn` isn't called and
    w_u is `min_noise` everywhere. With `condition` "bicubic" the network's condition holds the
    bicubic in place of the estimate, which decides the noise alone.
    """
    bicubic = bicubic_upsample(lr)
    guess = bicubic if estimate == "bicubic" else 2 * estimate_fn((lr + 1) / 2) - 1
    shown = bicubic if condition == "bicubic" else guess
    return Prior(
        bicubic=bicubic,
        estimate=guess,
        noise_weight=_noise_weight(guess, bicubic, un, min_noise),
        condition=pixel_unshuffle(jnp.concatenate([shown, bicubic], axis=-1)),
    )


def _noise_weight(estimate: Array, bicubic: Array, un: float, min_noise: float) -> Array:
    if un == 0:
        return jnp.ones_like(bicubic)
    uncertainty = jnp.abs(estimate - bicubic) / 2
    return min_noise + (1 - min_noise) * jnp.minimum(uncertainty / un, 1)
