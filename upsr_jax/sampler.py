"""Sampling: from the prior of a low-resolution image to a restored one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from upsr_jax.diffusion import Schedule, ancestral_step, ddim_step, prior_sample, scale_input
from upsr_jax.ops import pixel_unshuffle
from upsr_jax.prior import Prior

METHODS = ("ddim", "ancestral", "one_step")


def sample(
    schedule: Schedule,
    denoise_fn: Callable[[Array, Array, Array], Array],
    prior: Prior,
    noise: Float[Array, "b H W 3"],
    method: str = "ddim",
    step_noise_fn: Callable[[Int32[Array, ""]], Float[Array, "b H W 3"]] | None = None,
) -> Float[Array, "b H W 3"]:
    """Restore a batch of images, signed and clipped to [-1, 1].

    Args:
      schedule: one network call is made for each of its steps (`respace` it for fewer).
      denoise_fn: `(x [b,h,w,48], timestep [b], condition [b,h,w,96]) -> x_0 [b,4h,4w,3]`, the
        prediction of the clean image; `timestep` is the original one of a respaced schedule.
      prior: from `make_prior`.
      noise: standard normal; it decides the starting state.
      method: "ddim" (the released sampler) draws no further noise; "ancestral" draws some at every
        step; "one_step" returns the first prediction (arXiv 2503.18512, App. A and D).
      step_noise_fn: for "ancestral" only, standard normal noise for step t = T-1..0 of the
        schedule, for instance `lambda t: draw_again(noise, t)`.

    Raises ValueError for an unknown method, or if `step_noise_fn` and the method do not match.
    """
    if method not in METHODS:
        raise ValueError(f"unknown sampling method {method!r}: choose one of {', '.join(METHODS)}")
    if (method == "ancestral") != (step_noise_fn is not None):
        raise ValueError(
            f"step_noise_fn goes with method 'ancestral' and only that, got {method!r} "
            f"{'without' if step_noise_fn is None else 'with'} it"
        )

    def predict_x_0(x_t, t):
        timestep = jnp.asarray(schedule.timesteps)[t]
        return denoise_fn(
            pixel_unshuffle(scale_input(schedule, x_t, t)),
            jnp.broadcast_to(timestep, x_t.shape[:1]),
            prior.condition,
        )

    def step(x_t, t):
        x_0 = predict_x_0(x_t, t)
        if step_noise_fn is None:
            return ddim_step(schedule, x_0, x_t, prior.bicubic, t), None
        return ancestral_step(schedule, x_0, x_t, prior.noise_weight, step_noise_fn(t), t), None

    x_t = prior_sample(schedule, prior.bicubic, prior.noise_weight, noise)
    steps = jnp.arange(len(schedule.timesteps), dtype=jnp.int32)
    if method == "one_step":
        x_0 = predict_x_0(x_t, steps[-1])
    else:
        x_0, _ = jax.lax.scan(step, x_t, steps[::-1])
    return jnp.clip(x_0, -1, 1)


def draw_again(
    noise: Float[Array | np.ndarray, "b H W c"], t: Int32[Array, ""] | int
) -> Float[Array, "b H W c"]:
    """Draw the standard normal noise of step t out of other such noise, pixel by pixel.

    The numbers of a pixel are the key of its own random stream. So tiles cut from one field of
    noise see one field at every step, wherever they run, and no further field is passed around.
    """

    def draw_pixel(pixel: Array) -> Array:
        first, second, *others = jax.lax.bitcast_convert_type(pixel.astype(jnp.float32), jnp.uint32)
        key = jax.random.wrap_key_data(jnp.stack([first, second]), impl="threefry2x32")
        for data in (*others, t):
            key = jax.random.fold_in(key, data)
        return jax.random.normal(key, pixel.shape, pixel.dtype)

    return jnp.vectorize(draw_pixel, signature="(c)->(c)")(noise)
