"""The closed-form diffusion against goldens of the released code and against its own algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden as load_golden
from golden import nhwc, seeded

from configs import lite_x4
from upsr_jax import diffusion
from upsr_jax.diffusion import Schedule
from upsr_jax.ops import pixel_unshuffle

RELEASED = Schedule.create()
FIFTEEN = Schedule.create(steps=15)
SCHEDULES = {
    "realsr_x4": RELEASED,
    "steps15": FIFTEEN,
    "steps4_p03": Schedule.create(steps=4, kappa=2.0, power=0.3, min_noise_level=0.04),
    "respaced": diffusion.respace(FIFTEEN, 5),
    "respaced_last": diffusion.respace(FIFTEEN, 5, "last"),
}


@pytest.fixture
def golden():
    """The golden batch of five images, NHWC in float64, image i at step i."""
    with jax.enable_x64(True):
        arrays = load_golden("diffusion")
        arrays["noise"] = seeded("noise", (5, 3, 32, 48))
        t = jnp.asarray(arrays.pop("t"))
        images = {name: jnp.asarray(nhwc(array)) for name, array in arrays.items()}
        yield images | {"t": t}


def assert_unshuffled_close(actual, expected):
    error = np.linalg.norm(pixel_unshuffle(actual) - expected)
    assert error < 1e-7 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "respaced_last"])
def test_schedule_is_exact(name):
    schedule = SCHEDULES[name]
    golden = load_golden("schedule")
    np.testing.assert_allclose(schedule.sqrt_etas, golden[f"{name}/sqrt_etas"], rtol=1e-13)
    np.testing.assert_allclose(schedule.etas, golden[f"{name}/etas"], rtol=1e-13)
    np.testing.assert_allclose(schedule.etas_prev, golden[f"{name}/etas_prev"], rtol=1e-13)
    np.testing.assert_array_equal(schedule.timesteps, golden[f"{name}/timestep_map"])


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "respaced_last"])
def test_posterior_coefficients_are_exact(name):
    golden = load_golden("schedule")
    steps = len(SCHEDULES[name].timesteps)
    with jax.enable_x64(True):
        one, zero = jnp.ones((steps, 1, 1, 1)), jnp.zeros((steps, 1, 1, 1))
        t = jnp.arange(steps)
        of_x_t, std = diffusion.posterior_mean_std(SCHEDULES[name], zero, one, one, t)
        of_x_0, _ = diffusion.posterior_mean_std(SCHEDULES[name], one, zero, one, t)
    for actual, key in [
        (of_x_t, "posterior_mean_coef1"),
        (of_x_0, "posterior_mean_coef2"),
        (std**2, "posterior_variance"),
    ]:
        np.testing.assert_allclose(np.ravel(actual), golden[f"{name}/{key}"], rtol=1e-12)


def test_forward_process_matches_golden(golden):
    images = (golden["gt"], golden["bicubic"], golden["noise_weight"])
    x_t = diffusion.q_sample(RELEASED, *images, golden["noise"], golden["t"])
    assert_unshuffled_close(x_t, golden["x_t"])
    assert_unshuffled_close(diffusion.scale_input(RELEASED, x_t, golden["t"]), golden["scaled_x_t"])


def test_prior_matches_golden(golden):
    x_t = diffusion.prior_sample(
        RELEASED, golden["bicubic"], golden["noise_weight"], golden["noise"]
    )
    assert_unshuffled_close(x_t, golden["prior"])


def test_the_built_in_config_trains_on_the_states_that_sampling_starts_from():
    schedule = Schedule.create(**lite_x4.get_config().diffusion)
    x_0, y, weight, noise = jnp.asarray(seeded("states", (4, 1, 8, 8, 3)))
    x_t = diffusion.q_sample(schedule, x_0, y, weight, noise, len(schedule.timesteps) - 1)
    np.testing.assert_allclose(
        x_t, diffusion.prior_sample(schedule, y, weight, noise), atol=1e-6, rtol=0
    )


def test_reverse_steps_match_golden(golden):
    x_0, w, t = golden["pred_x0"], golden["noise_weight"], golden["t"]
    x_t = diffusion.q_sample(RELEASED, golden["gt"], golden["bicubic"], w, golden["noise"], t)
    mean, std = diffusion.posterior_mean_std(RELEASED, x_0, x_t, w, t)
    assert_unshuffled_close(mean, golden["posterior_mean"])
    assert_unshuffled_close(std**2, golden["posterior_variance"])
    assert_unshuffled_close(
        diffusion.ddim_step(RELEASED, x_0, x_t, golden["bicubic"], t), golden["ddim_prev"]
    )


def random_images(number, dtype=None):
    return [jax.random.normal(jax.random.key(i), (5, 4, 8, 3), dtype) for i in range(number)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_ddim_step_with_the_true_image_follows_the_forward_process(name):
    schedule = SCHEDULES[name]
    with jax.enable_x64(True):
        x_0, y, w, noise = random_images(4)
        for t in range(len(schedule.timesteps)):
            x_t = diffusion.q_sample(schedule, x_0, y, w, noise, t)
            x_prev = diffusion.ddim_step(schedule, x_0, x_t, y, t)
            expected = diffusion.q_sample(schedule, x_0, y, w, noise, t - 1) if t else x_0
            np.testing.assert_allclose(x_prev, expected, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_ancestral_step_keeps_the_marginals(name):
    # q(x_{t-1} | x_0) has the mean of the step's mean and the sum of both variances.
    schedule = SCHEDULES[name]
    with jax.enable_x64(True):
        x_0, y, w, _ = random_images(4)
        for t in range(1, len(schedule.timesteps)):
            mean, std = diffusion.q_mean_std(schedule, x_0, y, w, t)
            step_mean, step_std = diffusion.posterior_mean_std(schedule, x_0, mean, w, t)
            prev_mean, prev_std = diffusion.q_mean_std(schedule, x_0, y, w, t - 1)
            ratio = schedule.etas[t - 1] / schedule.etas[t]
            np.testing.assert_allclose(step_mean, prev_mean, atol=1e-12)
            np.testing.assert_allclose((ratio * std) ** 2 + step_std**2, prev_std**2, atol=1e-12)


def test_ancestral_step_adds_noise_of_the_posterior():
    x_0, x_t, w, noise = random_images(4)
    mean, std = diffusion.posterior_mean_std(RELEASED, x_0, x_t, w, 3)
    stepped = diffusion.ancestral_step(RELEASED, x_0, x_t, w, noise, 3)
    np.testing.assert_allclose((stepped - mean) / std, noise, atol=1e-4)


def test_the_last_step_returns_the_prediction_bit_for_bit():
    x_0, x_t, y, noise = random_images(4)
    np.testing.assert_array_equal(diffusion.ddim_step(RELEASED, x_0, x_t, y, 0), x_0)
    np.testing.assert_array_equal(diffusion.ancestral_step(RELEASED, x_0, x_t, y, noise, 0), x_0)


def test_steps_per_sample_traced_or_plain_agree():
    x_0, y, w, noise = random_images(4)
    per_sample = jnp.array([4, 0, 3, 3, 1])
    q_sample = jax.jit(lambda t: diffusion.q_sample(RELEASED, x_0, y, w, noise, t))
    batch = q_sample(per_sample)
    for i, t in enumerate([4, 0, 3, 3, 1]):
        plain = diffusion.q_sample(RELEASED, x_0, y, w, noise, t)
        np.testing.assert_allclose(batch[i], plain[i], atol=1e-6)
        np.testing.assert_allclose(q_sample(jnp.int32(t))[i], plain[i], atol=1e-6)


def test_half_precision_states_get_float32_coefficients():
    x_t = random_images(1, jnp.bfloat16)[0]
    scaled = diffusion.scale_input(RELEASED, x_t, 2)
    assert scaled.dtype == jnp.float32
    std = np.sqrt(0.4018390448 * 6.25 * 0.3 + 0.25)
    np.testing.assert_allclose(scaled, x_t.astype(jnp.float32) / std, rtol=1e-6)


@pytest.mark.parametrize("kappa", [0.0, -2.5])
def test_a_kappa_that_is_not_positive_is_named(kappa):
    with pytest.raises(ValueError, match=f"positive kappa, got kappa={kappa}"):
        Schedule.create(kappa=kappa)


def test_impossible_numbers_of_steps_are_named():
    with pytest.raises(ValueError, match="steps=1"):
        Schedule.create(steps=1)
    with pytest.raises(ValueError, match=r"1\.\.5, got 6"):
        diffusion.respace(RELEASED, 6)
    with pytest.raises(ValueError, match="spacing 'first': choose one of last, released"):
        diffusion.respace(RELEASED, 3, "first")


def test_fewer_steps_can_start_where_training_did():
    kept = [diffusion.respace(RELEASED, steps, "last").timesteps.tolist() for steps in range(1, 6)]
    assert kept == [[4], [0, 4], [0, 2, 4], [0, 1, 3, 4], [0, 1, 2, 3, 4]]
    y, weight, noise = random_images(3)
    for steps in range(1, 6):
        few = diffusion.respace(RELEASED, steps, "last")
        np.testing.assert_array_equal(
            diffusion.prior_sample(few, y, weight, noise),
            diffusion.prior_sample(RELEASED, y, weight, noise),
        )


def test_fewer_steps_are_those_of_the_released_code_but_for_one_alone():
    kept = [diffusion.respace(RELEASED, steps).timesteps.tolist() for steps in range(1, 6)]
    assert kept == [[4], [0, 2], [0, 1, 3], [0, 1, 2, 3], [0, 1, 2, 3, 4]]  # int(T / S i)
    assert diffusion.respace(RELEASED, 3).etas[-1] == pytest.approx(0.667, abs=1e-3)


def test_as_many_steps_as_trained_are_the_same_in_any_spacing():
    for steps in (2, 5, 15, 100):
        schedule = Schedule.create(steps=steps)
        for spacing in diffusion.SPACINGS:
            same = diffusion.respace(schedule, steps, spacing)
            np.testing.assert_array_equal(same.timesteps, schedule.timesteps)
            np.testing.assert_array_equal(same.sqrt_etas, schedule.sqrt_etas)
