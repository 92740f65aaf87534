import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden

from upsr_jax import metrics
from upsr_jax.metrics.psnr_ssim import check_pair
from upsr_jax.ops import bicubic_upsample

psnr_y, ssim_y = jax.jit(metrics.psnr_y), jax.jit(metrics.ssim_y)


def golden_metrics(dtype: str) -> tuple[np.ndarray, ...]:
    """Compute PSNR-Y and SSIM-Y of the golden pairs; return them beside the expected ones."""
    file = golden("metrics")
    lr, hr = (jnp.asarray(file[name] / 255, dtype) for name in ("lq", "gt"))
    image = jnp.clip(bicubic_upsample(lr), 0, 1)
    psnr, ssim = psnr_y(image, hr), ssim_y(image, hr)
    assert psnr.dtype == ssim.dtype == dtype
    return np.asarray(psnr), file["psnr_y"], np.asarray(ssim), file["ssim_y"]


def test_golden_pairs_in_float64():
    with jax.enable_x64(True):
        psnr, golden_psnr, ssim, golden_ssim = golden_metrics("float64")
    np.testing.assert_allclose(psnr, golden_psnr, rtol=1e-6)
    np.testing.assert_allclose(ssim, golden_ssim, rtol=1e-6)


def test_golden_pairs_in_float32():
    psnr, golden_psnr, ssim, golden_ssim = golden_metrics("float32")
    np.testing.assert_allclose(psnr, golden_psnr, atol=1e-4)
    np.testing.assert_allclose(ssim, golden_ssim, atol=1e-5)


def test_psnr_of_a_constant_difference():
    """A grey difference d changes Y/255 by 219/255·d; only d = 0 is left with the added 1e-8."""
    grey = jnp.stack([jnp.full((12, 16, 3), 0.25), jnp.full((12, 16, 3), 0.5)])
    other = jnp.stack([jnp.full((12, 16, 3), 0.25), jnp.full((12, 16, 3), 0.6)])
    expected = [80, -20 * np.log10(0.1 * 219 / 255)]
    np.testing.assert_allclose(psnr_y(grey, other), expected, rtol=1e-5)


def test_psnr_does_not_round():
    grey = jnp.full((1, 8, 8, 3), 0.5)
    expected = -20 * np.log10(1e-3 * 219 / 255)
    np.testing.assert_allclose(psnr_y(grey, grey + 1e-3), [expected], atol=0.06)


def test_ssim_of_constant_images():
    """Without structure only the luminance term is left: (2xy + c1)/(x² + y² + c1)."""
    black, white = jnp.zeros((1, 16, 12, 3)), jnp.ones((1, 16, 12, 3))
    c1 = (0.01 * 255) ** 2
    expected = (2 * 16 * 235 + c1) / (16**2 + 235**2 + c1)
    np.testing.assert_allclose(ssim_y(black, white), [expected], rtol=1e-4)


def test_ssim_of_equal_and_of_inverted_images():
    """Inverted noise has negative structure everywhere, which counts as 0."""
    noise = jnp.asarray(np.random.default_rng(0).random((2, 32, 32, 3)), jnp.float32)
    np.testing.assert_allclose(ssim_y(noise, noise), [1, 1], rtol=1e-6)
    np.testing.assert_array_equal(ssim_y(noise, 1 - noise), [0, 0])


def test_the_ssim_to_learn_from_is_smooth_and_ssim_but_for_rounding():
    """Also where it is negative, and from any direction in which a picture can change."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        a, noise, step = (jnp.asarray(rng.uniform(0, 1, (2, 16, 20, 3))) for _ in range(3))
        b = 0.8 * a + 0.2 * noise
        np.testing.assert_allclose(1 - metrics.ssim_loss(a, b), ssim_y(a, b), atol=1e-3)
        for image in (b, 1 - b):
            ahead, behind = (metrics.ssim_loss(image + s * step, a) for s in (1e-6, -1e-6))
            slope = jax.jvp(lambda x: metrics.ssim_loss(x, a), (image,), (step,))[1]
            np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-5)
        assert (metrics.ssim_loss(1 - a, a) > 1.5).all() and not ssim_y(1 - a, a).any()


def test_ssim_window_is_eleven_pixels_wide():
    """A changed corner reaches the one window that holds it, and no window further in."""
    grey = jnp.full((1, 22, 22, 3), 0.5)
    corner, inside = grey.at[:, 0, 0].set(1.0), grey.at[:, 11, 11].set(1.0)
    assert ssim_y(corner[:, 1:], grey[:, 1:])[0] == 1
    assert ssim_y(grey, inside)[0] < ssim_y(grey, corner)[0] < 1


@pytest.mark.parametrize("level", [0.02, 0.98])
def test_float32_keeps_the_digits_of_faint_texture(level: float):
    """Next to black and white, Y² is a thousand times the variance that SSIM compares."""
    rng = np.random.default_rng(1)
    a, b = np.clip(level + rng.normal(0, 0.01, (2, 1, 64, 64, 3)), 0, 1)
    single = ssim_y(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    with jax.enable_x64(True):
        double = ssim_y(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(single, double, atol=1e-5)


def test_pairs_of_a_batch_are_independent():
    rng = np.random.default_rng(2)
    a, b = jnp.asarray(rng.random((2, 3, 16, 20, 3)), jnp.float32)
    for metric in (psnr_y, ssim_y):
        alone = jnp.concatenate([metric(a[i : i + 1], b[i : i + 1]) for i in range(3)])
        np.testing.assert_allclose(metric(a, b), alone, rtol=1e-6)


def test_unfit_images_are_refused():
    image = jnp.zeros((1, 16, 16, 3))
    with pytest.raises(ValueError, match=r"\(1, 16, 16, 3\) and \(1, 16, 15, 3\)"):
        check_pair(image, image[:, :, 1:])
    with pytest.raises(ValueError, match="at least 11 pixels, not 16x10"):
        ssim_y(image[:, :, 6:], image[:, :, 6:])


@pytest.mark.parametrize("metric", [metrics.psnr_y, metrics.ssim_y])
def test_images_on_a_canvas_have_the_value_they_have_alone(metric):
    """What lies beside them may be anything, even not a number."""
    rng = np.random.default_rng(3)
    sizes = np.array([[11, 25], [24, 13], [32, 32]], np.int32)
    canvases = np.full((2, 3, 32, 32, 3), np.nan, np.float32)
    alone = []
    for i, (height, width) in enumerate(sizes):
        pair = rng.random((2, height, width, 3), np.float32)
        canvases[:, i, :height, :width] = pair
        alone.append(float(metric(*jnp.asarray(pair[:, None]))[0]))
    found = jax.jit(metric)(*jnp.asarray(canvases), jnp.asarray(sizes))
    np.testing.assert_allclose(found, alone, rtol=1e-6)


def test_ssim_of_an_image_without_a_window_is_not_a_number():
    image = jnp.ones((2, 16, 16, 3))
    found = ssim_y(image, image, jnp.array([[11, 16], [10, 16]]))
    np.testing.assert_array_equal(found, [1, np.nan])
