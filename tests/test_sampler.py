"""The sampling loop with denoisers simple enough to follow by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from upsr_jax.diffusion import Schedule, respace
from upsr_jax.ops import pixel_shuffle
from upsr_jax.prior import make_prior
from upsr_jax.sampler import draw_again, sample

RELEASED = Schedule.create()
SHAPE = (2, 8, 12, 3)


def create_prior():
    estimate = jax.random.uniform(jax.random.key(0), SHAPE)
    lr = jax.random.uniform(jax.random.key(1), (2, 2, 3, 3), minval=-1, maxval=1)
    return jax.jit(lambda lr: make_prior(lambda _: estimate, lr, un=0.1, min_noise=0.4))(lr)


def create_noise():
    return jax.random.normal(jax.random.key(2), SHAPE)


def step_noise_fn(t):
    return jax.random.normal(jax.random.fold_in(jax.random.key(3), t), SHAPE)


def linear_denoise(x, t, condition):
    """Mix state, time and both images, at about the scale of a signed image."""
    image = 0.2 * x + 0.3 * condition[..., :48] - 0.1 * condition[..., 48:]
    return pixel_shuffle(image) + 0.01 * t[:, None, None, None]


def reference_sample(method, sqrt_etas, timesteps, prior, noise):
    """Follow the formulas of the paper in a NumPy loop, with the linear denoiser."""
    kappa = 2.5
    y, g, w = (np.asarray(a, np.float64) for a in prior[:3])
    x = y + kappa * sqrt_etas[-1] * w * np.asarray(noise)
    for t in reversed(range(len(sqrt_etas))):
        eta, eta_prev = sqrt_etas[t] ** 2, sqrt_etas[t - 1] ** 2 if t else 0.0
        scaled = x / np.sqrt(eta * kappa**2 * 0.3 + 0.25)
        x_0 = 0.2 * scaled + 0.3 * g - 0.1 * y + 0.01 * timesteps[t]
        if method == "one_step":
            return x_0
        if method == "ddim":
            m = np.sqrt(eta_prev / eta)
            k = 1 - eta_prev - (1 - eta) * m
            x = k * x_0 + m * x + (eta_prev - np.sqrt(eta * eta_prev)) * y
        else:
            alpha = eta - eta_prev
            x = eta_prev / eta * x + alpha / eta * x_0
            x += kappa * w * np.sqrt(eta_prev / eta * alpha) * np.asarray(step_noise_fn(t))
    return x


METHODS = [("ddim", None), ("ancestral", step_noise_fn), ("one_step", None)]


@pytest.mark.parametrize(("method", "noise_fn"), METHODS)
def test_an_oracle_is_returned_exactly(method, noise_fn):
    x_0 = jax.random.uniform(jax.random.key(4), SHAPE, minval=-1, maxval=1)
    run = jax.jit(partial(sample, RELEASED, lambda *_: x_0, method=method, step_noise_fn=noise_fn))
    result = run(create_prior(), create_noise())
    np.testing.assert_array_equal(result, x_0)


@pytest.mark.parametrize("sample_steps", [15, 4])
@pytest.mark.parametrize(("method", "noise_fn"), METHODS)
def test_sampling_follows_the_formulas(method, noise_fn, sample_steps):
    original = Schedule.create(steps=15)
    kept = [int(15 / sample_steps * i) for i in range(sample_steps)]
    few = respace(original, sample_steps, "released")
    with jax.enable_x64(True):
        prior, noise = create_prior(), create_noise()
        run = jax.jit(
            lambda prior, noise: sample(few, linear_denoise, prior, noise, method, noise_fn)
        )
        result = run(prior, noise)
        expected = reference_sample(method, original.sqrt_etas[kept], kept, prior, noise)
    np.testing.assert_allclose(result, np.clip(expected, -1, 1), atol=1e-12)


@pytest.mark.parametrize(("method", "calls"), [("ddim", [14, 10, 7, 4, 0]), ("one_step", [14])])
def test_the_network_sees_original_timesteps(method, calls):
    seen = []

    def denoise_fn(x, t, condition):
        jax.debug.callback(lambda t: seen.append(t.tolist()), t, ordered=True)
        return linear_denoise(x, t, condition)

    schedule = respace(Schedule.create(steps=15), 5, "last")
    sample(schedule, denoise_fn, create_prior(), create_noise(), method)
    jax.effects_barrier()
    assert seen == [[t, t] for t in calls]


def test_only_the_result_is_clipped():
    # An x_0 of 3 that is clipped inside the loop would lower the states the network sees.
    states = []

    def denoise_fn(x, t, condition):
        jax.debug.callback(lambda x: states.append(float(x.mean())), x, ordered=True)
        return jnp.full(SHAPE, 3.0)

    result = sample(RELEASED, denoise_fn, create_prior(), jnp.zeros(SHAPE))
    jax.effects_barrier()
    np.testing.assert_array_equal(result, 1.0)
    assert states[-1] > 2


def test_the_condition_reaches_the_network():
    prior = create_prior()
    result = sample(
        RELEASED, lambda x, t, c: pixel_shuffle(c[..., 48:]) * 0.5, prior, create_noise()
    )
    np.testing.assert_allclose(result, prior.bicubic * 0.5, atol=1e-6)


def test_half_precision_networks_do_not_change_the_result_dtype():
    result = sample(
        RELEASED,
        lambda *args: linear_denoise(*args).astype(jnp.bfloat16),
        create_prior(),
        create_noise(),
    )
    assert result.dtype == jnp.float32


def test_arguments_that_do_not_fit_are_named():
    arguments = (RELEASED, linear_denoise, create_prior(), create_noise())
    with pytest.raises(ValueError, match=r"'euler'.*ddim, ancestral, one_step"):
        sample(*arguments, method="euler")
    with pytest.raises(ValueError, match=r"step_noise_fn.*'ancestral'"):
        sample(*arguments, method="ancestral")
    with pytest.raises(ValueError, match=r"step_noise_fn.*got 'ddim'"):
        sample(*arguments, step_noise_fn=step_noise_fn)


def test_noise_drawn_again_is_the_same_in_every_tile():
    noise = np.random.default_rng(0).standard_normal((2, 40, 50, 3), np.float32)
    draw = jax.jit(draw_again)
    whole = draw(noise, 2)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(draw(noise[1:, 7:30, 9:], 2), whole[1:, 7:30, 9:])


def test_noise_drawn_again_is_standard_normal_and_new():
    noise = np.random.default_rng(0).standard_normal((1, 256, 256, 3), np.float32)
    draws = [noise.astype(np.float64)]
    draws += [np.asarray(jax.jit(draw_again)(noise, t), np.float64) for t in (0, 1)]
    standard_error = 1 / np.sqrt(noise.size)
    for draw in draws[1:]:
        assert abs(draw.mean()) < 4 * standard_error
        assert abs((draw**2).mean() - 1) < 4 * np.sqrt(2) * standard_error
        assert abs((draw**4).mean() - 3) < 4 * np.sqrt(96) * standard_error
        for shifted in (draw[:, 1:] * draw[:, :-1], draw[..., 1:] * draw[..., :-1]):
            assert abs(shifted.mean()) < 5 * standard_error
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        assert abs((draws[a] * draws[b]).mean()) < 4 * standard_error
        assert abs((draws[a] ** 2 * draws[b] ** 2).mean() - 1) < 4 * np.sqrt(8) * standard_error
