"""The prior against the golden batch and the uncertainty rule at its corners."""

import jax
import jax.numpy as jnp
import numpy as np
from golden import golden, nhwc
from photos import enlarge

from upsr_jax.prior import make_prior


def test_prior_matches_golden():
    with jax.enable_x64(True):
        arrays = golden("diffusion")
        expected = {name: jnp.asarray(nhwc(x)) for name, x in arrays.items() if x.ndim == 4}
        unit_estimate = (expected["estimate"] + 1) / 2
        prior = make_prior(lambda lr: unit_estimate, expected["lr"], un=0.1, min_noise=0.4)
    for actual, name in [
        (prior.bicubic, "bicubic"),
        (prior.estimate, "estimate"),
        (prior.noise_weight, "noise_weight"),
        (prior.condition[:1], "condition"),
    ]:
        error = np.linalg.norm(actual - expected[name])
        assert error < 2e-7 * np.linalg.norm(expected[name]), name


def constant_prior(difference, un=0.1, min_noise=0.4):
    """A prior whose estimate is `difference` brighter (in unit range) than its bicubic."""
    lr = jnp.full((1, 2, 2, 3), -0.5)
    estimate = jnp.full((1, 8, 8, 3), 0.25 + difference)
    return jax.jit(lambda lr: make_prior(lambda _: estimate, lr, un, min_noise))(lr)


def test_noise_weight_grows_with_the_disagreement_and_saturates():
    weights = [
        float(constant_prior(difference).noise_weight[0, 0, 0, 0])
        for difference in (0.0, 0.05, -0.05, 0.1, 0.6)
    ]
    np.testing.assert_allclose(weights, [0.4, 0.7, 0.7, 1.0, 1.0], atol=1e-5)


def test_zero_un_switches_the_weighting_off():
    np.testing.assert_array_equal(constant_prior(0.03, un=0.0).noise_weight, 1.0)


def test_the_estimator_sees_and_gives_unit_images():
    seen = []
    lr = jnp.array([-1.0, 0.0, 1.0]).reshape(1, 1, 3, 1).repeat(3, axis=-1)

    def estimate_fn(x):
        seen.append(x)
        return enlarge(x)

    prior = make_prior(estimate_fn, lr, un=0.1, min_noise=0.4)
    np.testing.assert_array_equal(seen[0][0, 0, :, 0], [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(prior.estimate[0, 0, ::4, 0], [-1.0, 0.0, 1.0])
    np.testing.assert_array_equal(prior.condition[..., :48].min(axis=(0, 1, 3)), [-1.0, 0.0, 1.0])


def test_without_an_estimator_or_its_estimate_the_bicubic_stands_in():
    lr = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 4, 4, 3)), jnp.float32)

    def fail(image):
        raise AssertionError("there is no estimator")

    usual = make_prior(enlarge, lr, 0.1, 0.4)
    none = make_prior(fail, lr, 0.1, 0.4, estimate="bicubic")
    np.testing.assert_array_equal(none.estimate, usual.bicubic)
    np.testing.assert_allclose(none.noise_weight, 0.4, rtol=1e-6)
    hidden = make_prior(enlarge, lr, 0.1, 0.4, condition="bicubic")
    for field in ("bicubic", "estimate", "noise_weight"):
        np.testing.assert_array_equal(getattr(hidden, field), getattr(usual, field))
    for prior in (none, hidden):
        np.testing.assert_array_equal(prior.condition[..., 48:], usual.condition[..., 48:])
        np.testing.assert_array_equal(prior.condition[..., :48], usual.condition[..., 48:])
