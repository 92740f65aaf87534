"""Training losses of the denoiser and the estimator. They take functions, never models."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from upsr_jax.diffusion import Schedule, prior_sample, q_sample, scale_input
from upsr_jax.ops import pixel_unshuffle
from upsr_jax.prior import Prior

Image = Float[Array, "b h w 3"]
DistanceFn = Callable[[Image, Image], Float[Array, "b"]]
# By the name of the term: its weight, and the function of an image and its reference.
Distances = Mapping[str, tuple[float, DistanceFn]]
Loss = tuple[Float[Array, ""], dict[str, Float[Array, "b"]]]


def diffusion_loss(
    schedule: Schedule,
    denoise_fn: Callable[..., Image],
    distances: Distances,
    prior: Prior,
    hr: Image,
    noise: Image,
    t: Int[Array, "b"],
) -> Loss:
    """Measure how well x_0 is predicted from x_t (arXiv 2503.18512, Sec. 3.3).

    The loss is the mean squared error over all pixels plus `distances`, as LPIPS, of the clipped
    prediction to the ground truth, each times its weight; one of weight 0 is not called. `hr` and
    `noise` are signed and standard normal, at full resolution; `t` holds 0-based steps.

    Returns:
      The mean loss, and the terms of every image.
    """
    x_0, y_bic, weight, noise = jax.tree.map(
        pixel_unshuffle, (hr, prior.bicubic, prior.noise_weight, noise)
    )
    x_t = q_sample(schedule, x_0, y_bic, weight, noise, t)
    timesteps = jnp.asarray(schedule.timesteps)[t]
    predicted = denoise_fn(scale_input(schedule, x_t, t), timesteps, prior.condition)
    mse = jnp.mean((predicted - hr) ** 2, axis=(1, 2, 3))
    return _with_distances({"mse": mse}, mse, distances, predicted, hr)


def distillation_loss(
    schedule: Schedule,
    denoise_fn: Callable[..., Image],
    distances: Distances,
    prior: Prior,
    hr: Image,
    target: Image,
    noise: Image,
    consistency_weight: float,
) -> Loss:
    """Measure how well one step gives what a teacher gives in several (SinSR, arXiv 2311.14760).

    `target` is the teacher's picture F(x_T, y) of the state x_T that `noise` decides, by DDIM over
    all steps of `schedule` (Eq. 5; `sampler.sample`). With f the network that learns, y its
    condition and distances mean squared errors, the terms are:

    - "distil", from f(x_T, y, T) to F(x_T, y) (Eq. 6);
    - `consistency_weight` times "inverse", from f(F(x_T, y), y, 0) to x_T (Eq. 7): the network
      learns the way back, too;
    - `consistency_weight` times "truth", from f(f(x_0, y, 0), y, T) to the ground truth x_0,
      without a gradient of the inner f (Eq. 8);
    - `distances`, as LPIPS, of the clipped f(x_T, y, T) to the ground truth, which a teacher
      misses (residual-shifting distillation, arXiv 2503.13358, Sec. 3.4 and Eq. 13), each times
      its weight.

    UPSR's x_T = y_bic + kappa sqrt(eta_T) w_u noise has another deviation at each pixel, which y
    tells. It is predicted as the network sees it, scaled to about unit variance, or a large kappa
    would let the way back outweigh all else. The 0 of the way back is the first of the schedule's
    timesteps, at which a network of one step is never asked otherwise.

    Returns:
      The mean loss, and the terms of every image.
    """
    last = len(schedule.timesteps) - 1

    def predict(scaled: Array, t: int) -> Array:
        timesteps = jnp.broadcast_to(jnp.asarray(schedule.timesteps)[t], hr.shape[:1])
        return denoise_fn(pixel_unshuffle(scaled), timesteps, prior.condition)

    def error(image: Array, reference: Array) -> Array:
        return jnp.mean((image - reference) ** 2, axis=(1, 2, 3))

    state = prior_sample(schedule, prior.bicubic, prior.noise_weight, noise)
    state = scale_input(schedule, state, last)
    predicted = predict(state, last)
    loss = error(predicted, target)
    terms = {"distil": loss}
    if consistency_weight:
        terms["inverse"] = error(predict(scale_input(schedule, target, 0), 0), state)
        inverted = jax.lax.stop_gradient(predict(scale_input(schedule, hr, 0), 0))
        terms["truth"] = error(predict(inverted, last), hr)
        loss += consistency_weight * (terms["inverse"] + terms["truth"])
    return _with_distances(terms, loss, distances, predicted, hr)


def estimator_loss(
    estimate_fn: Callable[[Array], Array],
    distances: Distances,
    lr: Float[Array, "b h w 3"],
    hr: Float[Array, "b 4*h 4*w 3"],
) -> Loss:
    """Measure the estimator's mean absolute error in unit range, plus weighted `distances`.

    `lr` and `hr` are signed; `estimate_fn` maps unit images to unit images. arXiv 2401.08209,
    Sec. 4.1, on Real-ESRGAN's degradations.

    Returns:
      The mean loss, and the terms of every image.
    """
    estimate = 2 * estimate_fn((lr + 1) / 2) - 1
    l1 = jnp.mean(jnp.abs(estimate - hr), axis=(1, 2, 3)) / 2
    return _with_distances({"l1": l1}, l1, distances, estimate, hr)


def draw_moves(keys: Key[Array, "b"]) -> Bool[Array, "b 2"]:
    """Draw for each image whether `move` moves it down, and whether to the right."""
    # Steps and noise take the keys' `split`, which may be their `fold_in` of 0 and 1; 7 is neither.
    return jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 7), shape=(2,)))(keys)


def move(image: Image, moves: Bool[Array, "b 2"]) -> Image:
    """Move images by one pixel down and to the right where `moves` say so; borders are mirrored.

    A network with pooling doesn't see all of its pixels alike. LPIPS of a prediction and a ground
    truth that are moved together, at random, gives its gradient no grid of two pixels, and coarser
    ones less weight (as arXiv 1906.03973 moves what it measures).
    """
    for axis in (1, 2):
        border = [(int(i == axis), 0) for i in range(4)]
        moved = jnp.pad(image, border, mode="reflect")
        moved = jax.lax.slice_in_dim(moved, 0, image.shape[axis], axis=axis)
        image = jnp.where(moves[:, axis - 1, None, None, None], moved, image)
    return image


def _with_distances(
    terms: dict, loss: Array, distances: Distances, image: Image, hr: Image
) -> Loss:
    for name, (weight, distance_fn) in distances.items():
        if weight:
            terms[name] = distance_fn(jnp.clip(image, -1, 1), hr)
            loss += weight * terms[name]
    return jnp.mean(loss), terms
