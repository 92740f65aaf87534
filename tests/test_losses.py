"""Training losses against PyTorch's numbers and their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden, manifest, nhwc, relative_error, seeded, thin_image, weights

from configs import tiny
from upsr_jax.convert import denoiser_from_torch, denoiser_to_torch, estimator_from_torch
from upsr_jax.diffusion import Schedule
from upsr_jax.losses import diffusion_loss, estimator_loss
from upsr_jax.models.atd import ATD
from upsr_jax.models.build import apply
from upsr_jax.models.swin_unet import SwinUNet
from upsr_jax.ops import pixel_shuffle
from upsr_jax.prior import Prior, make_prior

CONFIG = tiny.get_config()
SCHEDULE = Schedule.create(**CONFIG.diffusion)


def never(*_):
    raise AssertionError("LPIPS without weight must not cost anything")


def test_diffusion_loss_and_its_gradients_are_pytorchs():
    expected = golden("train_step_tiny")
    halves = [golden(f"train_step_tiny_gt_{i}")["gt"] for i in range(2)]
    lr, hr = nhwc(expected["lq"]), nhwc(np.concatenate(halves))
    noise = nhwc(seeded("noise", (2, 3, 256, 256)))

    def loss_fn(params, estimator_params, lr, hr, noise, t):
        seen = {}

        def denoise(x, timesteps, condition):
            seen["x"] = x
            seen["predicted"] = apply(SwinUNet(**CONFIG.model), params, x, timesteps, condition)
            return seen["predicted"]

        prior = make_prior(
            lambda image: apply(ATD(**CONFIG.estimator), estimator_params, image),
            lr,
            **CONFIG.prior,
        )
        loss, terms = diffusion_loss(SCHEDULE, denoise, never, prior, hr, noise, t, 0.0)
        return loss, (terms, seen)

    with jax.enable_x64(True):
        params = denoiser_from_torch(weights("unet_tiny"), CONFIG.model)
        estimator_params = estimator_from_torch(weights("atd_tiny"), CONFIG.estimator)
        value_and_grad = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
        (loss, (terms, seen)), gradients = value_and_grad(
            params, estimator_params, lr, hr, noise, expected["t"]
        )

    seen = jax.tree.map(np.asarray, seen)
    scale = np.sqrt(SCHEDULE.etas[expected["t"]] * 2.5**2 * 0.3 + 0.25)
    x_t = seen["x"] * scale[:, None, None, None]
    assert relative_error(thin_image(x_t), nhwc(expected["x_t"])) < 1e-7
    assert relative_error(thin_image(seen["predicted"]), nhwc(expected["pred_x0"])) < 1e-7
    mse = np.mean((seen["predicted"] - hr) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(mse, expected["mse"], rtol=1e-7)
    assert float(loss) == pytest.approx(expected["mse"].astype(np.float64).mean(), rel=1e-7)
    np.testing.assert_allclose(terms["mse"], mse, rtol=1e-12)
    gradients = denoiser_to_torch(gradients, CONFIG.model)
    for entry in manifest("unet_tiny"):
        if entry["kind"] == "parameter":
            norm = float(np.linalg.norm(gradients[entry["name"]]))
            # A bias in front of a group norm changes next to nothing: its gradient is rounding.
            expected_norm = float(expected[f"grad_norm/{entry['name']}"])
            assert norm == pytest.approx(expected_norm, rel=1e-6, abs=1e-14), entry["name"]


def test_estimator_loss_is_pytorchs():
    """The golden is in unit range, the loss's images are signed."""
    expected = golden("atd_tiny_gradients")
    with jax.enable_x64(True):
        params = estimator_from_torch(weights("atd_tiny"), CONFIG.estimator)
        loss, terms = jax.jit(
            lambda params, lr, hr: estimator_loss(
                lambda image: apply(ATD(**CONFIG.estimator), params, image), never, lr, hr, 0.0
            )
        )(params, 2 * nhwc(expected["x"]) - 1, 2 * nhwc(expected["target"]) - 1)
    assert float(loss) == pytest.approx(float(expected["l1"]), rel=1e-7)
    assert np.asarray(terms["l1"]).mean() == pytest.approx(float(loss), rel=1e-12)


def distance(image: jax.Array, reference: jax.Array) -> jax.Array:
    """Stand in for LPIPS: each batch's own number, by which a clipped image shows."""
    return jnp.mean(jnp.abs(image - reference), axis=(1, 2, 3))


def test_lpips_sees_the_clipped_prediction_and_has_its_weight():
    hr = jnp.full((2, 8, 8, 3), 0.5)
    predicted = jnp.full((2, 8, 8, 3), 3.0).at[1].set(-0.25)
    prior = Prior(hr, hr, jnp.ones_like(hr), jnp.zeros((2, 2, 2, 96)))
    loss, terms = diffusion_loss(
        SCHEDULE, lambda *_: predicted, distance, prior, hr, hr, jnp.array([0, 4]), 0.25
    )
    assert terms["mse"] == pytest.approx([2.5**2, 0.75**2])
    assert terms["lpips"] == pytest.approx([0.5, 0.75])
    assert loss == pytest.approx((2.5**2 + 0.75**2 + 0.25 * (0.5 + 0.75)) / 2)

    loss, terms = estimator_loss(
        lambda _: (predicted + 1) / 2, distance, jnp.zeros((2, 2, 2, 3)), hr, 0.25
    )
    assert terms["l1"] == pytest.approx([2.5 / 2, 0.75 / 2])  # in unit range
    assert terms["lpips"] == pytest.approx([0.5, 0.75])
    assert loss == pytest.approx(((2.5 + 0.75) / 2 + 0.25 * (0.5 + 0.75)) / 2)


def test_the_network_sees_the_schedules_timesteps():
    """An oracle that knows which row has which step and what state that gives."""
    hr, noise = (jax.random.normal(jax.random.key(i), (2, 8, 8, 3)) for i in range(2))
    prior = Prior(0 * hr, 0 * hr, jnp.full_like(hr, 0.5), jnp.zeros((2, 2, 2, 96)))
    t = np.array([1, 4])
    seen = {}

    def denoise(x, timesteps, condition):
        seen.update(x=pixel_shuffle(x), timesteps=timesteps, condition=condition)
        return hr

    loss, _ = diffusion_loss(SCHEDULE, denoise, never, prior, hr, noise, jnp.asarray(t), 0.0)
    assert loss == 0
    np.testing.assert_array_equal(seen["timesteps"], t)
    assert seen["condition"] is prior.condition
    eta = SCHEDULE.etas[t][:, None, None, None]
    x_t = (1 - eta) * hr + 2.5 * np.sqrt(eta) * 0.5 * noise
    np.testing.assert_allclose(seen["x"], x_t / np.sqrt(eta * 2.5**2 * 0.3 + 0.25), rtol=1e-5)
