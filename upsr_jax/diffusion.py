"""The diffusion process in closed form, with no network in sight.

Symbols are the papers' (UPSR, arXiv 2503.18512; ResShift, arXiv 2307.12348): `x_0` is the clean
image, `y_bic` the bicubic one that the process shifts it to, `x_t` a state in between and
`noise_weight` w_u. Steps count from 0, so `t = 0` is the papers' t = 1 and `t = T - 1` their T.
Everything is elementwise: images may be at full resolution or pixel-unshuffled.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, Int32

Image = Float[Array, "b h w c"]
Step = int | Int[Array, ""] | Int[Array, " b"]

# What the released network was trained with in place of E[w_u^2] and of the variance of an image.
_MEAN_SQUARE_WEIGHT = 0.3
_IMAGE_VARIANCE = 0.25
SPACINGS = ("last", "released")


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """Noise levels sqrt(eta_t), increasing, with the steps `timesteps` the network knows them by.

    It holds exact NumPy numbers and belongs in a closure: as an argument of a jitted function its
    float64 would be lost.
    """

    kappa: float
    sqrt_etas: Float64[np.ndarray, " T"]
    timesteps: Int32[np.ndarray, " T"]

    @classmethod
    def create(
        cls,
        *,
        steps: int = 5,
        kappa: float = 2.5,
        power: float = 0.2,
        min_noise_level: float = 0.2,
        end: float = 0.99,
    ) -> "Schedule":
        """Build the geometric schedule of ResShift (arXiv 2307.12348, Sec. 2.2) from s_1 to `end`.

        Raises ValueError for fewer than two steps, or unless `kappa` is positive.
        """
        if steps < 2:
            raise ValueError(f"a schedule needs at least 2 steps, got steps={steps}")
        if kappa <= 0:
            raise ValueError(f"a schedule needs a positive kappa, got kappa={kappa}")
        start = min(min_noise_level / kappa, min_noise_level, math.sqrt(0.001))
        progress = np.linspace(0.0, 1.0, steps) ** power
        sqrt_etas = start * np.exp(np.log(end / start) * progress)
        return cls(kappa, sqrt_etas, np.arange(steps, dtype=np.int32))

    @property
    def etas(self) -> Float64[np.ndarray, " T"]:
        """eta_t."""
        return self.sqrt_etas**2

    @property
    def etas_prev(self) -> Float64[np.ndarray, " T"]:
        """eta_{t-1}, which is 0 before the first step."""
        return np.append(0.0, self.etas[:-1])


def respace(schedule: Schedule, sample_steps: int, spacing: str = "released") -> Schedule:
    """Keep `sample_steps` evenly spread steps; `timesteps` still names the original ones.

    They are those of the released code, counted from the first one, and start with less noise than
    training had sampling start with. If `spacing` is "last", the last is always kept, and so is the
    first (arXiv 2305.08891, Sec. 3.3, "linspace"): in four, three and two steps of a small model
    PSNR-Y was the same and LPIPS higher by .001 (docs/evaluation.md). A step alone is the last in
    both, as `one_step` takes it; the released code would take the first.

    Raises ValueError if the schedule has fewer steps than that, or for another spacing.
    """
    steps = len(schedule.timesteps)
    if not 1 <= sample_steps <= steps:
        raise ValueError(f"sample_steps must be in 1..{steps}, got {sample_steps}")
    if spacing not in SPACINGS:
        raise ValueError(f"unknown spacing {spacing!r}: choose one of {', '.join(SPACINGS)}")
    if spacing == "last" or sample_steps == 1:
        kept = np.linspace(steps - 1, 0, sample_steps).round().astype(int)[::-1]
    else:
        kept = [int(steps / sample_steps * i) for i in range(sample_steps)]
    return Schedule(schedule.kappa, schedule.sqrt_etas[kept], schedule.timesteps[kept])


def q_mean_std(
    schedule: Schedule, x_0: Image, y_bic: Image, noise_weight: Image, t: Step
) -> tuple[Image, Image]:
    """Give mean and deviation of q(x_t | x_0, y): x_0 + eta_t (y_bic - x_0), kappa sqrt(eta_t) w_u.

    arXiv 2307.12348, Sec. 2.1, with the weighted noise of arXiv 2503.18512, Sec. 3.
    """
    mean = x_0 + _at(schedule.etas, t, x_0) * (y_bic - x_0)
    return mean, _at(schedule.kappa * schedule.sqrt_etas, t, x_0) * noise_weight


def q_sample(
    schedule: Schedule, x_0: Image, y_bic: Image, noise_weight: Image, noise: Image, t: Step
) -> Image:
    """Draw x_t from q(x_t | x_0, y) with the standard normal `noise`."""
    mean, std = q_mean_std(schedule, x_0, y_bic, noise_weight, t)
    return mean + std * noise


def prior_sample(schedule: Schedule, y_bic: Image, noise_weight: Image, noise: Image) -> Image:
    """Draw the state sampling starts from: x_T = y_bic + kappa sqrt(eta_T) w_u noise."""
    return q_sample(schedule, y_bic, y_bic, noise_weight, noise, len(schedule.timesteps) - 1)


def scale_input(schedule: Schedule, x_t: Image, t: Step) -> Image:
    """Scale x_t to about unit variance, as the network sees it."""
    std = np.sqrt(schedule.etas * schedule.kappa**2 * _MEAN_SQUARE_WEIGHT + _IMAGE_VARIANCE)
    return x_t / _at(std, t, x_t)


def ddim_step(schedule: Schedule, x_0: Image, x_t: Image, y_bic: Image, t: Step) -> Image:
    """Step from x_t to x_{t-1} with no fresh noise; at t = 0 the result is exactly `x_0`.

    arXiv 2503.18512, App. A.
    """
    eta, eta_prev = schedule.etas, schedule.etas_prev
    m = np.sqrt(eta_prev / eta)
    k = 1 - eta_prev - (1 - eta) * m
    j = eta_prev - np.sqrt(eta * eta_prev)
    return _at(k, t, x_t) * x_0 + _at(m, t, x_t) * x_t + _at(j, t, x_t) * y_bic


def posterior_mean_std(
    schedule: Schedule, x_0: Image, x_t: Image, noise_weight: Image, t: Step
) -> tuple[Image, Image]:
    """Give mean and deviation of q(x_{t-1} | x_t, x_0, y); at t = 0 they are exactly `x_0` and 0.

    With alpha_t = eta_t - eta_{t-1}: mean eta_{t-1}/eta_t x_t + alpha_t/eta_t x_0, variance
    kappa^2 w_u^2 eta_{t-1}/eta_t alpha_t (arXiv 2307.12348, Sec. 2.1).
    """
    ratio = schedule.etas_prev / schedule.etas
    alpha = schedule.etas - schedule.etas_prev
    mean = _at(ratio, t, x_t) * x_t + _at(1 - ratio, t, x_t) * x_0
    return mean, _at(schedule.kappa * np.sqrt(ratio * alpha), t, x_t) * noise_weight


def ancestral_step(
    schedule: Schedule, x_0: Image, x_t: Image, noise_weight: Image, noise: Image, t: Step
) -> Image:
    """Step from x_t to a draw of x_{t-1} with fresh `noise`; at t = 0 the result is `x_0`."""
    mean, std = posterior_mean_std(schedule, x_0, x_t, noise_weight, t)
    return mean + std * noise


def _at(values: Float64[np.ndarray, " T"], t: Step, like: Image) -> Float[Array, "_ 1 1 1"]:
    """Look up `values[t]` to broadcast over images, in the dtype of `like` but float32 at least."""
    table = jnp.asarray(values, jnp.promote_types(like.dtype, jnp.float32))
    return table[t].reshape(-1, 1, 1, 1)
