"""Training losses against PyTorch's numbers and their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden, manifest, nhwc, relative_error, seeded, thin_image, weights

from configs import tiny
from upsr_jax.convert import denoiser_from_torch, denoiser_to_torch, estimator_from_torch
from upsr_jax.diffusion import Schedule
from upsr_jax.losses import diffusion_loss, distillation_loss, estimator_loss
from upsr_jax.models.atd import ATD
from upsr_jax.models.build import apply
from upsr_jax.models.swin_unet import SwinUNet
from upsr_jax.ops import pixel_shuffle, pixel_unshuffle
from upsr_jax.prior import Prior, make_prior
from upsr_jax.sampler import sample

CONFIG = tiny.get_config()
SCHEDULE = Schedule.create(**CONFIG.diffusion)


def never(*_):
    raise AssertionError("a distance without weight must not cost anything")


NO_LPIPS = {"lpips": (0.0, never)}


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
        loss, terms = diffusion_loss(SCHEDULE, denoise, NO_LPIPS, prior, hr, noise, t)
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
                lambda image: apply(ATD(**CONFIG.estimator), params, image), NO_LPIPS, lr, hr
            )
        )(params, 2 * nhwc(expected["x"]) - 1, 2 * nhwc(expected["target"]) - 1)
    assert float(loss) == pytest.approx(float(expected["l1"]), rel=1e-7)
    assert np.asarray(terms["l1"]).mean() == pytest.approx(float(loss), rel=1e-12)


def distance(image: jax.Array, reference: jax.Array) -> jax.Array:
    """Stand in for LPIPS: each batch's own number, by which a clipped image shows."""
    return jnp.mean(jnp.abs(image - reference), axis=(1, 2, 3))


def test_distances_see_the_clipped_prediction_and_have_their_weights():
    distances = {"lpips": (0.25, distance), "twice": (0.5, lambda *images: 2 * distance(*images))}
    hr = jnp.full((2, 8, 8, 3), 0.5)
    predicted = jnp.full((2, 8, 8, 3), 3.0).at[1].set(-0.25)
    prior = Prior(hr, hr, jnp.ones_like(hr), jnp.zeros((2, 2, 2, 96)))
    loss, terms = diffusion_loss(
        SCHEDULE, lambda *_: predicted, distances, prior, hr, hr, jnp.array([0, 4])
    )
    assert terms["mse"] == pytest.approx([2.5**2, 0.75**2])
    assert terms["lpips"] == pytest.approx([0.5, 0.75])
    assert terms["twice"] == pytest.approx([1.0, 1.5])
    assert loss == pytest.approx((2.5**2 + 0.75**2 + 1.25 * (0.5 + 0.75)) / 2)

    loss, terms = estimator_loss(
        lambda _: (predicted + 1) / 2, distances, jnp.zeros((2, 2, 2, 3)), hr
    )
    assert terms["l1"] == pytest.approx([2.5 / 2, 0.75 / 2])  # in unit range
    assert terms["lpips"] == pytest.approx([0.5, 0.75])
    assert loss == pytest.approx(((2.5 + 0.75) / 2 + 1.25 * (0.5 + 0.75)) / 2)


def test_the_network_sees_the_schedules_timesteps():
    """An oracle that knows which row has which step and what state that gives."""
    hr, noise = (jax.random.normal(jax.random.key(i), (2, 8, 8, 3)) for i in range(2))
    prior = Prior(0 * hr, 0 * hr, jnp.full_like(hr, 0.5), jnp.zeros((2, 2, 2, 96)))
    t = np.array([1, 4])
    seen = {}

    def denoise(x, timesteps, condition):
        seen.update(x=pixel_shuffle(x), timesteps=timesteps, condition=condition)
        return hr

    loss, _ = diffusion_loss(SCHEDULE, denoise, NO_LPIPS, prior, hr, noise, jnp.asarray(t))
    assert loss == 0
    np.testing.assert_array_equal(seen["timesteps"], t)
    assert seen["condition"] is prior.condition
    eta = SCHEDULE.etas[t][:, None, None, None]
    x_t = (1 - eta) * hr + 2.5 * np.sqrt(eta) * 0.5 * noise
    np.testing.assert_allclose(seen["x"], x_t / np.sqrt(eta * 2.5**2 * 0.3 + 0.25), rtol=1e-5)


SLOPES = np.array([0.9, 0.8, 0.7, 0.6, 0.5])  # of the linear teacher's x_0 in x_t, by timestep
ETAS = SCHEDULE.etas
SPREADS = np.sqrt(ETAS * 2.5**2 * 0.3 + 0.25)  # by which the network's input is divided


def linear_map() -> tuple[float, float]:
    """Return A and B of F(x_T, y) = A x_T + B y, of DDIM in SinSR's words (arXiv 2311.14760)."""
    a, b = 1.0, 0.0
    for eta, eta_prev, slope in zip(ETAS[::-1], [*ETAS[-2::-1], 0], SLOPES[::-1], strict=True):
        k = 1 - eta_prev + np.sqrt(eta_prev * eta) - np.sqrt(eta_prev / eta)
        m, j = np.sqrt(eta_prev / eta), eta_prev - np.sqrt(eta_prev * eta)
        a, b = (k * slope + m) * a, (k * slope + m) * b + j
    return a, b


def distil(student, lpips_weight: float = 0.0, consistency_weight: float = 1.0):
    """Return loss and terms of a student f(x, t, y) of full images, and x_T."""
    keys = jax.random.split(jax.random.key(0), 4)
    hr, y, noise = (0.1 * jax.random.normal(key, (2, 8, 8, 3)) for key in keys[:3])
    weight = jax.random.uniform(keys[3], hr.shape, minval=0.4)
    prior = Prior(y, y, weight, pixel_unshuffle(jnp.concatenate([y, y], -1)))

    def teach(x, t, _):
        slope, spread = (jnp.asarray(of_t)[t][:, None, None, None] for of_t in (SLOPES, SPREADS))
        return slope * spread * pixel_shuffle(x)

    def learn(x, t, condition):
        assert len(set(t.tolist())) == 1
        return student(pixel_shuffle(x), int(t[0]), pixel_shuffle(condition[..., 48:]))

    target = sample(SCHEDULE, teach, prior, noise)
    distances = {"lpips": (lpips_weight, distance)}
    loss, terms = distillation_loss(
        SCHEDULE, learn, distances, prior, hr, target, noise, consistency_weight
    )
    x_t = y + 2.5 * np.sqrt(ETAS[-1]) * weight * noise
    return loss, terms, x_t


def test_the_student_of_a_linear_teacher_is_known_in_both_directions():
    a, b = linear_map()
    assert (a, b) != pytest.approx((0.5, 0), abs=0.05)  # one step of the teacher's is another map

    def student(x, t, y, slope=a, back=1.0):
        if t == 0:
            return back * (x * SPREADS[0] - b * y) / a / SPREADS[-1]
        assert t == 4
        return slope * x * SPREADS[-1] + b * y

    _, terms, x_t = distil(student)
    assert terms.keys() == {"distil", "inverse", "truth"}
    assert jax.tree.map(np.ravel, terms) == {name: pytest.approx(0, abs=1e-9) for name in terms}

    loss, terms, _ = distil(lambda *xty: student(*xty, slope=a + 0.1), 0.25, 0.5)
    np.testing.assert_allclose(terms["distil"], np.mean((0.1 * x_t) ** 2, (1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(terms["inverse"], 0, atol=1e-9)
    assert min(terms["truth"]) > 1e-4 and min(terms["lpips"]) > 1e-2
    total = terms["distil"] + 0.5 * (terms["inverse"] + terms["truth"]) + 0.25 * terms["lpips"]
    assert loss == pytest.approx(np.mean(total))

    loss, terms, _ = distil(lambda *xty: student(*xty, back=0.5), consistency_weight=2.0)
    np.testing.assert_allclose(terms["distil"], 0, atol=1e-9)
    scaled = 0.5 * x_t / SPREADS[-1]
    np.testing.assert_allclose(terms["inverse"], np.mean(scaled**2, (1, 2, 3)), rtol=1e-4)
    assert loss == pytest.approx(2 * np.mean(terms["inverse"] + terms["truth"]))


def test_the_truths_term_does_not_teach_the_way_back():
    def truth(back):
        terms = distil(lambda x, t, y: (back if t == 0 else 1.0) * x + y)[1]
        return jnp.mean(terms["truth"]), jnp.mean(terms["inverse"])

    towards_truth, towards_inverse = jax.jacobian(truth)(0.7)
    assert towards_truth == 0 and abs(towards_inverse) > 1e-3


def test_without_consistency_the_student_is_asked_once_and_knows_one_timestep():
    asked = []
    _, terms, _ = distil(lambda x, t, y: asked.append(t) or x + y, consistency_weight=0.0)
    assert asked == [4] and terms.keys() == {"distil"}
